from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

from streamgw.config import compile as compile_module
from streamgw.config.compile import Compilation, Loader
from streamgw.config.documents import ParsedFile, SourceFile, parse_file
from streamgw.config.tls import TLSSettings
from streamgw.core.errors import ConfigError
from streamgw.core.model import Address, DatagramRules, Facts, Listener, Node, Revision, Upstream
from tests.support.certificates import CA_PEM

EVERYWHERE = (Listener("tcp", "::", 9100, dual_stack=True), Listener("tcp", "127.0.0.1", 9101))
TO_A = "upstream: {nodes: {a:1: 1}}"


@attrs.frozen
class MemoryTree:
    files: tuple[SourceFile, ...]
    revision: Revision


@attrs.define
class MemoryDirectory:
    """A directory of routes without a disk: change `texts`, load again."""

    texts: dict[str, str]

    def read(self) -> MemoryTree:
        files = tuple(
            SourceFile(f"routes.d/{path}", text.encode(), hashlib.sha256(text.encode()).hexdigest(), path)
            for path, text in self.texts.items()
        )
        return MemoryTree(files, Revision(hashlib.sha256(repr(self.texts).encode()).hexdigest()))


def load(*texts: str, listeners: tuple[Listener, ...] = EVERYWHERE, **files: str) -> Compilation:
    named = {f"{number}.yaml": text for number, text in enumerate(texts)}
    named |= {f"{name}.yaml": text for name, text in files.items()}
    return Loader(MemoryDirectory(named), environ={}).load(listeners)


def problems(*texts: str, **files: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*texts, **files)
    return [str(problem) for problem in caught.value.problems]


def warnings(*texts: str, listeners: tuple[Listener, ...] = EVERYWHERE) -> list[str]:
    return [str(warning) for warning in load(*texts, listeners=listeners).warnings]


def upstream_of(compilation: Compilation) -> Upstream | None:
    (route,) = compilation.snapshot.router.routes
    return route.upstream


def test_one_file_becomes_a_snapshot() -> None:
    compilation = load(
        "stream_routes: [{id: a, name: first, remote_addr: 10.0.0.0/8, upstream_id: 1}]\n"
        "upstreams: [{id: 1, nodes: {b:2: 3}}]"
    )

    (route,) = compilation.snapshot.router.routes
    assert (route.id, route.name, route.service_id, str(route.source)) == (
        "a",
        "first",
        "",
        "routes.d/0.yaml:1",
    )
    assert route.match.remote_addrs == (ipaddress.ip_network("10.0.0.0/8"),)
    assert route.upstream == Upstream(key="upstreams/1", nodes=(Node("b", 2, 3),))
    assert compilation.snapshot.upstreams == {"upstreams/1": route.upstream}
    assert compilation.snapshot.sources.keys() == {("stream_routes", "a"), ("upstreams", "1")}
    assert compilation.snapshot.sources["upstreams", "1"] == compilation.documents[1].digest
    assert compilation.warnings == ()


def test_the_snapshot_decides() -> None:
    snapshot = load(f"stream_routes: [{{id: a, server_port: 9100, {TO_A}}}]").snapshot
    facts = Facts("tcp", "tcp *:9100", Address("10.0.0.1", 1), Address("127.0.0.1", 9100))

    route = snapshot.router.match(facts)

    assert route is not None
    assert route.id == "a"


def test_the_revision_is_that_of_the_directory() -> None:
    directory = MemoryDirectory({"a.yaml": ""})

    assert Loader(directory, environ={}).load(()).snapshot.revision == directory.read().revision


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


SERVICES = """
services:
  - {id: inline, upstream: {nodes: {service:1: 1}}}
  - {id: named, upstream_id: shared}
  - {id: empty}
upstreams:
  - {id: shared, nodes: {shared:1: 1}}
"""


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

    assert route.service_id == "inline"


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


TO_TLS = "{scheme: tls, nodes: {a:1: 1}}"


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


def test_what_goes_into_a_context_is_part_of_the_revision() -> None:
    """A certificate beside the routes may change without them."""
    directory = MemoryDirectory({"a.yaml": f"upstreams: [{{id: u, {TO_TLS[1:-1]}}}]"})

    first = Loader(directory, environ={}).load(()).snapshot.revision

    assert first != directory.read().revision
    assert Loader(directory, environ={}).load(()).snapshot.revision == first


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
    monkeypatch.setattr(compile_module, "_MAX_HINTS", 2)
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


