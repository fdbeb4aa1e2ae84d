"""One socket in the pump's hands, the pair it may be part of, and the words for what the kernel says about it.

A direction is named by the end it is *read* from: `pend`, `pipe`, `stuck`, `eof` of a client's end are about bytes on
their way up. Readiness is edge-triggered, so whatever an event said is kept here until it has been acted upon: nobody
says it twice.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from socket import SocketType
from typing import TYPE_CHECKING

import outcome
import trio

if TYPE_CHECKING:
    from streamgw.dataplane.pump.first_byte import FirstByte
    from streamgw.dataplane.pump.sockmap import Lease

from streamgw.core.bucket import Gate
from streamgw.core.errors import ConnectFailed, Reason, Side
from streamgw.core.model import UNIX_HOST, Address
from streamgw.dataplane.pump import Ending, Limits, Meter
from streamgw.dataplane.pump.bulk import Pipe
from streamgw.dataplane.pump.tls import Shaking, TLSLayer

EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
"""What every session socket is registered for, once, for life. PRI: an urgent mark ends a read early, and a short
read must be a drained socket (see `Socket.thorough`)."""
PLAIN = select.EPOLLIN | select.EPOLLOUT
"""The event of a socket with bytes to read, room to write, and nothing else to say."""
READABLE = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
PECULIAR = select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

EXHAUSTED_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
"""The machine or the process is short of something; it will pass. Of space: what one user may watch, epoll_ctl(2)."""
_CANCELLED = Ending(Reason.DRAIN, None, "cancelled")
_RESET_NOW = struct.pack("ii", 1, 0)
"""struct linger: close(2) throws away what is unsent and answers with RST."""
_WORDS = {
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
    errno.EADDRNOTAVAIL: "no local address or port left to connect from",
    # No disk is full; and no other call on a socket says so.
    errno.ENOSPC: "fs.epoll.max_user_watches is too low",
    # What write(2) says once the reset was noticed by somebody else; a person wants the cause.
    errno.EPIPE: "connection reset by peer",
}


class Socket:
    """The pump's `End`. Written by the pump alone."""

    __slots__ = (
        "aborted",
        "broken",
        "bulk",
        "deadline",
        "dialed_at",
        "done",
        "eof",
        "fast",
        "fd",
        "full",
        "gate",
        "is_client",
        "lease",
        "may_splice",
        "owed",
        "peer",
        "pend",
        "pipe",
        "preface",
        "queued",
        "ready",
        "relay",
        "shaking",
        "short",
        "sock",
        "spoke_last",
        "stuck",
        "thorough",
        "tls",
        "truncated",
        "waiter",
        "writable",
    )

    def __init__(self, sock: SocketType, *, is_client: bool) -> None:  # noqa: PLR0915  a field each
        self.sock = sock
        self.fd = sock.fileno()
        """-1 once closed."""
        self.is_client = is_client
        self.fast = False
        """A PLAIN event needs no thought: read, hand on. False while anything below is out of the ordinary."""
        self.peer: Socket | None = None
        self.relay: Relay | None = None
        self.waiter: trio.lowlevel.Task | None = None
        """The task parked in `peek`, `connected` or `handshake`."""
        self.aborted: Reason | None = None
        self.spoke_last = False
        """Its last words must survive `close`."""
        self.tls: TLSLayer | None = None
        """After its handshake: what is read is ciphertext, and so is what is written to it."""
        self.shaking: Shaking | None = None
        """Its handshake is under way, and in the pump's hands."""

        self.ready = False
        """An edge said there is something to read, and EAGAIN or a short read has not yet said otherwise."""
        self.writable = False
        """An edge said so before the relay began: the connect has completed."""
        self.thorough = False
        """A short read does not mean drained: read on to EOF or EAGAIN. A FIN, an error or an urgent mark may stand
        behind the bytes, or the edge that announced them was consumed earlier."""
        self.broken = False
        """EPOLLERR was seen: SO_ERROR says what happened. EPOLLHUP alone is two FINs."""
        self.eof = False
        self.truncated = False
        """Its EOF came without close_notify: the peer was not told, and will not be."""
        self.done = False
        """EOF was read, everything before it delivered, and the peer told (or about to be, by close)."""
        self.stuck = False
        """`pend` or `pipe` holds bytes that the peer has no room for. Nothing is read meanwhile."""
        self.queued = False
        """Its turn was over before its bytes were; it is in the mover's queue."""
        self.pend: bytes | memoryview = b""
        """As they go over the wire: sealed, if the peer is a TLS end."""
        self.owed = 0
        """Bytes of plain text that a sealed `pend` stands for and the meter has not seen."""
        self.pipe: Pipe | None = None
        """Held only while bytes are stuck in it."""
        self.full = 0
        """Full buffers read in a row."""
        self.short = 0
        """Small splices in a row."""
        self.bulk = False
        self.may_splice = True

        self.gate: Gate | None = None
        """What bytes read from here have to pass (`throttle`)."""
        self.lease: Lease | None = None
        """The kernel may pass bytes on by itself (`sockmap`)."""

        self.preface = b""
        self.dialed_at = 0.0
        self.deadline = 0.0
        """Of the connect."""

    @property
    def side(self) -> Side:
        """Which side of the session it is, in the vocabulary of `Ending`."""
        return "client" if self.is_client else "upstream"

    def note(self, flags: int) -> None:
        """Remember an edge. Readiness is never forgotten by anything but the read that exhausts it."""
        if flags & select.EPOLLOUT:
            self.writable = True
        if flags & READABLE:
            self.ready = True
            if flags & PECULIAR:
                self.thorough = True
                if flags & select.EPOLLERR:
                    self.broken = True
                if flags & select.EPOLLPRI:
                    # splice(2) stops at an urgent mark with EAGAIN, bytes behind it or not; recv(2) steps over it.
                    self.may_splice = self.bulk = False

    def error(self) -> int:
        """Take the pending error off the socket (SO_ERROR clears it); 0 if there is none."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def refresh(self) -> None:
        """Decide anew whether PLAIN events of this end and of its peer may take the fast path."""
        peer, relay = self.peer, self.relay
        assert peer is not None
        assert relay is not None
        blocked = self.stuck or peer.stuck or relay.first_byte is not None
        # Never a TLS end: close_notify stands behind bytes without a flag that would tell.
        self.fast = not (
            blocked or self.bulk or self.eof or self.queued or self.tls is not None or self.gate is not None
        )
        peer.fast = not (
            blocked or peer.bulk or peer.eof or peer.queued or peer.tls is not None or peer.gate is not None
        )


class Relay:
    """Two ends whose bytes go to each other, from before the upstream's connect until both directions ended."""

    __slots__ = (
        "active_at",
        "client",
        "connecting",
        "ending",
        "failure",
        "finish",
        "first_byte",
        "is_gated",
        "limits",
        "messages",
        "meter",
        "moved",
        "quiet_ending",
        "quiet_s",
        "quiet_since",
        "task",
        "uncounted",
        "upstream",
    )

    def __init__(
        self,
        client: Socket,
        upstream: Socket,
        meter: Meter,
        limits: Limits,
        finish: Callable[[Relay, Ending], None],
    ) -> None:
        self.client = client
        self.upstream = upstream
        self.meter = meter
        self.limits = limits
        self.finish = finish
        """Of the pump: one object, shared by all."""
        self.messages: float = 0
        """Short reads, where somebody counts them (`sockmap`)."""
        self.first_byte: FirstByte | None = None
        """Somebody wants to know when the upstream's comes, and it has not yet."""
        self.is_gated = limits.up is not None or limits.down is not None
        self.connecting = True
        self.uncounted = 0
        """Bytes of the preface that are still in `client.pend`."""
        self.active_at = 0.0
        self.moved = 0
        """What the meter said when the sweep last looked: no clock is read per message."""
        self.quiet_since = 0.0
        self.quiet_s = math.inf
        self.quiet_ending: Ending | None = None
        """How it ends once nothing has moved for `quiet_s`: see `expect_end`."""
        self.ending: Ending | None = None
        self.failure: ConnectFailed | None = None
        self.task: trio.lowlevel.Task | None = None
        """Set while parked."""

    def expect_end(self, quiet_s: float, ending: Ending) -> None:
        """From now on it ends by itself, or so when nothing has moved for a while. The first expectation stays."""
        if self.quiet_ending is None:
            self.quiet_since = self.active_at = trio.current_time()
            self.quiet_s, self.quiet_ending = quiet_s, ending

    @property
    def held_back(self) -> bool:
        """A direction waits for its gate: nobody moves, and nobody is idle."""
        for gate in (self.client.gate, self.upstream.gate):
            if gate is not None and (gate.waits or gate.is_spent):
                return True
        return False

    @property
    def over(self) -> bool:
        """Nothing is left to do for the pump."""
        return self.ending is not None or self.failure is not None

    def cancel(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        """Its task is cancelled. Trio's `abort_fn`: a method, since a closure is three objects."""
        self.task = None
        self.finish(self, _CANCELLED)
        return trio.lowlevel.Abort.SUCCEEDED

    @property
    def result(self) -> outcome.Outcome[Ending]:
        """What its task wakes up to, once it is over."""
        if self.failure is not None:
            return outcome.Error(self.failure)
        assert self.ending is not None, "it is over"
        return outcome.Value(self.ending)


def words_for(number: int) -> str:
    """What went wrong, for a log line that a person reads: `connection refused`."""
    return _WORDS.get(number) or os.strerror(number).lower()


def unsent(sock: SocketType) -> int:
    """Bytes that the peer's kernel has not acknowledged: closing by RST would destroy them (SIOCOUTQ, tcp(7))."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0


def close(sock: SocketType, *, reset: bool) -> None:
    """Close a socket, politely or by RST. Never raises: the descriptor is gone whatever the peer did."""
    try:
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_NOW)
    except OSError:
        pass  # the connection is gone already, and with it the need to reset it
    finally:
        sock.close()


def address_of(sockaddr: object) -> Address:
    """What accept(2) or getsockname(2) gave, as an Address: IPv4-mapped folded, scope dropped, Unix sockets named.

    The scope of a link-local IPv6 address is dropped because routes, PROXY headers and logs speak of addresses only.
    """
    if not isinstance(sockaddr, tuple):
        return Address(UNIX_HOST, 0)
    host, port = sockaddr[0], sockaddr[1]
    if ":" in host:
        host = host.partition("%")[0]
        if host.startswith("::ffff:") and "." in host:
            host = host[7:]
    # Many connections of few clients share one text: those behind a proxy, a NAT, or a pool.
    return Address(sys.intern(host), port)
