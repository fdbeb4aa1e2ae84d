"""Edits at random, on a real directory: what runs is always the last state that was right as a whole.

The model knows of every file only what was meant by it when it was written, never what the parser made of it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamgw.config.compile import Loader
from streamgw.config.store import Store
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import Revision
from streamgw.core.router import Router
from streamgw.core.snapshot import Snapshot
from streamgw.core.sni import SNIIndex

NAMES = ("a.yaml", "b.yml", "c.json", "sub/d.yaml")
IGNORED = (".a.yaml", "a.yaml~", "#a.yaml#", "a.yaml.bak", "notes.txt", ".git/d.yaml")
BROKEN = (
    "stream_routes: [",
    "stream_routes: [{id: x, server_prot: 9100}]",
    "stream_routes: [{id: x, server_port: '9100'}]",
    "stream_routes: [{id: x, id: y}]",
    "stream_route: []",
    "- 1",
    "\x00",
    "a: ${{NOT_SET}}",
    "\ttabs: 1",
)


@attrs.frozen
class Route:
    """One route as its author means it."""

    id: str
    priority: int
    port: int
    upstream: str
    """An id of the shared upstreams, or empty: inline."""


@attrs.frozen
class Content:
    """One file as its author means it. `routes` None: broken, the text says how."""

    text: str
    routes: tuple[Route, ...] | None = None
    upstreams: tuple[str, ...] = ()


def written(routes: list[Route], upstreams: list[str], *, pretty: bool) -> Content:
    document = {
        "stream_routes": [
            {
                "id": route.id,
                "priority": route.priority,
                "server_port": route.port,
                **(
                    {"upstream_id": route.upstream}
                    if route.upstream
                    else {"upstream": {"nodes": {f"inline-{route.id}:{route.port}": 1}}}
                ),
            }
            for route in routes
        ],
        "upstreams": [{"id": name, "nodes": {f"shared-{name}:1": 1}} for name in upstreams],
    }
    # JSON is YAML too: one way of writing serves every name.
    return Content(json.dumps(document, indent=2 if pretty else None), tuple(routes), tuple(upstreams))


ROUTES = st.builds(
    Route,
    id=st.sampled_from(["r1", "r2", "r3", "r4", "r5"]),
    priority=st.integers(-1, 1),
    port=st.integers(9100, 9102),
    upstream=st.sampled_from(["", "", "", "u1", "u2"]),
)
GOOD = st.builds(
    written,
    st.lists(ROUTES, max_size=3),
    st.lists(st.sampled_from(["u1", "u2"]), max_size=2),
    pretty=st.booleans(),
)
CONTENTS = st.one_of(GOOD, GOOD, GOOD, st.sampled_from(BROKEN).map(Content))


def expected_routes(files: dict[str, Content]) -> list[tuple[str, str]] | None:
    """(id, host) of each route in the order asked; None if the state as a whole is not right."""
    in_order = [files[name] for name in sorted(files)]
    if any(content.routes is None for content in in_order):
        return None
    routes = [route for content in in_order for route in content.routes or ()]
    upstreams = [name for content in in_order for name in content.upstreams]
    ids = [route.id for route in routes]
    if len(ids) != len(set(ids)) or len(upstreams) != len(set(upstreams)):
        return None
    if any(route.upstream and route.upstream not in upstreams for route in routes):
        return None
    routes.sort(key=lambda route: -route.priority)
    return [
        (route.id, f"shared-{route.upstream}" if route.upstream else f"inline-{route.id}") for route in routes
    ]


class RandomEdits(RuleBasedStateMachine):
    """Somebody edits; a holder of the last good state looks after every edit."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.directory = self.root / "routes.d"
        self.directory.mkdir()
        self.loader = Loader(Store(self.directory), environ={})
        self.files: dict[str, Content] = {}
        self.model: list[tuple[str, str]] = []
        self.running = Snapshot(Revision(""), Router(()), {}, SNIIndex(()), {})

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(name=st.sampled_from(NAMES), content=CONTENTS)
    def write(self, name: str, content: Content) -> None:
        self._put(name, content.text)
        self.files[name] = content

    @rule(name=st.sampled_from(NAMES), content=CONTENTS)
    def replace_atomically(self, name: str, content: Content) -> None:
        self._put(".new", content.text)
        (self.directory / name).parent.mkdir(exist_ok=True)
        (self.directory / ".new").rename(self.directory / name)
        self.files[name] = content

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)
        self.files.pop(name, None)

    @rule(old=st.sampled_from(NAMES), new=st.sampled_from(NAMES))
    def rename(self, old: str, new: str) -> None:
        if old in self.files:
            (self.directory / new).parent.mkdir(exist_ok=True)
            (self.directory / old).rename(self.directory / new)
            self.files[new] = self.files.pop(old)

    @rule(name=st.sampled_from(NAMES))
    def touch(self, name: str) -> None:
        if name in self.files:
            os.utime(self.directory / name)

    @rule(old=st.sampled_from(NAMES), new=st.sampled_from(NAMES))
    def copy(self, old: str, new: str) -> None:
        """The usual way to get every id twice."""
        if old in self.files:
            self._put(new, self.files[old].text)
            self.files[new] = self.files[old]

    @rule(name=st.sampled_from(IGNORED), text=st.sampled_from(BROKEN))
    def leave_something_that_is_no_document(self, name: str, text: str) -> None:
        self._put(name, text)

    @invariant()
    def what_runs_is_the_last_state_that_was_right(self) -> None:
        expected = expected_routes(self.files)
        problems: tuple[Problem, ...] = ()
        try:
            self.running = self.loader.load(()).snapshot
        except ConfigError as error:
            problems = error.problems
        assert (expected is None) == bool(problems), [str(problem) for problem in problems]
        assert {problem.file.removeprefix(f"{self.directory}/") for problem in problems} <= self.files.keys()
        if expected is not None:
            self.model = expected
        found = [
            (route.id, route.upstream.nodes[0].host) for route in self.running.router.routes if route.upstream
        ]
        assert found == self.model

    @invariant()
    def what_is_remembered_makes_no_difference(self) -> None:
        outcomes = []
        for loader in (self.loader, Loader(Store(self.directory), environ={})):
            try:
                compilation = loader.load(())
                outcomes.append((compilation.documents, compilation.warnings, compilation.snapshot.sources))
            except ConfigError as error:
                outcomes.append((error.problems,))
        assert outcomes[0] == outcomes[1]

    def _put(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


TestRandomEdits = RandomEdits.TestCase
TestRandomEdits.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
