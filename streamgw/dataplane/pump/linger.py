"""Closing so that the last words arrive: a FIN, then listening without hearing until the peer has closed too.

Closing a socket over bytes that nobody has read is an RST (RFC 1122 § 4.2.2.13), which overtakes what was said before:
the client whose certificate was refused would read "connection reset" instead of the alert that says why.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from streamgw.dataplane.pump.end import Socket

LINGER_S = 2.0
"""How long a peer gets to read the last words and close."""
MAX_LINGERING = 512
"""Beyond it ends are closed at once: whoever fails on purpose, a thousand times, holds no descriptors of ours."""
DISCARD_BYTES = 64 * 1024
MAX_DISCARDS = 16
"""Reads in a row before it is somebody else's turn: what is left then is worth an RST."""


class Lingering:
    """Ends that have said their last words.

    Args:
      release: closes an end.
    """

    def __init__(self, release: Callable[[Socket], None]) -> None:
        self._release = release
        self._until: dict[Socket, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, end: Socket) -> bool:
        return end in self._until

    def begin(self, end: Socket, now: float) -> bool:
        """Send FIN and wait for the peer's. False: there are too many already, or nobody is left to wait for."""
        if len(self._until) >= MAX_LINGERING:
            return False
        try:
            end.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        if discard(end):
            return False
        self._until[end] = now + LINGER_S
        return True

    def hear(self, end: Socket) -> None:
        """An edge: throw away what came; the peer's end is the end."""
        if discard(end):
            self.forget(end)
            self._release(end)

    def forget(self, end: Socket) -> None:
        """It is closed by somebody else."""
        self._until.pop(end, None)

    def expire(self, now: float) -> None:
        """Close those that have had their time."""
        for end in [end for end, until in self._until.items() if now >= until]:
            self.forget(end)
            self._release(end)


def say(end: Socket, words: bytes) -> None:
    """Send what the socket takes at once. Whoever is gone already does not hear it."""
    with contextlib.suppress(OSError):
        end.sock.send(words)


def discard(end: Socket) -> bool:
    """Throw away what the peer has sent. True: it will send no more, or too much."""
    try:
        for _ in range(MAX_DISCARDS):
            if not end.sock.recv(DISCARD_BYTES):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
