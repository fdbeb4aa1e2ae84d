"""Objects in the light of each other, by way of a whole load."""

from __future__ import annotations

import ipaddress

import pytest

from streamgw.config import resolution as resolution_module
from streamgw.config.compile import Loader
from streamgw.core.model import DatagramRules, Listener
from tests.config.test_compile import (
    EVERYWHERE,
    TO_A,
    TO_TLS,
    MemoryDirectory,
    load,
    problems,
    upstream_of,
    warnings,
)

SERVICES = """
services:
  - {id: inline, name: in one line, upstream: {nodes: {service:1: 1}}}
  - {id: named, upstream_id: shared}
  - {id: empty}
upstreams:
  - {id: shared, nodes: {shared:1: 1}}
"""


def test_routes_are_ordered_by_priority_then_file_then_position() -> None:
    compilation = load(
        b="stream_routes: [{id: b1}, {id: b2, priority: 5}]",
        a="stream_routes: [{id: a1, priority: -1}, {id: a2}, {id: a3}, {id: a4, priority: 5}]",
    )

    assert [route.id for route in compilation.snapshot.router.routes] == ["a4", "b2", "a2", "a3", "b1", "a1"]


def test_a_route_that_is_off_is_left_out() -> None:
    compilation = load(f"stream_routes: [{{id: a, status: 0, server_port: 1}}, {{id: b, status: 1, {TO_A}}}]")

    assert [route.id for route in compilation.snapshot.router.routes] == ["b"]
    assert ("stream_routes", "a") in compilation.snapshot.sources, "it is still there"
    assert compilation.warnings == ()


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        (TO_A, "stream_routes/r/upstream"),
        ("upstream_id: shared", "upstreams/shared"),
        (f"upstream_id: shared, {TO_A}", "upstreams/shared"),
        ("service_id: inline", "services/inline/upstream"),
        ("service_id: named", "upstreams/shared"),
        (f"service_id: inline, {TO_A}", "stream_routes/r/upstream"),
        ("service_id: inline, upstream_id: shared", "upstreams/shared"),
    ],
)
def test_what_wins_over_what(fields: str, key: str) -> None:
    compilation = load(f"stream_routes: [{{id: r, {fields}}}]" + SERVICES)

    upstream = upstream_of(compilation)

    assert upstream is not None
    assert upstream.key == key
    assert list(compilation.snapshot.upstreams) == [key], "only what a route can reach"


def test_a_route_names_its_service() -> None:
    (route,) = load("stream_routes: [{id: r, service_id: inline}]" + SERVICES).snapshot.router.routes

    assert (route.service_id, route.service_name) == ("inline", "in one line")


def test_a_route_has_rules_for_its_datagrams() -> None:
    text = (
        "stream_routes: [{id: a, udp: {responses: 1}, upstream: {nodes: {}}}, {id: b, upstream: {nodes: {}}}]"
    )

    said, silent = load(text).snapshot.router.routes

    assert said.udp == DatagramRules(responses=1)
    assert silent.udp == DatagramRules()


def test_what_two_routes_share_is_one_upstream() -> None:
    text = "stream_routes: [{id: a, server_port: 9100, service_id: inline}, {id: b, service_id: inline}]"

    one, other = load(text + SERVICES).snapshot.router.routes

    assert one.upstream is other.upstream


@pytest.mark.parametrize("fields", ["", "service_id: empty"])
def test_a_route_that_leads_nowhere_is_a_warning(fields: str) -> None:
    compilation = load(f"stream_routes:\n  - {{id: r, {fields}}}" + SERVICES)

    assert upstream_of(compilation) is None
    assert [str(warning) for warning in compilation.warnings] == [
        "routes.d/0.yaml:2:5 stream_routes[0]: no upstream: every session that matches is closed"
    ]


def test_a_service_for_http_is_a_warning() -> None:
    assert warnings(
        f"stream_routes: [{{id: r, service_id: s}}]\nservices: [{{id: s, type: http, {TO_A}}}]"
    ) == ["routes.d/0.yaml:1:37 stream_routes[0].service_id: service 's' is of type http, not stream"]


