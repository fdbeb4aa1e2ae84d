from __future__ import annotations

import hashlib
import json
import re

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgw.config import documents
from streamgw.config.documents import (
    Locations,
    ParsedFile,
    SourceFile,
    digest_of,
    parse_file,
    validate_object,
)
from streamgw.config.schema import COLLECTIONS, StreamRouteSpec, UpstreamSpec
from streamgw.config.source_text import EMPTY
from streamgw.config.strict import Fault


def source_file(text: str, *, path: str = "a.yaml") -> SourceFile:
    raw = text.encode()
    return SourceFile(f"routes.d/{path}", raw, hashlib.sha256(raw).hexdigest(), path)


def parse(text: str, *, path: str = "a.yaml", **environ: str) -> ParsedFile:
    return parse_file(source_file(text, path=path), environ)


def problems(text: str) -> list[str]:
    parsed = parse(text)
    assert parsed.is_readable
    return [str(problem) for problem in parsed.problems]


def warnings(text: str) -> list[str]:
    parsed = parse(text)
    assert parsed.problems == ()
    return [str(warning) for warning in parsed.warnings]


def ids(text: str, path: str) -> list[str]:
    return [document.key[1] for document in parse(text, path=path).documents]


def test_a_real_apisix_yaml_works_as_it_is() -> None:
    parsed = parse(
        """\
stream_routes:
  - id: 1
    server_port: 9100
    upstream_id: 1
upstreams:
  - id: 1
    type: roundrobin
    nodes:
      "127.0.0.1:1995": 1
#END
"""
    )

    route, upstream = parsed.documents
    assert (parsed.problems, parsed.warnings) == ((), ())
    assert (route.key, str(route.source), route.path) == (
        ("stream_routes", "1"),
        "routes.d/a.yaml:2",
        ("stream_routes", 0),
    )
    assert (upstream.key, str(upstream.source)) == (("upstreams", "1"), "routes.d/a.yaml:6")
    assert route.data == {"id": 1, "server_port": 9100, "upstream_id": 1}
    assert route.digest == digest_of(route.data)
    assert isinstance(route.spec, StreamRouteSpec)
    assert isinstance(upstream.spec, UpstreamSpec)


def test_json_has_the_same_shape() -> None:
    parsed = parse('{"stream_routes": [\n  {"id": "a", "desc": "\\ud83d\\ude00"}]}', path="a.json")

    (route,) = parsed.documents
    assert str(route.source) == "routes.d/a.json:2"
    assert route.data["desc"] == "😀"


@pytest.mark.parametrize("text", ["{}", "#END", "stream_routes:\n", "stream_routes: []\nroutes:\nplugins:\n"])
def test_a_file_may_have_nothing(text: str) -> None:
    parsed = parse(text)

    assert (parsed.documents, parsed.problems, parsed.warnings) == ((), (), ())


def test_a_file_without_a_word_is_not_readable() -> None:
    parsed = parse("\n")

    assert [problem.message for problem in parsed.problems] == [EMPTY]
    assert not parsed.is_readable


def test_every_problem_has_its_line_and_column() -> None:
    text = """\
stream_routes:
  - server_prot: 9100
    upstream:
      nodes:
        - {host: a, port: 80, weight: 1}
        - host: a
          port: '80'
          weight: 1
  - id: two
    plugins: {limit-conn: 7}
  - nothing
stream_route: []
upstreams: {a: 1}
services: 0
"""

    assert problems(text) == [
        "routes.d/a.yaml:2:5 stream_routes[0].server_prot: unknown field 'server_prot', did you mean 'server_port'?",
        "routes.d/a.yaml:7:17 stream_routes[0].upstream.nodes[1].port: expected an integer 1–65535, got '80'",
        "routes.d/a.yaml:10:27 stream_routes[1].plugins.limit-conn: expected a mapping with the options of the plugin, got 7",
        "routes.d/a.yaml:11:5 stream_routes[2]: expected a mapping, got text",
        "routes.d/a.yaml:12:1 stream_route: unknown field 'stream_route', did you mean 'stream_routes'?",
        "routes.d/a.yaml:13:12 upstreams: expected a list, got a mapping",
        "routes.d/a.yaml:14:11 services: expected a list, got 0",
    ]


