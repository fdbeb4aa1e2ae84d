"""The outer end of a session that speaks TLS, with what `trio.socket` offers that the pump's tests use.

Its TLS is OpenSSL's, between memory buffers; its socket is the test's, so that a test can end it in every wrong way too.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from typing import Any, Self

import trio

from tests.support.certificates import CA_PEM, Issued, issue

NAME = "pump.test"
IDENTITY = issue(NAME)


def serving(identity: Issued = IDENTITY, *, client_ca_pem: str = "") -> ssl.SSLContext:
    """A server's context; with an authority it wants a certificate from it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    load(context, identity)
    if client_ca_pem:
        context.load_verify_locations(cadata=client_ca_pem)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load(context: ssl.SSLContext, identity: Issued) -> None:
    """Load a certificate and its key, which OpenSSL takes from files only."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(identity.key + identity.cert)
        file.flush()
        context.load_cert_chain(file.name)


SERVER = serving()
CLIENT = ssl.create_default_context(cadata=CA_PEM)
CARELESS = ssl._create_unverified_context()
"""A client's, that believes anybody."""


class TLSTalker:
    """A socket with TLS on it.

    Args:
      sock: connected; closed by `close`.
      context: None: one that everybody here trusts.
      session: to be resumed.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        *,
        server_side: bool,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or (SERVER if server_side else CLIENT)).wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=None if server_side else NAME,
            session=session,
        )
        self._sending = trio.Lock()
        self._left = b""

    async def handshake(self, *, piece_bytes: int = 1 << 20) -> Self:
        """Shake hands, sending so many bytes at a time."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush(piece_bytes)
                await self._fill()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self.flush()  # the alert
                raise
            else:
                await self.flush(piece_bytes)
                return self

    async def send(self, data: bytes | memoryview) -> int:
        """Send one record, whole. A cancelled one is sent by the next `flush`."""
        await self.flush()
        return await self.seal(data)

    async def seal(self, data: bytes | memoryview) -> int:
        count = self.tls.write(data[: 16 * 1024])
        await self.flush()
        return count

    def sealed(self) -> bytes:
        """What is sealed and not sent yet, to be sent by whoever asks."""
        return self._outgoing.read()

    async def flush(self, piece_bytes: int = 1 << 20) -> None:
        """Send what is sealed."""
        async with self._sending:
            self._left += self._outgoing.read()
            while self._left:
                sent = await self.sock.send(self._left[:piece_bytes])
                self._left = self._left[sent:]

    async def recv(self, count: int) -> bytes:
        """Some bytes; nothing after close_notify.

        Raises:
          ssl.SSLEOFError: FIN without close_notify.
          ssl.SSLError, ConnectionResetError: as they say.
        """
        while True:
            try:
                return self.tls.read(count)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    async def _fill(self) -> None:
        received = await self.sock.recv(1 << 16)
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()

    def shutdown(self, _how: int) -> None:
        """Say close_notify, and go on listening. What `send` was told is sent by then."""
        assert not self._left
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        words = self._outgoing.read()
        plain: Any = self.sock
        assert plain._sock.send(words) == len(words)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
