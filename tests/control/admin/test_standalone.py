"""The whole configuration at once, as APISIX's ingress controller sends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.plugins import NO_PLUGINS, PluginSet
from streamgw.config.source_text import SourceText
from streamgw.config.survey import Survey
from streamgw.config.tree import Moment, State, Tree
from streamgw.config.yaml_reader import read_yaml
from streamgw.control.admin.replies import RequestError, parse_json
from streamgw.control.admin.standalone import FILE, MAX_DIGEST, _render
from streamgw.core.model import Revision
from streamgw.plugins import BUILT_IN
from tests.support.admin_desk import NOW, UPSTREAM, Desk
from tests.support.certificates import issue

ROUTES = [
    {"id": "a", "upstream_id": "u", "modifiedIndex": 5},
    {"id": "b", "server_port": 9100, "upstream_id": "u"},
]
DOCUMENT: dict[str, Any] = {
    "stream_routes": ROUTES,
    "upstreams": [{"id": "u", **UPSTREAM}],
    "stream_routes_conf_version": 1_700_000_000_000,
}
YAML = {"Content-Type": "application/yaml"}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    return Desk(routes)


async def put(desk: Desk, document: object, digest: str = "d1", **headers: str) -> httpx.Response:
    return await desk.put("configs", document, headers={"X-Digest": digest, **headers})


def told(answer: httpx.Response) -> tuple[str | None, str | None]:
    return answer.headers.get("x-digest"), answer.headers.get("x-last-modified")


async def test_before_the_first_put_there_is_nothing(desk: Desk) -> None:
    answer = await desk.ask("GET", "configs")

    assert answer.status_code == 200
    assert set(answer.json().values()) == {0}
    assert answer.json()["stream_routes_conf_version"] == 0
    assert told(answer) == told(await desk.ask("HEAD", "configs")) == (None, None)


async def test_a_set_becomes_one_file(desk: Desk) -> None:
    answer = await put(desk, DOCUMENT)

    assert (answer.status_code, answer.content, told(answer)) == (202, b"", ("d1", str(int(NOW))))
    (text,) = desk.files().values()
    assert text.startswith(
        "# Written by PUT /apisix/admin/configs. The next one replaces all of this file.\n# X-Digest: d1\n"
    )
    assert (
        "stream_routes:\n  - id: a\n    upstream_id: u\n    modifiedIndex: 5\n  - id: b\n    server_port: 9100\n"
        in text
    )
    assert set(desk.fleet.running) == {("stream_routes", "a"), ("stream_routes", "b"), ("upstreams", "u")}
    assert (desk.routes / FILE).stat().st_mode & 0o777 == 0o600


async def test_what_was_put_is_what_is_got(desk: Desk) -> None:
    await put(desk, DOCUMENT)

    answers = [await desk.ask(method, "configs") for method in ("GET", "HEAD")]

    got = answers[0].json()
    assert {name: got[name] for name in DOCUMENT} == DOCUMENT
    assert got["upstreams_conf_version"] == 1
    assert {told(answer) for answer in answers} == {("d1", str(int(NOW)))}
    assert answers[1].content == b""


async def test_yaml_goes_in_and_comes_out(desk: Desk) -> None:
    answer = await put(desk, b"stream_routes:\n- id: a\n  labels: {x: 'no'}\n", **YAML)
    assert answer.status_code == 202

    got = await desk.ask("GET", "configs", headers={"Accept": "application/yaml"})

    assert got.headers["content-type"].startswith("application/yaml")
    data = read_yaml(SourceText("", got.text, got.text)).data
    assert isinstance(data, dict)
    assert data["stream_routes"] == [{"id": "a", "labels": {"x": "no"}}]
    assert (await desk.get("configs"))["stream_routes"] == data["stream_routes"]


async def test_the_same_digest_changes_nothing(desk: Desk) -> None:
    await put(desk, DOCUMENT)
    before = desk.files()
    desk.clock.now += 100

    answer = await put(desk, {"stream_routes": []})

    assert (answer.status_code, answer.content) == (204, b"")
    assert desk.files() == before


@pytest.mark.parametrize(
    ("digest", "said"),
    [
        (None, "missing digest header"),
        ("", "missing digest header"),
        ("x" * (MAX_DIGEST + 1), f"invalid digest header: at most {MAX_DIGEST} printable characters"),
        ("a\tb", f"invalid digest header: at most {MAX_DIGEST} printable characters"),
    ],
)
async def test_a_digest_is_needed(digest: str | None, said: str, desk: Desk) -> None:
    answer = await desk.put("configs", DOCUMENT, headers={} if digest is None else {"X-Digest": digest})

    assert (answer.status_code, answer.json()) == (400, {"error_msg": said})
    assert desk.files() == {}


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"", {}, "invalid request body: empty request body"),
        (b" \n", {}, "invalid request body: empty request body"),
        (b"[]", {}, "invalid request body: an object is needed"),
        (b"{", {}, "invalid request body: Expecting property name"),
        (b"a: [", YAML, "invalid request body: invalid yaml request body: the body:1"),
        (b"a: 1\na: 2", YAML, "invalid request body: invalid yaml request body: the body:2"),
        (b"\xff", YAML, "invalid request body: invalid start byte"),
        (b"- a", YAML, "invalid request body: an object is needed"),
        (b'{"stream_routes": 1}', {}, "invalid request body: stream_routes must be a list"),
        (b'{"stream_routes": {"a": 1}}', {}, "invalid request body: stream_routes must be a list"),
    ],
)
async def test_a_body_that_is_no_document_is_refused(
    body: bytes, headers: dict[str, str], said: str, desk: Desk
) -> None:
    answer = await put(desk, body, **headers)

    assert answer.status_code == 400
    assert answer.json()["error_msg"].startswith(said)
    assert desk.files() == {}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"stream_routes": [{"id": "a"}, {"id": "b", "server_port": 0}]}, 'invalid stream_routes at index 1, err: invalid configuration: property "server_port" validation failed: expected 0 to be at least 1'),
        ({"stream_routes": [{"id": "a", "upstream_id": "none"}]}, "invalid stream_routes at index 0, err: failed to fetch upstream info by upstream id [none], response code: 404"),
        ({"upstreams": [1]}, "invalid upstreams at index 0, err: wrong type: expected object"),
        ({"stream_routes": [{"id": 1}, {"id": "1"}]}, "found duplicate id 1 in stream_routes"),
        ({"stream_routes_conf_version": "new"}, "stream_routes_conf_version must be a number"),
        ({"stream_routes_conf_version": True}, "stream_routes_conf_version must be a number"),
        ({"stream_routes_conf_version": 1.5}, "stream_routes_conf_version must be a number"),
        ({"routes_conf_version": -1}, "routes_conf_version must be greater than or equal to (1)"),
    ],
)  # fmt: skip
async def test_a_set_with_anything_wrong_is_refused_as_a_whole(
    document: dict[str, Any], said: str, desk: Desk
) -> None:
    await put(desk, {"stream_routes": [{"id": "old"}], "stream_routes_conf_version": 0})
    before = desk.files()

    answer = await put(desk, document, "d2")

    assert (answer.status_code, answer.json()) == (400, {"error_msg": said})
    assert desk.files() == before


async def test_what_will_not_be_looked_at_is_a_list_of_objects_all_the_same(desk: Desk) -> None:
    unchanged = {"upstreams": [{}, 1], "upstreams_conf_version": 0}

    answer = await put(desk, unchanged)

    assert (answer.status_code, answer.json()) == (
        400,
        {"error_msg": "invalid upstreams at index 1, err: wrong type: expected object"},
    )


@pytest.mark.parametrize("version", [b"{}", b"1e999", b"-.inf", b".nan"])
async def test_versions_that_are_no_numbers_are_not_valid(desk: Desk, version: bytes) -> None:
    body = b"upstreams_conf_version: " + version
    answer = await desk.ask("POST", "configs/validate", body, headers=YAML)

    assert (answer.status_code, answer.json()) == (
        400,
        {"error_msg": "upstreams_conf_version must be a number"},
    )


async def test_versions_only_go_forward(desk: Desk) -> None:
    await put(desk, DOCUMENT)

    older = await put(desk, {**DOCUMENT, "stream_routes_conf_version": 100}, "d2")
    assert older.json() == {
        "error_msg": "stream_routes_conf_version must be greater than or equal to (1700000000000)"
    }
    same = {"stream_routes_conf_version": 1_700_000_000_000, "upstreams_conf_version": 1.0}
    assert (await put(desk, same, "d3")).status_code == 202
    got = await desk.get("configs")
    assert (got["stream_routes"], got["upstreams_conf_version"]) == (ROUTES, 1)

    assert (await put(desk, {}, "d4")).status_code == 202
    got = await desk.get("configs")
    assert "stream_routes" not in got
    assert (got["stream_routes_conf_version"], got["upstreams_conf_version"]) == (1_700_000_000_001, 2)
    assert desk.fleet.running == {}


async def test_objects_keep_the_order_of_the_document(desk: Desk) -> None:
    await put(desk, {"stream_routes": [{"id": "a"}, {"id": "b"}]})
    await put(desk, {"stream_routes": [{"id": "b"}, {"id": "c"}, {"id": "a"}]}, "d2")

    assert [item["id"] for item in (await desk.get("configs"))["stream_routes"]] == ["b", "c", "a"]


async def test_keys_are_written_and_never_shown(desk: Desk) -> None:
    issued = issue("a.test")

    answer = await put(desk, {"ssls": [{"id": "s", "sni": "a.test", **issued.fields()}], "routes": []})

    assert answer.status_code == 202
    assert issued.key.splitlines()[1] in desk.files()[FILE]
    assert (await desk.get("configs"))["ssls"] == [{"id": "s", "sni": "a.test", "cert": issued.cert}]


async def test_what_serves_http_is_kept_and_does_nothing(desk: Desk) -> None:
    routes = [{"id": "r", "uri": "/", "upstream_id": "u"}, {"id": "r2"}]

    kept = {"routes": routes, "plugins": [{"name": "x"}], "secrets": [{"id": "vault/1"}]}
    document = {**DOCUMENT, **kept, "consumers": {}, "protos": None, "plugins_conf_version": 7}

    assert (await desk.ask("POST", "configs/validate", document)).status_code == 200
    assert (await put(desk, document)).status_code == 202

    got = await desk.get("configs")
    assert {name: got[name] for name in kept} == kept
    assert got["plugins_conf_version"] == 7
    assert len(desk.loader.load(desk.listeners).documents) == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stream_route", ", did you mean 'stream_routes'?"),
        ("upstream_conf_version", ", did you mean 'upstreams_conf_version'?"),
        ("x", ""),
    ],
)
async def test_a_name_that_nobody_knows_is_refused(name: str, hint: str, desk: Desk) -> None:
    """One letter was missing, and the set was empty."""
    await put(desk, DOCUMENT)
    before = desk.files()

    answers = [
        await put(desk, {name: [{"id": "1"}]}, "d2"),
        await desk.ask("POST", "configs/validate", {name: [{"id": "1"}]}),
        await desk.ask("POST", "configs/validate", f"{name}: []".encode(), headers=YAML),
    ]

    said = {"error_msg": f"invalid request body: unknown field '{name}'{hint}"}
    assert [(answer.status_code, answer.json()) for answer in answers] == [(400, said)] * 3
    assert desk.files() == before


async def test_a_document_that_was_read_from_apisix_can_be_put(desk: Desk) -> None:
    """There its headers are a part of it."""
    document = {**DOCUMENT, "X-Digest": "theirs", "X-Last-Modified": 1_700_000_000}

    assert (await desk.ask("POST", "configs/validate", document)).status_code == 200
    assert (await put(desk, document)).status_code == 202

    answer = await desk.ask("GET", "configs")
    assert told(answer) == ("d1", str(int(NOW)))
    assert not {"X-Digest", "X-Last-Modified"} & set(answer.json())
    assert set(desk.fleet.running) == {("stream_routes", "a"), ("stream_routes", "b"), ("upstreams", "u")}


# Beside others


async def test_objects_of_other_files_stay_and_are_not_taken_over(desk: Desk) -> None:
    desk.write("mine.yaml", "stream_routes:\n  - id: mine\n")

    assert (await put(desk, DOCUMENT)).status_code == 202
    taken = await put(desk, {"stream_routes": [{"id": "mine"}]}, "d2")

    assert taken.status_code == 409
    assert taken.json() == {
        "error_msg": f"nothing was written: stream_routes mine is defined in {desk.routes}/mine.yaml:2 already"
    }
    assert len(await desk.get("stream_routes") and desk.fleet.running) == 4


async def test_a_file_of_that_name_that_is_not_ours_is_left_alone(desk: Desk) -> None:
    desk.write(FILE, "stream_routes: []\n")

    for method in ("GET", "PUT"):
        answer = await desk.ask(method, "configs", DOCUMENT, headers={"X-Digest": "d"})
        assert answer.status_code == 409
        assert "was not written by PUT /apisix/admin/configs" in answer.json()["error_msg"]
    assert desk.files() == {FILE: "stream_routes: []\n"}


async def test_once_somebody_edited_it_the_digest_is_forgotten(desk: Desk) -> None:
    await put(desk, DOCUMENT)

    await desk.ask("PATCH", "stream_routes/b", {"desc": "by hand"})

    got = await desk.ask("GET", "configs")
    assert got.json()["stream_routes"][1]["desc"] == "by hand"
    assert told(got) == (None, str(int(NOW)))
    assert (await put(desk, {**DOCUMENT, "stream_routes_conf_version": 1_700_000_000_005})).status_code == 202
    assert "desc" not in (await desk.get("configs"))["stream_routes"][1]


async def test_a_broken_file_beside_it_is_a_conflict(desk: Desk) -> None:
    desk.write("a.yaml", "stream_routes: [{id: x, sni: 1}]")

    answer = await put(desk, DOCUMENT)

    assert answer.status_code == 409
    assert f"{desk.routes}/a.yaml:1" in answer.json()["error_msg"]


@pytest.mark.parametrize(
    "broken", [b"stream_routes: [", b"- a", b"stream_routes: 1", b"\xff", b"stream_routes: [{id: b}]\nx: ["]
)
async def test_a_broken_file_is_no_trouble_for_who_reads(broken: bytes, desk: Desk) -> None:
    """The set is what it was, but not what the client has put."""
    await put(desk, DOCUMENT)
    desk.write("mine.yaml", "stream_routes: [")
    path = desk.routes / FILE
    path.write_bytes(path.read_bytes().partition(b"stream_routes:")[0] + broken)

    got, head = await desk.ask("GET", "configs"), await desk.ask("HEAD", "configs")

    assert (got.status_code, head.status_code) == (200, 200)
    assert told(got) == told(head) == (None, str(int(NOW)))
    shown = DOCUMENT if broken != b"stream_routes: 1" else {"stream_routes_conf_version": 0}
    assert {name: got.json()[name] for name in shown} == shown
    assert (await put(desk, DOCUMENT, "d2")).status_code == 409


@pytest.mark.parametrize("blank", [b"", b" \n"])
async def test_a_file_that_was_cut_off_is_no_trouble_for_who_reads(blank: bytes, desk: Desk) -> None:
    """Its head went, too: it was called somebody else's, who should rename it."""
    await put(desk, DOCUMENT)
    (desk.routes / FILE).write_bytes(blank)

    got, head = await desk.ask("GET", "configs"), await desk.ask("HEAD", "configs")

    assert (got.status_code, head.status_code) == (200, 200)
    assert told(got) == told(head) == (None, str(int(NOW)))
    assert {name: got.json()[name] for name in DOCUMENT} == DOCUMENT
    refused = await put(desk, DOCUMENT, "d2")
    assert refused.status_code == 409
    assert "the file is empty" in refused.json()["error_msg"]


