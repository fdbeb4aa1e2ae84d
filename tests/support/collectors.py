"""What records are sent to: a TCP or TLS server that notes what it reads, an HTTP server that answers as it is told."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import attrs
import h11
import trio

from tests.support.certificates import CA_PEM, issue

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"

_Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"


def server_context(directory: Path, *names: str) -> tuple[ssl.SSLContext, str]:
    """How a server speaks TLS by these names, and the file of whom its clients have to trust."""
    ca = directory / "ca.pem"
    ca.write_text(CA_PEM)
    issue(*names).write(directory)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "a.pem", directory / "a.key")
    return context, str(ca)


async def until(look: Callable[[], object]) -> None:
    """Wait for a state."""
    with trio.fail_after(30):
        while not look():
            await trio.sleep(0.005)


@attrs.define
class Listening:
    """A collector that notes what it reads until its client is done."""

    port: int
    connections: list[bytes] = attrs.Factory(list)


@asynccontextmanager
async def listening(context: ssl.SSLContext | None = None) -> AsyncGenerator[Listening]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        found = Listening(listener.socket.getsockname()[1])

        async def serve(stream: trio.SocketStream) -> None:
            talk = stream if context is None else trio.SSLStream(stream, context, server_side=True)
            read = b""
            try:
                async for chunk in talk:
                    read += chunk
                await talk.aclose()
            except trio.BrokenResourceError:
                return
            found.connections.append(read)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield found
        nursery.cancel_scope.cancel()


@attrs.frozen
class Request:
    """As it came."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@attrs.define
class Receiver:
    """An HTTP server."""

    port: int
    answers: list[bytes] = attrs.Factory(list)
    """Of the next requests, as they stand on the wire; NO_CONTENT when there is none."""
    requests: list[Request] = attrs.Factory(list)

    @property
    def bodies(self) -> list[bytes]:
        return [request.body for request in self.requests]


@asynccontextmanager
async def receiving(
    *answers: bytes, context: ssl.SSLContext | None = None, port: int = 0, stays_open: bool = False
) -> AsyncGenerator[Receiver]:
    """Answer one request for each connection, and close it (`stays_open`: leave that to the client)."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        receiver = Receiver(listener.socket.getsockname()[1], list(answers))

        async def serve(stream: trio.SocketStream) -> None:
            talk = stream if context is None else trio.SSLStream(stream, context, server_side=True)
            try:
                if (request := await _read(talk)) is not None:
                    receiver.requests.append(request)
                    await talk.send_all(receiver.answers.pop(0) if receiver.answers else NO_CONTENT)
                    while stays_open and await talk.receive_some(4096):
                        pass
                    await talk.aclose()
            except trio.BrokenResourceError:
                return

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield receiver
        nursery.cancel_scope.cancel()


async def _read(stream: _Stream) -> Request | None:
    """None: the client went away before its request was whole."""
    connection = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            chunk = bytes(await stream.receive_some(65536))
            if not chunk:
                return None
            connection.receive_data(chunk)
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            assert isinstance(event, h11.EndOfMessage)
            assert head is not None
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return Request(head.method.decode(), head.target.decode(), headers, body)
