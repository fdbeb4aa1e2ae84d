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
from streamgw.config.store import Store
from streamgw.config.tls import TLSSettings
from streamgw.core.errors import ConfigError
from streamgw.core.model import Address, Facts, Listener, Node, Revision, Upstream
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
    directory = MemoryDirectory({"a.yaml": "{}"})

    assert Loader(directory, environ={}).load(()).snapshot.revision == directory.read().revision


TO_TLS = "{scheme: tls, nodes: {a:1: 1}}"


def test_what_goes_into_a_context_is_part_of_the_revision() -> None:
    """A certificate beside the routes may change without them."""
    directory = MemoryDirectory({"a.yaml": f"upstreams: [{{id: u, {TO_TLS[1:-1]}}}]"})

    first = Loader(directory, environ={}).load(()).snapshot.revision

    assert first != directory.read().revision
    assert Loader(directory, environ={}).load(()).snapshot.revision == first


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


def test_warnings_of_a_file_and_of_the_whole_are_in_order() -> None:
    assert [warning.split(" ")[0] for warning in warnings(
        "stream_routes: [{id: a, server_port: 1, upstream_id: u}]\nupstreams: [{id: u, nodes: []}]\n",
        "stream_routes: [{id: b}]\nroutes: [1]\n",
    )] == ["routes.d/0.yaml:1:38", "routes.d/0.yaml:2:28", "routes.d/1.yaml:1:17", "routes.d/1.yaml:2:1"]  # fmt: skip


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


def test_a_look_at_what_runs_does_not_forget_what_was_checked() -> None:
    """The watcher tells of one write while the next one is being checked."""
    directory = MemoryDirectory({"a.yaml": "stream_routes: [{id: a}]"})
    loader = Loader(directory, environ={})
    running = loader.load(())
    new = {**directory.texts, "b.yaml": "stream_routes: [{id: b}]"}

    checked = loader.check(MemoryDirectory(new).read(), ())
    assert loader.load(()) is running
    directory.texts = new

    assert loader.load(()) is checked


def test_what_was_written_through_the_store_is_loaded_without_a_look(tmp_path: Path) -> None:
    store = Store(tmp_path)
    loader = Loader(store, environ={})
    loader.load(())

    store.put(("stream_routes", "a"), {"upstream": {"nodes": {"a:1": 1}}})
    (tmp_path / "broken.yaml").write_text("stream_routes: [")

    assert [route.id for route in loader.load_written(()).snapshot.router.routes] == ["a"]
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        loader.load(())


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


def test_the_snapshot_knows_every_name_to_look_up() -> None:
    nodes = '{"b.example:1": 1, "a.example:1": 2, "a.example:2": 1, "10.0.0.1:1": 1, "drained.example:1": 0}'

    compilation = load(f"stream_routes: [{{id: 1, upstream: {{nodes: {nodes}}}}}]")

    assert compilation.snapshot.names == {"a.example", "b.example"}


def test_the_snapshot_knows_every_service_to_look_up() -> None:
    upstream = "{discovery_type: dns, service_name: db.example}"

    snapshot = load(
        f"stream_routes: [{{id: 1, upstream: {upstream}}}, {{id: 2, upstream: {upstream}}}, {{id: 3}}]"
    ).snapshot

    assert (snapshot.services, snapshot.names) == ({"db.example"}, set())
