"""One writer at a time: changes are made, and a change has been made when every worker runs it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from http import HTTPStatus

import attrs
import trio

from streamgw.control.admin.changes import Made
from streamgw.control.admin.fleet import Fleet
from streamgw.control.admin.replies import RequestError
from streamgw.control.polite import polite_to_the_event_loop

TURN_S = 10.0
"""A request that had to wait longer for the others is refused; nothing was written for it."""
APPLY_S = 5.0
"""Workers that do not run a change by then are named in the answer."""


@attrs.frozen
class Applied:
    """A change, and which workers do not run it yet."""

    made: Made
    late: Sequence[int]


class Writer:
    """Takes one request that writes after the other, so that each is checked against what the one before it left."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._turn = trio.Lock()

    async def make(self, change: Callable[[], Made]) -> Applied:
        """Make a change in a worker thread, and wait until it is live.

        Raises:
          RequestError: whatever the change raised; or 503, the turn did not come.

        Cancellation:
          Before the thread starts, nothing was written. After that the change is made, and applied without us.
        """
        async with self._my_turn():
            try:
                with polite_to_the_event_loop():
                    made = await trio.to_thread.run_sync(change)
            finally:
                # Also after an error: a cancelled request may have written. One look too many costs next to nothing.
                self._fleet.poke()
            late = await self._fleet.wait_applied(made.awaited, trio.current_time() + APPLY_S)
        return Applied(made, [*late])

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncGenerator[None]:
        with trio.move_on_after(TURN_S) as waiting:
            await self._turn.acquire()
        if waiting.cancelled_caught:
            message = f"other writes took longer than {TURN_S:g} s; nothing was written"
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, message)
        try:
            yield
        finally:
            self._turn.release()
