"""What a worker that is a process of its own answers to its supervisor, and what it tells it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, cast

import attrs
import trio

from streamgw.control.admin.feed import LOST
from streamgw.core.errors import StreamgwError
from streamgw.process.channel import Channel
from streamgw.process.figures import BATCH
from streamgw.process.health import RemoteHealth
from streamgw.process.members import Here, data_of, wanted_of
from streamgw.process.worker import Worker

MAX_PARKED = 4
"""Long answers of which the supervisor has not had all pages. The oldest makes way."""
EVENTS_AT_ONCE = 100
"""In one piece of news."""
FULL_S = 0.1
"""The channel is full: a moment for it to get empty."""

_Handler = Callable[[Mapping[str, object]], Awaitable[Mapping[str, object]]]


class Answers:
    """Everything that `There` asks.

    Args:
      health: of the worker.
    """

    def __init__(self, worker: Worker, here: Here, health: RemoteHealth) -> None:
        self._worker = worker
        self._here = here
        self._parked: dict[int, Sequence[object]] = {}
        self._numbers = itertools.count(1)
        self._feed = worker.hub.subscribe((), {})
        self.handlers: Mapping[str, _Handler] = {
            "sessions": self._sessions,
            "kill": self._kill,
            "status": self._status,
            "share": self._share,
            "wait_applied": self._wait_applied,
            "catch_up": self._catch_up,
            "listen": self._listen,
            "mark": health.mark,
            "more": self._more,
        }
        """By question. None needs a configuration that is loaded."""

    def heard(self, what: str) -> bool:
        """Whether these news were for the fleet's sake."""
        if what == "look":
            self._worker.reloader.poke()
        return what == "look"

    async def farewell(self, channel: Channel, patience_s: float = 1.0) -> None:
        """Leave behind what was counted: the last thing that this process says."""
        with trio.move_on_after(patience_s):
            share, status = await self._here.share(), await self._here.status()
            await channel.ask("farewell", {"share": data_of(share), "status": data_of(status)})

    async def tell_events(self, channel: Channel) -> NoReturn:
        """Pass on what the supervisor listens to. What finds no room is lost, and it is told how much."""
        while True:
            events = [await self._feed.receive()]
            while self._feed.queued and len(events) < EVENTS_AT_ONCE:
                events.append(await self._feed.receive())
            worker = {"worker": self._here.number}
            dropped = channel.dropped
            channel.tell(
                "events", {"events": [(each.kind, each.at, {**each.data, **worker}) for each in events]}
            )
            if channel.dropped > dropped:
                for each in events:
                    self._feed.lose(cast("int", each.data["count"]) if each.kind == LOST else 1, each.at)
                await trio.sleep(FULL_S)

    async def _sessions(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        rows, total = await self._here.sessions(wanted_of(arguments))
        return {"total": total, **self._page(rows)}

    async def _kill(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        return {"killed": await self._here.kill(cast("str", arguments["id"]))}

    async def _status(self, _: Mapping[str, object]) -> Mapping[str, object]:
        return cast("Mapping[str, object]", data_of(await self._here.status()))

    async def _share(self, _: Mapping[str, object]) -> Mapping[str, object]:
        share = await self._here.share()
        rest = cast("Mapping[str, object]", data_of(attrs.evolve(share, ended=())))
        return {**rest, **self._page(share.ended)}

    async def _wait_applied(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        said = cast("Sequence[tuple[Sequence[str], str | None]]", arguments["awaited"])
        awaited = [((collection, id_), digest) for (collection, id_), digest in said]
        deadline = trio.current_time() + cast("float", arguments["patience_s"])
        return {"applied": await self._here.wait_applied(awaited, deadline)}

    async def _catch_up(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        reloader, revision = self._worker.reloader, cast("str", arguments["revision"])
        if reloader.current.revision != revision:
            reloader.poke()
        with trio.move_on_after(cast("float", arguments["patience_s"])):
            await reloader.wait_revision(revision)
        return {"applied": reloader.current.revision == revision}

    async def _listen(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        self._feed.want(cast("Sequence[str]", arguments["kinds"]))
        await trio.lowlevel.checkpoint()
        return {}

    async def _more(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        items = self._parked.pop(cast("int", arguments["of"]), None)
        if items is None:
            raise StreamgwError("that list is forgotten")
        return self._page(items)

    def _page(self, items: Sequence[object]) -> Mapping[str, object]:
        """The first of them, and the number under which the others can be had."""
        more = None
        if len(items) > BATCH:
            more = next(self._numbers)
            self._parked[more] = items[BATCH:]
            if len(self._parked) > MAX_PARKED:
                del self._parked[min(self._parked)]
        return {"items": data_of(items[:BATCH]), "more": more}
