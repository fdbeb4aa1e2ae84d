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
        self._changed = trio.Event()

    def __len__(self) -> int:
        """How many listen."""
        return len(self._feeds)

    def publish(self, kind: str, data: Mapping[str, object], at: float | None = None) -> None:
        """Tell everybody who wants to know. Never blocks.

        Args:
          kind: of EVENT_KINDS.
          data: see `Event`.
          at: when it happened, Unix time; None: now.
        """
        if kind in self.wanted:
            event = Event(kind, self._wall_clock() if at is None else at, data)
            for feed in self._feeds:
                feed.offer(event)

    def lose(self, count: int) -> None:
        """Events were lost on their way here: whoever listens is told, as each might have wanted them."""
        for feed in self._feeds:
            feed.lose(count, self._wall_clock())

    def subscribe(self, kinds: Collection[str], wanted: Mapping[str, str]) -> Feed:
        """Hear what happens from now on.

        Args:
          kinds: of EVENT_KINDS.
          wanted: values that an event must have where it has a key of that name: `{"route": "mysql"}`.
        """
        feed = Feed(self, frozenset(kinds), wanted)
        self._feeds.add(feed)
        self.look()
        return feed

    def forget(self, feed: Feed) -> None:
        """It hears no more."""
        self._feeds.discard(feed)
        self.look()

    def look(self) -> None:
        """Who wants what may be different now."""
        before = self.wanted
        self.wanted = frozenset[str]().union(*(feed.kinds for feed in self._feeds))
        if self.wanted != before:
            self._changed.set()
            self._changed = trio.Event()

    async def wait_wanted(self, known: frozenset[str]) -> frozenset[str]:
        """Wait until `wanted` is another than that, and return it."""
        while self.wanted == known:
            await self._changed.wait()
        return self.wanted


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

    @property
    def queued(self) -> int:
        """Events that `receive` would return without waiting."""
        return len(self._queue)

    def want(self, kinds: Collection[str]) -> None:
        """Hear of these kinds from now on, instead. What is queued stays."""
        self.kinds = frozenset(kinds)
        self._hub.look()

    def lose(self, count: int, at: float) -> None:
        """So many events did not get here."""
        self._lost += count
        self._lost_at = at
        self._hub.lost += count
        self._ready.set()

    def offer(self, event: Event) -> None:
        """Queue it, if it is wanted and there is room."""
        if event.kind not in self.kinds or not self._fits(event.data):
            return
        if len(self._queue) >= MAX_QUEUED:
            self.lose(1, event.at)
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
