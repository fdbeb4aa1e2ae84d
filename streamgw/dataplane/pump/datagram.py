"""Datagrams between the clients of a listening socket and the connected upstream socket that each session has.

Theory of operation. All clients of a listener share its socket: a datagram's session is found by its sender's address,
and where the socket is bound to a wildcard by the local address too, which then is what the answer leaves from. A
datagram of a session in full flow is read, counted and sent on right here; whatever needs a thought goes to the
`Keeper`. Nothing here waits: what the kernel does not take is dropped.

These sockets are level-triggered, unlike those of streams: whoever has more after his turn is simply reported again, in
the kernel's own round robin with everybody else. So one datagram is read where one is likely, and a turn of them where the
batch before had some too: a read that only learns that nothing is left costs a tenth of a round trip.

Where datagrams come in bursts, those that go the same way leave together (`burst`). Whether they do is seen from the turn
before, so that whoever asks and waits for his answer does not pay for it.

One buffer serves all. It always has room for more than a datagram can be: none is ever truncated.

Longer than other files: both sides, and the two ways to receive, are one path that is written out for speed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Hashable
from socket import SocketType
from typing import Protocol, TypeAlias

from streamgw.core.errors import ConnectFailed, Exhausted
from streamgw.core.model import Address
from streamgw.core.udp_sessions import Drop, Entry, ListenerSessions, Table
from streamgw.dataplane.pump.burst import BUFFER_BYTES, Burst, Way, cut, pieces
from streamgw.dataplane.pump.dial import meets_itself, sockaddr_for
from streamgw.dataplane.pump.end import EXHAUSTED_ERRNOS, address_of, words_for

TURN = 32
"""Datagrams of one socket before it is somebody else's turn."""

TRANSIENT_ERRNOS = EXHAUSTED_ERRNOS | {errno.EAGAIN, errno.EMSGSIZE, errno.EPERM, errno.EINTR}
"""Of send(2): this datagram is lost (no room, too long, a firewall), the next may pass. Anything else says that there is
no way to the node: an ICMP error of an earlier datagram, or no route. Of recv(2), EMSGSIZE is such an error that passes."""

_ONE, _MANY = range(1), range(TURN)
"""How often a socket is read: many times if the batch before had some of it, too."""
_TYPE = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared with, not bound to
_IP_PKTINFO = 8
"""ip(7); Python has no name for it before 3.14."""
_LOCAL4 = slice(4, 8)
"""struct in_pktinfo: the interface, the address to answer from, the address in the header."""
_LOCAL6 = slice(0, 16)
"""struct in6_pktinfo: the address, the interface."""
_ANCILLARY_BYTES = socket.CMSG_SPACE(20)
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
"""linux/sock_diag.h: the last is SK_MEMINFO_DROPS."""
_NO_PORT_LEFT = errno.EAGAIN
"""Of connect(2): no ephemeral port is free."""

_SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
_Ancillary: TypeAlias = list[tuple[int, int, bytes]]
_Arrival: TypeAlias = tuple[int, Hashable, _SockAddr, bytes]
"""A datagram of a client: its size, whose it is, who sent it, and on a wildcard what the control message says."""


class Host(Protocol):
    """What datagrams ask of the pump they belong to."""

    def release(self, sock: SocketType) -> None:
        """Close a socket, now or after the batch: its descriptor must not be another's within it."""

    def kick(self) -> None:
        """A task was started or woken."""

    def datagram_bug(self, error: Exception) -> None:
        """Something raised that must not. Count it, and say so."""


class Keeper(Protocol):
    """Who knows what the datagrams of a listener mean (`udp.Reception`). Nothing here may block or raise."""

    table: Table

    def take(self, entry: Entry, payload: memoryview, now: float) -> bool:
        """A datagram of a session that needs a thought. False: it is not, or no longer, this session's."""

    def begin(self, origin: Origin, payload: memoryview, now: float) -> None:
        """A datagram that belongs to no session."""

    def unsent(self, entry: Entry, size: int, error: OSError) -> None:
        """A datagram that was counted could not be handed to the upstream's socket. Ends the session if it never will."""

    def failed(self, entry: Entry, error: OSError) -> None:
        """There is no way to the node of a session, or it refuses datagrams: end it."""

    def answered(self, entry: Entry, now: float) -> None:
        """The first answer of a session comes."""

    def broke(self, entry: Entry, error: Exception) -> None:
        """A bug showed while an answer was passed on: end that session."""

    def stopped(self, entry: Entry) -> None:
        """The pump ends, and this session with it."""


