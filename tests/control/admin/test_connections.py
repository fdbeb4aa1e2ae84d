"""What slow, broken and too many HTTP clients cost: over real sockets, because that is where they are slow."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest
import structlog
import trio
import trustme
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from streamgw.control.admin.app import serve_admin
from streamgw.control.admin.connections import Bounds, serve_connections
from streamgw.core.model import Address
from tests.support.http import exchange, get

BIG = b"x" * (8 << 20)
"""More than the buffers of two sockets hold."""


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def big(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(BIG)(scope, receive, send)


@asynccontextmanager
async def serving(
    app: ASGIApp, bounds: Bounds | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Address]:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_admin, app, Address("127.0.0.1", 0), bounds=bounds or Bounds(), tls=tls)
        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


async def connect(address: Address) -> trio.SocketStream:
    return await trio.open_tcp_stream(address.host, address.port)


async def is_closed(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(30):
        try:
            return await stream.receive_some() == b""
        except trio.BrokenResourceError:
            return True
    return False


async def test_who_does_not_read_is_cut_off() -> None:
    async with serving(big, Bounds(stall_timeout_s=0.2)) as address, await connect(address) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = 0
        with trio.fail_after(10):
            await trio.testing.wait_all_tasks_blocked()  # both sockets are full
            await trio.sleep(0.5)  # does not read
            try:
                while piece := await stream.receive_some():
                    received += len(piece)
            except trio.BrokenResourceError:
                pass

    assert received < len(BIG)


async def test_who_does_not_read_keeps_nobody_from_ending() -> None:
    with trio.fail_after(30):
        async with serving(big, Bounds(stall_timeout_s=600)) as address:
            stream = await connect(address)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await stream.receive_some(1)
        await stream.aclose()


async def test_one_connection_more_than_may_be_replaces_the_one_idle_longest() -> None:
    async with (
        serving(hello, Bounds(max_connections=2)) as address,
        await connect(address) as oldest,
        await connect(address) as half_a_request,
    ):
        await oldest.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await oldest.receive_some()  # so the other one has been idle for longer
        await half_a_request.send_all(b"GET / HTTP/1.1\r\nHo")

        assert (await get(address, "/")).body == b"hello"
        assert await is_closed(half_a_request)


async def test_requests_under_way_are_not_pushed_out() -> None:
    release = trio.Event()

    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await hello(scope, receive, send)

    async with (
        serving(patient, Bounds(max_connections=1)) as address,
        await connect(address) as busy,
    ):
        await busy.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.05)

        async with await connect(address) as further:
            assert await is_closed(further)
        release.set()
        answer = b""
        with trio.fail_after(30):
            while b"hello" not in answer:
                answer += await busy.receive_some()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: !!\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ],
)
async def test_broken_requests_cost_a_connection_and_nothing_else(request_head: bytes) -> None:
    with structlog.testing.capture_logs():
        async with serving(hello) as address:
            async with await connect(address) as stream:
                await stream.send_all(request_head)
                with trio.move_on_after(0.3):
                    while await stream.receive_some():
                        pass

            assert (await get(address, "/")).body == b"hello"


async def test_a_bug_in_the_protocol_code_is_logged_and_costs_one_connection() -> None:
    async def surprising(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            await hello(scope, _receive, send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [("not", "bytes")]})

    async with serving(surprising) as address:
        await exchange_or_nothing(address, b"GET /bug HTTP/1.1\r\nHost: a\r\n\r\n")

        assert (await get(address, "/")).body == b"hello"


async def exchange_or_nothing(address: Address, request: bytes) -> None:
    async with await connect(address) as stream:
        await stream.send_all(request)
        await is_closed(stream)


async def test_an_early_answer_to_a_long_body_gets_through() -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("no", 400)(scope, receive, send)

    with trio.fail_after(10):
        async with serving(early) as address, await connect(address) as stream:
            await stream.send_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_much, stream)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
                nursery.cancel_scope.cancel()


async def send_much(stream: trio.SocketStream) -> None:
    try:
        for _ in range(1000):
            await stream.send_all(b"x" * 65536)
    except trio.BrokenResourceError:
        pass


async def test_it_speaks_tls_and_whoever_does_not_costs_nothing() -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    client = ssl.create_default_context()
    ca.configure_trust(client)

    async def scheme(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(Request(scope).url.scheme)(scope, receive, send)

    async with serving(scheme, tls=context) as address:
        async with await connect(address) as plain:
            await plain.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await is_closed(plain)

        raw = await connect(address)
        async with trio.SSLStream(raw, client, server_hostname="127.0.0.1", https_compatible=True) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b""
            async for piece in stream:
                answer += piece
        assert answer.endswith(b"https")


async def test_without_descriptors_it_waits_and_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    attempts = 0

    class Scarce:
        """A listener on a machine that has run out of descriptors for a moment."""

        def __init__(self, listener: trio.SocketListener) -> None:
            self._listener = listener

        async def accept(self) -> trio.SocketStream:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return await self._listener.accept()

    with socket.create_server(("127.0.0.1", 0)) as sock, structlog.testing.capture_logs() as logs:
        sock.setblocking(False)
        listener = Scarce(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connections, hello, cast("trio.SocketListener", listener), Bounds())
            reply = await get(Address(*sock.getsockname()), "/")
            nursery.cancel_scope.cancel()

    assert reply.body == b"hello"
    assert [line["event"] for line in logs] == ["accepting"]


async def test_a_bug_below_the_handlers_is_logged_and_costs_one_connection() -> None:
    class Surprising:
        """A connection whose bytes raise what nobody expects."""

        def __init__(self, stream: trio.SocketStream) -> None:
            self.socket = stream.socket

        async def receive_some(self, _max_bytes: int | None = None) -> bytes:
            raise LookupError

        async def send_eof(self) -> None:
            await trio.lowlevel.checkpoint()

        async def aclose(self) -> None:
            self.socket.close()
            await trio.lowlevel.checkpoint()

    class OneSurprise:
        """A listener whose first client is surprising."""

        def __init__(self, listener: trio.SocketListener) -> None:
            self._listener = listener
            self._surprises = [Surprising]

        async def accept(self) -> Surprising | trio.SocketStream:
            stream = await self._listener.accept()
            return self._surprises.pop()(stream) if self._surprises else stream

    with socket.create_server(("127.0.0.1", 0)) as sock, structlog.testing.capture_logs() as logs:
        sock.setblocking(False)
        listener = OneSurprise(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
        address = Address(*sock.getsockname())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connections, hello, cast("trio.SocketListener", listener), Bounds())
            await exchange_or_nothing(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

            assert (await get(address, "/")).body == b"hello"
            nursery.cancel_scope.cancel()

    assert [line["event"] for line in logs] == ["admin_bug"]


async def test_http_2_is_not_spoken() -> None:
    """There a client that gives no window holds its request, and its place among the others, for ever."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"

    async with serving(hello) as address:
        reply = await exchange(address, preface)

    assert reply.status == 505


async def test_an_offer_to_speak_http_2_is_ignored() -> None:
    offer = (
        b"Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    )

    async with serving(hello) as address:
        reply = await exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n")

    assert (reply.status, reply.body) == (200, b"hello")
