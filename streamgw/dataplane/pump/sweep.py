"""Time: timestamps compared a few times a second, instead of a timer, a scope or a task per session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NoReturn

import trio

from streamgw.core.errors import Reason
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.end import Relay, unsent
from streamgw.dataplane.pump.linger import Lingering
from streamgw.dataplane.pump.peek import Peeks

TICK_S = 0.25
"""How often: what a deadline or a timeout may be late by."""
DELIVERY_S = 10.0
"""How long a truncated stream's last bytes may take to be acknowledged before the RST that says it was truncated."""
SLICE = 512
"""Relays looked at before Trio and the pump get a turn: a fifth of a millisecond."""


class Sweep:
    """Ends what has lasted too long. Sleeps while there is nothing to watch.

    Args:
      relays: the live ones; looked at, not changed.
      peeks: tasks with deadlines.
      lingering: ends that are about to be closed.
      finish: ends a relay.
      fail: ends the connect of one, saying why.
    """

    def __init__(
        self,
        relays: Collection[Relay],
        peeks: Peeks,
        lingering: Lingering,
        *,
        finish: Callable[[Relay, Ending], None],
        fail: Callable[[Relay, str], None],
    ) -> None:
        self._relays = relays
        self._peeks = peeks
        self._lingering = lingering
        self._finish = finish
        self._fail = fail
        self._something_to_watch = trio.Event()

    def watch(self) -> None:
        """There is something to watch, from now on until there is not."""
        self._something_to_watch.set()

    async def run(self) -> NoReturn:
        """Tick. Ends only by cancellation."""
        while True:
            if not (self._relays or self._peeks or self._lingering):
                self._something_to_watch = trio.Event()
                await self._something_to_watch.wait()
            await trio.sleep(TICK_S)
            for relays in slices(tuple(self._relays)):
                now = trio.current_time()
                for relay in relays:
                    self.check(relay, now)
                await trio.lowlevel.checkpoint()
            self._peeks.expire(trio.current_time())
            self._lingering.expire(trio.current_time())

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
            if moved != relay.moved or (relay.is_gated and relay.held_back):
                relay.moved = moved
                relay.active_at = now
            elif now - relay.active_at >= relay.limits.idle_s:
                self._finish(relay, Ending(Reason.IDLE_TIMEOUT))
            elif relay.quiet_ending is not None and now - relay.active_at >= relay.quiet_s:
                self._end_quietly(relay, relay.quiet_ending, now)

    def _end_quietly(self, relay: Relay, ending: Ending, now: float) -> None:
        """A truncated stream ends by RST, which destroys what is under way: let a slow reader's kernel take it first."""
        waited_s = now - relay.quiet_since
        if ending.reason is Reason.RESET and waited_s < DELIVERY_S:
            other = relay.upstream if ending.side == "client" else relay.client
            if unsent(other.sock):
                return
        self._finish(relay, ending)


def slices(relays: tuple[Relay, ...]) -> Iterator[tuple[Relay, ...]]:
    """A big table, a bearable piece at a time."""
    for start in range(0, len(relays), SLICE):
        yield relays[start : start + SLICE]
