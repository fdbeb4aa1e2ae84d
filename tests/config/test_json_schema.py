"""The schema and the rules say the same: what one accepts, the other does."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgw.config import json_schema
from streamgw.config.apisix import refusal
from streamgw.config.plugins import PluginSet
from streamgw.config.rules import Port
from streamgw.config.schema import COLLECTIONS
from streamgw.config.settings_schema import ConfigSpec
from streamgw.config.source_text import read_text
from streamgw.config.strict import Wrong, structure
from streamgw.config.yaml_reader import read_yaml
from streamgw.core.hooks import Hooks, Plugin
from tests.config.test_compile_golden import CASES, DASHES, ENVIRON

ROOT = Path(__file__).parents[2]
PEM = "-----BEGIN CERTIFICATE-----\n" + "x" * 200


def validator(schema: Mapping[str, Any]) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


OBJECTS = {name: validator(json_schema.of_object(name)) for name in json_schema.OBJECTS}
FILE = validator(json_schema.of_file())
CONFIG = validator(json_schema.of_config())

NODE_LIST = [
    {"host": "db.example", "port": 1, "weight": 0, "priority": -1},
    {"host": "[::1]", "port": 2, "weight": 1},
]
UPSTREAM: dict[str, Any] = {
    "id": "u",
    "name": "db",
    "nodes": {"10.0.0.1:80": 1, "[fd00::1]:443": 0, "a.b_c.:1": 2},
    "type": "roundrobin",
    "retries": 2,
    "retry_timeout": 0.5,
    "timeout": {"connect": 1, "send": 2.5, "read": 3},
    "scheme": "tls",
    "tls": {
        "client_cert": PEM,
        "client_key": "$env://KEY",
        "verify": True,
        "ca_certs": "system",
        "server_name": "a.b",
        "alpn": ["h2"],
    },
    "checks": {
        "active": {
            "type": "tcp",
            "timeout": 2.5,
            "concurrency": 1,
            "host": "a.b",
            "port": 80,
            "http_path": "/health",
            "http_req_body": "a",
            "req_headers": ["A: b"],
            "https_verify_certificate": False,
            "healthy": {"interval": 1, "http_statuses": [200], "successes": 2},
            "unhealthy": {"http_failures": 1, "tcp_failures": 2, "timeouts": 254},
            "streamgw": {
                "talk": [{"send": "a", "expect_regex": "b"}, {"send_hex": "0d 0A", "expect_hex": "00"}]
            },
        },
        "passive": {"type": "http", "healthy": {"successes": 0}, "unhealthy": {"timeouts": 0}},
        "streamgw": {
            "recover_after": "10s",
            "on_all_down": "closed",
            "on_marked_down": "close",
            "ejection": {"failures": 3, "time": 10, "max_time": "1m", "max_percent": 20},
        },
    },
    "pass_host": "node",
    "upstream_host": "x",
    "proxy_protocol": "v2",
    "labels": {"env": "prod"},
}
VALID: list[tuple[str, dict[str, Any]]] = [
    ("upstream", UPSTREAM),
    ("upstream", {"nodes": NODE_LIST}),
    ("service", {"id": 1, "type": "stream", "upstream": UPSTREAM, "upstream_id": 2, "hosts": ["a"]}),
    (
        "stream_route",
        {
            "id": "r",
            "desc": "d",
            "labels": {"a": "b"},
            "priority": -5,
            "status": 0,
            "remote_addr": "10.0.0.0/8",
            "server_addr": "::ffff:10.0.0.1",
            "server_ports": [80, "90-91"],
            "sni": "*.example",
            "alpn": ["h2"],
            "tls_passthrough": False,
            "upstream": {"nodes": NODE_LIST, "tls": {"client_cert_id": "c"}},
        },
    ),
    ("stream_route", {"remote_addrs": ["1.2.3.4", "fe80::/10"], "server_port": 1, "snis": ["*", "a"], "upstream_id": 1}),
    ("ssl", {"cert": PEM, "key": PEM, "sni": "a", "client": {"ca": PEM, "depth": 2}, "ssl_protocols": ["TLSv1.2"]}),
    ("ssl", {"cert": PEM, "key": PEM, "snis": ["a", "*.b"], "certs": [PEM], "keys": [PEM], "status": 1}),
    ("ssl", {"type": "client", "cert": PEM, "key": PEM}),
]  # fmt: skip

ODD_VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 2, 80, 65535, 65536, 0.5, 1e12 + 0.5, "", "a", "a b", "*", "*.a", "A.b", "x" * 64, "x" * 65,
    "x" * 257, "1.2.3.4", "1.2.3.4/33", "1.2.3.4/32", "010.0.0.1", "256.1.1.1", "10.0.0.0/255.0.0.0", "::", "::1/128",
    "::1/129", "1::2::3", "fe80::1%eth0", ":/8", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:1.2.3.4", "80", "80-90", "80-", "0-1",
    "tls", "tcp", "TLSv1.3", "v1", "chash", "roundrobin", "$env://X", "$SECRET://a/b", PEM, [], [80], ["a"], ["a", "a"],
    ["é"], {}, {"a": 1}, {"a": "b"}, {"a:80": 1}, {"a": 80}, {"::1:80": 1}, {"1.2.3:80": 1}, {"a:0": 1}, {"a:65536": 1},
    {"a:80": -1}, {"connect": 1, "send": 1}, [{"host": "a", "port": 1}], [{"host": "::1", "port": 1, "weight": 1}],
)  # fmt: skip


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        yield from places(inner, (*path, step))


@st.composite
def edited(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A valid object with something replaced, left out or added."""
    name, valid = draw(st.sampled_from(VALID))
    data: dict[str, Any] = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from([path for path in places(data) if path] or [("id",)]))
        inner: Any = data
        for step in outer:
            inner = inner[step]
        match draw(st.sampled_from(("replace", "remove", "add"))):
            case "replace":
                inner[last] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
            case "remove":
                inner.pop(last, None) if isinstance(inner, dict) else inner.pop(last)
            case _ if isinstance(inner, dict):
                known = json_schema.of_object(name)["properties"]
                key = draw(st.sampled_from([*known, "unknown", "x:1"]))
                inner[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return name, data


BY_COMPARISON = re.compile(
    "mismatched number of certs and keys|a gap between them|range like 9100-9200|unknown plugin|"
    "does not exist at layer 4|when a node is chosen|expected variables like|the weights may add up to|[Cc]ondition|[Ee]xpression"
)
"""What no schema can say, or need not."""


def complaints(name: str, data: object) -> list[str]:
    try:
        structure(data, COLLECTIONS[json_schema.OBJECTS[name]])
    except Wrong as wrong:
        return [fault.message for fault in wrong.faults]
    return []


@given(edited())
@settings(max_examples=400)
def test_whatever_is_written_the_schema_and_the_rules_agree(case: tuple[str, dict[str, Any]]) -> None:
    name, data = case

    said = complaints(name, data)
    errors = [f"{error.json_path}: {error.message}" for error in OBJECTS[name].iter_errors(data)]

    if errors:
        assert said, f"only the schema refuses: {errors}"
    else:
        assert all(BY_COMPARISON.search(message) for message in said), f"only the rules refuse: {said}"


@pytest.mark.parametrize(("name", "data"), VALID)
def test_what_is_valid_has_a_schema_that_says_so(name: str, data: dict[str, Any]) -> None:
    assert complaints(name, data) == []
    assert not list(OBJECTS[name].iter_errors(data))


GOOD_CASES = [case for case in CASES if "\nproblem " not in case.read_text()]


@pytest.mark.parametrize("case", GOOD_CASES, ids=lambda case: case.stem)
def test_what_compiles_fits_the_schema_of_a_file(case: Path) -> None:
    files = re.split(r"^=== .*\n", case.read_text().partition(DASHES)[0], flags=re.MULTILINE)

    for text in filter(str.strip, files):
        data = read_yaml(read_text("routes.yaml", text.encode(), ENVIRON)).data
        assert [error.message for error in FILE.iter_errors(data)] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").rglob("routes.d/*.yaml")), ids=lambda path: path.parts[-3]
)
def test_every_example_fits_the_schema_of_a_file(path: Path) -> None:
    assert [error.message for error in FILE.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize(
    "path", [ROOT / "conf/config.yaml", *sorted((ROOT / "examples").rglob("config.yaml"))], ids=lambda path: path.parts[-3]
)  # fmt: skip
def test_every_config_fits_its_schema(path: Path) -> None:
    assert [error.message for error in CONFIG.iter_errors(yaml.safe_load(path.read_text()))] == []


def test_a_config_that_is_wrong_does_not_fit() -> None:
    wrong = {
        "apisix": {"status": {"port": 0}, "proxy_mod": "stream"},
        "streamgw": {"limits": {"max_sessions": "many"}},
    }

    assert sorted(error.json_path for error in CONFIG.iter_errors(wrong)) == [
        "$.apisix", "$.apisix.status.port", "$.streamgw.limits.max_sessions",
    ]  # fmt: skip
    with pytest.raises(Wrong):
        structure(wrong, ConfigSpec)


def test_a_variable_may_stand_for_any_value() -> None:
    route = {"server_port": "${{PORT}}", "upstream": {"nodes": {"a:80": "${{WEIGHT:=1}}"}}}

    assert not list(FILE.iter_errors({"stream_routes": [route]}))
    assert list(OBJECTS["stream_route"].iter_errors(route)), "an object of the API is no text"


def test_a_file_may_have_empty_lists_and_what_serves_http() -> None:
    assert not list(FILE.iter_errors(None))
    assert not list(
        FILE.iter_errors({"stream_routes": None, "routes": [{"uri": "/"}], "plugin_metadata": []})
    )
    assert list(FILE.iter_errors({"stream_route": []}))


@attrs.frozen
class Wheel:
    """Rolls."""

    size: Port
    """In inches.

    More or less.
    """
    spokes: Annotated[int, lambda value: value] = 36
    kind: Literal["front", 1] = "front"
    maker: str | None = None


def test_a_class_says_what_its_source_says() -> None:
    assert json_schema.schema_of(Wheel) == {
        "type": "object",
        "description": "Rolls.",
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 65535, "description": "In inches.\n\nMore or less."},
            "spokes": {"default": 36},
            "kind": {"enum": ["front", 1], "default": "front"},
            "maker": {"type": "string"},
        },
        "additionalProperties": False,
        "required": ["size"],
    }  # fmt: skip


WHEEL = Plugin(name="wheel", priority=1, options=Wheel, build=lambda _options, _context: Hooks())
PLUGINS = PluginSet({"wheel": WHEEL, "off": attrs.evolve(WHEEL, name="off")}, frozenset({"wheel"}))


@pytest.mark.parametrize(
    ("plugins", "is_good"),
    [
        ({"wheel": {"size": 26, "_meta": {"disable": True}}}, True),
        ({"wheel": {"size": 0}}, False),
        ({"wheel": {"size": 26, "_meta": {"disabled": True}}}, False),
        ({"off": {"size": 26}}, False),
        ({"x": {}}, False),
    ],
)
@pytest.mark.parametrize(("name", "collection"), [("stream_route", "stream_routes"), ("service", "services")])
def test_plugins_that_are_there_have_their_schema(
    name: str, collection: str, plugins: dict[str, Any], *, is_good: bool
) -> None:
    data = {"plugins": plugins}

    assert (refusal(collection, data, plugins=PLUGINS) is None) == is_good
    assert validator(json_schema.of_object(name, PLUGINS)).is_valid(data) == is_good
    assert validator(json_schema.of_file(PLUGINS)).is_valid({collection: [data]}) == is_good


def test_every_plugin_that_is_installed_is_offered_if_nothing_else_is_said() -> None:
    every = attrs.evolve(PLUGINS, enabled=None)

    assert validator(json_schema.of_object("service", every)).is_valid({"plugins": {"off": {"size": 1}}})


def test_a_plugin_is_described_by_its_class() -> None:
    schema = json_schema.of_plugin(WHEEL)

    assert (schema["title"], schema["description"]) == ("wheel", "Rolls.")
    assert list(schema["properties"]) == ["size", "spokes", "kind", "maker", "_meta"]


def test_schemas_do_not_share_their_parts() -> None:
    json_schema.of_object("upstream")["properties"].clear()

    assert json_schema.of_object("upstream")["properties"]
