"""Handshakes that the pump takes on by itself: a step or two between batches, on the loop.

A thread costs more than what it takes off the loop, if that is short: a step goes there and back (two switches, and twice
a wait for the GIL), and a session's task is woken for each. Measured with P-256, 32 clients in a storm of full handshakes:
a session whose steps go through threads takes 3.1 times the CPU that nginx takes, through here 1.6 to 2.1 times.

What may come here is decided before OpenSSL sees a byte, by the certificate (`Certificate.signs_quickly`) and by the
hello (`ClientHello.is_quick`): neither an operator's RSA 4096 nor a client that wants ffdhe8192 gets a turn on the loop.
The others are promised that a turn ends after `TURN_S` and one step more, however many clients shake hands.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from time import perf_counter

from streamgw.core.errors import PeerReset, SessionError, TLSFailed, UpstreamTLSFailed
from streamgw.dataplane.pump.end import Socket, words_for
from streamgw.dataplane.pump.tls import Shaking, TLSBroken

RECEIVE_BYTES = 16 * 1024
TURN_S = 0.0005
"""No step is begun later than this in a turn. One of P-256 takes 0.15 ms, of RSA 2048 0.4 ms. OpenSSL and Python take the
caches from each other: turns of 0.6 instead of 0.3 ms cost 4 % less CPU for a session with a handshake."""


class Steps:
    """Handshakes under way, and those that can go on at once.

    Args:
      say_last: sends an alert so that closing does not destroy it.
      wake: lets the task that waits for an end go on: its handshake is over.
    """

    def __init__(self, say_last: Callable[[Socket, bytes], None], wake: Callable[[Socket], None]) -> None:
        self._say_last = say_last
        self._wake = wake
        self.due: deque[Socket] = deque()
        """Those that wait for a turn. While there are any the pump must not block."""

    def hear(self, end: Socket) -> None:
        """An end that shakes hands may have news: bytes, or room for what it was not rid of."""
        shaking = end.shaking
        if shaking is not None and not shaking.is_due and (end.ready or shaking.unsent):
            shaking.is_due = True
            self.due.append(end)

    def turn(self) -> None:
        """Take steps until there are none to take, or the turn is over."""
        over_at = perf_counter() + TURN_S
        while self.due:
            end = self.due.popleft()
            shaking = end.shaking
            if shaking is None or end.fd < 0:
                continue  # its task has left, or is about to
            shaking.is_due = False
            try:
                self._advance(end, shaking)
            except Exception as error:  # noqa: BLE001  raised again where it belongs: in the session's task
                shaking.failure = error
            if shaking.over:
                self._finish(end, shaking)
            if perf_counter() >= over_at:
                return

    def _advance(self, end: Socket, shaking: Shaking) -> None:
        layer = shaking.layer
        if not self._flush(end, shaking) or shaking.agreed:
            return
        received = receive(end)
        if received is None:
            return
        try:
            shaking.agreed = layer.step(received)
        except TLSBroken as error:
            self._say_last(end, layer.replies())
            raise failure_of(end, str(error.strerror)) from None
        if layer.has_replies:
            shaking.unsent = layer.replies()
        if self._flush(end, shaking) and not shaking.agreed:
            self.hear(end)

    def _flush(self, end: Socket, shaking: Shaking) -> bool:
        """Send what is unsent. True: all of it went."""
        if shaking.unsent:
            shaking.unsent = send(end, shaking.unsent)
        return not shaking.unsent

    def _finish(self, end: Socket, shaking: Shaking) -> None:
        end.shaking = None
        if shaking.failure is None:
            end.tls = shaking.layer
            # What came with the end of the handshake has had its edge. What the last read left behind is noted.
            end.ready |= shaking.layer.has_input
        self._wake(end)


def receive(end: Socket) -> bytes | None:
    """What the peer said. None: nothing yet, an edge will tell.

    Raises:
      PeerReset, TLSFailed, UpstreamTLSFailed: by side; it is gone.
    """
    try:
        received = end.sock.recv(RECEIVE_BYTES)
    except BlockingIOError:
        end.ready = end.thorough = False
        return None
    except OSError as error:
        raise reset_by(end, error.errno or 0) from None
    if not received:
        if end.broken:
            raise reset_by(end, end.error() or errno.ECONNRESET)
        raise failure_of(end, "the connection was closed during the handshake")
    # As in `Mover`: a short read has drained the socket, unless something was flagged that may stand behind the bytes.
    end.ready = end.thorough or len(received) == RECEIVE_BYTES
    return received


def send(end: Socket, words: bytes | memoryview) -> memoryview:
    """Send what the socket takes at once; returns the rest.

    Raises:
      PeerReset, UpstreamTLSFailed: by side; it is gone.
    """
    left = memoryview(words)
    try:
        return left[end.sock.send(left) :]
    except BlockingIOError:
        return left
    except OSError as error:
        raise reset_by(end, error.errno or 0) from None


def failure_of(end: Socket, message: str) -> SessionError:
    """A handshake that failed, by side."""
    return (TLSFailed if end.is_client else UpstreamTLSFailed)(message)


def reset_by(end: Socket, number: int) -> SessionError:
    """A peer that is gone, by side."""
    words = words_for(number)
    return PeerReset(words) if end.is_client else UpstreamTLSFailed(f"{words} during the handshake")
