"""Beginning a connection to a node, without waiting and without ever looking a name up."""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Callable
from pathlib import Path
from socket import SocketType
from typing import TypeAlias

import trio

from streamgw.core.errors import ConnectFailed, Exhausted, NoPortLeft, SessionError
from streamgw.core.model import Address
from streamgw.dataplane.pump.end import EXHAUSTED_ERRNOS, Socket, close, words_for

_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_UNDER_WAY = (0, errno.EINPROGRESS)
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Of IPv6 too."""
_UNSPECIFIED = frozenset({bytes(4), bytes(16), socket.inet_pton(socket.AF_INET6, "::ffff:0.0.0.0")})
"""The kernel takes them for this machine."""

Sockaddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


def start_connect(node: Address, adopt: Callable[[Socket], None]) -> Socket:
    """Make a socket, begin to connect it, and have it watched.

    Watched only after connect(2): a socket that is not connecting yet is reported as hung up.

    Args:
      node: an IP literal, scoped or not, and a port.
      adopt: watches the new end; OSError when the kernel cannot.

    Raises:
      ConnectFailed: refused at once, or the node's host is not an IP literal; NoPortLeft.
      Exhausted: no descriptor or memory left.
    """
    try:
        family, sockaddr = sockaddr_for(node.host, node.port)
        sock = SocketType(family, _TYPE, 0)
    except ValueError as error:
        raise ConnectFailed(str(error)) from None
    except OSError as error:
        raise _failure(error.errno or 0) from None
    end = Socket(sock, is_client=False)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Else the kernel would take an urgent byte out of the stream; accepted sockets inherit it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        number = sock.connect_ex(sockaddr)
        if number in _UNDER_WAY and meets_itself(sock, family, sockaddr):
            number = errno.ECONNREFUSED
        if number in _UNDER_WAY:
            adopt(end)
    except OSError as error:
        number = error.errno or errno.EIO
    if number not in _UNDER_WAY:
        close(sock, reset=True)
        raise connect_failure(number, family, sockaddr)
    return end


def connect_failure(number: int, family: socket.AddressFamily, sockaddr: Sockaddr) -> SessionError:
    """What an error of a TCP socket's connect(2) means: the node's fault, or ours."""
    if number == errno.EADDRNOTAVAIL and _has_address_for(family, sockaddr):
        return NoPortLeft("no local port left to connect from")
    return _failure(number)


def meets_itself(
    sock: SocketType | trio.socket.SocketType, family: socket.AddressFamily, sockaddr: Sockaddr
) -> bool:
    """Whether a socket that connects is connected to itself: the kernel gave it the very port that it connects to.

    So it may go where a node is this machine, nobody listens there, and its port is one that the kernel gives away. TCP
    calls that a simultaneous open. A client would read what it wrote.
    """
    host, port = sockaddr[:2]
    if port < _first_port():
        return False
    own_host, own_port = sock.getsockname()[:2]
    if own_port != port:
        return False
    there = socket.inet_pton(family, host)
    return there in _UNSPECIFIED or there == socket.inet_pton(family, own_host.partition("%")[0])


@functools.cache
def _first_port() -> int:
    """The first of those that the kernel gives away. Read once: nodes with lower ports are not asked about."""
    try:
        return int(_PORT_RANGE.read_text().split()[0])
    except OSError:
        return 0


def _failure(number: int) -> SessionError:
    return (Exhausted if number in EXHAUSTED_ERRNOS else ConnectFailed)(words_for(number))


def _has_address_for(family: socket.AddressFamily, sockaddr: Sockaddr) -> bool:
    """Whether this machine has an address to connect from, as it has none where IPv6 is off: the errno is the same.

    A datagram socket needs the same address, and none of TCP's ports.
    """
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            return asking.connect_ex(sockaddr) != errno.EADDRNOTAVAIL
    except OSError:  # no descriptor left either
        return True


def sockaddr_for(host: str, port: int) -> tuple[socket.AddressFamily, Sockaddr]:
    """Family and sockaddr for connect(2). The host is an IP literal, a scoped `fe80::1%eth0` included.

    Checked here, because connect() of anything else would look it up, blocking the whole process.

    Raises:
      ValueError: not an IP literal, or no such interface.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    literal, _, scope = host.partition("%") if ":" in host else (host, "", "")
    try:
        socket.inet_pton(family, literal)
    except OSError:
        raise ValueError(f"not an IP address: {host!r}") from None
    if family == socket.AF_INET:
        return family, (host, port)
    try:
        # Looked up each time: an interface that was made anew has a new number.
        index = 0 if not scope else int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    except OSError:
        raise ValueError(f"no such interface: {scope!r}") from None
    return family, (literal, port, 0, index)
