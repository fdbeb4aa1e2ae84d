"""A gateway behind the Admin API: it runs what the directory says as soon as it is told to look, or lags if it should."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import trio

from streamgw.control.admin.fleet import SessionFilter, SessionRow, Subscription
from streamgw.core.errors import ConfigError
from streamgw.core.model import Awaited, Facts, Key


class FakeFleet:
    """Args:
    load: what a look at the directory finds: the digest of every object.
    """

    def __init__(self, load: Callable[[], Mapping[Key, str]]) -> None:
        self._load = load
        self.running: Mapping[Key, str] = {}
        self.pokes = 0
        self.lags = False

    def ready(self) -> bool:
        return True

    async def status(self) -> Mapping[str, object]:
        return {}

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        raise AssertionError("the resources have no business with sessions")

    async def kill(self, session_id: str) -> bool:
        raise AssertionError("the resources have no business with sessions")

    async def listeners(self) -> Sequence[Mapping[str, object]]:
        return ()

    def explain(self, facts: Facts) -> Mapping[str, object]:
        raise AssertionError("the resources explain nothing")

    def health(self) -> Sequence[Mapping[str, object]]:
        return ()

    def discovery(self) -> Sequence[Mapping[str, object]]:
        return ()

    def poke(self) -> None:
        self.pokes += 1
        if not self.lags:
            with contextlib.suppress(ConfigError):
                self.running = self._load()

    async def wait_applied(self, awaited: Awaited, deadline: float) -> Sequence[int]:
        if all(self.running.get(key) == digest for key, digest in awaited):
            return ()
        await trio.sleep_until(deadline)
        return (0,)

    def subscribe(self, kinds: Sequence[str]) -> Subscription:
        raise AssertionError("the resources listen to nothing")
