"""What a request for an object means: the tables of APISIX's statuses, bodies and texts, without a port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from streamgw.config.plugins import PluginSet
from streamgw.control.admin.resources import MAX_TTL_S
from streamgw.core.hooks import Hooks, Plugin
from tests.support.admin_desk import NOW, ROUTE, UPSTREAM, Desk
from tests.support.certificates import issue

NO_ID = 'invalid configuration: property "id" validation failed: object matches none of the required'
NODES = {"127.0.0.1:1995": 1}
TIMES = {"create_time": int(NOW), "update_time": int(NOW)}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    return Desk(routes)


# There and back


async def test_an_object_that_is_put_becomes_a_file_that_a_person_can_read(desk: Desk) -> None:
    body = {"remote_addr": "127.0.0.1", "desc": "test-desc", **ROUTE}

    answer = await desk.put("stream_routes/1", body)

    assert answer.status_code == 201
    assert answer.json() == {"key": "/apisix/stream_routes/1", "value": {**body, "id": "1", **TIMES}}
    assert desk.files() == {
        "stream_routes/1.yaml": (
            'stream_routes:\n  - id: "1"\n    desc: test-desc\n    remote_addr: 127.0.0.1\n    upstream:\n'
            '      nodes:\n        "127.0.0.1:1995": 1\n      type: roundrobin\n'
            "    create_time: 1700000000\n    update_time: 1700000000\n"
        )
    }
    found = await desk.get("stream_routes/1")
    assert {name: found[name] for name in ("key", "value")} == answer.json()
    assert found["createdIndex"] <= found["modifiedIndex"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("stream_routes", ROUTE),
        ("upstreams", UPSTREAM),
        ("services", {"upstream": UPSTREAM}),
        ("ssls", {**issue("a.test").fields(), "sni": "a.test"}),
    ],
)
async def test_every_kind_goes_there_and_back(path: str, body: dict[str, Any], desk: Desk) -> None:
    assert (await desk.put(f"{path}/a", body)).status_code == 201
    assert (await desk.put(f"{path}/a", {**body, "desc": "x"})).status_code == 200
    assert (await desk.ask("PATCH", f"{path}/a", {"desc": "y"})).json()["value"]["desc"] == "y"
    assert (await desk.ask("GET", f"{path}/a")).status_code == 200
    created = await desk.ask("POST", path, body)
    assert created.status_code == 201
    assert (await desk.get(path))["total"] == 2
    assert (await desk.ask("DELETE", f"{path}/a")).json() == {"deleted": "a", "key": f"/apisix/{path}/a"}
    missing = await desk.ask("GET", f"{path}/a")
    assert (missing.status_code, missing.json()) == (404, {"message": "Key not found"})
    for method, more in (("DELETE", None), ("PATCH", {"desc": "z"})):
        gone = await desk.ask(method, f"{path}/a", more)
        assert (gone.status_code, gone.json()) == (404, {"message": "Key not found"})


async def test_new_objects_get_ids_of_twenty_digits_in_their_order(desk: Desk) -> None:
    ids = [(await desk.ask("POST", "stream_routes", ROUTE)).json()["value"]["id"] for _ in range(3)]

    assert ids == [f"{int(NOW * 1000) + number:020}" for number in range(3)]


async def test_a_put_keeps_the_time_of_creation(desk: Desk) -> None:
    await desk.put("stream_routes/1", ROUTE)
    desk.clock.now += 100

    value = (await desk.put("stream_routes/1", {**ROUTE, "desc": "x"})).json()["value"]

    assert (value["create_time"], value["update_time"]) == (int(NOW), int(NOW) + 100)


async def test_a_put_of_what_is_there_changes_no_file(desk: Desk) -> None:
    await desk.put("stream_routes/1", ROUTE)
    before = desk.files()
    desk.clock.now += 100

    assert (await desk.put("stream_routes/1", ROUTE)).status_code == 200

    assert desk.files() == before


async def test_what_a_person_wrote_is_edited_in_place(desk: Desk) -> None:
    text = "# Ask Ann.\nstream_routes:\n  - id: mysql # main\n    server_port: 9100\n  - id: redis\n#END\n"
    desk.write("mine.yaml", text)

    assert [item["key"] for item in (await desk.get("stream_routes"))["list"]] == [
        "/apisix/stream_routes/mysql",
        "/apisix/stream_routes/redis",
    ]
    await desk.ask("PATCH", "stream_routes/mysql", {"server_port": 9101, "update_time": 5, "create_time": 4})

    assert desk.files()["mine.yaml"] == text.replace(
        "9100\n", "9101\n    create_time: 4\n    update_time: 5\n"
    )


@pytest.mark.parametrize(
    "body", [{"create_time": 4}, {"update_time": 4}, {"create_time": 3, "update_time": 4}]
)
async def test_times_alone_can_be_patched(desk: Desk, body: dict[str, int]) -> None:
    await desk.ask("PUT", "stream_routes/1", ROUTE)

    answer = await desk.ask("PATCH", "stream_routes/1", body)

    assert (answer.status_code, answer.json()["value"]) == (200, {**ROUTE, "id": "1", **TIMES, **body})


@pytest.mark.parametrize("body", [{"update_time": None}, {"update_time": 4, "create_time": None}])
async def test_times_that_a_patch_takes_away_are_now(desk: Desk, body: dict[str, int | None]) -> None:
    """As APISIX's inject_timestamp: an object without them was stored."""
    await desk.ask("PUT", "stream_routes/1", ROUTE)

    answer = await desk.ask("PATCH", "stream_routes/1", body)

    told = {name: time for name, time in body.items() if time is not None}
    assert (answer.status_code, answer.json()["value"]) == (200, {**ROUTE, "id": "1", **TIMES, **told})