def test_all_problems_of_all_files_come_at_once() -> None:
    said = problems(
        a="stream_routes: [{id: x, server_port: 0}]",
        b="stream_routes: [{id: x, upstream_id: none}]",
        c="stream_routes: [{id: y, upstream_id: broken}]\nupstreams: [{id: broken}]",
    )

    assert [problem.split(": ")[0] for problem in said] == [
        "routes.d/a.yaml:1:38 stream_routes[0].server_port",
        "routes.d/b.yaml:1:22 stream_routes[0].id",
        "routes.d/b.yaml:1:38 stream_routes[0].upstream_id",
        "routes.d/c.yaml:2:13 upstreams[0].nodes",
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


def test_warnings_of_a_file_and_of_the_whole_are_in_order() -> None:
    assert [warning.split(" ")[0] for warning in warnings(
        "stream_routes: [{id: a, server_port: 1, upstream_id: u}]\nupstreams: [{id: u, nodes: []}]\n",
        "stream_routes: [{id: b}]\nroutes: [1]\n",
    )] == ["routes.d/0.yaml:1:38", "routes.d/0.yaml:2:28", "routes.d/1.yaml:1:17", "routes.d/1.yaml:2:1"]  # fmt: skip


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


def test_a_reload_parses_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counting(file: SourceFile, environ: Mapping[str, str]) -> ParsedFile:
        parsed.append(file.name)
        return parse_file(file, environ)

    monkeypatch.setattr(compile_module, "parse_file", counting)
    directory = MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]", "b.yaml": "stream_routes: [{id: b}]"})
    loader = Loader(directory, environ={})
    loader.load(())
    parsed.clear()

    directory.texts["b.yaml"] = "stream_routes: [{id: b2}]"
    compilation = loader.load(())
    loader.load(())

    assert parsed == ["routes.d/b.yaml"]
    assert [route.id for route in compilation.snapshot.router.routes] == ["a", "b2"]


def test_a_broken_state_is_remembered_too_and_harms_no_later_one() -> None:
    directory = MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]"})
    loader = Loader(directory, environ={})
    loader.load(())
    directory.texts["b.yaml"] = "stream_routes: [{id: a}]"
    with pytest.raises(ConfigError):
        loader.load(())

    del directory.texts["b.yaml"]

    assert [route.id for route in loader.load(()).snapshot.router.routes] == ["a"]


def test_a_renamed_file_keeps_no_old_name() -> None:
    directory = MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]"})
    loader = Loader(directory, environ={})
    loader.load(())

    directory.texts = {"c.yaml": directory.texts["a.yaml"]}

    (route,) = loader.load(()).snapshot.router.routes
    assert str(route.source) == "routes.d/c.yaml:1"


def test_another_state_can_be_checked_without_becoming_the_current_one() -> None:
    directory = MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]"})
    loader = Loader(directory, environ={"X": "9100"})
    other = MemoryDirectory({**directory.texts, "b.yaml": "stream_routes: [{id: b, server_port: ${{X}}}]"})
    broken = MemoryDirectory({**directory.texts, "b.yaml": "stream_routes: [{id: a}]"})

    assert len(loader.check(other.read(), ()).documents) == 2
    with pytest.raises(ConfigError, match="already defined"):
        loader.check(broken.read(), ())

    assert len(loader.load(()).documents) == 1


def test_what_was_checked_is_not_compiled_again() -> None:
    directory = MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]"})
    loader = Loader(directory, environ={})
    loader.load(())

    directory.texts = {**directory.texts, "b.yaml": "stream_routes: [{id: b}]"}
    checked = loader.check(directory.read(), ())

    assert loader.load(()) is checked
    assert loader.load(()) is checked  # nor when nothing changed
    assert loader.check(directory.read(), ()) is checked


def test_what_else_counts_makes_it_compile_again() -> None:
    clock = [datetime(2026, 11, 21, tzinfo=UTC)]
    settings = [TLSSettings()]
    loader = Loader(
        MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]"}),
        environ={},
        tls=lambda: settings[0],
        wall_clock=lambda: clock[0],
    )
    seen = [loader.load(())]

    seen.append(loader.load(EVERYWHERE))  # other listeners
    settings[0] = TLSSettings(expiry_warning_days=1)
    seen.append(loader.load(EVERYWHERE))
    clock[0] += timedelta(minutes=2)  # a certificate may have expired
    seen.append(loader.load(EVERYWHERE))
    clock[0] -= timedelta(days=1)  # somebody set the clock
    seen.append(loader.load(EVERYWHERE))

    assert len({id(each) for each in seen}) == len(seen)


def test_a_file_beside_the_directory_is_looked_at_again(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("no certificate")
    text = (
        f"upstreams: [{{id: a, scheme: tls, nodes: {{}}, tls: {{verify: true, ca_certs: '$file://{pem}'}}}}]"
    )
    loader = Loader(MemoryDirectory({"a.yaml": text}), environ={})
    with pytest.raises(ConfigError):
        loader.load(())

    pem.write_text(CA_PEM)
    good = loader.load(())
    pem.write_text("no certificate")

    assert good.documents
    with pytest.raises(ConfigError):
        loader.load(())


def test_a_check_that_is_refused_leaves_the_last_answer() -> None:
    directory = MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]"})
    loader = Loader(directory, environ={})
    loaded = loader.load(())

    with pytest.raises(ConfigError):
        loader.check(MemoryDirectory({"a.yaml": "stream_routes: [{id: a, sni: 1}]"}).read(), ())

    assert loader.load(()) is loaded


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


def test_the_snapshot_knows_every_name_to_look_up() -> None:
    nodes = '{"b.example:1": 1, "a.example:1": 2, "a.example:2": 1, "10.0.0.1:1": 1, "drained.example:1": 0}'

    compilation = load(f"stream_routes: [{{id: 1, upstream: {{nodes: {nodes}}}}}]")

    assert compilation.snapshot.names == {"a.example", "b.example"}