class Origin:
    """Where a datagram of a client came from and to; where an answer goes, and what it leaves from."""

    __slots__ = ("ancillary", "client", "key", "peer", "server")

    def __init__(self, key: Hashable, peer: _SockAddr, server: Address, ancillary: _Ancillary | None) -> None:
        self.key = key
        self.peer = peer
        self.client = address_of(peer)
        self.server = server
        """The local address that the client sent it to."""
        self.ancillary = ancillary
        """What makes an answer leave from there. None: the socket is bound to one address."""


class Datagrams:
    """The datagram sockets of a pump.

    Resource handling:
      A side is closed by whoever made it, or when the pump ends.
    """

    def __init__(self, host: Host, epoll: select.epoll) -> None:
        self.host = host
        self.epoll = epoll
        self.now = 0.0
        """trio.current_time() at the beginning of the batch: datagrams do not look at the clock."""
        self.batch = 0
        """Its number."""
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.sides: dict[int, ClientSide | UpstreamSide] = {}
        """By descriptor."""

    def listen(self, sock: socket.socket, sessions: ListenerSessions, keeper: Keeper) -> ClientSide:
        """Read the datagrams of a bound socket until the result is closed."""
        return ClientSide(self, sock, sessions, keeper)

    def connect(self, node: Address) -> UpstreamSide:
        """A socket of one session's own, connected to a node, not yet read from.

        Raises:
          ConnectFailed: there is no way to the node, or its host is not an IP literal.
          Exhausted: no descriptor, memory or port left.
        """
        try:
            family, sockaddr = sockaddr_for(node.host, node.port)
            sock = SocketType(family, _TYPE, 0)
        except ValueError as error:
            raise ConnectFailed(str(error)) from None
        except OSError as error:
            raise _failure(error.errno or 0) from None
        number = sock.connect_ex(sockaddr)
        if not number and meets_itself(sock, family, sockaddr):
            number = errno.ECONNREFUSED
        if number:
            sock.close()
            raise _failure(number)
        return UpstreamSide(self, sock)

    def begin_batch(self, now: float) -> None:
        """Events are about to be handled."""
        self.now = now
        self.batch += 1

    def handle(self, fd: int) -> bool:
        """An event; False when the descriptor is none of ours. What a session's datagram raises ends that session."""
        side = self.sides.get(fd)
        if side is None:
            return False
        try:
            side.ready()
        except Exception as error:  # noqa: BLE001  the pump's boundary: one session's bug must not end the others
            side.broke(error)
            self.host.datagram_bug(error)
        return True

    def stop(self) -> None:
        """The pump ends: close everything, and tell the keepers."""
        for side in tuple(self.sides.values()):
            side.stop()


