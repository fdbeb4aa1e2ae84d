"""Listening sockets: the only place that makes them. A change of listeners is all or nothing.

Each worker has its own socket of each listener, all in one reuse-port group: the kernel spreads the clients. They are the
supervisor's; what a worker has are copies of the descriptors, so a worker that dies takes no waiting client with it.

The first socket of a group is bound without SO_REUSEPORT, which is set afterwards, so that the others can join it. A second
gateway on the address must fail loudly, not share the clients, and the kernel refuses whoever binds without the option
(inet_csk_bind_conflict, udp_lib_lport_inuse; tried on Linux 6.18 with TCP and UDP, on IPv4, IPv6 and both).

The sockets of a process manager (systemd socket activation), and those of the gateway that this one takes over from, are used
where their address is one of ours.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from streamgw.core.errors import StreamgwError
from streamgw.core.model import UNIX_HOST, Address, Listener, Transport

BACKLOG = 4096
"""Connections the kernel may hold for us; it caps this at net.core.somaxconn (4096 by default since Linux 5.4)."""

RECEIVE_BUFFER_BYTES = 1 << 20
"""Asked for per UDP socket, so that a burst waits instead of being lost. The kernel gives at most net.core.rmem_max, and
counts each datagram with its own bookkeeping: 768 bytes at the least."""

_IP_PKTINFO = 8
"""linux/in.h; Python names it since 3.13."""
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound

LetGo = Callable[[Collection[Listener]], None]


class BindError(StreamgwError):
    """A listener's address cannot be had. Nothing was changed, but for listeners that are lost.

    Args:
      lost: why those that were closed for it could not be opened again.
    """

    def __init__(self, listener: Listener, error: OSError, lost: Sequence[BindError] = ()) -> None:
        self.listener = listener
        self.error = error
        self.reason: str = os.strerror(error.errno).lower() if error.errno else str(error)
        also = [f"; nor any more on {each.listener.name}: {each.reason}" for each in lost]
        super().__init__(f"cannot listen on {listener.name}: {self.reason}{''.join(also)}")


@attrs.frozen
class Bound:
    """A listener and its sockets. The listener's port is the real one, also when port 0 was asked for."""

    listener: Listener
    socks: tuple[socket.socket, ...]
    """One for each slot; or only one, for all of them (over UDP for the first)."""

    def follow(self, listener: Listener) -> Bound:
        """The same sockets with the settings of now."""
        return Bound(attrs.evolve(listener, port=self.listener.port), self.socks)

    def of(self, slot: int) -> socket.socket | None:
        """What the worker in this slot accepts from."""
        if slot < len(self.socks):
            return self.socks[slot]
        # Whoever accepts a connection has all of it; but of a UDP client everybody would get a part.
        return None if self.listener.transport == "udp" else self.socks[0]


