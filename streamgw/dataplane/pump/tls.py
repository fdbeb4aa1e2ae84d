"""What TLS makes of the bytes of one end: sealed on their way out, opened on their way in. Does no input or output.

OpenSSL works between two memory buffers and never sees the descriptor. Measured beside an `ssl` object that does its own
socket calls (64 KiB pieces, loopback): 490-530 against 470-620 ms of CPU per GiB opened, 360-490 against 530-555 sealed,
30 against 32 µs per 64-byte round trip. One recv(2) takes several records where OpenSSL asks for the header and the body
of each; one send(2) hands on what it would write record by record. And three things are only possible this way:

* Half-close. `unwrap()` calls SSL_shutdown twice, and the second call reads: if the peer still sends, that is a fatal
  "application data after close notify" and its bytes are lost. Here there is nothing to read at that moment.
* A handshake in a thread touches memory only: the descriptor stays with the loop, and may be closed at any time.
* What the socket has no room for is ciphertext in `Socket.pend`, like any bytes: no write to be repeated exactly.

Truncation (RFC 8446 § 6.1): a FIN without close_notify before it is never an EOF. OpenSSL never hears of a FIN, so that
`OP_IGNORE_UNEXPECTED_EOF`, which Python sets, ignores nothing.
"""

from __future__ import annotations

import contextlib
import errno
import re
import ssl
from socket import SocketType
from typing import Literal, cast

from streamgw.dataplane.pump import TLSInfo

RECORD_BYTES = 5 + 16 * 1024 + 256
"""The longest record: header, RFC 8446 § 5.2."""
CIPHER_BYTES = 64 * 1024 - RECORD_BYTES
"""Ciphertext taken at a time: with what was there of a record before, it opens to less than a window."""
MAX_REPLIES_BYTES = 64 * 1024
"""What OpenSSL may want to say of its own accord to a peer that reads nothing: refusals of a renegotiation, tickets."""

_ALERT = re.compile(r"^(tlsv1|tlsv13|sslv3) alert ")


class TLSBroken(OSError):
    """The peer broke the rules of TLS, or its bytes were changed on the way. `strerror` says it for a person."""


class Truncated(TLSBroken):
    """FIN, and no close_notify before it."""


class Shaking:
    """A handshake that the pump has taken on: see `steps`."""

    __slots__ = ("agreed", "failure", "is_due", "layer", "unsent")

    def __init__(self, layer: TLSLayer) -> None:
        self.layer = layer
        self.is_due = False
        """It waits for its turn."""
        self.unsent: bytes | memoryview = b""
        """What the socket had no room for. Nothing is read meanwhile."""
        self.agreed = False
        """OpenSSL is done with it."""
        self.failure: Exception | None = None
        """For its task to raise."""

    @property
    def over(self) -> bool:
        """Agreed upon, and the peer was told; or failed."""
        return self.failure is not None or (self.agreed and not self.unsent)


