"""Listening sockets: the only place that makes them. A change of listeners is all or nothing.

The sockets of a process manager (systemd socket activation) are taken over where their address is one of ours.
"""

from __future__ import annotations

import errno
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
    """A listener's address cannot be had. Nothing was changed."""

    def __init__(self, listener: Listener, error: OSError) -> None:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        super().__init__(f"cannot listen on {listener.name}: {reason}")
        self.listener = listener


@attrs.frozen
class Bound:
    """A listener and its socket. The listener's port is the real one, also when port 0 was asked for."""

    listener: Listener
    sock: socket.socket

    def follow(self, listener: Listener) -> Bound:
        """The same socket with the settings of now."""
        return Bound(attrs.evolve(listener, port=self.listener.port), self.sock)


class Sockets:
    """The listening sockets of this process, by the name of the listener as configured.

    Resource handling:
      Owns every socket it returns, until `close_all`, or until a `replace` that no longer names it has been `finish`ed.
    """

    def __init__(self, inherited: Iterable[socket.socket] = ()) -> None:
        self._bound: dict[str, Bound] = {}
        self._inherited = {_place_of(sock): sock for sock in inherited}

    def bound(self) -> Mapping[Listener, socket.socket]:
        """What `Listeners.sync` wants."""
        return {bound.listener: bound.sock for bound in self._bound.values()}

    def replace(
        self,
        listeners: Sequence[Listener],
        *,
        let_go: Callable[[Collection[Listener]], None] = lambda _: None,
    ) -> Callable[[], None]:
        """Open what is new and forget what is gone: all or nothing.

        Args:
          listeners: all that shall be open afterwards.
          let_go: called with listeners on their way out whose sockets have to be closed before a new one can be bound
            (127.0.0.1:9100 becoming 9100). The data plane must not touch those sockets any more when it returns.

        Returns:
          `finish`, which closes the sockets that are gone. Call it after the data plane stopped accepting from them.

        Raises:
          BindError: an address cannot be had; `bound` is what it was before (a socket let go has been opened again).
        """
        names = {listener.name for listener in listeners}
        gone = {name: bound for name, bound in self._bound.items() if name not in names}
        opened: dict[str, Bound] = {}
        early: dict[str, Bound] = {}
        try:
            for listener in listeners:
                if listener.name not in self._bound:
                    opened[listener.name] = self._open_past(listener, gone, early, let_go)
        except BindError:
            for bound in opened.values():
                _close(bound)
            for name, bound in early.items():
                self._bound[name] = self._open(bound.listener)
            raise
        kept = {
            listener.name: self._bound[listener.name].follow(listener)
            for listener in listeners
            if listener.name in self._bound
        }
        self._bound = kept | opened

        def finish() -> None:
            for name, bound in gone.items():
                if name not in early:
                    _close(bound)

        return finish

    def close_all(self) -> None:
        """Close every socket, and remove the files of Unix sockets."""
        for bound in self._bound.values():
            _close(bound)
        for sock in self._inherited.values():
            sock.close()
        self._bound.clear()
        self._inherited.clear()

    def _open_past(
        self, listener: Listener, gone: Mapping[str, Bound], early: dict[str, Bound], let_go: LetGo
    ) -> Bound:
        """Open a listener; if one that is on its way out stands in its way, let that one go first."""
        try:
            return self._open(listener)
        except BindError:
            in_the_way = {
                name: bound
                for name, bound in gone.items()
                if name not in early and _overlaps(bound.listener, listener)
            }
            if not in_the_way:
                raise
        let_go([bound.listener for bound in in_the_way.values()])
        for bound in in_the_way.values():
            bound.sock.close()
        early.update(in_the_way)
        return self._open(listener)

    def _open(self, listener: Listener) -> Bound:
        sock = self._inherited.pop((listener.transport, _wanted_address(listener)), None)
        try:
            if sock is None:
                sock = _listen(listener)
            elif listener.transport == "udp":
                _prepare(sock, listener)
        except OSError as error:
            raise BindError(listener, error) from error
        return Bound(attrs.evolve(listener, port=listener.port or _port_of(listener, sock)), sock)


def _overlaps(old: Listener, new: Listener) -> bool:
    return old.transport == new.transport and old.port == new.port != 0 and not old.path and not new.path


def _listen(listener: Listener) -> socket.socket:
    """A listening, non-blocking socket; for UDP one that receives from anybody.

    Without SO_REUSEPORT on purpose: a second gateway on the same address must fail loudly, not share the clients. For the
    same reason without SO_REUSEADDR over UDP, where the last to bind takes every datagram (socket(7) tells of TCP only).
    """
    if listener.path:
        return _listen_unix(listener.path)
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    try:
        kind = socket.SOCK_DGRAM if listener.transport == "udp" else socket.SOCK_STREAM
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        if listener.dual_stack and error.errno == errno.EAFNOSUPPORT:
            return _listen(attrs.evolve(listener, host="0.0.0.0", dual_stack=False))  # noqa: S104  what a bare port means
        raise
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if listener.dual_stack else 1)
        if listener.transport == "udp":
            _prepare(sock, listener)
            sock.bind((listener.host, listener.port))
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((listener.host, listener.port))
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if listener.dual_stack and error.errno == errno.EADDRNOTAVAIL:
            # The family exists but IPv6 is switched off (net.ipv6.conf.all.disable_ipv6): a bare port still means IPv4.
            return _listen(attrs.evolve(listener, host="0.0.0.0", dual_stack=False))  # noqa: S104  as above
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


def _listen_unix(path: str) -> socket.socket:
    """Bind a Unix socket; a dead socket file of a gateway that was killed is replaced, a live one is EADDRINUSE."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if _is_dead_socket(path):
            Path(path).unlink(missing_ok=True)
        sock.bind(path)
        sock.listen(BACKLOG)
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


def _close(bound: Bound) -> None:
    bound.sock.close()
    if bound.listener.path:
        Path(bound.listener.path).unlink(missing_ok=True)


def _port_of(listener: Listener, sock: socket.socket) -> int:
    return 0 if listener.path else int(sock.getsockname()[1])


def _place_of(sock: socket.socket) -> tuple[Transport, Address]:
    name = sock.getsockname()
    address = Address(UNIX_HOST + name, 0) if isinstance(name, str) else Address(name[0], name[1])
    return ("udp" if sock.type == socket.SOCK_DGRAM else "tcp"), address


def _wanted_address(listener: Listener) -> Address:
    return Address(UNIX_HOST + listener.path, 0) if listener.path else Address(listener.host, listener.port)
