"""Looking names up in threads that may never come back."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from streamgw.process.names import Names
from tests.support.collectors import until

THREADS = 40
"""Of Trio, for everybody."""


class SilentServers:
    """What libc does while no name server answers: every look-up of `name` takes until `answer`."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._real: Callable[..., object] = socket.getaddrinfo
        self._answered = threading.Event()
        self.under_way = 0

    def __call__(self, host: bytes, *arguments: int) -> object:
        is_of_name = arguments[-1] & socket.AI_NUMERICHOST  # Trio tries this itself, for literal addresses
        if host != self._name or is_of_name:
            return self._real(host, *arguments)
        self.under_way += 1
        try:
            self._answered.wait(10)
        finally:
            self.under_way -= 1
        return self._real(b"127.0.0.1", *arguments)

    def answer(self) -> None:
        self._answered.set()


@pytest.fixture
async def servers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SilentServers]:
    silent = SilentServers(b"silent.example")
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    trio.socket.set_custom_hostname_resolver(Names())
    yield silent
    silent.answer()
    with trio.fail_after(10):
        await until(lambda: silent.under_way == 0)


async def test_a_name_is_looked_up() -> None:
    trio.socket.set_custom_hostname_resolver(Names())

    found = await trio.socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)

    assert found[0][4] == ("127.0.0.1", 80)


async def test_a_name_that_is_asked_for_again_and_again_takes_one_thread(servers: SilentServers) -> None:
    limiter = trio.to_thread.current_default_thread_limiter()

    for _ in range(2 * THREADS):
        with trio.move_on_after(0.001):
            await trio.socket.getaddrinfo("silent.example", 80)
    await until(lambda: servers.under_way)

    assert servers.under_way == 1
    assert limiter.borrowed_tokens == 0


async def test_other_names_do_not_wait_for_it(servers: SilentServers) -> None:
    with trio.move_on_after(0.001):
        await trio.socket.getaddrinfo("silent.example", 80)

    with trio.fail_after(30):
        assert await trio.socket.getaddrinfo("localhost", 80, socket.AF_INET)


async def test_whoever_waits_for_its_thread_is_answered_after_that(servers: SilentServers) -> None:
    with trio.move_on_after(0.001):
        await trio.socket.getaddrinfo("silent.example", 80)

    async with trio.open_nursery() as nursery:
        found: list[object] = []

        async def ask() -> None:
            found.extend(await trio.socket.getaddrinfo("silent.example", 80))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        servers.answer()
        with trio.fail_after(30):
            await until(lambda: found)


async def test_nobody_asks_for_the_name_of_an_address() -> None:
    with pytest.raises(NotImplementedError):
        await Names().getnameinfo(("127.0.0.1", 80), 0)
