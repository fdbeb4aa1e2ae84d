"""The two things a service manager and a service tell each other: readiness, and sockets that are open already.

Source:
  sd_notify(3), sd_listen_fds(3). Sixty lines here, since the package for it is unmaintained.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

FIRST_FD = 3


def notify(state: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Tell the service manager `READY=1`, `STOPPING=1`, `RELOADING=1` or `STATUS=…`. Nothing happens without one.

    A manager that does not listen is not our failure: the datagram is dropped.
    """
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:  # noqa: TID251  not a listener
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> tuple[socket.socket, ...]:  # noqa: TID251  a type
    """Listening stream sockets, and UDP sockets, handed down by socket activation, non-blocking, closed on exec.

    The variables are removed, so that no child takes the sockets for its own (sd_listen_fds with unset_environment).
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return ()
    sockets = []
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        sock = socket.socket(fileno=fd)  # noqa: TID251  made by the service manager
        sock.setblocking(False)
        sock.set_inheritable(False)
        if _is_ours(sock):
            sockets.append(sock)
        else:
            sock.detach()
    return tuple(sockets)


def _is_ours(sock: socket.socket) -> bool:  # noqa: TID251  a type
    if sock.type == socket.SOCK_DGRAM and sock.family in {socket.AF_INET, socket.AF_INET6}:
        return bool(sock.getsockname()[1])  # one that is not bound yet listens nowhere
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