async def test_variables_are_shown_as_written(tmp_path: Path, desk: Desk) -> None:
    desk.write("mine.yaml", "stream_routes: [{id: a, desc: '${{HOST:=x}}'}]")

    assert (await desk.get("stream_routes/a"))["value"]["desc"] == "${{HOST:=x}}"


async def test_nothing_is_added_to_what_was_sent(desk: Desk) -> None:
    """ADC compares what it sent with what it gets: a default that appears makes every diff non-empty."""
    body = {
        "labels": {"__ADC_NAME": "a-route", "managed-by": "adc"},
        "plugins": {},
        "server_port": 9100,
        "upstream": {
            "nodes": [{"host": "a.test", "port": 1, "weight": 1, "priority": 0}],
            "pass_host": "pass",
        },
    }

    value = (await desk.put("stream_routes/1", body)).json()["value"]

    assert value == {**body, "id": "1", **TIMES}
    assert (await desk.get("stream_routes/1"))["value"] == value


async def test_keys_come_back_in_no_answer(desk: Desk) -> None:
    issued = issue("a.test")
    pair = {"client_cert": issued.cert, "client_key": issued.key}
    answers = [
        await desk.put("ssls/a", {**issued.fields(), "sni": "a.test"}),
        await desk.ask("POST", "ssls", {**issued.fields(), "sni": "b.test"}),
        await desk.ask("PATCH", "ssls/a", {"key": issued.key, "desc": "x"}),
        await desk.ask("GET", "ssls/a"),
        await desk.ask("GET", "ssls"),
        await desk.put("upstreams/u", {**UPSTREAM, "scheme": "tls", "tls": pair}),
        await desk.ask("GET", "upstreams"),
    ]

    assert [answer.status_code for answer in answers] == [201, 201, 200, 200, 200, 201, 200]
    secret = json.dumps(issued.key)[1:40]
    assert not any(secret in answer.text for answer in answers)
    assert answers[0].json()["value"]["cert"] == issued.cert
    assert issued.key.splitlines()[1] in desk.files()["ssls/a.yaml"]


