"""One batch on its way: to a TCP, TLS or UDP socket, to an HTTP server, into a file.

The connection is made for each batch. One that is kept open would take a batch that nobody reads, when the collector went away
meanwhile, and say nothing; this way the end of the connection says that the collector has read it all. With HTTP the answer
does.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeAlias

import trio

from streamgw.core.batch import Collector, OverHTTP, OverTCP, OverUDP, ToFile
from streamgw.core.errors import StreamgwError
from streamgw.process.append import Appender

FAREWELL_S = 1.0
"""What a collector has for closing the connection after us. One that keeps it open is believed to have read everything."""

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

    async def send(self, collector: Collector, records: Sequence[bytes]) -> None:
        """Deliver a batch.

        Raises:
          TROUBLES: it did not arrive, or not all of it.

        Cancellation:
          As for an error: what has arrived by then is not known.
        """
        to = collector.to
        context = None
        with trio.fail_after(collector.timeout_s) as deadline:
            if isinstance(to, OverTCP | OverHTTP) and to.tls:
                context = await trio.to_thread.run_sync(
                    _client_context, self._trusted(), to, abandon_on_cancel=True
                )
            match to:
                case OverTCP():
                    async with _connected(to.host, to.port, context, to.server_name) as stream:
                        await _send_lines(stream, records, deadline)
                case OverHTTP():
                    # Few gateways post; those that answer HTTP themselves have most of it already.
                    from streamgw.process.post import REST_TIMEOUT_S, post, read_rest  # noqa: PLC0415  see above

                    async with _connected(to.host, to.port, context) as stream:
                        await post(stream, to, records)
                        deadline.deadline = trio.current_time() + 2 * REST_TIMEOUT_S
                        await read_rest(stream)
                case OverUDP():
                    await _send_datagrams(to, records)
                case ToFile():
                    await self._appender.append(collector, to.path, b"\n".join((*records, b"")))


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


async def _send_lines(stream: _Stream, records: Sequence[bytes], deadline: trio.CancelScope) -> None:
    """Send one line for each record, and see the collector close.

    `deadline` is moved once the last byte is sent: that the collector is slow to close is no failure.
    """
    await stream.send_all(b"\n".join((*records, b"")))
    deadline.deadline = trio.current_time() + 2 * FAREWELL_S
    with trio.move_on_after(FAREWELL_S):
        # Closing while bytes of theirs are unread (TLS session tickets) would be a reset, which destroys ours on the way.
        if isinstance(stream, trio.SSLStream):
            await _part_in_tls(stream)
        else:
            await stream.send_eof()
            while await stream.receive_some(4096):
                pass


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
