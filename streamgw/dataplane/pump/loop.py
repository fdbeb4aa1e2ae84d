"""The pump itself: one edge-triggered epoll, one Trio task driving it, and the sweep that keeps time.

Theory of operation. While nothing happens the task waits in Trio for the epoll to become readable: Trio owns the
thread. While bytes flow it is the other way round: the task stays in its own poll (at most `HOT_WAIT_S` at a time) and
lets Trio run every `SERVE_EVERY_S`, or at once when it has started or woken a task. A wait in Trio costs as much as
relaying three messages.

A batch of events is handled without an await, and descriptors are closed only after it: a descriptor closed and opened
again within a batch would receive the event of its predecessor. Event flags are hints all the same.

Sessions park once, in `relay`; nothing else about them is known to Trio: no timer, no scope, no task below theirs. Time
is the sweep comparing timestamps a few times a second.

Longer than other files: it is the whole `Pump` protocol, with the tables that its methods share. What needs none of them
lives beside it: `accept`, `dial`, `peek`, `handshake`, `steps`, `move`, `bulk`, `sweep`, and for UDP `datagram`.
"""

from __future__ import annotations

import errno
import logging
import math
import select
import socket
from collections.abc import Awaitable, Callable
from socket import SocketType
from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    import ssl

    from streamgw.dataplane.pump.bpf import Maps

from streamgw.core.errors import ConnectFailed, Reason, SessionError
from streamgw.core.model import Address
from streamgw.dataplane.pump import Accepting, End, Ending, Limits, Meter, OnAccept, Pump, TLSInfo
from streamgw.dataplane.pump.accept import PAUSE_S, Acceptor
from streamgw.dataplane.pump.datagram import Datagrams
from streamgw.dataplane.pump.dial import start_connect
from streamgw.dataplane.pump.end import (
    EVENTS,
    PLAIN,
    Relay,
    Socket,
    close,
    words_for,
)
from streamgw.dataplane.pump.first_byte import FirstByte
from streamgw.dataplane.pump.handshake import Handshakes
from streamgw.dataplane.pump.linger import Lingering, discard, say
from streamgw.dataplane.pump.move import SPLICE_AFTER
from streamgw.dataplane.pump.peek import Peeks
from streamgw.dataplane.pump.sockmap import LeasingMover
from streamgw.dataplane.pump.sweep import Sweep
from streamgw.dataplane.pump.throttle import GatedMover

HOT_WAIT_S = 0.001
"""The longest that Trio waits for a pump with nothing to do before the pump lets go of the thread."""
SERVE_EVERY_S = 0.002
"""How often Trio's other tasks run while the pump is busy."""
ROUNDS = 4
"""How many rounds of Trio's scheduler must pass after a task was started or woken before the pump may block the thread.
One more than the steps of a session on its way to `relay`: Trio shuffles a round, and we may come first. Blocking too early
cost such a session a millisecond (1,270 instead of 184 µs from connect to reply)."""
MAX_EVENTS = 512

_log = logging.getLogger(__name__)


def _log_trouble(message: str) -> None:
    _log.error("%s", message)


def _log_bug(error: Exception) -> None:
    _log.error("bug in the pump: one session ended", exc_info=error)


