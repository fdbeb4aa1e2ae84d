"""Connections of HTTP clients: how many there may be, and how long each may take. Nobody who is slow holds anything.

Hypercorn's own server (`hypercorn.trio.run.worker_serve`) has four holes that matter to a gateway, so its parts are put
together here once more, around its protocol code:

* An answer is sent in a shielded scope without a deadline: a client that does not read would keep the whole process from
  ending. Here each piece has a deadline, and cancellation closes the sockets.
* An exception in its protocol code ends the server. Here it costs one connection, and is logged.
* It takes any number of connections. Here there is a limit, at which whoever has been idle longest makes room.
* It speaks HTTP/2 with whoever asks, also without TLS. There the client says how much of an answer it takes, and no deadline
  of a send notices: one connection could hold every place among the requests, for ever. Here there is HTTP/1.1 only.

Source:
  Hypercorn 0.18: `trio/run.py`, `trio/tcp_server.py`, `trio/task_group.py`.
"""

from __future__ import annotations

import ssl
import struct
import sys
from collections.abc import Callable
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, NoReturn, cast

import attrs
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

if TYPE_CHECKING:
    import h11
    from starlette.types import ASGIApp

HEAD_LIMIT_BYTES = 16 << 10
"""Request line and headers; more is answered 431, unless it all came in one piece (64 KiB at most)."""
IDLE_TIMEOUT_S = 5.0
"""A connection without a complete request head for this long is closed."""
HANDSHAKE_TIMEOUT_S = 10.0
"""For a TLS handshake."""
GRACE_S = 3.0
"""After `stop`, requests under way have this long."""
RETRY_S = 1.0
"""Time before accepting again when the system has no descriptor left."""
MESSAGE_LIMIT_BYTES = 4096
"""Of what a WebSocket client says: nobody acts on it."""

_NO_HTTP2 = b"HTTP/1.1 505 \r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_LINGER_NOT = struct.pack("ii", 1, 0)


@attrs.frozen
class Bounds:
    """What the clients of one server may use."""

    max_connections: int = 512
    stall_timeout_s: float = 30.0
    """A client that does not take a piece of its answer for this long is cut off."""


async def serve_connections(
    app: ASGIApp,
    listener: trio.SocketListener,
    bounds: Bounds,
    *,
    tls: ssl.SSLContext | None = None,
    stop: trio.Event | None = None,
) -> None:
    """Answer requests until cancelled, or until `stop` is set and the requests under way are done (within GRACE_S).

    Resource handling:
      `listener` is the caller's; every connection accepted from it is closed on return.
    """
    context = WorkerContext(None)
    async with trio.open_nursery() as clients:
        server = _Server(ASGIWrapper(cast("ASGIFramework", app)), bounds, context, tls, clients)
        async with trio.open_nursery() as accepting:
            accepting.start_soon(server.accept, listener)
            await (trio.Event() if stop is None else stop).wait()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        clients.cancel_scope.deadline = trio.current_time() + GRACE_S


