"""The one mover of bytes: every TCP socket of the process sits in one edge-triggered epoll that one Trio task drives.

`session.py` and `dialer.py` are written against the `Pump` protocol below and tested over a fake of it; the real one
(`loop.SocketPump`) is held to the contract by tests/conformance/test_pump.py on real sockets. How bytes move, by copy
or by splice(2), is decided inside, by observation; nobody else knows.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

import attrs
import trio

if TYPE_CHECKING:
    import ssl

from streamgw.core.bucket import Gate
from streamgw.core.errors import Reason, Side
from streamgw.core.model import Address


class End(Protocol):
    """One socket in the pump's hands. Opaque: only the pump looks inside, and only the pump closes it."""


OnAccept = Callable[[End, Address, Address], None]
"""Called by the pump for each new connection with (end, client address, server address). Takes over the end. Must not
block or raise; it starts the session's task."""


class Accepting(Protocol):
    """A listening socket that the pump accepts from."""

    def pause(self) -> None:
        """Accept no more until `resume`: the kernel's backlog is the queue. May be called from inside `OnAccept`."""

    def resume(self) -> None:
        """Accept again. Does nothing when not paused, or after `close`."""

    def close(self) -> None:
        """Stop accepting for good. The socket itself belongs to whoever made it and stays open."""


OnFirstByte = Callable[[float], None]
"""Told how long the upstream's first byte took, in seconds. Must not block or raise."""


@attrs.define(weakref_slot=False)
class Meter:
    """What one session has moved so far. Written by the pump, read by anyone."""

    bytes_up: int = 0
    """Client to upstream, handed to the upstream's socket (without a PROXY header). With TLS: of plain text."""
    bytes_down: int = 0
    connected_at: float | None = None
    """trio.current_time() when the upstream's connect completed."""
    on_connected: Callable[[float], OnFirstByte | None] | None = None
    """Told that time at once, and then forgotten: a session may go on for days. Must not block or raise. Returns who wants
    to know of the upstream's first byte, if anybody does: see `first_byte`."""


@attrs.frozen
class Limits:
    """When the pump ends a relay of its own accord. Checked by a sweep a few times a second, not by timers."""

    idle_s: float = math.inf
    """No byte either way for this long, counted from the connect: IDLE_TIMEOUT."""
    ends_at: float = math.inf
    """trio.current_time() at which the session has lasted long enough: MAX_DURATION."""
    up: Gate | None = None
    """How fast and how far bytes go that way; None: as they come. A direction that has to wait is not idle, its sender is
    not read meanwhile. The relay closes it."""
    down: Gate | None = None


@attrs.frozen
class Ending:
    """How a relay ended. Both sockets are closed by then: politely after CLOSED, by RST after anything else."""

    reason: Reason
    side: Side | None = None
    """Who caused it: the side that reset; None for CLOSED and for what the gateway itself decided."""
    detail: str = ""

    @classmethod
    def by_bug(cls, error: Exception) -> Ending:
        """What an exception that nobody expected makes of a session. It may be one that cannot even say what it is."""
        try:
            words = str(error)
        except Exception:  # noqa: BLE001  a plugin's own class, for instance
            words = "an exception without words"
        return cls(Reason.BUG, detail=f"{type(error).__name__}: {words}")


@attrs.frozen
class TLSInfo:
    """What a handshake agreed upon."""

    version: str
    """`TLSv1.3`."""
    cipher: str
    alpn: str
    """Empty: none."""
    resumed: bool
    peer_certificate: bytes = attrs.field(repr=False)
    """DER; empty: the peer sent none, or it was not asked for one."""


