"""Time: timestamps compared a few times a second, instead of a timer, a scope or a task per session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NoReturn

import trio

from streamgw.core.errors import Reason
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.end import Relay
from streamgw.dataplane.pump.peek import Peeks

TICK_S = 0.25
"""How often: what a deadline or a timeout may be late by."""
SLICE = 512
"""Relays looked at before Trio and the pump get a turn: a fifth of a millisecond."""


class Sweep:
    """Ends what has lasted too long. Sleeps while there is nothing to watch.

    Args:
      relays: the live ones; looked at, not changed.
      peeks: tasks with deadlines.
      finish: ends a relay.
      fail: ends the connect of one, saying why.
    """

    def __init__(
        self,
        relays: Collection[Relay],
        peeks: Peeks,
        *,
        finish: Callable[[Relay, Ending], None],
        fail: Callable[[Relay, str], None],
    ) -> None:
        self._relays = relays
        self._peeks = peeks
        self._finish = finish
        self._fail = fail
        self._something_to_watch = trio.Event()

    def watch(self) -> None:
        """There is something to watch, from now on until there is not."""
        self._something_to_watch.set()

    async def run(self) -> NoReturn:
        """Tick. Ends only by cancellation."""
        while True:
            if not (self._relays or self._peeks):
                self._something_to_watch = trio.Event()
                await self._something_to_watch.wait()
            await trio.sleep(TICK_S)
            for relays in slices(tuple(self._relays)):
                now = trio.current_time()
                for relay in relays:
                    self.check(relay, now)
                await trio.lowlevel.checkpoint()
            self._peeks.expire(trio.current_time())

    def check(self, relay: Relay, now: float) -> None:
        """End one relay if it has lasted, connected or idled for too long.

        Activity is a meter that moved since the last tick, so no clock is read per message; a timeout comes up to two
        ticks late and never early.
        """
        if relay.over:
            return
        if now >= relay.limits.ends_at:
            self._finish(relay, Ending(Reason.MAX_DURATION))
        elif relay.connecting:
            upstream = relay.upstream
            if now >= upstream.deadline:
                self._fail(relay, f"timed out after {upstream.deadline - upstream.dialed_at:.1f} s")
        else:
            moved = relay.meter.bytes_up + relay.meter.bytes_down
            if moved != relay.moved:
                relay.moved = moved
                relay.active_at = now
            elif now - relay.active_at >= relay.limits.idle_s:
                self._finish(relay, Ending(Reason.IDLE_TIMEOUT))


def slices(relays: tuple[Relay, ...]) -> Iterator[tuple[Relay, ...]]:
    """A big table, a bearable piece at a time."""
    for start in range(0, len(relays), SLICE):
        yield relays[start : start + SLICE]