async def test_answers_may_have_the_older_shape(tmp_path: Path) -> None:
    desk = Desk(tmp_path, version="v2")
    value = {**ROUTE, "id": "1", **TIMES}
    key = "/apisix/stream_routes/1"

    put = await desk.put("stream_routes/1", ROUTE)
    assert (put.status_code, put.json()) == (201, {"action": "set", "node": {"key": key, "value": value}})
    got = await desk.get("stream_routes/1")
    assert (got["action"], set(got["node"])) == ("get", {"key", "value", "createdIndex", "modifiedIndex"})
    listed = await desk.get("stream_routes")
    assert (listed["count"], listed["node"]["dir"], listed["node"]["nodes"]) == (1, True, [got["node"]])
    assert await desk.get("routes") == {"action": "get", "count": 0, "node": {"dir": True, "nodes": []}}
    patched = await desk.ask("PATCH", "stream_routes/1", {"desc": "x"})
    assert patched.json()["action"] == "compareAndSwap"
    assert (await desk.ask("POST", "stream_routes", ROUTE)).json()["action"] == "create"
    gone = await desk.ask("DELETE", "stream_routes/1")
    assert gone.json() == {"action": "delete", "deleted": "1", "key": key, "node": {}}


# Refusals


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("PUT", "stream_routes/1", b"", "missing configurations"),
        ("PUT", "stream_routes/1", b"null", "missing configurations"),
        ("POST", "stream_routes", b"", "missing configurations"),
        ("PUT", "stream_routes", ROUTE, "missing stream route id"),
        ("PUT", "upstreams/", UPSTREAM, "missing upstream id"),
        ("PUT", "services", {}, "missing service id"),
        ("PUT", "ssls", {}, "missing ssl id"),
        ("PUT", "stream_routes/1", {**ROUTE, "id": "2"}, "wrong stream route id"),
        ("PUT", "stream_routes/1", {**ROUTE, "id": None}, "wrong stream route id"),
        ("PUT", "stream_routes", {**ROUTE, "id": 0}, NO_ID),
        ("PUT", "upstreams/-3", {**UPSTREAM, "id": -3}, NO_ID),
        ("POST", "stream_routes/1", ROUTE, "wrong stream route id, do not need it"),
        ("POST", "upstreams", {**UPSTREAM, "id": "1"}, "wrong upstream id, do not need it"),
        ("PATCH", "stream_routes/there", b"", "missing new configuration"),
        ("PATCH", "stream_routes/there", b"[1]", "invalid configuration"),
        ("PATCH", "stream_routes/there", {"id": "2"}, "wrong stream route id"),
        ("PATCH", "stream_routes", {"desc": "x"}, "missing stream route id"),
        ("PATCH", "stream_routes/there/desc/x", {}, "invalid sub-path: /desc"),
        ("DELETE", "upstreams", None, "missing upstream id"),
        ("PUT", "stream_routes/1", {**ROUTE, "create_time": 1}, "the property is forbidden:  create_time"),
        ("PUT", "stream_routes/1", {"upstream": {**UPSTREAM, "update_time": 1}}, "the property is forbidden:  upstream.update_time"),
        ("PUT", "stream_routes/1", [1], "invalid configuration: wrong type: expected object, got table"),
        ("PUT", "stream_routes/1", b'"x"', "invalid configuration: wrong type: expected object, got string"),
        ("PUT", "stream_routes/1", {"remote_addr": ":/8"}, "invalid remote_addr: :/8"),
        ("POST", "stream_routes", {"server_addr": ":/8"}, "invalid server_addr: :/8"),
        ("PUT", "stream_routes/1", {"upstream_id": "invalid$"}, 'invalid configuration: property "upstream_id" validation failed: object matches none of the required'),
        ("PUT", "stream_routes/1", {"upstream_id": "9"}, "failed to fetch upstream info by upstream id [9], response code: 404"),
        ("PUT", "stream_routes/1", {"service_id": "9"}, "failed to fetch service info by service id [9], response code: 404"),
        ("PUT", "services/1", {"upstream_id": 9}, "failed to fetch upstream info by upstream id [9], response code: 404"),
        ("PUT", "upstreams/1", {**UPSTREAM, "scheme": "tls", "tls": {"client_cert_id": "9"}}, "failed to fetch ssl info by ssl id [9], response code: 404"),
        ("PUT", "upstreams/1", {"nodes": NODES, "type": "chash"}, "missing key"),
        ("PUT", "stream_routes/1", {"protocol": {"name": "redis"}}, "unknown protocol [redis]"),
        ("PUT", "stream_routes/1", {"plugins": {"nope": {}}}, "unknown plugin [nope]"),
        ("PUT", "stream_routes/1", {"server_port": 0}, 'invalid configuration: property "server_port" validation failed: expected 0 to be at least 1'),
        ("PUT", "stream_routes/1", {"server_prot": 1}, "invalid configuration: additional properties forbidden, found server_prot"),
        ("PUT", "ssls/1", {"sni": "a.test"}, "invalid configuration: then clause did not match"),
        ("PUT", "ssls/1", {"type": "client"}, "invalid configuration: else clause did not match"),
        ("PUT", "ssls/1", {"sni": "a", "cert": "x" * 128, "key": "y" * 64}, "failed to parse cert: PEM_read_bio_X509_AUX() failed"),
        ("PUT", "ssls/1", {"sni": "a", **issue("a").fields(), "certs": ["x" * 128], "keys": []}, "mismatched number of certs and keys"),
        ("PATCH", "stream_routes/there", {"server_port": "80"}, 'invalid configuration: property "server_port" validation failed: wrong type: expected integer, got string'),
    ],
)  # fmt: skip
async def test_a_request_that_is_refused_says_what_apisix_says(
    method: str, path: str, body: object, said: str, desk: Desk
) -> None:
    await desk.put("stream_routes/there", {**ROUTE, "desc": "x"})
    before = desk.files()

    answer = await desk.ask(method, path, body)

    assert (answer.status_code, answer.json()) == (400, {"error_msg": said})
    assert desk.files() == before