async def test_what_yaml_cannot_say_is_refused(desk: Desk) -> None:
    answer = await put(desk, {"routes": [{"x" * 2000: 1}]})

    assert answer.status_code == 400
    assert answer.json() == {
        "error_msg": "invalid request body: it holds a name that cannot be written as YAML"
    }


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.dictionaries(st.text(), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(item=st.dictionaries(st.text(), _json, max_size=4))
def test_whatever_json_says_the_file_says_too(item: dict[str, object]) -> None:
    """In a collection that nobody looks into."""
    raw = json.dumps({"routes": [item]}, ensure_ascii=False).encode()
    try:
        sent = parse_json(raw)
    except RequestError:
        return
    assert isinstance(sent, dict)
    moment = Moment(State((), {}, (), 0), Tree((), Revision("")))

    content, made = _render(sent, "d", "0", NO_PLUGINS, Survey(moment, {}))

    assert made.data["routes"] == sent["routes"]
    assert content.startswith(b"# Written by PUT")


async def test_a_variable_that_nobody_has_set_is_the_clients_to_mend(desk: Desk) -> None:
    answer = await put(desk, {"stream_routes": [{"id": "r", "desc": "${{NOBODY}}"}]})

    assert answer.status_code == 400
    assert answer.json() == {"error_msg": "invalid configuration: can't find environment variable NOBODY"}


# Validation


async def test_a_set_can_be_checked_without_writing(desk: Desk) -> None:
    document = {
        "stream_routes": [{"id": "a", "server_port": 0}, {"id": "a"}, 5],
        "routes": [{"id": "r"}],
        "upstreams": [{"id": "u", **UPSTREAM}],
        "consumers": [],
        "ssls": {},
    }

    answer = await desk.ask("POST", "configs/validate", document)

    assert answer.status_code == 400
    assert answer.json()["error_msg"] == "Configuration validation failed"
    assert [
        (error["resource_type"], error["resource_id"], error["index"]) for error in answer.json()["errors"]
    ] == [
        ("stream_routes", "a", 0),
        ("stream_routes", "a", 1),
        ("stream_routes", "", 2),
    ]
    assert answer.json()["errors"][1]["error"] == "found duplicate id a in stream_routes"
    assert desk.files() == {}


PLUGINS = PluginSet(dict(BUILT_IN), frozenset(BUILT_IN) - {"echo"})
LIMIT = {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}
SYSLOG = {"host": "127.0.0.1", "port": 514}


@pytest.mark.parametrize(
    ("plugins", "is_fine"),
    [
        ({"nope": {}}, False),
        ({"echo": {}}, False),
        ({"prometheus": 1}, False),
        ({"prometheus": {"_meta": {"priority": "x"}}}, False),
        ({"prometheus": {"_meta": {"filter": [["remote_addr", "123", "a"]]}}}, False),
        ({"ip-restriction": {}}, False),
        ({"ip-restriction": {"_meta": {"disable": True}}}, True),
        ({"ip-restriction": {"whitelist": ["10.0.0.0/8"]}}, True),
        ({"ip-restriction": {"whitelist": ["::1"], "blacklist": ["::1"]}}, False),
        ({"ip-restriction": {"whitelist": ["10.0.0.0/x"]}}, False),
        ({"ip-restriction": {"blacklist": [":/8"]}}, False),
        ({"limit-conn": LIMIT}, True),
        ({"limit-conn": {"conn": "a"}}, False),
        ({"limit-conn": {**LIMIT, "burst": -1}}, False),
        ({"limit-conn": {**LIMIT, "key_type": "x"}}, False),
        ({"mqtt-proxy": {"protocol_level": 4}}, True),
        ({"mqtt-proxy": {}}, False),
        ({"traffic-split": {"rules": [{"match": [{"vars": [["remote_addr", "123", "a"]]}]}]}}, False),
        ({"traffic-split": {"rules": [{"weighted_upstreams": []}]}}, False),
        ({"traffic-split": {"rules": [{"weighted_upstreams": [{"upstream": {"nodes": 1}}]}]}}, False),
        ({"traffic-split": {"rules": [{"weighted_upstreams": [{"upstream": UPSTREAM}]}]}}, True),
        ({"prometheus": {"prefer_name": 1}}, False),
        ({"prometheus": {"prefer_name": True}}, True),
        ({"syslog": SYSLOG}, True),
        ({"syslog": {"host": "127.0.0.1"}}, False),
        ({"syslog": {**SYSLOG, "sock_type": "x"}}, False),
        ({"syslog": {**SYSLOG, "pool_size": 4}}, False),
        ({"syslog": {**SYSLOG, "x": 1}}, False),
    ],
)
@pytest.mark.parametrize("kind", ["stream_routes", "services"])
async def test_what_is_said_of_plugins_is_what_a_write_says(
    kind: str, plugins: dict[str, Any], is_fine: bool, desk: Desk
) -> None:
    """`adc validate` was content with what `adc sync` could not write."""
    desk.plugins = PLUGINS
    item = {"plugins": plugins}

    whole = await desk.ask("POST", "configs/validate", {kind: [{"id": "ok"}, {"id": "o", **item}]})
    alone = await desk.ask("POST", f"schema/validate/{kind}", item)
    written = await put(desk, {kind: [{"id": "ok"}, {"id": "o", **item}]})
    one = await desk.put(f"{kind}/one", item)

    statuses = (whole.status_code, alone.status_code, written.status_code, one.status_code)
    if is_fine:
        assert statuses == (200, 200, 202, 201)
        return
    assert statuses == (400, 400, 400, 400)
    said = one.json()["error_msg"]
    assert alone.json() == {"error_msg": said.removeprefix("invalid configuration: ")}
    assert written.json() == {"error_msg": f"invalid {kind} at index 1, err: {said}"}
    assert whole.json() == {
        "error_msg": "Configuration validation failed",
        "errors": [{"resource_type": kind, "resource_id": "o", "index": 1, "error": said}],
    }


@pytest.mark.parametrize(
    ("metadata", "is_fine"),
    [
        ({"id": "syslog", "log_format": {"a": "$remote_addr"}}, True),
        ({"id": "syslog", "log_format": 1}, False),
        ({"id": "syslog", "x": 1}, False),
        ({"id": "nope", "x": 1}, True),
    ],
)
async def test_so_it_is_with_metadata(metadata: dict[str, Any], is_fine: bool, desk: Desk) -> None:
    """Of a plugin that is not here it does nothing: a file that has it loads, with a warning."""
    desk.plugins = PLUGINS
    document = {"plugin_metadata": [metadata]}

    checked = await desk.ask("POST", "configs/validate", document)
    written = await put(desk, document)

    assert (checked.status_code, written.status_code) == ((200, 202) if is_fine else (400, 400))
    if not is_fine:
        (error,) = checked.json()["errors"]
        assert written.json()["error_msg"] == f"invalid plugin_metadata at index 0, err: {error['error']}"


@pytest.mark.parametrize(
    ("body", "status", "content"),
    [
        (DOCUMENT, 200, {}),
        ({}, 200, {}),
        (b"", 400, {"error_msg": "invalid request body: empty request body"}),
    ],
)
async def test_a_good_set_has_nothing_to_be_said_of(
    body: object, status: int, content: dict[str, str], desk: Desk
) -> None:
    answer = await desk.ask("POST", "configs/validate", body)

    assert (answer.status_code, answer.json()) == (status, content)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "configs"),
        ("POST", "configs"),
        ("PATCH", "configs"),
        ("GET", "configs/validate"),
        ("GET", "configs/x"),
    ],
)
async def test_other_requests_are_not_found(method: str, path: str, desk: Desk) -> None:
    assert (await desk.ask(method, path)).json() == {"error_msg": "not found"}