class ClientSide:
    """One listening socket: the datagrams of its clients, and the answers to them.

    Written for speed where a datagram passes: bound methods are kept, and the two ways to receive are two methods.

    Resource handling:
      The socket stays its maker's, who may close it after `close` or `keep`.
    """

    __slots__ = (
        "_by_key",
        "_datagrams",
        "_fd",
        "_has_bursts",
        "_is_ours",
        "_keeper",
        "_read_in",
        "_reads",
        "_sock",
        "down",
        "is_ipv6",
        "is_wildcard",
        "ready",
        "reply_from",
        "reply_to",
        "server",
        "up",
    )

    def __init__(
        self, datagrams: Datagrams, sock: socket.socket, sessions: ListenerSessions, keeper: Keeper
    ) -> None:
        self._datagrams = datagrams
        self._by_key = sessions.by_key
        self._keeper = keeper
        self.server = address_of(sock.getsockname())
        self.is_ipv6 = sock.family == socket.AF_INET6
        self.is_wildcard = self.server.host in _WILDCARDS
        self.ready: Callable[[], None] = self._ready_wildcard if self.is_wildcard else self._ready_specific
        sock.setblocking(False)
        self.up, self.down = Way(), Way()
        self._has_bursts = False
        """In the latest turn some client had several datagrams in a row."""
        self._read_in = 0
        self._fd = -1
        self._is_ours = False
        self._reads = True
        self._use(sock)

    def keep(self, *, reads: bool = True) -> None:
        """Go on after the socket's maker will have closed it: on a duplicate.

        Args:
          reads: False: another process does, so here only answers go out.

        Raises:
          OSError: no descriptor left. The maker's is still in use.
        """
        if self._fd < 0:
            return
        sock = self._sock
        ours = SocketType(sock.family, sock.type, 0, os.dup(sock.fileno()))
        self._leave()
        self._reads = reads
        self._use(ours)
        self._is_ours = True

    def close(self) -> None:
        """Read no more, answer no more. Closing twice is fine."""
        if self._fd >= 0:
            self._leave()
            if self._is_ours:
                self._sock.close()

    def stop(self) -> None:
        """The pump ends."""
        self.close()

    @property
    def overflowed(self) -> int:
        """Datagrams that the kernel dropped since the socket was made: they came faster than they were read."""
        if self._fd < 0:
            return 0
        info = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(info)[-1])

    def _use(self, sock: SocketType) -> None:
        self._sock = sock
        self.reply_to, self.reply_from = sock.sendto, sock.sendmsg
        if self._reads:
            self._datagrams.epoll.register(sock.fileno(), select.EPOLLIN)
        self._fd = sock.fileno()
        self._datagrams.sides[self._fd] = self

    def _leave(self) -> None:
        """Before the descriptor is closed: while another of the same open file lives, epoll would go on to report it."""
        fd, self._fd = self._fd, -1
        del self._datagrams.sides[fd]
        if self._reads:
            self._datagrams.epoll.unregister(fd)

    def _ready_specific(self) -> None:
        """One address: answers leave from it by themselves."""
        datagrams, keeper, find = self._datagrams, self._keeper, self._by_key.get
        receive, buffer, view, now = self._sock.recvfrom_into, datagrams.buffer, datagrams.view, datagrams.now
        turn, self._read_in = (_MANY if datagrams.batch - self._read_in == 1 else _ONE), datagrams.batch
        if self._has_bursts and turn is _MANY:
            self._ready_for_bursts(self._receive_specific)
            return
        before = None
        for _ in turn:
            try:
                count, peer = receive(buffer)
            except OSError:  # nothing is left; or (ENOMEM) one is lost, and nobody is there to be told
                return
            entry = find(peer)
            if entry is not None and _send_on(entry, view[:count], now, keeper):
                if entry is before:
                    self._has_bursts = True
                before = entry
                continue
            keeper.begin(Origin(peer, peer, self.server, None), view[:count], now)

    def _ready_wildcard(self) -> None:
        """Any address: each datagram says which (IP_PKTINFO, ip(7); IPV6_PKTINFO, RFC 3542 § 6)."""
        datagrams, keeper, find = self._datagrams, self._keeper, self._by_key.get
        receive, buffers, view, now = (
            self._sock.recvmsg_into,
            (datagrams.buffer,),
            datagrams.view,
            datagrams.now,
        )
        local_of = _LOCAL6 if self.is_ipv6 else _LOCAL4
        turn, self._read_in = (_MANY if datagrams.batch - self._read_in == 1 else _ONE), datagrams.batch
        if self._has_bursts and turn is _MANY:
            self._ready_for_bursts(self._receive_wildcard)
            return
        before = None
        for _ in turn:
            try:
                count, ancillary, _flags, peer = receive(buffers, _ANCILLARY_BYTES)
            except OSError:  # as above
                return
            local = ancillary[0][2][local_of]
            entry = find((peer, local))
            if entry is not None and _send_on(entry, view[:count], now, keeper):
                if entry is before:
                    self._has_bursts = True
                before = entry
                continue
            keeper.begin(self._origin(peer, ancillary[0][2]), view[:count], now)

    # The same in a turn after one with bursts

    def _receive_specific(self, room: memoryview) -> _Arrival:
        count, peer = self._sock.recvfrom_into(room)
        return count, peer, peer, b""

    def _receive_wildcard(self, room: memoryview) -> _Arrival:
        count, ancillary, _flags, peer = self._sock.recvmsg_into((room,), _ANCILLARY_BYTES)
        info = ancillary[0][2]
        return count, (peer, info[_LOCAL6 if self.is_ipv6 else _LOCAL4]), peer, info

    def _ready_for_bursts(self, receive: Callable[[memoryview], _Arrival]) -> None:
        find = self._by_key.get
        self._has_bursts = False
        latest: _Arrival = (0, None, ("", 0), b"")
        entry: Entry | None = None

        def leave(run: memoryview, size: int, count: int) -> None:
            if entry is None or not self._send_run(entry, run, size, count):
                for payload in pieces(run, size, count):
                    self._take(latest, payload)

        burst = Burst(self._datagrams.view, leave)
        for _ in _MANY:
            room = burst.room
            try:
                came = receive(room)
            except OSError:  # as above
                break
            if came[1] != latest[1]:
                burst.leave()
                latest, entry = came, find(came[1])
            if entry is not None and entry.send is not None:
                burst.add(came[0])
            else:
                burst.leave()
                self._take(came, room[: came[0]])
                entry = find(came[1])
        burst.leave()

    def _send_run(self, entry: Entry, run: memoryview, size: int, count: int) -> bool:
        """Hand datagrams of a client to its session's upstream in one call. False: nothing happened, take them one by one."""
        if entry.send is None or entry.send_parts is None or not self.up.takes(size, count):
            return False
        self._has_bursts = True
        try:
            entry.send_parts((run,), [cut(size)])
        except OSError as error:
            if not self.up.failed(size, error) and error.errno not in TRANSIENT_ERRNOS:
                # It tells of an earlier datagram, and would not be told again. None of these was sent: they are the next
                # session's.
                self._keeper.failed(entry, error)
            return False
        entry.active_at = self._datagrams.now
        entry.asked += count
        entry.bytes_up += len(run)
        return True

    def _take(self, arrival: _Arrival, payload: memoryview) -> None:
        """One datagram, whatever has become of its session."""
        _, key, peer, info = arrival
        now, entry = self._datagrams.now, self._by_key.get(key)
        if entry is None or not _send_on(entry, payload, now, self._keeper):
            origin = self._origin(peer, info) if info else Origin(key, peer, self.server, None)
            self._keeper.begin(origin, payload, now)

    def _origin(self, peer: _SockAddr, info: bytes) -> Origin:
        """Answers name the local address and no interface: they go the way that the routing table says."""
        local = info[_LOCAL6 if self.is_ipv6 else _LOCAL4]
        if self.is_ipv6:
            host = socket.inet_ntop(socket.AF_INET6, local)
            answer = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local + bytes(4))
        else:
            # What it was sent to may be a broadcast address; then `local` is what answers leave from.
            host = socket.inet_ntop(socket.AF_INET, info[8:12])
            answer = (socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + local + bytes(4))
        return Origin((peer, local), peer, address_of((host, self.server.port)), [answer])

    def broke(self, error: Exception) -> None:
        """A datagram raised what it must not: it is dropped, and that is all."""