@pytest.mark.parametrize(
    "id_",
    [
        "%2e%2e",
        "..%2fx",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "a%00b",
        "x" * 65,
        "a%20b",
        "%C3%BC",
        ".hidden",
        "a\\b",
        "%ff",
        "a%0Ab",
    ],
)
async def test_an_id_that_is_no_file_name_writes_nothing(id_: str, desk: Desk) -> None:
    answers = [
        await desk.put(f"stream_routes/{id_}", ROUTE),
        await desk.put("stream_routes", {**ROUTE, "id": id_}),
    ]

    assert [answer.status_code in {400, 404} for answer in answers] == [True, True]
    assert (await desk.ask("GET", f"stream_routes/{id_}")).status_code == 404
    assert (await desk.ask("DELETE", f"stream_routes/{id_}")).status_code == 404
    assert desk.files() == {}
    assert [path.name for path in desk.routes.parent.iterdir()] == ["routes.d"]


async def test_a_path_cannot_be_climbed(desk: Desk) -> None:
    answer = await desk.put("stream_routes/../../../x", ROUTE)

    assert answer.status_code in {400, 404}
    assert desk.files() == {}


async def test_unicode_stays_what_it_is(desk: Desk) -> None:
    text = "größer 😀 \u200b 漢字\t\"'"

    await desk.put("stream_routes/1", {**ROUTE, "desc": text, "name": "\u2028"})

    value = (await desk.get("stream_routes/1"))["value"]
    assert (value["desc"], value["name"]) == (text, "\u2028")