def test_of_a_broken_object_the_key_is_known() -> None:
    parsed = parse("upstreams: [{id: good, nodes: []}, {id: bad}, {}, 5]")

    assert [(document.key[1], document.spec is None) for document in parsed.documents] == [
        ("good", False),
        ("bad", True),
        ("a.yaml-3", True),
    ]


def test_a_file_that_cannot_be_parsed_has_one_problem_and_no_keys() -> None:
    parsed = parse("upstreams: [")

    assert not parsed.is_readable
    assert len(parsed.problems) == 1
    assert parsed.documents == ()


def test_the_root_is_a_mapping() -> None:
    assert problems("- id: 1") == ["routes.d/a.yaml:1:1: expected a mapping of collections, got a list"]


def test_a_missing_variable_is_a_problem_of_the_file() -> None:
    assert str(parse("a: ${{X}}").problems[0]) == "routes.d/a.yaml:1:4: can't find environment variable X"


def test_variables_may_stand_for_anything() -> None:
    (document,) = parse("stream_routes: [{id: a, server_port: ${{PORT}}}]", PORT="9100").documents

    assert document.data["server_port"] == 9100


def test_collections_for_http_are_named_in_one_warning() -> None:
    assert warnings("routes: [{uri: /}]\nconsumers: [{}]\nstream_routes: []\nprotos: []") == [
        "routes.d/a.yaml:1:1 routes: HTTP only, does nothing at layer 4: routes, consumers"
    ]


def test_plugins_and_secrets_are_named() -> None:
    assert warnings("plugins: [{name: x}]\nsecrets: [{}]") == [
        "routes.d/a.yaml:1:1 plugins: does nothing: stream_plugins of config.yaml says which plugins are on",
        "routes.d/a.yaml:2:1 secrets: does nothing: values are taken from $env://NAME and $file://PATH",
    ]


def test_metadata_of_a_plugin_has_fields_of_its_own() -> None:
    assert warnings("plugin_metadata: [{id: syslog, log_format: {host: $host}}]") == []


def test_settings_without_effect_have_their_line() -> None:
    assert warnings("upstreams:\n  - nodes: {a:1: 1}\n    pass_host: node\n") == [
        "routes.d/a.yaml:3:5 upstreams[0].pass_host: does nothing at layer 4"
    ]


def test_an_object_without_an_id_is_called_after_its_file_and_place() -> None:
    assert ids("stream_routes: [{}, {id: x}, {}]", "mysql.yaml") == ["mysql.yaml-1", "x", "mysql.yaml-3"]


@pytest.mark.parametrize(
    ("path", "readable"),
    [
        ("team a/mysql.yaml", "team_a_mysql.yaml"),
        ("team/a-mysql.yaml", "team_a-mysql.yaml"),
        ("x" * 90 + ".yaml", "x" * 35 + ".yaml"),
        ("é.yaml", "_.yaml"),
        ("\udcff.yaml", "_.yaml"),
    ],
)
def test_a_path_that_is_no_id_is_told_apart_by_its_digest(path: str, readable: str) -> None:
    (found,) = ids("stream_routes: [{}]", path)

    assert re.fullmatch(re.escape(readable) + "-[0-9a-f]{8}-1", found)
    assert len(found) <= 64