class _Server:
    """The live connections of one listening socket."""

    def __init__(
        self,
        app: ASGIWrapper,
        bounds: Bounds,
        context: WorkerContext,
        tls: ssl.SSLContext | None,
        clients: trio.Nursery,
    ) -> None:
        self._app = app
        self._bounds = bounds
        self._context = context
        self._tls = tls
        self._clients = clients
        self._config = _config()
        self._live: dict[_Connection, Callable[[], None]] = {}
        """With what cuts it off."""

    async def accept(self, listener: trio.SocketListener) -> NoReturn:
        """Take every client, within the limits."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:  # trio lets only those through that say that something has run out
                structlog.get_logger().error("accepting", trouble=f"an HTTP client: {error.strerror}")
                await trio.sleep(RETRY_S)
            else:
                self._clients.start_soon(self._serve, stream)

    async def _serve(self, socket_stream: trio.SocketStream) -> None:
        stream = _Stream(socket_stream, self._bounds.stall_timeout_s)
        connection = _Connection(self._app, self._config, self._context, self._wrapped(stream))
        if not self._make_room():
            await trio.aclose_forcefully(stream)
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.close_when_cancelled)
                self._live[connection] = nursery.cancel_scope.cancel
                await connection.run()
                nursery.cancel_scope.cancel()
        except* Exception as errors:  # noqa: BLE001  the boundary: a bug in the protocol code costs one connection
            structlog.get_logger().error("admin_bug", method="", path="", exc_info=errors)
        finally:
            del self._live[connection]

    def _make_room(self) -> bool:
        if len(self._live) < self._bounds.max_connections:
            return True
        idle = [connection for connection in self._live if connection.is_idle]
        if idle:
            self._live[min(idle, key=lambda connection: connection.idle_since)]()
        return bool(idle)

    def _wrapped(self, stream: _Stream) -> trio.abc.Stream:
        if self._tls is None:
            return stream
        return trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)


class _Connection(TCPServer):
    """One client. Idle: it owes us the head of a request."""

    def __init__(
        self, app: ASGIWrapper, config: Config, context: WorkerContext, stream: trio.abc.Stream
    ) -> None:
        super().__init__(
            app,
            config,
            context,
            ConnectionState({}),
            cast("trio.SSLStream[trio.SocketStream]", stream),
        )
        self.is_idle = True
        self.idle_since = trio.current_time()

    @property
    def protocol(self) -> ProtocolWrapper:
        """What Hypercorn's `run` makes, and hands what it reads to."""
        return self._protocol

    @protocol.setter
    def protocol(self, made: ProtocolWrapper) -> None:
        self._protocol = made
        made.protocol = _HTTP1(
            made.app,
            made.config,
            made.context,
            made.task_group,
            made.state,
            made.ssl,
            made.client,
            made.server,
            made.send,
        )

    async def protocol_send(self, event: Event) -> None:
        """What the protocol code has to say, to the client or to us."""
        if isinstance(event, Updated):
            self.is_idle, self.idle_since = event.idle, trio.current_time()
        await super().protocol_send(event)


class _HTTP1(H11Protocol):
    """HTTP/1.1, and no way from there to another protocol."""

    async def handle(self, event: Event) -> None:
        """What was read from the client."""
        try:
            await super().handle(event)
        except H2ProtocolAssumedError:
            await self.send(RawData(_NO_HTTP2))
            await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        # An offer (`Upgrade: h2c`) may be ignored: RFC 9110 § 7.8. A connection that begins as HTTP/2 cannot be answered.
        if event.method == b"PRI":
            await super()._check_protocol(event)


class _Stream(trio.abc.HalfCloseableStream):
    """A client's socket, whose sends have a deadline."""

    def __init__(self, stream: trio.SocketStream, stall_timeout_s: float) -> None:
        self._stream = stream
        self._stall_timeout_s = stall_timeout_s
        self.socket = stream.socket
        """Hypercorn asks it for the addresses."""

    async def close_when_cancelled(self) -> NoReturn:
        """Whoever is in a shielded send wakes up with an error then."""
        try:
            await trio.sleep_forever()
        finally:
            self.socket.close()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(self._stall_timeout_s) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            # By RST, and now: half an answer must not look whole, nor the kernel keep the other half.
            self.socket.setsockopt(SOL_SOCKET, SO_LINGER, _LINGER_NOT)
            self.socket.close()
            raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _config() -> Config:
    config = Config()
    config.errorlog = None  # what matters is logged by us; no line per start, stop or broken request
    config.accesslog = None
    config.alpn_protocols = ["http/1.1"]
    config.h11_max_incomplete_size = HEAD_LIMIT_BYTES
    config.keep_alive_timeout = IDLE_TIMEOUT_S
    config.ssl_handshake_timeout = HANDSHAKE_TIMEOUT_S
    config.include_server_header = False
    config.websocket_max_message_size = MESSAGE_LIMIT_BYTES
    # Hypercorn puts "the client has gone" into the same queue as the pieces of a body, from the task that should empty
    # it: an answer before the end of a long body would wait for ever. How much may be in it `access.Limits` decides.
    config.max_app_queue_size = sys.maxsize
    return config
