"""The gateway as its HTTP side sees it (`control.admin.fleet.Fleet`), however many workers it has.

Every worker is asked at the same time. One that does not answer in time is left out, and `status` names it; of what it had
counted the latest that is known stands for it, so that no counter ever goes back.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

import attrs
import trio

from streamgw.config.documents import Document
from streamgw.control.admin.feed import Feed
from streamgw.control.admin.fleet import Figures, SessionFilter, SessionRow
from streamgw.control.explain import accepts, as_data, meet
from streamgw.control.reloader import ReloadStatus
from streamgw.core.model import Awaited, Facts
from streamgw.core.wire.tls import ClientHello
from streamgw.process import figures, status
from streamgw.process.books import Books
from streamgw.process.central import Central
from streamgw.process.members import Gone, Here, Member, Silent
from streamgw.process.rows import health_row, service_row
from streamgw.process.worker import Worker

T = TypeVar("T")


class WorkerFleet:
    """A gateway and its workers.

    Args:
      members: the workers that live now.
      books: what those have counted that are gone.
      slots: how many workers there shall be.
      settings_status: what became of conf/config.yaml.
      look_at_settings: begin to read conf/config.yaml again. Must not block.
    """

    def __init__(
        self,
        central: Central,
        members: Callable[[], Sequence[Member]],
        books: Books,
        *,
        slots: int,
        settings_status: Callable[[], ReloadStatus],
        look_at_settings: Callable[[], None],
    ) -> None:
        self._central = central
        self._members = members
        self._books = books
        self._slots = slots
        self._settings_status = settings_status
        self._look_at_settings = look_at_settings
        self._documents: Sequence[Document] = ()
        """Of the reloader, when they were put in order."""
        self._in_order: Sequence[Document] = ()

    def ready(self) -> bool:
        """Whether clients are accepted, by a worker in each slot."""
        serving = {member.number for member in self._members() if member.state == "serving"}
        return not self._central.draining and serving >= set(range(self._slots))

    async def status(self) -> Mapping[str, object]:
        """As the status endpoint says."""
        said = await self._ask(lambda member: member.status())
        for member, each in said:
            self._books.note(member, said=each)
        rows = [status.row_of(each.number, each.pid, each.state, answer) for each, answer in said]
        return status.body(
            self._central,
            self._settings_status(),
            is_ready=self.ready(),
            workers=sorted(rows, key=lambda row: (row.worker, row.pid)),
            total=self._books.status(),
        )

    async def listeners(self) -> Sequence[Mapping[str, object]]:
        """As in `status`."""
        said = await self._ask(lambda member: member.status())
        return status.shown(status.merged([each.listeners for _, each in said if each is not None]))

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        """Live sessions, oldest first, and how many there are of them."""
        found = [
            each for _, each in await self._ask(lambda member: member.sessions(wanted)) if each is not None
        ]
        oldest_first = heapq.merge(*(rows for rows, _ in found), key=lambda row: row.started_at)
        return [*itertools.islice(oldest_first, wanted.limit)], sum(total for _, total in found)

    async def kill(self, session_id: str) -> bool:
        """End one session. False: there is none of that id."""
        return any(killed for _, killed in await self._ask(lambda member: member.kill(session_id)))

    def explain(self, facts: Facts) -> Mapping[str, object]:
        """What becomes of such a client, by the code that `streamgw explain` runs."""
        bound = self._central.sockets.bound()
        listener = next((each for each in bound if accepts(each, facts.server, facts.transport)), None)
        said = None
        if facts.server_name is not None or facts.alpn:
            said = ClientHello(facts.server_name, facts.alpn, ())
        facts = attrs.evolve(facts, listener=listener.name if listener else "", server_name=None, alpn=())
        reloader = self._central.reloader
        meeting = meet(listener, facts, said, reloader.current, reloader.documents)
        winner = meeting.routing.winner
        service_name = winner.upstream.service_name if winner and winner.upstream else ""
        nodes = [str(found) for found in self._central.resolver.nodes(service_name)] if service_name else None
        return {**as_data(meeting), "discovered": nodes}

    def health(self) -> Sequence[Mapping[str, object]]:
        """In APISIX's form, and ours added: `upstream`, and of a node `is_up`, `is_ejected` and `why`."""
        return [health_row(checker) for checker in self._central.prober.checkers.values()]

    def discovery(self) -> Sequence[Mapping[str, object]]:
        """What DNS says of the services that upstreams name."""
        return [service_row(each) for each in self._central.resolver.discovery.standings()]

    def documents(self) -> Sequence[Document]:
        """What runs."""
        reloader = self._central.reloader
        if reloader.documents is not self._documents:
            ranks = {route.id: rank for rank, route in enumerate(reloader.current.router.routes)}
            last = len(ranks)  # disabled
            self._documents = reloader.documents
            self._in_order = sorted(
                reloader.documents,
                key=lambda each: ranks.get(each.key[1], last) if each.key[0] == "stream_routes" else last,
            )
        return self._in_order

    def reload(self) -> None:
        """As SIGHUP does."""
        self._central.reloader.poke()
        self._look()
        self._look_at_settings()

    def poke(self) -> None:
        """Run what was written, now."""
        self._central.reloader.poke_written()
        self._look()

    async def wait_applied(self, awaited: Awaited, deadline: float) -> Sequence[int]:
        """Empty once every worker that accepts clients, or will, runs the objects; at the deadline: those that do not."""
        late: list[int] = []

        async def wait_for(member: Member) -> None:
            try:
                has_it = await member.wait_applied(awaited, deadline)
            except Gone:
                has_it = True  # whoever comes in its place catches up before its first client
            except Silent:
                has_it = False
            if not has_it:
                late.append(member.number)

        async def wait_here() -> None:
            with trio.move_on_at(deadline):
                await self._central.reloader.wait_applied(awaited)

        async with trio.open_nursery() as nursery:
            # Not named: it serves nobody, but what is asked next shall be of this state.
            nursery.start_soon(wait_here)
            for member in self._members():
                if member.state != "draining":
                    nursery.start_soon(wait_for, member)
        return tuple(sorted(late))

    def subscribe(self, kinds: Collection[str], wanted: Mapping[str, str]) -> Feed:
        """Hear what happens from now on."""
        return self._central.hub.subscribe(kinds, wanted)

    async def figures(self) -> Figures:
        """What the metrics show."""
        for member, each in await self._ask(lambda member: member.share()):
            self._books.note(member, share=each)
        return figures.of_gateway(self._books.share(), self._central, self._settings_status())

    async def _ask(self, question: Callable[[Member], Awaitable[T]]) -> list[tuple[Member, T | None]]:
        """What all say, in their order. None: that one has not answered."""
        members = tuple(self._members())  # as of now: workers come and go meanwhile
        answers: dict[int, T] = {}

        async def ask(place: int, member: Member) -> None:
            with contextlib.suppress(Silent):
                answers[place] = await question(member)

        if len(members) == 1:
            await ask(0, members[0])
        else:
            async with trio.open_nursery() as nursery:
                for place, member in enumerate(members):
                    nursery.start_soon(ask, place, member)
        return [(member, answers.get(place)) for place, member in enumerate(members)]

    def _look(self) -> None:
        for member in self._members():
            member.look()


class LocalFleet(WorkerFleet):
    """One worker, in this process."""

    def __init__(
        self,
        worker: Worker,
        settings_status: Callable[[], ReloadStatus],
        look_at_settings: Callable[[], None],
    ) -> None:
        here, books = Here(worker, os.getpid()), Books()
        books.open(here)
        super().__init__(
            worker,
            lambda: (here,),
            books,
            slots=1,
            settings_status=settings_status,
            look_at_settings=look_at_settings,
        )