class Pump(Protocol):
    """Moves the bytes of every TCP session in this process, from one Trio task.

    Contract, held by tests/conformance/test_pump.py for every way of moving:

    * Bytes arrive in order, complete, once.
    * EOF on one side becomes EOF on the other; the opposite direction goes on.
    * At most WINDOW_BYTES per direction are held in user space for a slow reader.
    * No session waits for another longer than a turn.
    * A peer's reset becomes a reset of the other side.
    * A TLS side that ends without close_notify was cut off: the other side gets all that came and is reset, a second after
      nothing moves any more (`move.TRUNCATED_S`). If the other side has ended, or ends meanwhile, nobody was deceived:
      CLOSED.
    * EOF towards a TLS side is a close_notify and a FIN. What that side still says is passed on to its own end, or until
      nothing has moved for five seconds (`move.PARTING_S`): then the session is CLOSED, and its other side reset.
    * A reset towards a TLS side is an RST without close_notify.
    * A TLS side that resets after its close_notify (a client that closes over session tickets it never read) has ended.
    * Cancelled or aborted, a pair leaves no descriptor and no pipe behind.

    Resource handling:
      An End is owned by whoever got it until it is passed to `relay` (which always closes both, however it ends, except
      that a `ConnectFailed` leaves the client's open) or to `close`.
    """

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Drive the epoll. Ends only by cancellation; every End still open is then closed by RST.

        Whoever is still parked is not left hanging: `relay` returns `Reason.DRAIN`, `peek` raises Drained.
        """

    def listen(self, sock: socket.socket, on_accept: OnAccept) -> Accepting:
        """Accept from a listening, non-blocking socket until the result is closed.

        Running out of descriptors pauses accepting for 100 ms, is counted, and is told to `on_trouble` once.
        """

    async def peek(self, end: End, at_least: int, *, deadline: float) -> bytes:
        """Wait until `at_least` bytes wait in the receive buffer and look at all of them (up to 64 KiB).

        Nothing is consumed. Fewer bytes than asked: the client sent EOF, or the deadline (trio.current_time()) passed.
        After a handshake it is the plain text that is looked at.

        Raises:
          PeerReset: the client reset the connection.
          Killed, Drained: `abort` was called with that reason, now or since the end was last waited for.
        """

    def consume(self, end: End, count: int) -> None:
        """Throw away exactly `count` bytes that a `peek` has shown: a PROXY header."""

    def dial(self, node: Address, *, preface: bytes, deadline: float) -> End:
        """Start connecting to a node, without waiting. `preface` goes first, uncounted (a PROXY header).

        Raises:
          ConnectFailed: the kernel refused at once (no route to host).
          Exhausted: no descriptor left.
        """

    async def connected(self, upstream: End) -> None:
        """Park until the connect of `dial` has completed and its preface is sent: what precedes a TLS handshake.

        Raises:
          ConnectFailed: as `relay`; the upstream end is closed.
        """

    async def handshake(
        self,
        end: End,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str = "",
        deadline: float,
        is_quick: bool = False,
    ) -> TLSInfo:
        """Make an end a TLS end: what is relayed through it afterwards is plain text on the other side.

        The context was chosen before OpenSSL sees a byte; nothing was consumed before. The CPU time of the handshake is
        spent off the event loop, in a bounded number of threads; or on it, a step or two at a time, if none of its steps
        takes long (`is_quick`).

        Raises:
          TLSFailed, UpstreamTLSFailed: by side; the alert, if OpenSSL has one, was sent. An upstream's end is closed.
          PeerReset: the client reset the connection.

        Cancellation:
          The end is still the caller's to close; no thread touches it any more when Cancelled is raised.
        """

    def relay(self, client: End, upstream: End, meter: Meter, limits: Limits) -> Awaitable[Ending]:
        """Park until both directions have ended. Finishes the upstream's connect first: one park for both.

        To be awaited at once, by the task that called it. Not a coroutine itself: an idle session would keep its frame.

        Raises:
          ConnectFailed: the node refused or did not answer before the deadline of `dial`; the upstream end is closed,
            not one byte was read from the client, and its end is still open for the next node.

        Cancellation:
          Both sockets are closed by RST, their descriptors gone, before Cancelled is raised.
        """

    def abort(self, end: End, reason: Reason) -> None:
        """End the relay (or peek) that this end is part of, as soon as possible: `relay` returns that reason.

        Both sockets get an RST. Does nothing to an end that is closed. An end that nobody waits for at the moment (its
        session is looking for a node) is closed at once, and the next `peek` or `relay` says why.
        """

    def say_last(self, end: End, words: bytes) -> None:
        """Send a few bytes as far as the socket takes them and see to it that `close` does not destroy them: a TLS alert.
        After a handshake they are plain text, and close_notify follows them.

        What the client has sent is thrown away (closing over unread bytes would be an RST, which overtakes the words).
        """

    def close(self, end: End, *, reset: bool = False) -> None:
        """Close an end that was never relayed: FIN (or RST, which `reset` forces). Closing twice is fine."""
