"""One worker as the fleet asks it: the one in this process (`Here`), and one that is a process of its own (`There`).

What a worker answers is the same either way: `There` asks over a channel, and on the other end `Answers` asks its `Here`. Long
lists travel in pages, so that neither side is busy with one for long.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import attrs
import cattrs
import structlog
import trio

from streamgw.control.admin.fleet import SessionFilter, SessionRow
from streamgw.core.errors import StreamgwError
from streamgw.core.model import Awaited
from streamgw.core.networks import is_in_any
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Session
from streamgw.process.channel import Channel, ChannelClosed
from streamgw.process.figures import Share, batches, take_share
from streamgw.process.rows import session_row
from streamgw.process.status import WorkerStatus, worker_status
from streamgw.process.worker import Worker

ANSWER_S = 2.0
"""A worker that has not answered by then is left out, and named."""

_WIRE = cattrs.Converter()


class Silent(StreamgwError):
    """A worker does not answer."""


class Gone(Silent):
    """Its process is dead, or about to be."""


class Member(Protocol):
    """One worker. What asks it may raise Silent."""

    number: int
    """Its slot."""
    pid: int

    @property
    def state(self) -> str:
        """`starting`, `serving`, `draining`."""

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        """See `Fleet.sessions`."""

    async def kill(self, session_id: str) -> bool:
        """See `Fleet.kill`."""

    async def status(self) -> WorkerStatus:
        """What it says of itself."""

    async def share(self) -> Share:
        """What it has counted."""

    async def wait_applied(self, awaited: Awaited, deadline: float) -> bool:
        """Whether it ran all of these objects before the deadline, trio time."""

    def look(self) -> None:
        """Look at routes.d, if nobody else in its process has been told to."""


class Here:
    """The worker of this process."""

    def __init__(self, worker: Worker, pid: int) -> None:
        self._worker = worker
        self.number = worker.number
        self.pid = pid

    @property
    def state(self) -> str:
        """See `Member.state`."""
        return "draining" if self._worker.draining else "serving"

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        """Live sessions, oldest first, and how many there are of them. Lets others run while it looks."""
        rows: list[SessionRow] = []
        total = 0
        fits = _filter(wanted)
        for batch in batches(self._worker):
            for session in filter(fits, batch):
                total += 1
                if len(rows) < wanted.limit:
                    rows.append(session_row(session, trio.current_time(), self.number))
            await trio.lowlevel.checkpoint()
        return rows, total

    async def kill(self, session_id: str) -> bool:
        """End one session. False: there is none of that id."""
        return self._worker.sessions.kill(session_id) or self._worker.udp.kill(session_id)

    async def status(self) -> WorkerStatus:
        """See `Member.status`."""
        return worker_status(self._worker)

    async def share(self) -> Share:
        """See `Member.share`."""
        return await take_share(self._worker)

    async def wait_applied(self, awaited: Awaited, deadline: float) -> bool:
        """See `Member.wait_applied`."""
        with trio.move_on_at(deadline):
            await self._worker.reloader.wait_applied(awaited)
            return True
        return False

    def look(self) -> None:
        """Nothing to do: what follows routes.d for the gateway follows it for this worker."""


class There:
    """A worker in another process.

    Args:
      number: its slot.
      state: of its life; whoever looks after the process sets it.
    """

    def __init__(self, number: int, pid: int, channel: Channel, *, state: str = "starting") -> None:
        self.number = number
        self.pid = pid
        self.state = state
        self._channel = channel
        self.answer_s = ANSWER_S
        self._is_silent = False
        self._log = structlog.get_logger()

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        """See `Member.sessions`."""
        answer = await self._ask("sessions", attrs.asdict(wanted))
        rows = _WIRE.structure(await self._all_of(answer), list[SessionRow])
        return rows, cast("int", answer["total"])

    async def kill(self, session_id: str) -> bool:
        """See `Member.kill`."""
        return bool((await self._ask("kill", {"id": session_id}))["killed"])

    async def status(self) -> WorkerStatus:
        """See `Member.status`."""
        return status_of(await self._ask("status"))

    async def share(self) -> Share:
        """See `Member.share`."""
        answer = await self._ask("share")
        return share_of({**answer, "ended": await self._all_of(answer)})

    async def wait_applied(self, awaited: Awaited, deadline: float) -> bool:
        """See `Member.wait_applied`."""
        patience_s = max(0.0, deadline - trio.current_time())
        arguments = {"awaited": awaited, "patience_s": patience_s}
        return bool((await self._ask("wait_applied", arguments, patience_s))["applied"])

    async def catch_up(self, revision: str, patience_s: float) -> bool:
        """Have it look at routes.d until that is what it runs. False: it was not by then."""
        arguments = {"revision": revision, "patience_s": patience_s}
        return bool((await self._ask("catch_up", arguments, patience_s))["applied"])

    def look(self) -> None:
        """See `Member.look`. If that is lost on the way, its own watch finds what has changed."""
        self._channel.tell("look", {})

    async def listen(self, kinds: Sequence[str]) -> None:
        """Have it tell these kinds of events from now on."""
        await self._ask("listen", {"kinds": kinds})

    async def mark(self, states: Sequence[Sequence[object]]) -> None:
        """Tell it of nodes (`health.NodeStates`)."""
        await self._ask("mark", {"states": states})

    async def _ask(
        self, what: str, arguments: Mapping[str, object] | None = None, extra_s: float = 0.0
    ) -> Mapping[str, object]:
        patience_s = self.answer_s + extra_s
        with trio.move_on_after(patience_s):
            try:
                answer = await self._channel.ask(what, arguments or {})
            except ChannelClosed as error:
                raise Gone(f"worker {self.number} (pid {self.pid}): {error}") from error
            except StreamgwError as error:
                raise Silent(f"worker {self.number} (pid {self.pid}): {error}") from error
            self._is_silent = False
            return cast("Mapping[str, object]", answer)
        if not self._is_silent:
            self._is_silent = True
            self._log.warning("worker_silent", worker=self.number, pid=self.pid, after_s=patience_s)
        raise Silent(f"worker {self.number} (pid {self.pid}) does not answer")

    async def _all_of(self, answer: Mapping[str, object]) -> list[object]:
        """The pages of a list, from the first one on."""
        items: list[object] = []
        while True:
            items += cast("Sequence[object]", answer["items"])
            if answer["more"] is None:
                return items
            answer = await self._ask("more", {"of": answer["more"]})


def share_of(data: Mapping[str, object]) -> Share:
    """What `data_of` was made of."""
    return _WIRE.structure(data, Share)


def status_of(data: Mapping[str, object]) -> WorkerStatus:
    """The same for what a worker says of itself."""
    return _WIRE.structure(data, WorkerStatus)


def data_of(value: object) -> object:
    """A row, a list of rows, a share: as plain data for the channel."""
    return _WIRE.unstructure(value)


def wanted_of(data: Mapping[str, object]) -> SessionFilter:
    """The filter in a question."""
    return _WIRE.structure(data, SessionFilter)


def _filter(wanted: SessionFilter) -> Callable[[Session | UDPSession], bool]:
    """The wishes that are not empty."""
    network = ipaddress.ip_network(wanted.client, strict=False) if wanted.client else None
    tests: list[Callable[[Session | UDPSession], bool]] = []
    if wanted.listener:
        tests.append(lambda session: session.listener.name == wanted.listener)
    if wanted.transport:
        tests.append(lambda session: session.facts.transport == wanted.transport)
    if wanted.route:
        tests.append(lambda session: session.route is not None and session.route.id == wanted.route)
    if wanted.upstream:
        tests.append(lambda session: session.upstream is not None and session.upstream.key == wanted.upstream)
    if wanted.node:
        tests.append(lambda session: str(session.trail.node) == wanted.node)
    if network is not None:
        tests.append(lambda session: is_in_any(session.facts.client.host, (network,)))
    return lambda session: all(test(session) for test in tests)