async def test_what_follows_the_id_is_for_patch(desk: Desk) -> None:
    """APISIX overlooks it: there, this deletes the whole route."""
    await desk.put("stream_routes/1", ROUTE)

    for method in ("DELETE", "GET", "PUT", "POST"):
        answer = await desk.ask(method, "stream_routes/1/upstream", {} if method[0] == "P" else None)
        assert (answer.status_code, answer.json()) == (404, {"error_msg": "not found"})
    assert len(desk.files()) == 1


# Patches


async def test_a_patch_merges(desk: Desk) -> None:
    await desk.put("stream_routes/1", {**ROUTE, "desc": "x", "labels": {"a": "1"}})
    desk.clock.now += 5

    answer = await desk.ask(
        "PATCH", "stream_routes/1", {"desc": None, "labels": {"b": "2"}, "upstream": {"retries": 1}}
    )

    assert (answer.status_code, answer.json()["value"]) == (
        200,
        {
            "id": "1",
            "labels": {"a": "1", "b": "2"},
            "upstream": {**ROUTE["upstream"], "retries": 1},
            "create_time": int(NOW),
            "update_time": int(NOW) + 5,
        },
    )


async def test_a_patch_of_a_part_replaces_it(desk: Desk) -> None:
    await desk.put("stream_routes/1", ROUTE)

    value = (await desk.ask("PATCH", "stream_routes/1/upstream/nodes", {"a.test:1": 2})).json()["value"]

    assert value["upstream"] == {"nodes": {"a.test:1": 2}, "type": "roundrobin"}


# What is used


async def test_what_is_used_cannot_be_deleted(desk: Desk) -> None:
    await desk.put("upstreams/u", UPSTREAM)
    await desk.put("services/s", {"upstream_id": "u"})
    await desk.put("stream_routes/r", {"service_id": "s"})
    await desk.put("stream_routes/r2", {"upstream_id": "u"})
    said = "can not delete this service directly, stream_route [r] is still using it now"

    answers = [
        await desk.ask("DELETE", path)
        for path in ("services/s", "services/s?force=true", "services/s?force=1")
    ]

    assert [answer.status_code for answer in answers] == [400, 400, 400]
    assert [answer.json()["error_msg"] for answer in answers] == [
        said,
        f"{said}; force=true cannot help: without it the configuration would not load",
        said,
    ]
    for path in ("stream_routes/r", "services/s", "stream_routes/r2", "upstreams/u?force=true"):
        assert (await desk.ask("DELETE", path)).status_code == 200
    assert desk.files() == {}


# Versions


async def test_a_version_guards_against_lost_updates(desk: Desk) -> None:
    first = (await desk.put("stream_routes/1", ROUTE)).headers["etag"]
    second = (await desk.put("stream_routes/1", {**ROUTE, "desc": "2"}, headers={"If-Match": first})).headers[
        "etag"
    ]
    assert (await desk.ask("GET", "stream_routes/1")).headers["etag"] == second
    before = desk.files()

    for method, body in (("PUT", ROUTE), ("PATCH", {"desc": "3"}), ("DELETE", None)):
        stale = await desk.ask(method, "stream_routes/1", body, headers={"If-Match": first})
        assert stale.status_code == 412
        assert stale.json() == {"error_msg": "nothing was written: it is not the version that If-Match names"}
    assert desk.files() == before

    several = {"If-Match": f'"other", W/{second}'}
    assert (await desk.ask("PATCH", "stream_routes/1", {"desc": "3"}, headers=several)).status_code == 200
    assert (await desk.ask("DELETE", "stream_routes/1", headers={"If-Match": "*"})).status_code == 200
    assert (await desk.put("stream_routes/1", ROUTE, headers={"If-Match": "*"})).status_code == 412


async def test_an_object_that_must_be_new_is_only_added(desk: Desk) -> None:
    new = {"If-None-Match": "*"}

    assert (await desk.put("stream_routes/1", ROUTE, headers=new)).status_code == 201
    again = await desk.put("stream_routes/1", {**ROUTE, "desc": "x"}, headers=new)

    assert (again.status_code, "If-None-Match" in again.json()["error_msg"]) == (412, True)


