"""Accepting: connections off one listening socket, in batches, until told to pause or out of descriptors."""

from __future__ import annotations

import select
import socket
from socket import SocketType
from typing import Protocol

from streamgw.dataplane.pump import OnAccept
from streamgw.dataplane.pump.end import EXHAUSTED_ERRNOS, Socket, address_of, close, words_for

BATCH = 32
"""Connections accepted before it is the turn of those that exist."""
PAUSE_S = 0.1
"""How long accepting rests after the process ran out of descriptors. A busy loop over EMFILE helps nobody."""

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
_ACCEPT_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class Host(Protocol):
    """What an acceptor asks of the pump it belongs to."""

    def adopt(self, end: Socket) -> None:
        """Watch a new end. Raises OSError when the kernel cannot."""

    def rest(self, acceptor: Acceptor) -> None:
        """Call `rested` after `PAUSE_S`."""

    def forget(self, acceptor: Acceptor) -> None:
        """It has closed."""

    def tell(self, message: str) -> None:
        """Something a person should know."""

    def bug(self, end: Socket, error: Exception) -> None:
        """`on_accept` raised: end that connection, and say so."""


class Acceptor:
    """The pump's `Accepting`. In the epoll while, and only while, it may accept: level-triggered, unlike the rest."""

    def __init__(self, host: Host, epoll: select.epoll, sock: socket.socket, on_accept: OnAccept) -> None:
        self._host = host
        self._epoll = epoll
        self._sock = sock
        self._on_accept = on_accept
        self.fd = sock.fileno()
        self._family = sock.family
        self._server = address_of(sock.getsockname())
        self._wildcard = self._server.host in _WILDCARDS
        self._paused = False
        self._resting = False
        self._in_trouble = False
        self.closed = False
        self._watched = False
        """In the epoll: nobody wants it to wait."""
        self._watch()

    def pause(self) -> None:
        """See `Accepting.pause`."""
        self._paused = True
        self._watch()

    def resume(self) -> None:
        """See `Accepting.resume`."""
        self._paused = False
        self._watch()

    def close(self) -> None:
        """See `Accepting.close`."""
        self.closed = True
        self._watch()
        self._host.forget(self)

    def rested(self) -> None:
        """The pause after running out of descriptors is over: try again."""
        self._resting = False
        self._watch()

    def accept_batch(self) -> int:
        """Accept what waits, up to a batch; returns how many. Stops at once when paused from inside `on_accept`."""
        for count in range(BATCH):
            if not self._watched:
                return count
            try:
                # socket.accept() would wrap the descriptor in the slower Python class, with two enum look-ups.
                fd, sockaddr = self._sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno in EXHAUSTED_ERRNOS:
                    self._rest(error.errno or 0)
                # Anything else (ECONNABORTED, EPROTO, …: accept(2), "Error handling") is that client's misfortune.
                # Level-triggered: whoever else waits makes another event.
                return count
            self._accepted(fd, sockaddr)
        return BATCH

    def _accepted(self, fd: int, sockaddr: object) -> None:
        sock = SocketType(self._family, _ACCEPT_TYPE, 0, fd)
        end = Socket(sock, is_client=True)
        try:
            sock.setblocking(False)
            if self._family == socket.AF_UNIX:
                end.may_splice = False
            client = address_of(sockaddr)
            server = address_of(sock.getsockname()) if self._wildcard else self._server
            self._host.adopt(end)
        except OSError as error:
            # Reset already (getsockname), or no room in the epoll: nobody has heard of this connection yet.
            close(sock, reset=True)
            if error.errno in EXHAUSTED_ERRNOS:
                self._rest(error.errno or 0)
            return
        if self._in_trouble:
            self._in_trouble = False
            self._host.tell(f"accepting again on {self._server}")
        try:
            self._on_accept(end, client, server)
        except Exception as error:  # noqa: BLE001 - the pump's boundary: one session's bug must not end the others
            self._host.bug(end, error)

    def _rest(self, number: int) -> None:
        self._resting = True
        self._watch()
        self._host.rest(self)
        if not self._in_trouble:
            self._in_trouble = True
            self._host.tell(f"accepting pauses on {self._server}: {words_for(number)}")

    def _watch(self) -> None:
        """Bring the epoll in line with what is wanted."""
        wanted = not (self.closed or self._paused or self._resting)
        if wanted == self._watched:
            return
        self._watched = wanted
        try:
            if wanted:
                self._epoll.register(self.fd, select.EPOLLIN)
            else:
                self._epoll.unregister(self.fd)
        except ValueError:
            self.closed = True  # the pump has ended, and its epoll with it
        except OSError as error:
            self._watched = False
            if error.errno in EXHAUSTED_ERRNOS:
                self._rest(error.errno or 0)
            else:
                self.closed = True  # its maker closed the socket first