def test_a_file_without_a_path_is_called_after_its_name() -> None:
    found = [
        parse_file(SourceFile(name, b"stream_routes: [{}]", ""), {}).documents[0].key[1]
        for name in ("a.yaml", "routes.d/x/a.yaml", "routes.d/y/a.yaml")
    ]

    assert found[0] == "a.yaml-1"
    assert re.fullmatch("routes.d_x_a.yaml-[0-9a-f]{8}-1", found[1])
    assert re.fullmatch("routes.d_y_a.yaml-[0-9a-f]{8}-1", found[2])


def test_the_digest_is_of_the_content() -> None:
    data = {"id": "a", "server_port": 9100, "upstream": {"nodes": {"b:1": 1, "a:1": 2}}}
    same = {"upstream": {"nodes": {"a:1": 2, "b:1": 1}}, "server_port": 9100, "id": "b"}

    assert digest_of(data) == digest_of(same)
    assert re.fullmatch("[0-9a-f]{32}", digest_of(data))
    assert digest_of(data) != digest_of({**data, "server_port": "9100"})
    assert digest_of({"a": {"id": 1}}) != digest_of({"a": {"id": 2}}), "only the object's own id is its key"


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats() | st.text()))
def test_any_plain_data_has_a_digest(data: dict[str, object]) -> None:
    assert digest_of(data) == digest_of(dict(reversed(data.items())))


def test_one_object_can_be_checked_before_it_is_written() -> None:
    assert validate_object("stream_routes", {"id": "a", "upstream_id": "not looked up"}) != ()
    assert validate_object("stream_routes", {"id": "a", "upstream_id": "not-looked-up"}) == ()
    assert [
        str(problem)
        for problem in validate_object("upstreams", {"nodes": {"a:1": "1"}, "retrys": 1}, file="new.yaml")
    ] == [
        "new.yaml nodes['a:1']: expected an integer ≥ 0, got '1'",
        "new.yaml retrys: unknown field 'retrys', did you mean 'retries'?",
    ]
    assert [str(problem) for problem in validate_object("upstream", {}, file="x")] == [
        "x: unknown collection 'upstream', did you mean 'upstreams'?"
    ]


def test_places_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    locations = Locations(source_file("a: 1\nb: 2\n"), {})
    faults = [Fault(("b",), "two"), Fault(("a",), "one"), Fault(("b",), "key", at_key=True)]
    expected = [
        "routes.d/a.yaml:1:4 a: one",
        "routes.d/a.yaml:2:1 b: key",
        "routes.d/a.yaml:2:4 b: two",
    ]
    assert [str(problem) for problem in locations.problems(faults)] == expected

    def locate_again(*_: object) -> None:
        raise AssertionError("the places are known already")

    monkeypatch.setattr(documents, "locate", locate_again)

    assert [str(problem) for problem in locations.problems(faults)] == expected


FIELDS = sorted({field.name for kind in COLLECTIONS.values() for field in attrs.fields(kind)})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["tcp", "::1", "a:1", "1-2", "*"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*FIELDS, "host", "port", "weight", "a:1", "_meta", "connect"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*COLLECTIONS, "routes", "plugins", "x"]), st.lists(ANYTHING, max_size=3) | ANYTHING
    )
)
def test_whatever_a_file_says_it_is_read_or_refused_with_places(data: dict[str, object]) -> None:
    """Nothing that a person can write makes the gateway look broken instead of the file."""
    parsed = parse(json.dumps(data, indent=1), path="a.json")

    for problem in (*parsed.problems, *parsed.warnings):
        assert problem.line >= 1
        assert problem.column >= 1
    for document in parsed.documents:
        assert document.spec is not None or parsed.problems


def test_a_document_saved_from_the_api_may_be_put_here() -> None:
    text = "stream_routes_conf_version: 1700000000000\nstream_routes: [{id: a, modifiedIndex: 5}]\nroutes_conf_version: 0"

    assert parse(text).problems == ()
    assert warnings(text) == []
    assert problems("ssls_conf_version: new") == [
        "routes.d/a.yaml:1:20 ssls_conf_version: expected an integer, got 'new'"
    ]
