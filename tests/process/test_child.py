"""A worker that is a process of its own, here without the process: what it does as its supervisor asks."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import structlog
import trio

from streamgw.config.settings import AccessLogSettings, ReloadSettings, Settings
from streamgw.core.errors import ConfigError
from streamgw.process import child
from streamgw.process.channel import Channel, Refused
from streamgw.process.child import Child
from streamgw.process.demo import serve_upstreams
from streamgw.process.ledger import LedgerMemory
from streamgw.process.slots import packed
from streamgw.process.sockets import Sockets
from tests.support.descriptors import open_descriptors, opened_since
from tests.support.worker import ANY, says, write_routes


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker configures structlog and the garbage collector for its process, which here is everybody's."""
    monkeypatch.setattr(child, "settle", lambda: None)
    yield
    structlog.reset_defaults()


@attrs.define
class Supervisor:
    """The other side."""

    channel: Channel
    settings: Settings
    routes: Path
    ledger: LedgerMemory
    asked: list[str] = attrs.Factory(list)

    async def answer(self, what: str, _: Mapping[str, object]) -> object:
        self.asked.append(what)
        await trio.lowlevel.checkpoint()
        return {}

    async def start(self, **changes: object) -> None:
        arguments = {
            "settings": packed(attrs.evolve(self.settings, **changes)),
            "routes": str(self.routes),
            "number": 1,
            "seat": self.ledger.take_seat(),
        }
        await self.channel.ask("start", arguments, fds=[self.ledger.fd])

    async def follow(self, sockets: Sockets, **changes: object) -> None:
        for name, sock in sockets.of_slot(0).items():
            await self.channel.ask("take", {"names": [name]}, fds=[sock.fileno()])
        await self.channel.ask("follow", {"settings": packed(attrs.evolve(self.settings, **changes))})


@asynccontextmanager
async def supervised(tmp_path: Path) -> AsyncIterator[tuple[Supervisor, trio.Event]]:
    ours, theirs = socket.socketpair()
    routes = tmp_path / "routes.d"
    routes.mkdir()
    settings = Settings(
        access_log=AccessLogSettings(path=str(tmp_path / "access.log")), reload=ReloadSettings(settle_ms=10)
    )
    has_ended = trio.Event()

    async def run() -> None:
        await Child(theirs).run()
        has_ended.set()

    supervisor = Supervisor(None, settings, routes, LedgerMemory())
    supervisor.channel = Channel(ours, answer=supervisor.answer, heard=lambda *_: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await nursery.start(supervisor.channel.run)
        (listener,) = await nursery.start(partial(serve_upstreams, (0,)))
        write_routes(routes, listener.socket.getsockname()[1])
        with trio.fail_after(30):
            yield supervisor, has_ended
        nursery.cancel_scope.cancel()
    supervisor.ledger.close()


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[Supervisor, Sockets, trio.Event]]:
    """A worker that has been started, and listens where these sockets do."""
    sockets = Sockets()
    sockets.replace([ANY])
    try:
        async with supervised(tmp_path) as (supervisor, has_ended):
            await supervisor.start()
            await supervisor.follow(sockets, listeners=(ANY,))
            yield supervisor, sockets, has_ended
    finally:
        sockets.close_all()


async def open_client(sockets: Sockets) -> trio.SocketStream:
    (listener,) = sockets.listeners()
    return await trio.open_tcp_stream("127.0.0.1", listener.port)


async def test_it_loads_then_listens_then_drains(tmp_path: Path) -> None:
    async with serving(tmp_path) as (supervisor, sockets, has_ended):
        async with await open_client(sockets) as client:
            assert (await says(client)).startswith(b"upstream")

            await supervisor.channel.ask("reopen_logs")
            await supervisor.channel.ask("drain", {"within_s": 60.0, "is_succeeded": True})
            assert (await says(client)).startswith(b"upstream")
            assert not has_ended.is_set()
        await has_ended.wait()

        assert supervisor.asked[-1] == "farewell"


async def test_it_serves_where_it_may_not_stay_on_one_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[int]] = []

    def refuse(_: int, cpus: set[int]) -> None:
        asked.append(cpus)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 6, 7})
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    async with supervised(tmp_path) as (supervisor, _):
        await supervisor.start(has_cpu_affinity=True)

        assert asked == [{6}]
        await supervisor.channel.ask("ping")


async def test_once_it_drains_it_takes_nothing_more_and_says_that_all_is_done(tmp_path: Path) -> None:
    """What was on its way when the signal came: its sessions are not to pay for that."""
    async with serving(tmp_path) as (supervisor, sockets, has_ended):
        async with await open_client(sockets) as client:
            await says(client)
            await supervisor.channel.ask("drain", {"within_s": 60.0, "is_succeeded": False})
            before = open_descriptors()

            await supervisor.follow(Sockets(), listeners=(ANY,))
            await supervisor.follow(sockets, listeners=(ANY,))
            await supervisor.channel.ask("make_way", {"names": [ANY.name], "settings": packed(Settings())})

            assert not [each for each in opened_since(before) if each.startswith("socket:")]
            assert (await says(client)).startswith(b"upstream")
        await has_ended.wait()


async def test_it_cuts_its_sessions_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (supervisor, sockets, has_ended),
        await open_client(sockets) as client,
    ):
        await says(client)

        supervisor.channel.close()
        await has_ended.wait()
    assert '"reason":"drain"' in (tmp_path / "access.log").read_text()


async def test_it_lets_go_of_what_is_in_the_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as (supervisor, sockets, _):
        (listener,) = sockets.listeners()

        await supervisor.channel.ask("make_way", {"names": [ANY.name], "settings": packed(Settings())})
        sockets.close_all()

        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", listener.port)) != 0


async def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (supervisor, _):
        (supervisor.routes / "broken.yaml").write_text("stream_routes: 7\n")

        with pytest.raises(ConfigError, match=r"broken\.yaml:1"):
            await supervisor.start()


async def test_a_log_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (supervisor, _):
        with pytest.raises(Refused, match="Is a directory"):
            await supervisor.start(access_log=AccessLogSettings(path=str(tmp_path)))


async def test_it_listens_on_nothing_that_it_was_not_given(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (supervisor, _):
        await supervisor.start()

        with pytest.raises(Refused, match="no socket was handed down"):
            await supervisor.follow(Sockets(), listeners=(ANY,))


async def test_what_it_does_not_know_it_does_not_do(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (supervisor, _):
        with pytest.raises(Refused, match="not a question to a worker: dance"):
            await supervisor.channel.ask("dance")
        supervisor.channel.tell("look", {})
        await supervisor.start()
        supervisor.channel.tell("look", {})
        assert isinstance(await supervisor.channel.ask("status"), dict)
