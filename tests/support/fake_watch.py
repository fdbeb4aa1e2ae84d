"""A watcher and a loader for the reloader's tests: both do what the test says, when it says so."""

import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime

import trio

from streamgw.config.compile import Compilation
from streamgw.core.errors import Problem
from streamgw.core.model import Key, Listener, Revision
from streamgw.core.router import Router
from streamgw.core.snapshot import Snapshot
from streamgw.core.sni import SNIIndex

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class FakeWatch:
    """Says "look again" when told to. Coalesces like the real one: what nobody has heard yet is said once."""

    def __init__(self) -> None:
        self._sender, self._receiver = trio.open_memory_channel[None](1)
        self.closed = False
        self.say()

    def say(self) -> None:
        with contextlib.suppress(trio.WouldBlock):
            self._sender.send_nowait(None)

    async def __call__(self) -> AsyncGenerator[None]:
        try:
            async for _ in self._receiver:
                yield
        finally:
            self.closed = True


class FakeLoader:
    """Loads what `content` is at the moment: a compilation, or an error to raise."""

    def __init__(self, content: Compilation | Exception) -> None:
        self.content = content
        self.loads = 0
        self.written = 0
        """Loads that did not look."""
        self.seen: list[tuple[Listener, ...]] = []
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.under_way = 0
        self.most_at_once = 0

    def load_written(self, listeners: Sequence[Listener]) -> Compilation:
        self.written += 1
        return FakeLoader.load(self, listeners)

    def load(self, listeners: Sequence[Listener]) -> Compilation:
        content = self.content
        self.loads += 1
        self.seen.append(tuple(listeners))
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        assert self.may_finish.wait(10), "the test forgot to let the load finish"
        self.under_way -= 1
        if isinstance(content, Exception):
            raise content
        return content


def compilation(revision: str, *warnings: Problem, **digests: str) -> Compilation:
    """A snapshot without routes; `mysql="d1"` means that stream route `mysql` has digest d1."""
    sources: dict[Key, str] = {("stream_routes", id_): digest for id_, digest in digests.items()}
    snapshot = Snapshot(
        revision=Revision(revision),
        router=Router(()),
        upstreams={},
        certificates=SNIIndex(()),
        sources=sources,
    )
    return Compilation(snapshot=snapshot, warnings=warnings, documents=())


def problem(message: str, line: int = 1) -> Problem:
    return Problem("routes.d/mysql.yaml", line, 1, "", message)
