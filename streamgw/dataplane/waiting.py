"""The clients that wait until a node of their upstream has room, or until there is one: first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

T = TypeVar("T")


@attrs.define(eq=False)
class _Waiter:
    look: trio.Event = attrs.Factory(trio.Event)


class WaitingLine:
    """Of one upstream.

    Only the first is ever woken: whatever it is looking for, the others would find no more than it. It wakes the next when
    it leaves, so that two places that become free at a time serve two.
    """

    def __init__(self) -> None:
        self._waiters: deque[_Waiter] = deque()
        self._changed = trio.Event()
        self._pausing = 0

    def __len__(self) -> int:
        return len(self._waiters) + self._pausing

    @property
    def is_standing(self) -> bool:
        """Somebody came earlier: whoever comes now goes behind."""
        return bool(self._waiters)

    def on_room(self) -> None:
        """A node may have room."""
        if self._waiters:
            self._waiters[0].look.set()

    def on_change(self) -> None:
        """There may be other nodes, or one is up again."""
        self.on_room()
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, find: Callable[[], Awaitable[T | None]], deadline: Callable[[], float]) -> T | None:
        """Wait at the end of the line until `find` finds something. None: the deadline came first.

        Args:
          find: asked when it is this client's turn and something has happened. Whatever it finds is not given to anybody
            else before the caller awaits again.
          deadline: trio time; asked whenever `find` found nothing, as the reason to wait may have become another.

        Cancellation:
          The client has left the line.
        """
        waiter = _Waiter()
        self._waiters.append(waiter)
        try:
            while True:
                with trio.move_on_at(deadline()) as scope:
                    await waiter.look.wait()
                if scope.cancelled_caught:
                    return None
                waiter.look = trio.Event()
                if (found := await find()) is not None:
                    return found
        finally:
            self._waiters.remove(waiter)
            self.on_room()

    async def pause(self, seconds: float) -> None:
        """Wait this long, or until the nodes change."""
        self._pausing += 1
        try:
            with trio.move_on_after(seconds):
                await self._changed.wait()
        finally:
            self._pausing -= 1
