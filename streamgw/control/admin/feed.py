"""The live feed: what happens, told to whoever listens. Costs nothing while nobody does.

A listener has a queue of its own, with a limit. Whoever does not keep up loses the newest events and is told how many;
nobody else, and no session, ever waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

import attrs
import trio

from streamgw.control.admin.fleet import Event

MAX_QUEUED: Final = 1024
"""Events waiting for one listener."""
LOST: Final = "lost"


class Hub:
    """Passes events on to those who listen.

    Args:
      wall_clock: Unix time.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._feeds: set[Feed] = set()
        self.wanted: frozenset[str] = frozenset()
        """Kinds that somebody listens to. Ask before you make an event."""
        self.lost = 0
        """Events that some listener did not get, since the start."""

    def __len__(self) -> int:
        """How many listen."""
        return len(self._feeds)

    def publish(self, kind: str, data: Mapping[str, object]) -> None:
        """Tell everybody who wants to know. Never blocks."""
        if kind in self.wanted:
            event = Event(kind, self._wall_clock(), data)
            for feed in self._feeds:
                feed.offer(event)

    def subscribe(self, kinds: Collection[str], wanted: Mapping[str, str]) -> Feed:
        """Hear what happens from now on.

        Args:
          kinds: of EVENT_KINDS.
          wanted: values that an event must have where it has a key of that name: `{"route": "mysql"}`.
        """
        feed = Feed(self, frozenset(kinds), wanted)
        self._feeds.add(feed)
        self._look()
        return feed

    def forget(self, feed: Feed) -> None:
        """It hears no more."""
        self._feeds.discard(feed)
        self._look()

    def _look(self) -> None:
        self.wanted = frozenset[str]().union(*(feed.kinds for feed in self._feeds))


@attrs.define(eq=False)
class Feed:
    """One who listens (`fleet.Subscription`)."""

    _hub: Hub
    kinds: frozenset[str]
    _wanted: Mapping[str, str]
    _queue: deque[Event] = attrs.Factory(deque)
    _lost: int = 0
    _lost_at: float = 0.0
    _ready: trio.Event = attrs.Factory(trio.Event)

    def offer(self, event: Event) -> None:
        """Queue it, if it is wanted and there is room."""
        if event.kind not in self.kinds or not self._fits(event.data):
            return
        if len(self._queue) >= MAX_QUEUED:
            self._lost += 1
            self._lost_at = event.at
            self._hub.lost += 1
        else:
            self._queue.append(event)
        self._ready.set()

    async def receive(self) -> Event:
        """The next event. After a loss, and what had been queued before it, one of kind `lost` with its `count`."""
        while not self._queue and not self._lost:
            self._ready = trio.Event()
            await self._ready.wait()
        if self._queue:
            return self._queue.popleft()
        lost, self._lost = self._lost, 0
        return Event(LOST, self._lost_at, {"count": lost})

    def close(self) -> None:
        """Hear no more."""
        self._hub.forget(self)

    def _fits(self, data: Mapping[str, object]) -> bool:
        return all(data.get(name, value) == value for name, value in self._wanted.items())