class Sockets:
    """The listening sockets of a gateway, by the name of the listener as configured.

    Args:
      inherited: of a service manager, used by address.
      slots: how many workers there are.
      handed: of the gateway that this one takes over from, used by the name of the listener.

    Resource handling:
      Owns every socket it returns, until `close_all`, or until a `replace` that no longer names it has been `finish`ed.
    """

    def __init__(
        self,
        inherited: Iterable[socket.socket] = (),
        *,
        slots: int = 1,
        handed: Mapping[str, Sequence[socket.socket]] | None = None,
    ) -> None:
        self._bound: dict[str, Bound] = {}
        self._slots = slots
        self._inherited = {_place_of(sock): sock for sock in inherited}
        self._handed = {name: tuple(socks) for name, socks in (handed or {}).items()}
        self.are_handed_on = False
        """Another gateway has them too: files of Unix sockets stay."""
        self.lost: dict[str, Listener] = {}
        """Closed for a listener that could not be had then either, and not to be had again. By name."""

    def bound(self, slot: int = 0) -> Mapping[Listener, socket.socket]:
        """What the worker in this slot accepts from."""
        found = {bound.listener: bound.of(slot) for bound in self._bound.values()}
        return {listener: sock for listener, sock in found.items() if sock is not None}

    def of_slot(self, slot: int) -> Mapping[str, socket.socket]:
        """The same by the name of the listener as configured: what a worker is handed."""
        found = {name: bound.of(slot) for name, bound in self._bound.items()}
        return {name: sock for name, sock in found.items() if sock is not None}

    def listeners(self) -> tuple[Listener, ...]:
        """What clients can connect to."""
        return tuple(bound.listener for bound in self._bound.values())

    def all(self) -> Mapping[str, Sequence[socket.socket]]:
        """Every socket by the name of its listener as configured: what `handed` takes."""
        return {name: bound.socks for name, bound in self._bound.items()}

    def in_the_way(self, listeners: Sequence[Listener]) -> tuple[Listener, ...]:
        """What `replace` may have to let go: listeners on their way out whose port a new one wants."""
        names = {listener.name for listener in listeners}
        new = [listener for listener in listeners if listener.name not in self._bound]
        return tuple(
            bound.listener
            for name, bound in self._bound.items()
            if name not in names and any(_overlaps(bound.listener, listener) for listener in new)
        )

    def replace(
        self,
        listeners: Sequence[Listener],
        *,
        let_go: LetGo = lambda _: None,
    ) -> Callable[[], None]:
        """Open what is new and forget what is gone: all or nothing.

        Args:
          listeners: all that shall be open afterwards.
          let_go: called with listeners on their way out whose sockets have to be closed before a new one can be bound
            (127.0.0.1:9100 becoming 9100). The data plane must not touch those sockets any more when it returns.

        Returns:
          `finish`, which closes the sockets that are gone. Call it after the data plane stopped accepting from them.

        Raises:
          BindError: an address cannot be had; `bound` is what it was before (a socket let go has been opened again), without
            those that are `lost`.
        """
        names = {listener.name for listener in listeners}
        gone = {name: bound for name, bound in self._bound.items() if name not in names}
        opened: dict[str, Bound] = {}
        early: dict[str, Bound] = {}
        try:
            for listener in listeners:
                if listener.name not in self._bound:
                    opened[listener.name] = self._open_past(listener, gone, early, let_go)
        except BindError as error:
            for bound in opened.values():
                self._close(bound)
            self.lost.update({name: bound.listener for name, bound in early.items()})
            lost = [each for each in self._open_lost() if each.listener.name != error.listener.name]
            if lost:
                raise BindError(error.listener, error.error, lost) from error
            raise
        kept = {
            listener.name: self._bound[listener.name].follow(listener)
            for listener in listeners
            if listener.name in self._bound
        }
        self._bound = kept | opened
        self.lost.clear()

        def finish() -> None:
            for name, bound in gone.items():
                if name not in early:
                    self._close(bound)

        return finish

    def forget_unused(self) -> None:
        """Close what was handed over and no listener wants."""
        for sock in (*self._inherited.values(), *itertools.chain(*self._handed.values())):
            sock.close()
        self._inherited.clear()
        self._handed.clear()

    def close_all(self) -> None:
        """Close every socket, and remove the files of Unix sockets."""
        for bound in self._bound.values():
            self._close(bound)
        self._bound.clear()
        self.forget_unused()

    def _close(self, bound: Bound) -> None:
        _close_each(bound.socks)
        if bound.listener.path and not self.are_handed_on:
            Path(bound.listener.path).unlink(missing_ok=True)

    def _open_past(
        self, listener: Listener, gone: Mapping[str, Bound], early: dict[str, Bound], let_go: LetGo
    ) -> Bound:
        """Open a listener; if one that is on its way out stands in its way, let that one go first."""
        try:
            return self._open(listener)
        except BindError as error:
            in_the_way = {
                name: bound
                for name, bound in gone.items()
                if name not in early and _overlaps(bound.listener, listener)
            }
            if not in_the_way or error.error.errno != errno.EADDRINUSE:
                raise
        let_go([bound.listener for bound in in_the_way.values()])
        for bound in in_the_way.values():
            _close_each(bound.socks)
        early.update(in_the_way)
        return self._open(listener)

    def _open_lost(self) -> list[BindError]:
        """Open again what was closed for nothing, now or earlier. Returns why the others cannot be had."""
        errors: list[BindError] = []
        for name, listener in tuple(self.lost.items()):
            try:
                self._bound[name] = self._open(listener)
                del self.lost[name]
            except BindError as error:
                self._bound.pop(name, None)  # a closed socket is nothing to accept from
                errors.append(error)
        return errors

    def _open(self, listener: Listener) -> Bound:
        socks: tuple[socket.socket, ...] = ()
        try:
            found = self._found(listener)
            socks = found or (_bind(listener),)
            socks = _completed(socks, listener, self._slots, may_share=bool(found or listener.path))
        except OSError as error:
            _close_each(socks)
            raise BindError(listener, error) from error
        return Bound(attrs.evolve(listener, port=listener.port or port_of(listener, socks[0])), socks)

    def _found(self, listener: Listener) -> tuple[socket.socket, ...]:
        """What is open already, made by somebody else."""
        handed = self._handed.pop(listener.name, ())
        if handed:
            return handed
        sock = self._inherited.pop((listener.transport, _wanted_address(listener)), None)
        if sock is None:
            return ()
        if listener.transport == "udp":
            _prepare(sock, listener)
        return (sock,)


