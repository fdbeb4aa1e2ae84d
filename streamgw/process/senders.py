"""One batch on its way: to a TCP, TLS or UDP socket, to an HTTP server, into a file.

The connection is made for each batch. One that is kept open would take a batch that nobody reads, when the collector went away
meanwhile, and say nothing; this way the end of the connection says that the collector has read it all. With HTTP the answer
does.
"""

from __future__ import annotations

import contextlib
import math
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeAlias

import trio

from streamgw.core.batch import Collector, OverHTTP, OverTCP, OverUDP, ToFile
from streamgw.core.errors import StreamgwError
from streamgw.process.append import Appender

FAREWELL_S = 1.0
"""What a collector has for closing the connection after us, or for the rest of an answer that says yes. One that keeps it open
is believed to have read everything."""
HASTE_S = 0.1
"""The same when the gateway ends and more batches wait, which are lost for certain when its time is over."""

TROUBLES = (
    OSError,
    ValueError,
    trio.BrokenResourceError,
    trio.TooSlowError,
    StreamgwError,
)
"""What a collector can do to us. A name that cannot even be looked up is a ValueError, a bad answer a StreamgwError."""

_Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"


class Senders:
    """Every way there is.

    Args:
      trusted: what collectors are verified with: `system`, or the path of a PEM file.
    """

    def __init__(self, trusted: Callable[[], str]) -> None:
        self._trusted = trusted
        self._appender = Appender()

    async def send(
        self,
        collector: Collector,
        records: Sequence[bytes],
        on_arrived: Callable[[], None],
        *,
        in_haste: bool = False,
    ) -> None:
        """Deliver a batch, and part from the collector; `in_haste` with less courtesy.

        Raises:
          TROUBLES: it did not arrive, or not all of it.

        Cancellation:
          As for an error, unless `on_arrived` was told: what has arrived by then is not known.
        """
        to = collector.to
        context = None
        farewell_s = HASTE_S if in_haste else FAREWELL_S
        with trio.fail_after(collector.timeout_s) as deadline:
            if isinstance(to, OverTCP | OverHTTP) and to.tls:
                context = await trio.to_thread.run_sync(
                    _client_context, self._trusted(), to, abandon_on_cancel=True
                )
            match to:
                case OverTCP():
                    async with _connected(to.host, to.port, context, to.server_name) as stream:
                        await stream.send_all(b"\n".join((*records, b"")))
                        deadline.deadline = math.inf  # parting is no part of it
                        await _part(stream, on_arrived, farewell_s)
                case OverHTTP():
                    # Few gateways post; those that answer HTTP themselves have most of it already.
                    from streamgw.process.post import post, read_rest  # noqa: PLC0415  see above

                    async with _connected(to.host, to.port, context) as stream:
                        await post(stream, to, records)
                        on_arrived()
                        deadline.deadline = math.inf  # as above
                        await read_rest(stream, within_s=farewell_s)
                case OverUDP():
                    await _send_datagrams(to, records)
                    on_arrived()
                case ToFile():
                    await self._appender.append(collector, to.path, b"\n".join((*records, b"")))
                    on_arrived()


async def _send_datagrams(to: OverUDP, records: Sequence[bytes]) -> None:
    """RFC 5426 and its like: no newline."""
    (family, _, _, _, address), *_ = await trio.socket.getaddrinfo(
        to.host, to.port, type=trio.socket.SOCK_DGRAM
    )
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(address)
        for record in records:
            await sock.send(record)


@contextlib.asynccontextmanager
async def _connected(
    host: str, port: int, context: ssl.SSLContext | None, server_name: str = ""
) -> AsyncGenerator[_Stream]:
    """A connection, closed at the end of the block whatever happened in it."""
    socket_stream = await trio.open_tcp_stream(host, port)
    try:
        if context is None:
            yield socket_stream
        else:
            stream = trio.SSLStream(socket_stream, context, server_hostname=server_name or host)
            await stream.do_handshake()
            yield stream
    finally:
        await trio.aclose_forcefully(socket_stream)


async def _part(stream: _Stream, on_arrived: Callable[[], None], farewell_s: float) -> None:
    """Say that this was all, and see the collector close, until which a reset says that it has not read it."""
    try:
        with trio.move_on_after(farewell_s):
            # Closing while bytes of theirs are unread (TLS session tickets) would be a reset, which destroys ours on the way.
            if isinstance(stream, trio.SSLStream):
                await _part_in_tls(stream)
            else:
                await stream.send_eof()
                while await stream.receive_some(4096):
                    pass
    except trio.Cancelled:
        on_arrived()  # as if it had kept the connection open
        raise
    on_arrived()


async def _part_in_tls(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Unlike `SSLStream.aclose`, which forgives a reset: that is a collector that died over our batch.

    One that closes without a close_notify of its own has read everything, too.
    """
    try:
        await stream.unwrap()
    except trio.BrokenResourceError as error:
        if not isinstance(error.__cause__, ssl.SSLError):
            raise


def _client_context(trusted: str, to: OverTCP | OverHTTP) -> ssl.SSLContext:
    """Reads files: for a thread."""
    context = ssl.create_default_context(cafile=None if trusted == "system" else trusted)
    if isinstance(to, OverHTTP):
        context.set_alpn_protocols(["http/1.1"])
    if not to.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
