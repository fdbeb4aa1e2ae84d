"""A gateway of several workers in one process: real workers, sockets, channels and ledger; only the processes are missing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

from streamgw.config.settings import AccessLogSettings, ReloadSettings, Settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import StreamgwError
from streamgw.core.model import Listener
from streamgw.process.answers import Answers
from streamgw.process.central import Central
from streamgw.process.channel import Channel
from streamgw.process.demo import serve_upstreams
from streamgw.process.fleet import LocalFleet, WorkerFleet
from streamgw.process.health import RemoteHealth
from streamgw.process.ledger import LedgerMemory, SharedLedger
from streamgw.process.members import Here, There
from streamgw.process.office import Office
from streamgw.process.sockets import Sockets
from streamgw.process.worker import Surroundings, Worker
from tests.support.worker import ANY, write_routes


class SlotSockets:
    """One worker's of several."""

    def __init__(self, sockets: Sockets, slot: int) -> None:
        self._sockets = sockets
        self._slot = slot

    def bound(self) -> Mapping[Listener, socket.socket]:
        return self._sockets.bound(self._slot)

    def replace(self, listeners: Sequence[Listener], **_: object) -> Callable[[], None]:
        raise AssertionError("nobody changes listeners here")

    def close_all(self) -> None:
        """They belong to all."""


@attrs.define(eq=False)
class Colleague:
    """One worker of several, with both ends of its channel."""

    number: int
    worker: Worker
    answers: Answers
    ours: Channel
    theirs: Channel
    member: There
    ledger: SharedLedger
    is_stuck: bool = False
    """It answers nothing any more."""
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    gone: trio.Event = attrs.Factory(trio.Event)


@attrs.define(eq=False)
class Stage:
    """A gateway on one port, with two upstreams that answer each line with their own port in front."""

    fleet: WorkerFleet
    central: Central
    workers: list[Worker]
    routes: Path
    upstream_ports: tuple[int, int]
    asked: list[str]
    """For the settings to be looked at."""
    office: Office | None = None
    colleagues: list[Colleague] = attrs.Factory(list)
    hire: Callable[[int], Awaitable[None]] | None = None
    """Put a worker into a slot."""

    @property
    def port(self) -> int:
        return next(iter(self.central.sockets.bound())).port

    @property
    def live(self) -> int:
        return sum(worker.live_sessions for worker in self.workers)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def until(self, look: Callable[[], bool]) -> None:
        with trio.fail_after(30):
            while not look():
                await trio.sleep(0.005)

    def write_route(self, upstream_port: int, **match: object) -> None:
        write_routes(self.routes, upstream_port, **match)

    async def fire(self, colleague: Colleague) -> None:
        """Its process is dead."""
        colleague.scope.cancel()
        await colleague.gone.wait()


@asynccontextmanager
async def stage_on(tmp_path: Path, workers: int, **settings: object) -> AsyncIterator[Stage]:
    """With one worker there is no office: `workers: 1`."""
    routes = tmp_path / "routes.d"
    routes.mkdir()
    fixed: dict[str, object] = {
        "listeners": (ANY,),
        "access_log": AccessLogSettings(path=str(tmp_path / "access.log")),
        "reload": ReloadSettings(settle_ms=10),
    }
    whole = Settings(**(fixed | settings))  # type: ignore[arg-type]  as a test names them
    sockets = Sockets(slots=workers)
    try:
        sockets.replace(whole.listeners)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(serve_upstreams, (0, 0)))
            first, second = (listener.socket.getsockname()[1] for listener in listeners)
            write_routes(routes, first)
            make = _one if workers == 1 else partial(_several, workers)
            async with make(whole, routes, sockets) as stage:
                stage.upstream_ports = first, second
                yield stage
            nursery.cancel_scope.cancel()
    finally:
        sockets.close_all()


@asynccontextmanager
async def _one(settings: Settings, routes: Path, sockets: Sockets) -> AsyncIterator[Stage]:
    worker, asked = Worker(settings, routes, sockets), list[str]()
    fleet = LocalFleet(worker, ReloadStatus, look_at_settings=lambda: asked.append("settings"))
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        worker.listen()
        yield Stage(fleet, worker, [worker], routes, (0, 0), asked)
        worker.drain(trio.current_time())
        await worker.ended.wait()


@asynccontextmanager
async def _several(count: int, settings: Settings, routes: Path, sockets: Sockets) -> AsyncIterator[Stage]:
    office, asked, memory = Office(settings, routes, sockets), list[str](), LedgerMemory(sets=64)
    fleet = WorkerFleet(
        office,
        lambda: office.members,
        office.books,
        slots=count,
        settings_status=ReloadStatus,
        look_at_settings=lambda: asked.append("settings"),
    )
    stage = Stage(fleet, office, [], routes, (0, 0), asked, office)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(office.run)

            async def hire(number: int) -> None:
                colleague = _colleague(number, office, memory, settings, sockets)
                stage.colleagues.append(colleague)
                stage.workers.append(colleague.worker)
                await nursery.start(_work, stage, colleague, memory)

            stage.hire = hire
            for number in range(count):
                await hire(number)
            yield stage
            for colleague in stage.colleagues:
                colleague.worker.drain(trio.current_time())
                colleague.scope.cancel()
            nursery.cancel_scope.cancel()
    finally:
        memory.close()


def _colleague(
    number: int, office: Office, memory: LedgerMemory, settings: Settings, sockets: Sockets
) -> Colleague:
    one, other = socket.socketpair()
    colleague: Colleague
    ours = Channel(
        one,
        answer=lambda what, arguments: office.answer(colleague.member, what, arguments),
        heard=lambda what, data, _: office.heard(what, data),
    )

    async def answer(what: str, arguments: Mapping[str, object]) -> object:
        if colleague.is_stuck:
            await trio.sleep_forever()
        return await colleague.answers.handlers[what](arguments)

    theirs = Channel(other, answer=answer, heard=lambda what, *_: _hear(colleague, what))

    async def tell(results: Sequence[Sequence[object]]) -> None:
        await theirs.ask("results", {"results": results})

    ledger = SharedLedger(memory.fd, memory.take_seat())
    worker = Worker(
        settings,
        office.store.directory,
        SlotSockets(sockets, number),
        Surroundings(number=number, ledger=ledger, make_health=partial(RemoteHealth, tell=tell)),
    )
    health = worker.prober
    assert isinstance(health, RemoteHealth)
    answers = Answers(worker, Here(worker, os.getpid()), health)
    member = There(number, 1_000_000 + random.randrange(1_000_000), ours)
    colleague = Colleague(number, worker, answers, ours, theirs, member, ledger)
    return colleague


def _hear(colleague: Colleague, what: str) -> None:
    if not colleague.is_stuck:
        colleague.answers.heard(what)


async def _work(
    stage: Stage,
    colleague: Colleague,
    memory: LedgerMemory,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The life of one worker."""
    assert stage.office is not None
    try:
        with colleague.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(colleague.ours.run)
                nursery.start_soon(colleague.theirs.run)
                await nursery.start(colleague.worker.run)
                nursery.start_soon(colleague.answers.tell_events, colleague.theirs)
                await nursery.start(stage.office.attend, colleague.member)
                colleague.worker.listen()
                colleague.member.state = "serving"
                task_status.started()
    finally:
        stage.workers.remove(colleague.worker)
        stage.colleagues.remove(colleague)
        colleague.ledger.close()
        colleague.gone.set()


async def farewell(colleague: Colleague) -> None:
    with contextlib.suppress(StreamgwError):
        await colleague.answers.farewell(colleague.theirs)