def listen_for_http(address: Address) -> socket.socket:
    """A listening socket for one of our HTTP servers. Port 0 asks the kernel for one.

    Raises:
      OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.create_server((address.host, address.port), family=family)
    sock.setblocking(False)
    return sock


def _overlaps(old: Listener, new: Listener) -> bool:
    return old.transport == new.transport and old.port == new.port != 0 and not old.path and not new.path


def _completed(
    socks: tuple[socket.socket, ...], listener: Listener, slots: int, *, may_share: bool
) -> tuple[socket.socket, ...]:
    """One for each slot, all of them listening.

    With `may_share`, rather than none, all slots get the sockets there are. A Unix socket cannot be bound twice; nor what
    another user has made (systemd is root), nor a port that only root may bind.

    Raises:
      OSError: an address cannot be had. `socks` are still the caller's.
    """
    joined: list[socket.socket] = []
    try:
        if slots > 1 and not listener.path:
            for sock in socks:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            for _ in range(slots - len(socks)):
                joined.append(_join(socks[0], listener))  # noqa: PERF401  what was made is closed when one fails
    except OSError:
        _close_each(joined)
        joined.clear()
        if not may_share:
            raise
    try:
        for sock in (*socks, *joined):
            if listener.transport == "tcp":
                sock.listen(BACKLOG)
    except OSError:
        _close_each(joined)
        raise
    _close_each(socks[slots:])
    return (*socks, *joined)[:slots]


def _bind(listener: Listener) -> socket.socket:
    """A bound, non-blocking socket that does not listen yet; for UDP one that receives from anybody.

    Without SO_REUSEPORT on purpose: a second gateway on the same address must fail loudly, not share the clients. For the
    same reason without SO_REUSEADDR over UDP, where the last to bind takes every datagram (socket(7) tells of TCP only).
    """
    if listener.path:
        return _bind_unix(listener.path)
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    try:
        sock = _make(listener, family)
    except OSError as error:
        if listener.dual_stack and error.errno == errno.EAFNOSUPPORT:
            return _bind(attrs.evolve(listener, host="0.0.0.0", dual_stack=False))  # noqa: S104  what a bare port means
        raise
    try:
        sock.bind((listener.host, listener.port))
    except OSError as error:
        sock.close()
        if listener.dual_stack and error.errno == errno.EADDRNOTAVAIL:
            # The family exists but IPv6 is switched off (net.ipv6.conf.all.disable_ipv6): a bare port still means IPv4.
            return _bind(attrs.evolve(listener, host="0.0.0.0", dual_stack=False))  # noqa: S104  as above
        raise
    return sock


def _join(first: socket.socket, listener: Listener) -> socket.socket:
    """One more socket on the same address."""
    sock = _make(listener, first.family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(first.getsockname()[:2])
    except OSError:
        sock.close()
        raise
    return sock


def _make(listener: Listener, family: int) -> socket.socket:
    kind = socket.SOCK_DGRAM if listener.transport == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if listener.dual_stack else 1)
        if listener.transport == "udp":
            _prepare(sock, listener)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket, listener: Listener) -> None:
    """What a UDP socket needs before its first datagram, whoever has made it.

    On a wildcard address each datagram tells which of our addresses it came to: the answer leaves from there, since a
    client drops one from anywhere else (ip(7) IP_PKTINFO; RFC 3542, § 6.1, also for IPv4 on a dual-stack socket).
    """
    # A service manager sets SO_REUSEADDR on all it makes (systemd, socket_address_listen).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    if listener.host in _WILDCARDS:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _bind_unix(path: str) -> socket.socket:
    """Bind a Unix socket; a dead socket file of a gateway that was killed is replaced, a live one is EADDRINUSE."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if _is_dead_socket(path):
            Path(path).unlink(missing_ok=True)
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    return sock


def _is_dead_socket(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _close_each(socks: Iterable[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def port_of(listener: Listener, sock: socket.socket) -> int:
    """The real one; 0 for a Unix socket."""
    return 0 if listener.path else int(sock.getsockname()[1])


def _place_of(sock: socket.socket) -> tuple[Transport, Address]:
    name = sock.getsockname()
    address = Address(UNIX_HOST + name, 0) if isinstance(name, str) else Address(name[0], name[1])
    return ("udp" if sock.type == socket.SOCK_DGRAM else "tcp"), address


def _wanted_address(listener: Listener) -> Address:
    return Address(UNIX_HOST + listener.path, 0) if listener.path else Address(listener.host, listener.port)