class SocketPump(Pump):
    """The real pump. See `Pump` for the contract; construct it anywhere, use it under one Trio run.

    Args:
      on_trouble: told once when accepting pauses for want of descriptors, and once when it goes on.
      on_bug: told of an exception that should not exist. The session it came from ends with `Reason.BUG`, the others
        do not notice. May raise: then `run` ends with it.
      splice_after: full buffers in a row that make a direction bulk; None copies always. For tests.
      maps: lets the kernel pass small messages on (`sockmap`). Closed when the pump ends.

    The plain integers are for status pages: read them at will.
    """

    def __init__(
        self,
        *,
        on_trouble: Callable[[str], None] = _log_trouble,
        on_bug: Callable[[Exception], None] = _log_bug,
        splice_after: int | None = SPLICE_AFTER,
        maps: Maps | None = None,
    ) -> None:
        self.accepted = 0
        self.accept_pauses = 0
        self.bugs = 0
        self._on_trouble = on_trouble
        self._on_bug = on_bug
        self._epoll = select.epoll()
        self._mover = GatedMover(self._finish, splice_after=splice_after)
        self.kernel: LeasingMover | None = None
        """The mover, if it lets the kernel move."""
        if maps is not None:
            self._mover = self.kernel = LeasingMover(
                self._finish, maps=maps, watch=self._watch_for, splice_after=splice_after
            )
            self._epoll.register(self.kernel.bell_fd, select.EPOLLIN)
        self._table: dict[int, Socket] = {}
        """Every open end by descriptor."""
        self._acceptors: dict[int, Acceptor] = {}
        self._relays: dict[Relay, None] = {}
        self._peeks = Peeks(on_park=self._watch, on_wake=self._kick_trio)
        self._handshakes = Handshakes(self._peeks, self.say_last, self._hear)
        self._lingering = Lingering(self._drop)
        self.datagrams = Datagrams(self, self._epoll)
        """UDP: its own contract, on the same epoll."""
        self._sweep = Sweep(self._relays, self._peeks, self._lingering, finish=self._finish, fail=self._fail)
        self._moved_up = self._moved_down = 0
        """By relays that are over."""
        self._closing: list[tuple[SocketType, bool]] = []
        """Closed after the batch: (socket, by RST)."""
        self._in_batch = False
        self._kick = False
        """A task was started or woken: let Trio run at the end of this batch."""
        self._resting = False
        """The pump waits in Trio for an edge."""
        self._nursery: trio.Nursery | None = None
        self._now = trio.current_time
        """The same clock without a look-up, once `run` knows it."""
        self._stopped = False
        self._finish_relay = self._finish

    @property
    def active_ends(self) -> int:
        """Open session sockets."""
        return len(self._table)

    @property
    def active_relays(self) -> int:
        """Sessions that are connecting or relaying."""
        return len(self._relays)

    @property
    def bytes_up(self) -> int:
        """Client to upstream, over all sessions."""
        return self._moved_up + sum(relay.meter.bytes_up for relay in self._relays)

    @property
    def bytes_down(self) -> int:
        """Upstream to client, over all sessions."""
        return self._moved_down + sum(relay.meter.bytes_down for relay in self._relays)

    @property
    def splices(self) -> int:
        """How often bytes moved without being copied."""
        return self._mover.splices

    @property
    def pipes(self) -> int:
        """Pipes that are open, idle ones included."""
        return self._mover.pipes.open

    @property
    def idle_pipes(self) -> int:
        """Pipes that no session holds."""
        return self._mover.pipes.idle

    # The protocol

    @trio.lowlevel.enable_ki_protection  # an interrupt in the middle of a batch would leave a pair half handled
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """See `Pump.run`. A session still parked in `relay` gets `Reason.DRAIN`, unless it is cancelled as well."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._sweep.run)
                nursery.start_soon(self._mover.keep_time, self.bug)
                task_status.started()
                await self._drive()
        finally:
            self._nursery = None
            self._stop()
        raise AssertionError("unreachable: the pump runs until it is cancelled")

    def listen(self, sock: socket.socket, on_accept: OnAccept) -> Accepting:
        """See `Pump.listen`. What sessions need is set on the listening socket, since accept(2) hands it down."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        acceptor = Acceptor(self, self._epoll, sock, on_accept)
        self._acceptors[acceptor.fd] = acceptor
        return acceptor

    async def peek(self, end: End, at_least: int, *, deadline: float) -> bytes:
        """See `Pump.peek`. The deadline may be met up to `sweep.TICK_S` late.

        Raises:
          Killed, Drained: `abort` was called; the end is closed.
        """
        assert isinstance(end, Socket)
        return await self._peeks.peek(end, at_least, deadline)

    def consume(self, end: End, count: int) -> None:
        """See `Pump.consume`."""
        assert isinstance(end, Socket)
        while count:
            count -= len(end.sock.recv(count))

    def dial(self, node: Address, *, preface: bytes, deadline: float) -> End:
        """See `Pump.dial`. The node's host is an IP literal; anything else is a `ConnectFailed`, never a look-up."""
        if self._stopped:
            raise ConnectFailed("the gateway stops")
        end = start_connect(node, self.adopt)
        end.preface = preface
        end.dialed_at = self._now()
        end.deadline = deadline
        return end

    async def connected(self, upstream: End) -> None:
        """See `Pump.connected`. The deadline of `dial` may be met up to `sweep.TICK_S` late.

        Raises:
          Killed, Drained: the pump ends.

        Cancellation:
          The end is still the caller's to close.
        """
        assert isinstance(upstream, Socket)
        try:
            await self._handshakes.connected(upstream)
        except SessionError:
            self.close(upstream, reset=True)
            raise

    async def handshake(
        self,
        end: End,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str = "",
        deadline: float,
        is_quick: bool = False,
    ) -> TLSInfo:
        """See `Pump.handshake`. The deadline may be met up to `sweep.TICK_S` late.

        Raises:
          Killed, Drained: `abort` was called; the end is closed.
        """
        assert isinstance(end, Socket)
        try:
            return await self._handshakes.shake(
                end,
                context,
                server_side=server_side,
                server_name=server_name,
                deadline=deadline,
                is_quick=is_quick,
            )
        except SessionError:
            if not end.is_client:
                self.close(end)
            raise

    def relay(self, client: End, upstream: End, meter: Meter, limits: Limits) -> Awaitable[Ending]:
        """See `Pump.relay`."""
        assert isinstance(client, Socket)
        assert isinstance(upstream, Socket)
        relay = Relay(client, upstream, meter, limits, self._finish_relay)
        self._begin(relay)
        if relay.over:
            return _over_at_once(relay)
        relay.task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(relay.cancel)  # noqa: ASYNC105  whoever called this awaits it

    def abort(self, end: End, reason: Reason) -> None:
        """See `Pump.abort`. An end that nobody waits for at the moment is closed, and says so when it is next used."""
        assert isinstance(end, Socket)
        if end.relay is not None:
            self._finish(end.relay, Ending(reason))
        elif end.fd >= 0:
            end.aborted = reason
            self.close(end, reset=True)

    def close(self, end: End, *, reset: bool = False) -> None:
        """See `Pump.close`."""
        assert isinstance(end, Socket)
        assert end.relay is None, "relay() closes both ends"
        if end.fd < 0:
            return
        if end in self._lingering:
            if not reset:
                return
            self._lingering.forget(end)
        elif end.spoke_last and not reset and self._lingering.begin(end, trio.current_time()):
            self._sweep.watch()
            return
        self._release(end, reset=reset)
        self._peeks.wake(end)

    def say_last(self, end: End, words: bytes) -> None:
        """See `Pump.say_last`. `close` then waits up to `linger.LINGER_S` for the peer to close, on its own."""
        assert isinstance(end, Socket)
        if end.fd >= 0:
            say(end, words if end.tls is None else end.tls.last_words(words))
            discard(end)
            end.spoke_last = True

    # What the parts ask of the pump

    def adopt(self, end: Socket) -> None:
        """Watch a new end, for life. Raises OSError when the kernel has no room for it."""
        self._epoll.register(end.fd, EVENTS)
        self._table[end.fd] = end

    def rest(self, acceptor: Acceptor) -> None:
        """Let an acceptor rest for `PAUSE_S`. Idle pipes are given up: their descriptors are worth more elsewhere."""
        self.accept_pauses += 1
        self._mover.pipes.shrink()
        assert self._nursery is not None, "only the running pump accepts"
        self._nursery.start_soon(_wake_after_rest, acceptor)
        self._kick = True

    def forget(self, acceptor: Acceptor) -> None:
        """An acceptor has closed. Its descriptor may already be another's."""
        if self._acceptors.get(acceptor.fd) is acceptor:
            del self._acceptors[acceptor.fd]

    def tell(self, message: str) -> None:
        """Pass a message for a person on."""
        self._on_trouble(message)

    def bug(self, end: Socket, error: Exception) -> None:
        """Something raised that must not: end that session, count it, tell, go on with the others."""
        self.bugs += 1
        if end.relay is not None:
            self._finish(end.relay, Ending.by_bug(error))
        else:
            self.close(end, reset=True)
        self._on_bug(error)

    def release(self, sock: SocketType) -> None:
        """Close a datagram socket, now or after the batch."""
        if self._in_batch:
            self._closing.append((sock, False))
        else:
            close(sock, reset=False)

    def kick(self) -> None:
        """A task was started or woken: let Trio run at the end of this batch."""
        self._kick = True

    def datagram_bug(self, error: Exception) -> None:
        """A datagram raised what it must not: count it, tell."""
        self.bugs += 1
        self._on_bug(error)

    # The loop

    async def _drive(self) -> NoReturn:
        clock = self._now = trio.lowlevel.current_clock().current_time
        poll, mover, due = self._epoll.poll, self._mover, self._handshakes.steps.due
        while True:
            self._resting = True
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._resting = False
            wait_s, served_at, rounds = 0.0, clock(), 0
            while True:
                events = poll(wait_s, MAX_EVENTS)
                if events or mover.queue or due:
                    self._batch(events)
                elif wait_s:
                    break
                if self._kick:
                    self._kick, rounds = False, ROUNDS
                if rounds or clock() - served_at >= SERVE_EVERY_S:
                    await trio.lowlevel.checkpoint()
                    served_at = clock()
                    rounds = rounds - 1 if rounds > 1 else ROUNDS * _is_trio_busy()
                wait_s = 0.0 if rounds or mover.queue or due else HOT_WAIT_S

    def _batch(self, events: list[tuple[int, int]]) -> None:
        """Handle one batch of events and one turn of every unfinished direction; then close what is to be closed."""
        mover = self._mover
        self._in_batch = True
        self.datagrams.begin_batch(self._now())
        try:
            self._handle_all(events)
            for end in mover.take_queue() if mover.queue else ():
                try:
                    mover.resume(end)
                except Exception as error:  # noqa: BLE001 - see _handle_all
                    self.bug(end, error)
            if self._handshakes.steps.due:
                self._handshakes.steps.turn()
        finally:
            self._in_batch = False
            for sock, reset in self._closing:
                close(sock, reset=reset)
            self._closing.clear()

    def _handle_all(self, events: list[tuple[int, int]]) -> None:
        """The pump's boundary: what an event of one end raises ends that end's session, and no other."""
        table, relay_now, datagrams = self._table, self._mover.relay_now, self.datagrams
        for fd, flags in events:
            end = table.get(fd)
            if end is None:
                if not datagrams.handle(fd):
                    self._accept(fd)
                continue
            try:
                if end.fast and flags == PLAIN:
                    relay_now(end)
                else:
                    self._handle(end, flags)
            except Exception as error:  # noqa: BLE001 - one session's bug must not end the others
                self.bug(end, error)

    def _accept(self, fd: int) -> None:
        """Accept, unless this is a late event of an end or an acceptor that closed earlier in the batch."""
        acceptor = self._acceptors.get(fd)
        if acceptor is not None:
            count = acceptor.accept_batch()
            self.accepted += count
            self._kick |= count > 0
        elif self.kernel is not None and fd == self.kernel.bell_fd:
            self.kernel.hear_bell(self.bug)

    def _handle(self, end: Socket, flags: int) -> None:
        """Any event that is not plain data of a pair in full flow."""
        end.note(flags)
        relay = end.relay
        if relay is None:
            if end.spoke_last and end in self._lingering:
                self._lingering.hear(end)
            elif end.shaking is not None:
                self._handshakes.steps.hear(end)
            else:
                self._peeks.wake(end)
        elif not relay.connecting:
            self._mover.handle(end, flags)
        elif not end.is_client:
            self._connect_ended(relay)
        elif end.broken and end.tls is None:
            self._finish(relay, _reset_by(end))

    def _connect_ended(self, relay: Relay) -> None:
        upstream = relay.upstream
        number = upstream.error() if upstream.broken else 0
        if number:
            self._fail(relay, words_for(number))
        elif upstream.writable:
            meter = relay.meter
            meter.connected_at = relay.active_at = self._now()
            # What was needed only for the connect goes now: the session may be idle for days.
            upstream.dialed_at = upstream.deadline = math.inf
            on_connected, meter.on_connected = meter.on_connected, None
            if on_connected is not None and (on_first_byte := on_connected(meter.connected_at)) is not None:
                relay.first_byte = FirstByte(on_first_byte, meter.connected_at)
            self._mover.start(relay)

    def _hear(self, end: Socket) -> None:
        """An end has begun to shake hands: see to it that its first step is taken."""
        if self._resting:
            self._epoll.modify(end.fd, EVENTS)  # what is there already is announced once more
        else:
            self._handshakes.steps.hear(end)

    def _kick_trio(self) -> None:
        self._kick = True

    def _watch(self) -> None:
        self._sweep.watch()

    def _watch_for(self, end: Socket, events: int) -> None:
        self._epoll.modify(end.fd, events)

    # Beginnings and ends

    def _begin(self, relay: Relay) -> None:
        client, upstream = relay.client, relay.upstream
        for end in (client, upstream):
            assert end.relay is None, "an end is part of one relay at a time"
            if end.fd < 0:
                assert end.aborted is not None, "relay() of an end that was closed"
                self._finish(relay, Ending(end.aborted))
                return
        client.peer, upstream.peer = upstream, client
        client.relay = upstream.relay = relay
        client.gate, upstream.gate = relay.limits.up, relay.limits.down
        self._relays[relay] = None
        self._sweep.watch()
        if client.broken and client.tls is None:  # what a TLS end said before counts, see Mover._check
            self._finish(relay, _reset_by(client))
        elif upstream.writable or upstream.broken:
            # Its connect ended before anybody waited for it, and an edge comes once. Ask for it again: bytes move in
            # the pump's task only.
            self._epoll.modify(upstream.fd, EVENTS)

    def _finish(self, relay: Relay, ending: Ending) -> None:
        """End a relay: close both ends, wake its task. Does nothing when it is over already."""
        if relay.over:
            return
        relay.ending = ending
        self._relays.pop(relay, None)
        reset = ending.reason is not Reason.CLOSED
        # A side whose other side has not said EOF must not hear one: it was cut off, by a TLS peer that never parts.
        cut_client, cut_upstream = not relay.upstream.eof, not relay.client.eof
        for end, cut in ((relay.client, cut_client), (relay.upstream, cut_upstream)):
            try:
                self._mover.drop(end)
            except Exception as error:  # noqa: BLE001 - whoever ends it is the sweep, or Trio: none of them may break
                self.bugs += 1
                self._on_bug(error)
            self._release(end, reset=reset or cut)
        self._moved_up += relay.meter.bytes_up
        self._moved_down += relay.meter.bytes_down
        self._wake(relay)

    def _fail(self, relay: Relay, message: str) -> None:
        """The node cannot be had: close its end, leave the client's as it is for the next node."""
        relay.failure = ConnectFailed(message)
        del self._relays[relay]
        relay.client.relay = relay.client.peer = None
        self._release(relay.upstream, reset=True)
        self._wake(relay)

    def _wake(self, relay: Relay) -> None:
        task, relay.task = relay.task, None
        if task is not None:
            trio.lowlevel.reschedule(task, relay.result)
            self._kick = True

    def _release(self, end: Socket, *, reset: bool) -> None:
        """Forget an end and close its socket, now or after the batch. The links of a pair are a cycle: they go too."""
        fd, end.fd = end.fd, -1
        end.relay = end.peer = None
        if fd < 0:
            return
        del self._table[fd]
        if self._in_batch:
            self._closing.append((end.sock, reset))
        else:
            close(end.sock, reset=reset)

    def _drop(self, end: Socket) -> None:
        self._release(end, reset=False)

    def _stop(self) -> None:
        """The pump is cancelled: nothing of it stays open, and nobody stays parked."""
        self._stopped = True
        for end in tuple(self._table.values()):
            self.abort(end, Reason.DRAIN)  # by reset, those that linger too
        for acceptor in tuple(self._acceptors.values()):
            acceptor.close()
        self.datagrams.stop()
        self._mover.pipes.shrink()
        self._epoll.close()
        if self.kernel is not None:
            self.kernel.close()


def _is_trio_busy() -> bool:
    """Whether some task that has run in this round wants to go on: a step of it every `SERVE_EVERY_S` would be a crawl."""
    return trio.lowlevel.current_statistics().tasks_runnable > 0


def _reset_by(end: Socket) -> Ending:
    return Ending(Reason.RESET, end.side, words_for(end.error() or errno.ECONNRESET))


async def _over_at_once(relay: Relay) -> Ending:
    await trio.lowlevel.checkpoint()
    return relay.result.unwrap()


async def _wake_after_rest(acceptor: Acceptor) -> None:
    await trio.sleep(PAUSE_S)
    acceptor.rested()
