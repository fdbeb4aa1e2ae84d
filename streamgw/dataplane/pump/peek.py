"""Looking into the receive buffer without taking anything out of it, and the tasks parked until an end has news.

Of a TLS end the plain text is looked at. It has to be opened for that, and is held for whoever reads next (`TLSLayer.held`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import trio

from streamgw.core.errors import Drained, Killed, PeerReset, Reason, SessionError
from streamgw.dataplane.pump.end import Socket, words_for
from streamgw.dataplane.pump.tls import CIPHER_BYTES, TLSBroken, TLSLayer

PEEK_BYTES = 64 * 1024
_CIPHER, _PLAIN = memoryview(bytearray(CIPHER_BYTES)), memoryview(bytearray(PEEK_BYTES))
"""Room while TLS is opened; worthless afterwards. One for all: nothing waits in between."""

_ABORTED: dict[Reason, type[SessionError]] = {Reason.DRAIN: Drained, Reason.KILLED: Killed}


class Peeks:
    """The tasks parked before a relay, by the end they wait for: in `peek`, `connected` and `handshake`.

    Args:
      on_park: called before a task parks: somebody has to call `expire` now and then.
      on_wake: called after one was woken.
    """

    def __init__(self, *, on_park: Callable[[], None], on_wake: Callable[[], None]) -> None:
        self._on_park = on_park
        self._on_wake = on_wake
        self._deadlines: dict[Socket, float] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    async def peek(self, end: Socket, at_least: int, deadline: float) -> bytes:
        """See `Pump.peek`."""
        # What is there already is not waited for: a round of the scheduler for each TLS client is 8 µs.
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            seen, enough = look(end, min(at_least, PEEK_BYTES))
            if enough or trio.current_time() >= deadline:
                return seen
            await self.park(end, deadline)

    def wake(self, end: Socket) -> None:
        """Let the task that waits for this end look again, if there is one: an edge came, or it was closed."""
        task, end.waiter = end.waiter, None
        if task is not None:
            del self._deadlines[end]
            trio.lowlevel.reschedule(task)
            self._on_wake()

    def expire(self, now: float) -> None:
        """Wake those whose deadline has passed."""
        for end in [end for end, deadline in self._deadlines.items() if now >= deadline]:
            self.wake(end)

    async def park(self, end: Socket, deadline: float) -> None:
        """Wait for an edge, for the end to be closed, or for the deadline (met up to a tick late)."""
        assert end.waiter is None, "one task waits for an end at a time"

        def abort_fn(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            end.waiter = None
            del self._deadlines[end]
            return trio.lowlevel.Abort.SUCCEEDED

        end.waiter = trio.lowlevel.current_task()
        self._deadlines[end] = deadline
        self._on_park()
        await trio.lowlevel.wait_task_rescheduled(abort_fn)


def look(end: Socket, at_least: int) -> tuple[bytes, bool]:
    """What waits in the receive buffer, and whether that is all one can wait for.

    Raises:
      PeerReset: by the client.
      Killed, Drained: the pump has closed this end since, for that reason.
    """
    raise_if_aborted(end)
    if end.broken:
        raise PeerReset(words_for(end.error() or errno.ECONNRESET))
    if end.tls is not None:
        return _look_inside(end, end.tls, at_least)
    try:
        seen = end.sock.recv(PEEK_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        return b"", False
    except OSError as error:
        raise PeerReset(words_for(error.errno or 0)) from None
    # RDHUP was noted: the FIN stands behind what was seen, so no more will come.
    return seen, len(seen) >= at_least or not seen or end.thorough


def _look_inside(end: Socket, tls: TLSLayer, at_least: int) -> tuple[bytes, bool]:
    """The same, of plain text."""
    try:
        while len(tls.held) < at_least and tls.hold(end.sock, _CIPHER, _PLAIN):
            pass
    except BlockingIOError:
        return tls.held, False
    except TLSBroken:
        pass  # found again, and told, by whoever reads next
    except OSError as error:
        raise PeerReset(words_for(error.errno or 0)) from None
    finally:
        # What is held has left the socket, perhaps before its edge was heard: then no edge will tell of it any more.
        end.ready |= bool(tls.held)
    return tls.held, True


def raise_if_aborted(end: Socket) -> None:
    """Say why the pump has closed this end meanwhile, if it has.

    Raises:
      Killed, Drained: for that reason.
    """
    if end.aborted is not None:
        raise _ABORTED.get(end.aborted, Killed)(f"ended before the relay: {end.aborted}")
