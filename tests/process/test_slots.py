"""One worker process, a real one: told what to do, stopped, killed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from streamgw.config.settings import AccessLogSettings, ReloadSettings, Settings
from streamgw.config.store import Store
from streamgw.core.errors import ConfigError, StreamgwError
from streamgw.process import slots
from streamgw.process.channel import ChannelClosed
from streamgw.process.demo import serve_upstreams
from streamgw.process.ledger import LedgerMemory
from streamgw.process.slots import Process, packed, unpacked
from streamgw.process.sockets import Sockets
from tests.support.worker import ANY, says, write_routes

pytestmark = pytest.mark.slow

OTHER = attrs.evolve(ANY, host="127.0.0.2")


@pytest.fixture
def ledger() -> Iterator[LedgerMemory]:
    memory = LedgerMemory()
    yield memory
    memory.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close_all()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        access_log=AccessLogSettings(path=str(tmp_path / "access.log")), reload=ReloadSettings(settle_ms=10)
    )


async def answer(_process: Process, _what: str, _arguments: Mapping[str, object]) -> object:
    await trio.lowlevel.checkpoint()
    return {}


@asynccontextmanager
async def alive(tmp_path: Path, settings: Settings) -> AsyncIterator[tuple[Process, Path]]:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    process = Process(1, settings, answer, lambda *_: None)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(serve_upstreams, (0,)))
        write_routes(routes, listener.socket.getsockname()[1])
        await nursery.start(process.run)
        with trio.fail_after(100):
            yield process, routes
        nursery.cancel_scope.cancel()
    assert process.ended.is_set()
    assert process.exit_code is not None, "it has been waited for"


async def talks(sockets: Sockets, host: str = "127.0.0.1") -> bool:
    (port,) = (each.port for each in sockets.listeners() if each.host == host)
    async with await trio.open_tcp_stream(host, port) as client:
        return (await says(client)).startswith(b"upstream")


async def test_it_loads_follows_and_drains(
    tmp_path: Path, settings: Settings, ledger: LedgerMemory, sockets: Sockets
) -> None:
    sockets.replace([ANY])
    async with alive(tmp_path, settings) as (process, routes):
        await process.load(routes, ledger.fd)
        assert process.member.state == "starting"
        await process.follow(attrs.evolve(settings, listeners=(ANY,)), sockets.of_slot(0))
        assert process.member.state == "serving"
        assert await talks(sockets)

        sockets.replace([ANY, OTHER])
        await process.follow(attrs.evolve(settings, listeners=(ANY, OTHER)), sockets.of_slot(0))
        assert await talks(sockets, "127.0.0.2")

        await process.make_way([OTHER.name], [])
        await process.reopen_logs()
        await process.drain(60.0, is_succeeded=True)
        await process.ended.wait()
        assert process.exit_code == 0

        with pytest.raises(ChannelClosed):
            await process.reopen_logs()
        process.kill()


async def test_what_it_cannot_load_is_raised_here(
    tmp_path: Path, settings: Settings, ledger: LedgerMemory
) -> None:
    async with alive(tmp_path, settings) as (process, routes):
        (routes / "broken.yaml").write_text("stream_routes: 7\n")

        with pytest.raises(ConfigError, match=r"broken\.yaml"):
            await process.load(routes, ledger.fd)


async def test_given_a_tree_it_runs_that_until_the_directory_is_well_again(
    tmp_path: Path, settings: Settings, ledger: LedgerMemory, sockets: Sockets
) -> None:
    sockets.replace([ANY])
    async with alive(tmp_path, settings) as (process, routes):
        tree = Store(routes).read()
        (routes / "broken.yaml").write_text("stream_routes: 7\n")

        await process.load(routes, ledger.fd, tree)
        await process.follow(attrs.evolve(settings, listeners=(ANY,)), sockets.of_slot(0))

        assert await talks(sockets)
        while not (await process.member.status()).is_rejected:
            await trio.sleep(0.01)


async def test_one_that_is_killed_ends_every_question(
    tmp_path: Path, settings: Settings, ledger: LedgerMemory
) -> None:
    async with alive(tmp_path, settings) as (process, routes):
        process.kill()

        with pytest.raises(ChannelClosed):
            await process.load(routes, ledger.fd)
        await process.ended.wait()
        assert process.exit_code == -signal.SIGKILL


async def test_one_that_does_nothing_is_found_out(
    tmp_path: Path, settings: Settings, ledger: LedgerMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alive(tmp_path, settings) as (process, routes):
        await process.load(routes, ledger.fd)
        monkeypatch.setattr(slots, "FOLLOW_S", 0.2)
        monkeypatch.setattr(slots, "FAREWELL_S", 0.2)
        os.kill(process.pid, signal.SIGSTOP)

        with pytest.raises(StreamgwError, match="does not answer"):
            await process.follow(settings, {})
        with pytest.raises(StreamgwError, match="does not answer"):
            await process.drain(1.0, is_succeeded=False)


async def test_signals_are_not_its_business(tmp_path: Path, settings: Settings, ledger: LedgerMemory) -> None:
    async with alive(tmp_path, settings) as (process, routes):
        await process.load(routes, ledger.fd)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process.pid, number)

        await process.reopen_logs()


def test_settings_travel_as_they_are_but_for_warnings() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
    settings = Settings(listeners=(ANY, OTHER), stream_plugins=("limit-conn",), workers=3)

    assert unpacked(packed(settings)) == settings