@pytest.mark.parametrize(
    ("fields", "rest", "is_refused"),
    [
        (f"upstream: {TO_TLS}", "", True),
        ("upstream_id: u", "upstreams: [{id: u, scheme: tls, nodes: {a:1: 1}}]", True),
        ("service_id: s", f"services: [{{id: s, upstream: {TO_TLS}}}]", True),
        (f"service_id: s, {TO_A}", f"services: [{{id: s, upstream: {TO_TLS}}}]", False),
        ("service_id: s", "services: [{id: s}]", False),
        (f"status: 0, upstream: {TO_TLS}", "", False),
        ("", "", False),
    ],
)
def test_tls_that_is_handed_on_is_not_put_into_tls(fields: str, rest: str, is_refused: bool) -> None:
    text = f"stream_routes: [{{id: r, tls_passthrough: true, {fields}}}]\n{rest}"

    if is_refused:
        (said,) = problems(text)
        assert "tls_passthrough: the client's TLS is handed on untouched" in said
    else:
        assert all(route.tls_passthrough for route in load(text).snapshot.router.routes)


def test_an_object_with_faults_causes_no_others_in_a_route_that_hands_tls_on() -> None:
    for name, collection in (("upstream_id", "upstreams"), ("service_id", "services")):
        text = f"stream_routes: [{{id: r, tls_passthrough: true, {name}: x}}]\n{collection}: [{{id: x, type: 1}}]"
        (said,) = (problem for problem in problems(text) if "nodes" not in problem)
        assert f"{collection}[0].type" in said
    assert len(problems("stream_routes: [{id: r, tls_passthrough: true, service_id: x}]")) == 1


def test_references_to_nothing_are_all_named() -> None:
    assert problems(
        "stream_routes:\n"
        "  - {id: a, upstream_id: shard}\n"
        "  - {id: b, service_id: nobody, upstream_id: shared, status: 0}\n"
        "services:\n"
        "  - {id: s, upstream_id: 7}\n"
        "upstreams: [{id: shared, nodes: []}]"
    ) == [
        "routes.d/0.yaml:2:26 stream_routes[0].upstream_id: no upstream has the id 'shard', did you mean 'shared'?",
        "routes.d/0.yaml:3:25 stream_routes[1].service_id: no service has the id 'nobody'",
        "routes.d/0.yaml:5:26 services[0].upstream_id: no upstream has the id '7'",
    ]


def test_thousands_of_dangling_references_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution_module, "_MAX_HINTS", 2)
    routes = "".join(f"  - {{id: r{number}, upstream_id: shard{number}}}\n" for number in range(5))

    said = problems("stream_routes:\n" + routes + "upstreams: [{id: shard, nodes: []}]")

    assert [problem.endswith("did you mean 'shard'?") for problem in said] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_an_id_defined_twice_names_both_places() -> None:
    assert problems(
        a="stream_routes:\n  - id: x\n  - id: 1\n    desc: one\n",
        b="upstreams: [{id: x, nodes: []}]\nstream_routes:\n  - desc: other\n    id: '1'\n  - {id: x}\n",
    ) == [
        "routes.d/b.yaml:4:9 stream_routes[0].id: '1' is already defined at routes.d/a.yaml:3",
        "routes.d/b.yaml:5:10 stream_routes[1].id: 'x' is already defined at routes.d/a.yaml:2",
    ]


def test_what_an_unreadable_file_defines_nobody_knows() -> None:
    """Its ids would all be reported as missing, and the one real problem drown."""
    assert problems(a="stream_routes: [{id: x, upstream_id: u}]", b="upstreams: {") == [
        problems(b="upstreams: {")[0]
    ]


