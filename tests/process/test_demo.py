"""The demo's upstreams: enough for nc and for curl."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from streamgw.process.demo import LINE_LIMIT, serve_datagrams, serve_upstreams, start_upstreams


@asynccontextmanager
async def upstream() -> AsyncIterator[trio.SocketStream]:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(serve_upstreams, (0,)))
        async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as client:
            yield client
        nursery.cancel_scope.cancel()


def port_of(client: trio.SocketStream) -> int:
    return client.socket.getpeername()[1]


async def read_all(client: trio.SocketStream) -> bytes:
    with trio.fail_after(30):
        return b"".join([chunk async for chunk in client])


async def test_lines_come_back_with_the_port_in_front() -> None:
    async with upstream() as client:
        port = port_of(client)
        await client.send_all(b"one\r\ntw")
        await client.send_all(b"o\n")
        await client.send_eof()

        assert await read_all(client) == b"upstream %d: one\nupstream %d: two\n" % (port, port)


async def test_http_is_answered_as_http_once_its_head_is_whole() -> None:
    async with upstream() as client:
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n")
        await client.send_all(b"Accept: */*\r\n\r\n")

        answer = await read_all(client)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nhello from the upstream on port %d\n" % port_of_answer(answer))


def port_of_answer(answer: bytes) -> int:
    return int(answer.split()[-1])


async def test_an_endless_line_ends_the_connection() -> None:
    async with upstream() as client:
        await client.send_all(b"x" * (LINE_LIMIT + 1))

        assert await read_all(client) == b""


async def test_a_client_that_resets_costs_nothing() -> None:
    async with upstream() as client:
        client.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.send_all(b"half a line")


async def test_datagrams_come_back_with_the_port_in_front() -> None:
    async with trio.open_nursery() as nursery:
        first, second = await nursery.start(partial(serve_datagrams, (0, 0)))
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client, trio.fail_after(30):
            for port in (first, second, first):
                await client.sendto(b"hello\n", ("127.0.0.1", port))
                assert await client.recv(100) == b"upstream %d: hello\n" % port
        nursery.cancel_scope.cancel()


async def test_after_an_upgrade_the_new_upstreams_wait_for_the_ports_of_the_old_ones() -> None:
    (old,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = old.socket.getsockname()[1]
    serve = partial(serve_upstreams, (port,))
    async with trio.open_nursery() as nursery:
        with pytest.raises(OSError, match="in use"):
            await start_upstreams(nursery, serve, waits=False)

        nursery.start_soon(partial(start_upstreams, nursery, serve, waits=True))
        await trio.testing.wait_all_tasks_blocked()
        await old.aclose()
        with trio.fail_after(10):
            while True:
                try:
                    client = await trio.open_tcp_stream("127.0.0.1", port)
                    break
                except OSError:
                    await trio.sleep(0.05)
        async with client:
            await client.send_all(b"new\n")
            assert await client.receive_some() == b"upstream %d: new\n" % port
        nursery.cancel_scope.cancel()
