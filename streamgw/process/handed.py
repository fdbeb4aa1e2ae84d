"""The listening sockets of one worker: what it may do with them, whoever has made them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import attrs

from streamgw.core.model import Listener
from streamgw.process.sockets import BindError, Bound, LetGo, port_of


class SocketSet(Protocol):
    """The listening sockets of one worker."""

    def bound(self) -> Mapping[Listener, socket.socket]:
        """What `Listeners.sync` wants."""

    def replace(self, listeners: Sequence[Listener], *, let_go: LetGo) -> Callable[[], None]:
        """See `Sockets.replace`."""

    def close_all(self) -> None:
        """Close every socket of this process."""


class HandedSockets:
    """The sockets of a worker that is a process of its own: copies of those of the supervisor, which has bound them.

    Resource handling:
      Owns its copies: closed by `close_all`, and when a `replace` that no longer names them has been `finish`ed.
    """

    def __init__(self) -> None:
        self._bound: dict[str, Bound] = {}
        self._taken: dict[str, socket.socket] = {}

    def take(self, name: str, fd: int) -> None:
        """Get a socket; the next `replace` will name its listener. In place of the one of that name, if there is one."""
        before = self._taken.pop(name, None)
        if before is not None:
            before.close()
        self._taken[name] = socket.socket(fileno=fd)

    def bound(self) -> Mapping[Listener, socket.socket]:
        """See `SocketSet.bound`."""
        return {bound.listener: bound.socks[0] for bound in self._bound.values()}

    def replace(self, listeners: Sequence[Listener], *, let_go: LetGo = lambda _: None) -> Callable[[], None]:
        """See `Sockets.replace`: what is new has been taken before."""
        del let_go  # it is bound already
        kept: dict[str, Bound] = {}
        for listener in listeners:
            name = listener.name
            if name in self._taken:
                sock = self._taken[name]
                kept[name] = Bound(
                    attrs.evolve(listener, port=listener.port or port_of(listener, sock)), (sock,)
                )
            elif name in self._bound:
                kept[name] = self._bound[name].follow(listener)
            else:
                raise BindError(listener, OSError("no socket was handed down"))
        used = {bound.socks[0] for bound in kept.values()}
        gone = {bound.socks[0] for bound in self._bound.values()} | set(self._taken.values())
        self._bound = kept
        self._taken.clear()
        return lambda: _close_each(gone - used)

    def named(self, names: Collection[str]) -> tuple[Listener, ...]:
        """Those of these names, as in `bound`."""
        return tuple(bound.listener for name, bound in self._bound.items() if name in names)

    def let_go(self, names: Collection[str]) -> None:
        """Close those of these listeners. The data plane does not touch them any more."""
        for name in self._bound.keys() & names:
            _close_each(self._bound.pop(name).socks)

    def close_all(self) -> None:
        """Close every copy."""
        for bound in self._bound.values():
            _close_each(bound.socks)
        _close_each(self._taken.values())
        self._bound.clear()
        self._taken.clear()


def _close_each(socks: Iterable[socket.socket]) -> None:
    for sock in socks:
        sock.close()