async def test_of_two_writers_at_once_one_is_told(desk: Desk) -> None:
    version = (await desk.put("stream_routes/1", ROUTE)).headers["etag"]
    statuses: list[int] = []

    async def write(desc: str) -> None:
        answer = await desk.put("stream_routes/1", {**ROUTE, "desc": desc}, headers={"If-Match": version})
        statuses.append(answer.status_code)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(write, str(number))

    assert sorted(statuses) == [200, 412, 412, 412, 412]


# Live when it answers


async def test_the_answer_comes_when_the_workers_run_it(desk: Desk) -> None:
    for number in range(20):
        await desk.put("stream_routes/1", {**ROUTE, "desc": str(number)})
        assert desk.fleet.running == {
            ("stream_routes", "1"): desk.loader.load(desk.listeners).snapshot.sources["stream_routes", "1"]
        }


async def test_who_lags_is_named_in_the_answer(desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    desk.fleet.lags = True

    created = await desk.put("stream_routes/1", ROUTE)
    desk.fleet.running = {("stream_routes", "1"): "old"}
    deleted = await desk.ask("DELETE", "stream_routes/1")

    assert (created.status_code, created.json()["lagging_workers"]) == (202, [0])
    assert created.json()["value"]["id"] == "1"
    assert (deleted.status_code, deleted.json()["lagging_workers"]) == (202, [0])


# Times to live


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "PATCH"])
async def test_a_time_to_live_is_a_number(method: str, desk: Desk) -> None:
    answer = await desk.ask(method, "stream_routes/1?ttl=soon", ROUTE)

    assert (answer.status_code, answer.json()) == (
        400,
        {"error_msg": "invalid argument ttl: should be a number"},
    )


@pytest.mark.parametrize(
    "ttl", ["0", str(MAX_TTL_S + 1), "1e9", "1e999", "0e5", "-1", "nan", "٣", ".5", "1_0"]
)
async def test_a_time_to_live_has_bounds(ttl: str, desk: Desk) -> None:
    answer = await desk.put("stream_routes/1", ROUTE, params={"ttl": ttl})

    assert (answer.status_code, "invalid argument ttl: should be " in answer.json()["error_msg"]) == (
        400,
        True,
    )


async def test_an_object_with_a_time_to_live_says_when_it_goes(desk: Desk) -> None:
    assert (await desk.put("stream_routes/1?ttl=1.5", ROUTE)).json()["value"]["expire_time"] == int(NOW) + 2
    assert (await desk.put("stream_routes/2?ttl=1e2", ROUTE)).json()["value"]["expire_time"] == int(NOW) + 100
    assert "expire_time: 1700000002" in desk.files()["stream_routes/1.yaml"]
    kept = await desk.ask("PATCH", "stream_routes/1", {"desc": "x"})
    assert kept.json()["value"]["expire_time"] == int(NOW) + 2
    gone = await desk.put("stream_routes/1", ROUTE)
    assert "expire_time" not in gone.json()["value"]


# What is not here


@pytest.mark.parametrize(
    "path", ["routes", "consumers", "consumer_groups", "plugin_configs", "global_rules", "protos"]
)
async def test_collections_of_http_are_empty_and_say_so(path: str, desk: Desk) -> None:
    assert await desk.get(path) == {"list": [], "total": 0}
    assert (await desk.ask("GET", f"{path}/1")).json() == {"message": "Key not found"}
    for method in ("PUT", "POST", "PATCH", "DELETE"):
        answer = await desk.ask(method, f"{path}/1", {"uri": "/"} if method[0] == "P" else None)
        assert answer.status_code == 400
        assert answer.json()["error_msg"].startswith(f"{path} serve HTTP only")


async def test_credentials_are_not_found(desk: Desk) -> None:
    assert (await desk.ask("GET", "consumers/jack/credentials")).status_code == 404