def _send_on(entry: Entry, payload: memoryview, now: float, keeper: Keeper) -> bool:
    """Hand a datagram of a client to its session's upstream. False: it is for another session."""
    if entry.send is None:
        return keeper.take(entry, payload, now)
    entry.active_at = now
    entry.asked += 1
    entry.bytes_up += len(payload)
    try:
        entry.send(payload)
    except OSError as error:
        keeper.unsent(entry, len(payload), error)
        return entry.reason is None
    return True


class UpstreamSide:
    """The upstream socket of one session. Passes answers on once it is watched."""

    __slots__ = (
        "_ancillary",
        "_clients",
        "_datagrams",
        "_entry",
        "_fd",
        "_keeper",
        "_peer",
        "_read_in",
        "_recv_into",
        "_sock",
    )

    def __init__(self, datagrams: Datagrams, sock: SocketType) -> None:
        self._datagrams = datagrams
        self._sock = sock
        self._fd = sock.fileno()
        self._recv_into = sock.recv_into
        self._read_in = 0

    @property
    def send(self) -> Callable[[memoryview], int]:
        """To hand a datagram to the kernel, which takes it at once or not at all."""
        return self._sock.send

    @property
    def send_parts(self) -> Callable[[tuple[bytes, memoryview]], int]:
        """The same, one datagram out of several pieces."""
        return self._sock.sendmsg

    def watch(self, entry: Entry, clients: ClientSide, origin: Origin, keeper: Keeper) -> None:
        """Pass answers on to a client from now on.

        Raises:
          Exhausted: the kernel has no room.
        """
        self._entry, self._clients, self._keeper = entry, clients, keeper
        self._peer, self._ancillary = origin.peer, origin.ancillary
        entry.send_parts = self._sock.sendmsg
        try:
            self._datagrams.epoll.register(self._fd, select.EPOLLIN)
        except OSError as error:
            raise Exhausted(words_for(error.errno or 0)) from None
        self._datagrams.sides[self._fd] = self

    def ready(self) -> None:
        """Pass on what has come, a turn of it."""
        entry, datagrams, keeper = self._entry, self._datagrams, self._keeper
        receive, buffer, view, now = self._recv_into, datagrams.buffer, datagrams.view, datagrams.now
        turn, self._read_in = (_MANY if datagrams.batch - self._read_in == 1 else _ONE), datagrams.batch
        if turn is _MANY and entry.plain:
            self._ready_for_bursts()
            return
        for _ in turn:
            try:
                count = receive(buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in TRANSIENT_ERRNOS:
                    keeper.failed(entry, error)
                return
            if entry.plain:
                entry.active_at = now
                entry.answers += 1
                entry.bytes_down += count
                self._reply(view[:count])
            elif not self._answer(view[:count], now):
                return

    def _ready_for_bursts(self) -> None:
        """The same in a turn after one, of answers that need no thought."""
        burst = Burst(self._datagrams.view, self._reply_with_run)
        failure: OSError | None = None
        for _ in _MANY:
            try:
                burst.add(self._recv_into(burst.room))
            except OSError as error:
                failure = error
                break
        burst.leave()
        if failure is not None and failure.errno not in TRANSIENT_ERRNOS:
            self._keeper.failed(self._entry, failure)

    def _reply_with_run(self, run: memoryview, size: int, count: int) -> None:
        entry, clients = self._entry, self._clients
        entry.active_at = self._datagrams.now
        entry.answers += count
        entry.bytes_down += len(run)
        if clients.down.takes(size, count):
            try:
                clients.reply_from((run,), [*(self._ancillary or ()), cut(size)], 0, self._peer)
            except OSError as error:
                clients.down.failed(size, error)
            else:
                return
        for payload in pieces(run, size, count):
            self._reply(payload)

    def _answer(self, payload: memoryview, now: float) -> bool:
        """An answer that needs a thought. False: it was the last."""
        entry, table = self._entry, self._keeper.table
        if not entry.answers:
            self._keeper.answered(entry, now)
        if table.answer(entry, len(payload), now):
            self._reply(payload)
        if entry.responses is not None:
            table.settle(entry)
        return entry.reason is None

    def _reply(self, payload: memoryview) -> None:
        try:
            if self._ancillary is None:
                self._clients.reply_to(payload, self._peer)
            else:
                self._clients.reply_from((payload,), self._ancillary, 0, self._peer)
        except OSError:
            # No room, too long for the client's network, a local address that is gone: UDP loses datagrams.
            self._keeper.table.withhold(self._entry, len(payload), Drop.SEND_FAILED)

    def broke(self, error: Exception) -> None:
        """An answer raised what it must not."""
        self._keeper.broke(self._entry, error)

    def close(self) -> None:
        """Closing twice is fine. Within a batch the descriptor goes after it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._datagrams.sides.pop(fd, None)
            self._datagrams.host.release(self._sock)

    def stop(self) -> None:
        """The pump ends."""
        self._keeper.stopped(self._entry)
        self.close()


def _failure(number: int) -> ConnectFailed | Exhausted:
    if number == _NO_PORT_LEFT:
        return Exhausted("no local port left to send from")
    return (Exhausted if number in EXHAUSTED_ERRNOS else ConnectFailed)(words_for(number))
