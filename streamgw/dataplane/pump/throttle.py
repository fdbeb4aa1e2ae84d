"""Bytes that have to pass a gate (`core.bucket.Gate`): limited in their speed, or cut off after so many of them.

A direction with a gate never takes the fast path. Its reads and splices are cut to what the gate lets through; when that
is nothing it is parked as one whose turn is over (`Socket.queued`), in a line that one task goes through as time goes by.
Nothing is read meanwhile: the sender's window fills, and nothing but the kernel holds its bytes. A TLS end is the
exception, where up to a window of plain text waits: OpenSSL opens whole records.

An end of a session that has no gate costs one comparison, where it leaves the fast path.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import NoReturn

import trio

from streamgw.core.bucket import Gate
from streamgw.core.errors import Reason
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.bulk import PIPE_BYTES
from streamgw.dataplane.pump.end import Relay, Socket, unsent
from streamgw.dataplane.pump.move import SPLICE_AFTER, TURN, WINDOW_BYTES, Mover
from streamgw.dataplane.pump.sweep import DELIVERY_S
from streamgw.dataplane.pump.tls import TLSLayer, Truncated

SLICE = 32
"""Parked directions that get their turn before Trio's other tasks and the pump do."""
LOOK_S = 0.01
"""How often a session that is about to be cut off is looked at: have its last bytes arrived?"""


class GatedMover(Mover):
    """A mover that minds gates."""

    def __init__(
        self, finish: Callable[[Relay, Ending], None], *, splice_after: int | None = SPLICE_AFTER
    ) -> None:
        super().__init__(finish, splice_after=splice_after)
        self._line: list[tuple[float, int, Socket]] = []
        """(when, tie-breaker, who): a heap. Who has gone meanwhile is skipped."""
        self._numbers = itertools.count()
        self._sooner = trio.Event()
        """Somebody is first in the line who was not."""
        self._cuts: dict[Relay, tuple[Socket, float]] = {}
        """Sessions that are being cut off: whose last bytes are under way, and how long they may take to arrive."""

    async def keep_time(self, on_bug: Callable[[Socket, Exception], None]) -> NoReturn:
        """Give parked directions their turn when it is time. Ends only by cancellation.

        Args:
          on_bug: told of what a turn raises, to end that session.
        """
        while True:
            self._sooner = trio.Event()
            if self._line:
                with trio.move_on_at(self._line[0][0]):
                    await self._sooner.wait()
            else:
                await self._sooner.wait()
            now, line, due = trio.current_time(), self._line, 0
            while line and line[0][0] <= now and due < SLICE:
                _, _, end = heapq.heappop(line)
                due += 1
                try:
                    self.resume(end)
                except Exception as error:  # noqa: BLE001  the pump's boundary: one session's bug must not end the others
                    on_bug(end, error)

    def drop_gate(self, end: Socket, gate: Gate) -> None:
        """See `Mover.drop_gate`."""
        gate.close(trio.current_time())
        if end.relay is not None:
            self._cuts.pop(end.relay, None)

    def pull_through(self, end: Socket, gate: Gate) -> None:
        """See `Mover.pull_through`."""
        if end.broken and end.tls is None and not self._check(end):
            return  # reset: what waits in its receive buffer would take long to come, and is cut off anyway
        for _ in range(TURN):
            now = trio.current_time()
            most = gate.take(PIPE_BYTES if end.bulk else WINDOW_BYTES, now)
            if not most:
                if gate.is_spent:
                    self._cut_off(end, gate, now)
                else:
                    self._park(end, gate.opens_at)
                return
            if not self._move(end, gate, most, now):
                return
        self._park(end, trio.current_time())

    def _park(self, end: Socket, until: float) -> None:
        end.queued = True
        end.refresh()
        entry = (until, next(self._numbers), end)
        heapq.heappush(self._line, entry)
        if self._line[0] is entry:
            self._sooner.set()

    def _move(self, end: Socket, gate: Gate, most: int, now: float) -> bool:
        """Move what there is, at most so many bytes. True: there may be more."""
        tls = end.tls
        try:
            count = self._take_some(end, most) if tls is None else self._open_some(end, tls, most)
        except OSError as error:
            gate.give_back(most, now)
            if isinstance(error, Truncated):
                self._truncated(end)
                return False
            return self._not_spliced(end, error)
        moved = count or 0
        if moved < most:
            gate.give_back(most - moved, now)
        if tls is not None and tls.has_replies and not self._reply(end, tls):
            return False
        if count == 0:
            self._reached_eof(end)
            return False
        if end.pipe is not None:
            return self._empty_pipe(end)
        return not moved or (self._send(end, moved) and end.ready)

    def _take_some(self, end: Socket, most: int) -> int:
        """Take bytes off a plain end: into a pipe if it is bulk and a pipe is to be had, else into the buffer."""
        if end.bulk and most >= WINDOW_BYTES and (pipe := self.pipes.take()) is not None:
            try:
                count = pipe.fill(end.fd, most)
            except OSError:
                self.pipes.give(pipe)
                raise
            end.pipe = pipe
            end.ready = True
            self.splices += 1
            if count < WINDOW_BYTES:
                end.full, end.bulk = 0, False
            return count
        room = self._view[:most]
        count = end.sock.recv_into(room)
        is_full = count == len(room)
        end.ready = is_full or end.thorough
        end.full = end.full + 1 if is_full else 0
        end.bulk = end.may_splice and end.full >= self._splice_after
        return count

    def _open_some(self, end: Socket, tls: TLSLayer, most: int) -> int | None:
        """The same off a TLS end. What was opened beyond that is held for the next turn."""
        count = tls.receive(end.sock, self._cipher, self._view[:most] if tls.held else self._view)
        if count is not None and count > most:
            tls.held, tls.more = bytes(self._view[most:count]), True
            count = most
        end.ready = end.thorough = end.thorough or tls.more
        return count

    # Cutting off

    def _cut_off(self, end: Socket, gate: Gate, now: float) -> None:
        """Nothing more passes, either way. Reset both sides as soon as what has passed has arrived: an RST destroys it."""
        peer, relay = end.peer, end.relay
        assert peer is not None
        assert relay is not None
        if relay not in self._cuts:
            self._cuts[relay] = peer, now + DELIVERY_S
            if peer.gate is not None:
                peer.gate.close(now)
            peer.gate = Gate(ends_after=0, why=gate.why)
        receiver, deadline = self._cuts[relay]
        if now < deadline and unsent(receiver.sock):
            self._park(end, now + LOOK_S)
        else:
            self._finish(relay, Ending(Reason.REJECTED, None, gate.why))