async def test_without_a_listener_there_are_no_stream_routes_to_add(desk: Desk) -> None:
    desk.listeners = ()

    for method, path in (("PUT", "stream_routes/1"), ("POST", "stream_routes"), ("PATCH", "stream_routes/1")):
        answer = await desk.ask(method, path, ROUTE)
        assert (answer.status_code, answer.json()) == (
            400,
            {"error_msg": "stream mode is disabled, can not add stream routes"},
        )
    assert (await desk.get("stream_routes"))["total"] == 0
    assert (await desk.put("upstreams/1", UPSTREAM)).status_code == 201


# Metadata of plugins


@attrs.frozen(kw_only=True)
class Nothing:
    """The options of a plugin that has none."""


@attrs.frozen(kw_only=True)
class Metadata:
    level: int = 0


def plugin(name: str, metadata: type[object] | None = None) -> Plugin[Nothing]:
    return Plugin(
        name=name, priority=1, options=Nothing, build=lambda options, context: Hooks(), metadata=metadata
    )


def with_metadata(desk: Desk) -> None:
    desk.plugins = PluginSet(installed={"logger": plugin("logger", Metadata), "bare": plugin("bare")})


async def test_metadata_has_the_name_of_a_plugin_and_no_times(desk: Desk) -> None:
    with_metadata(desk)

    answer = await desk.put("plugin_metadata/logger", {"name": "x"})

    assert (answer.status_code, answer.json()["value"]) == (201, {"name": "x", "id": "logger"})
    assert (await desk.get("plugin_metadata"))["total"] == 1
    assert (await desk.ask("DELETE", "plugin_metadata/logger")).status_code == 200
    for name in ("nope", "bare"):
        unknown = await desk.put(f"plugin_metadata/{name}", {})
        assert (unknown.status_code, unknown.json()) == (400, {"error_msg": "invalid plugin name"})


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_metadata_is_only_put(method: str, desk: Desk) -> None:
    answer = await desk.ask(method, "plugin_metadata/logger", {})

    assert (answer.status_code, answer.json()) == (
        405,
        {"error_msg": f"not supported `{method}` method for plugin_metadata"},
    )


# The directory


@pytest.mark.parametrize(("method", "path"), [("PUT", "stream_routes/1"), ("DELETE", "stream_routes/1")])
async def test_a_broken_file_is_named_to_everybody_who_writes(method: str, path: str, desk: Desk) -> None:
    desk.write("broken.yaml", "stream_routes: [")

    answer = await desk.ask(method, path, ROUTE if method == "PUT" else None)

    assert answer.status_code == 409
    assert f"{desk.routes}/broken.yaml: line 1: not YAML" in answer.json()["error_msg"]


async def test_a_broken_file_is_no_trouble_for_who_reads(desk: Desk) -> None:
    """While somebody was editing one file the dashboard was empty, and ADC took it that there were no routes."""
    await desk.put("stream_routes/1", ROUTE)
    desk.write("mine.yaml", "stream_routes: [{id: mine, desc: before}]")
    assert (await desk.get("stream_routes"))["total"] == 2
    desk.write("mine.yaml", "stream_routes: [{id: mine, desc: ")
    desk.write("new.yaml", "stream_routes: [")

    assert (await desk.get("stream_routes"))["total"] == 2
    assert (await desk.get("stream_routes/mine"))["value"] == {"id": "mine", "desc": "before"}
    assert (await desk.ask("GET", "services")).json() == {"list": [], "total": 0}
    assert (await desk.put("stream_routes/1", {})).status_code == 409


async def test_ids_that_are_all_taken_are_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.ask("POST", "stream_routes", ROUTE)
    monkeypatch.setattr("streamgw.control.admin.resources._IDS", 1)

    answer = await desk.ask("POST", "stream_routes", ROUTE)

    assert (answer.status_code, answer.json()) == (409, {"error_msg": "no id is free; nothing was written"})