class TLSLayer:
    """The TLS of one end, from the first byte of its handshake.

    Args:
      server_name: sent to a server, and compared with its certificate when the context says so.

    Raises:
      ValueError: no such server name can exist.
    """

    __slots__ = ("_ended", "_incoming", "_object", "_outgoing", "_parted", "_patient_bytes", "held", "more")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_name: str = "") -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name or None
        )
        self.more = False
        """After `receive`: the socket may hold more, or the end stands behind these bytes."""
        self.held = b""
        """Plain text that was looked at and not taken yet: the next `receive` begins with it."""
        self._patient_bytes = 0
        """Session tickets that go out with the first bytes that follow them."""
        self._ended: Literal[True] | TLSBroken | None = None
        """True: close_notify came."""
        self._parted = False

    # The handshake

    def step(self, received: bytes) -> bool:
        """One step of the handshake, on what the peer has said meanwhile. True: it is done.

        The only thing here that takes long (a signature, a chain to verify), and may be called in a thread. Whatever
        the outcome, `replies` has something to send, an alert for instance.

        Raises:
          TLSBroken: it failed.
        """
        self._incoming.write(received)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TLSBroken(errno.EPROTO, words_of(error)) from None
        if self._object.server_side and self._object.version() == "TLSv1.3":
            # The client has all that it needs (RFC 8446 § 4.6.1): a packet and a look at it less, for either side.
            self._patient_bytes = self._outgoing.pending
        return True

    def info(self) -> TLSInfo:
        """What the handshake agreed upon."""
        cipher = self._object.cipher()
        return TLSInfo(
            version=self._object.version() or "",
            cipher=cipher[0] if cipher else "",
            alpn=self._object.selected_alpn_protocol() or "",
            resumed=bool(self._object.session_reused),
            peer_certificate=self._object.getpeercert(binary_form=True) or b"",
        )

    @property
    def has_input(self) -> bool:
        """The peer has said more than OpenSSL wanted so far."""
        return bool(self._incoming.pending)

    # In

    def receive(self, sock: SocketType, cipher: memoryview, plain: memoryview) -> int | None:
        """Take what the socket has (`CIPHER_BYTES` at most) and open it.

        `cipher` is room for the ciphertext, worthless afterwards; `plain` is room for a window of plain text.

        Returns:
          How many bytes of plain text; 0 is close_notify; None is a piece of a record, or one without data: ask again.

        Raises:
          BlockingIOError: the socket has nothing.
          Truncated, TLSBroken: after all that was well has been returned.
          OSError: of the socket.
        """
        if self.held:
            count = min(len(self.held), len(plain))
            plain[:count] = self.held[:count]
            self.held = self.held[count:]
            self.more = True  # the socket has not been asked
            return count
        return self._receive(sock, cipher, plain)

    def hold(self, sock: SocketType, cipher: memoryview, plain: memoryview) -> bool:
        """Add to `held` what the socket has. False: the end stands behind it. Raises as `receive`."""
        count = self._receive(sock, cipher, plain)
        self.held += plain[: count or 0]
        return count != 0

    def _receive(self, sock: SocketType, cipher: memoryview, plain: memoryview) -> int | None:
        if self._ended is not None:
            return self._end()
        if self._incoming.pending:
            self.more = True  # it came with the end of the handshake: the socket has not been asked
        else:
            count = sock.recv_into(cipher)
            if not count:
                raise Truncated(errno.EPROTO, "ended without close_notify")
            self._incoming.write(cipher[:count])
            self.more = count == len(cipher)
        return self._open(plain) or self._end()

    def _end(self) -> int | None:
        """Nothing was opened: is it the end?"""
        if isinstance(self._ended, TLSBroken):
            raise self._ended
        return 0 if self._ended else None

    def _open(self, plain: memoryview) -> int:
        """Open what has come. Without read-ahead OpenSSL leaves nothing whole behind once the buffer is empty."""
        at = 0
        try:
            while self._incoming.pending:
                # With a buffer it returns a number, whatever typeshed says.
                count = cast("int", self._object.read(len(plain) - at, plain[at:]))
                if not count:
                    self._ended = self.more = True
                    break
                at += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = self.more = True  # how close_notify is said after our own
        except ssl.SSLError as error:
            self._ended, self.more = TLSBroken(errno.EPROTO, words_of(error)), True
        return at

    # Out

    def seal(self, plain: memoryview) -> bytes:
        """Ciphertext for these bytes, behind whatever OpenSSL itself wanted to say.

        Raises:
          TLSBroken: after a fatal alert nothing may be said any more.
        """
        try:
            self._object.write(plain)
        except ssl.SSLError as error:
            raise TLSBroken(errno.EPROTO, words_of(error)) from None
        return self._take()

    @property
    def has_replies(self) -> bool:
        """OpenSSL wants to say something of its own accord that cannot wait for other bytes."""
        return self._outgoing.pending > self._patient_bytes

    def replies(self) -> bytes:
        """What that is, once, behind all that could wait."""
        return self._take()

    @property
    def flooded(self) -> bool:
        """The peer asks for answers and does not read them."""
        return self._outgoing.pending > MAX_REPLIES_BYTES

    def farewell(self) -> bytes:
        """close_notify, the first time. Reading goes on."""
        if self._parted:
            return b""
        self._parted = True
        # It wants to read the peer's, for which nobody waits here; or a fatal alert was said before.
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self._take()

    def last_words(self, plain: bytes) -> bytes:
        """These words and close_notify. After a fatal alert nothing may be said: then that alert, if it is ours and unsent."""
        try:
            return self.seal(memoryview(plain)) + self.farewell()
        except TLSBroken:
            return self._take()

    def _take(self) -> bytes:
        self._patient_bytes = 0
        return self._outgoing.read()


def words_of(error: ssl.SSLError) -> str:
    """What OpenSSL says, for a log line that a person reads: `no shared cipher`."""
    words = (error.reason or error.strerror or str(error)).replace("_", " ").lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{words}: {error.verify_message.rstrip('.')}"
    return _ALERT.sub("the peer's alert: ", words)