def test_a_route_that_never_wins_is_a_warning() -> None:
    assert warnings(
        f"stream_routes:\n  - {{id: all, server_port: 9100, {TO_A}}}\n",
        f"stream_routes:\n  - {{id: part, server_port: 9100, remote_addr: 10.0.0.1, {TO_A}}}\n",
    ) == [
        "routes.d/1.yaml:2:5 stream_routes[0]: never wins: route all (routes.d/0.yaml:2) comes first and takes all"
        " it asks for"
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("server_port: 9100", []),
        ("server_port: 9105", [".server_port: no listener has port 9105"]),
        ("server_ports: [9101, 9105, 9106-9109, 9000-9999]", [
            ".server_ports[1]: no listener has port 9105",
            ".server_ports[2]: no listener has port 9106 to 9109",
        ]),
        ("server_addr: 127.0.0.1", []),
        ("server_addr: 10.0.0.0/8", []),
        ("server_addr: 10.0.0.0/8, server_port: 9101", [".server_addr: no listener with this port has an address in 10.0.0.0/8"]),
        ("server_addr: '::1', server_port: 9101", [".server_addr: no listener with this port has an address in ::1/128"]),
        ("server_addr: 10.0.0.1, server_port: 9105", [".server_port: no listener has port 9105"]),
    ],
)  # fmt: skip
def test_where_nobody_listens_is_a_warning(fields: str, said: list[str]) -> None:
    found = warnings(f"stream_routes: [{{id: a, {fields}, {TO_A}}}]")

    assert [warning.split("stream_routes[0]")[1] for warning in found] == said


@pytest.mark.parametrize(
    ("listeners", "address", "is_reached"),
    [
        ([Listener("tcp", "0.0.0.0", 1)], "10.0.0.1", True),
        ([Listener("tcp", "0.0.0.0", 1)], "::1", False),
        ([Listener("tcp", "::", 1)], "::1", True),
        ([Listener("tcp", "::", 1)], "10.0.0.1", False),
        ([Listener("tcp", "::", 1, dual_stack=True)], "10.0.0.1", True),
        ([Listener("tcp", "10.0.0.1", 1)], "10.0.0.0/24", True),
        ([Listener("tcp", "10.0.1.1", 1), Listener("tcp", "10.0.0.1", 1)], "10.0.0.0/24", True),
        ([Listener("tcp", "unix:", 0, path="/run/x")], "10.0.0.1", False),
        ([], "10.0.0.1", False),
    ],
)
def test_a_wildcard_has_every_address_of_its_family(
    listeners: list[Listener], address: str, is_reached: bool
) -> None:
    found = warnings(f"stream_routes: [{{server_addr: '{address}', {TO_A}}}]", listeners=tuple(listeners))

    assert [warning.partition(": ")[2] for warning in found] == (
        [] if is_reached else [f"no listener has an address in {ipaddress.ip_network(address)}"]
    )


def test_a_port_that_the_kernel_chooses_may_be_any() -> None:
    any_port = (Listener("tcp", "127.0.0.1", 0),)

    assert warnings(f"stream_routes: [{{server_ports: [1, 2-3], {TO_A}}}]", listeners=any_port) == []


def test_routes_and_upstreams_that_did_not_change_are_the_same_objects() -> None:
    directory = MemoryDirectory(
        {
            "a.yaml": f"stream_routes: [{{id: a, server_port: 1, {TO_A}}}, {{id: u, upstream_id: u}}]",
            "u.yaml": "upstreams: [{id: u, nodes: {a:1: 1}}]",
        }
    )
    loader = Loader(directory, environ={})
    before = loader.load(EVERYWHERE)

    directory.texts = {**directory.texts, "u.yaml": "upstreams: [{id: u, nodes: {a:1: 2}}]"}
    after = loader.load(EVERYWHERE)

    (same, old), (also, new) = before.snapshot.router.routes, after.snapshot.router.routes
    assert also is same
    assert new is not old
    assert new.upstream is not None
    assert new.upstream.nodes[0].weight == 2
    assert [str(each) for each in after.warnings] == [str(each) for each in before.warnings]


def test_warnings_of_routes_follow_the_listeners() -> None:
    loader = Loader(
        MemoryDirectory({"a.yaml": f"stream_routes: [{{id: a, server_port: 1, {TO_A}}}]"}), environ={}
    )

    assert loader.load(EVERYWHERE).warnings
    assert not loader.load((*EVERYWHERE, Listener("tcp", "127.0.0.1", 1))).warnings


def test_two_routes_that_name_an_upstream_have_the_same() -> None:
    one, other = load(
        "stream_routes: [{id: a, server_port: 1, upstream_id: u}, {id: b, server_port: 2, upstream_id: u}]\n"
        "upstreams: [{id: u, nodes: {a:1: 1}}]"
    ).snapshot.router.routes

    assert one.upstream is other.upstream
