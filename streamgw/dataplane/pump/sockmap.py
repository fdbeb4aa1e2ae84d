"""Small messages that the kernel passes on by itself: an eBPF program redirects what one socket of a pair receives to the other.

Opt-in (`streamgw.relay: sockmap`), and never the way of a TLS end, a limited, a bulk or a Unix pair. Decision 15 says what it
gives and what it costs. `bpf` has the maps and the program.

Theory of operation. After some messages a pair is *promoted*: both sockets go into the maps, for life, and the program sees
each segment that they receive. It passes it up as before, unless that direction is *leased*. A lease is a credit: so many bytes
may be redirected, because nothing in the kernel holds back a sender whose reader has stopped. Armed when everything was read
and handed on, it ends when the credit is spent (the program rings the bell), at a FIN, or at an error; then it is *reclaimed*:
once the peer's socket has taken all that was redirected, the pump goes on, and may arm another.

Order, which is everything here, rests on three numbers. `seen`, counted by the program, changes with each segment that comes
up: arming names the value under which bytes may be redirected, so a segment in between makes the lease void by itself.
What TCP has received from one socket, and what it was given to send by the other (TCP_INFO), must agree with what was read
here and redirected there. What cannot be shown to agree is waited for.

Five things that the kernel does, each of which once cost data (performance notes, § 5):

1. A FIN is a segment without bytes. Redirected, the peer takes it for a broken pipe: the program drops it.
2. A segment that was read in part is given to the program whole: only a drained socket is promoted.
3. Bytes that came up can stand behind others that are being redirected: reading 0 is EOF only if the numbers agree.
4. Nothing holds back the sender: hence the credit.
5. A socket in a map cannot be spliced, nor be taken out while bytes flow: promotion is for life, and bulk stays away.

Longer than other files: a lease and who gives it are one protocol, and one order of steps.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import select
import socket
import struct
import termios
from collections.abc import Callable
from socket import SocketType
from typing import NoReturn

import trio

from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.bpf import (
    COOKIE_WORD,
    LIMIT_WORD,
    MOVED_WORD,
    RELEASE_WORD,
    SEEN_WORD,
    SLOTS,
    STATE_BYTES,
    Maps,
)
from streamgw.dataplane.pump.end import EVENTS, Relay, Socket
from streamgw.dataplane.pump.move import SPLICE_AFTER, WINDOW_BYTES
from streamgw.dataplane.pump.sweep import SLICE, TICK_S
from streamgw.dataplane.pump.throttle import GatedMover

PROMOTE_AFTER = 8
"""Short reads of a pair that make it one of small messages."""
CREDIT_BYTES = 1 << 20
"""What one direction may pass before we look: the most that a stopped reader makes the kernel hold, besides its buffers."""
BULK_S = 0.05
"""Who spends his credit in less is bulk, and better off without: never leased again."""
FIRST_LOOK_S, LONGEST_LOOK_S = 0.0005, 0.02
"""How often what must agree and does not yet is looked at: each time twice as late."""
MOST_LOOKS = 500
"""Ten seconds for what takes microseconds. Whatever is wrong then, a reset is honest and waiting is not."""
MOST_RECEIVED_BYTES = 8 << 20
"""More than a receive buffer can hold (tcp_rmem is 6 MiB)."""

_LEASED = select.EPOLLRDHUP | select.EPOLLOUT | select.EPOLLET
"""What an end is watched for while the kernel reads it: not for bytes, which wake whoever waits for them also when redirected."""
_SO_COOKIE = 57
_TCP_INFO_BYTES = 232
_RECEIVED = struct.Struct("=Q")
_WRITTEN = struct.Struct("=I52xQQ")
_RECEIVED_AT, _WRITTEN_AT = 128, 144
"""linux/tcp.h: tcpi_bytes_received; tcpi_notsent_bytes, and behind it tcpi_bytes_sent and tcpi_bytes_retrans."""
_STATE_WORDS = STATE_BYTES // 8


def received(sock: SocketType) -> int:
    """Bytes that TCP has received, a FIN as one more. Takes the socket's lock: no segment is being handled meanwhile."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0])


def written(sock: SocketType) -> int:
    """Bytes that TCP was given to send."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    not_sent, sent, again = _WRITTEN.unpack_from(info, _WRITTEN_AT)
    return int(not_sent + sent - again)


class Lease:
    """One direction of a promoted pair: its slot in the maps, and what has passed.

    Named by the end it is read from, as everything about a direction.
    """

    __slots__ = (
        "_first_received",
        "_first_written",
        "_words",
        "cookie",
        "counted",
        "is_bulk",
        "is_ending",
        "is_on",
        "look_s",
        "looks",
        "passed",
        "slot",
        "stands_at",
        "taken_at",
    )

    def __init__(self, words: memoryview, sock: SocketType, peer: SocketType) -> None:
        self.cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
        self.slot = self.cookie % SLOTS
        start = self.slot * _STATE_WORDS
        self._words = words[start : start + _STATE_WORDS]
        self._first_received, self._first_written = received(sock), written(peer)
        self.passed = 0
        """Bytes since then, read and redirected alike; without those of a lease that is on or ending."""
        self.counted = 0
        """Of those redirected under this lease: what the meter has."""
        self.is_on = False
        """The kernel may redirect. Nobody reads the end, and nobody writes to its peer."""
        self.is_ending = False
        """It may no more, and what it has redirected is still on its way. The same holds."""
        self.is_bulk = False
        self.stands_at = self.slot
        """Another slot, if this end is in the map and its peer is not."""
        self.taken_at = 0.0
        self.look_s = FIRST_LOOK_S
        self.looks = 0
        """At an EOF that is none yet."""

    def open(self) -> None:
        """Make the slot this direction's: the program counts from now on."""
        words = self._words
        words[SEEN_WORD], words[RELEASE_WORD], words[MOVED_WORD], words[LIMIT_WORD] = 1, 0, 0, 0
        words[COOKIE_WORD] = self.cookie

    def close(self) -> None:
        """Give the slot up."""
        self._words[COOKIE_WORD] = 0
        self._words.release()

    @property
    def moved(self) -> int:
        """Bytes redirected under this lease."""
        return int(self._words[MOVED_WORD])

    @property
    def has_seen(self) -> bool:
        """The program has passed something up since the slot was opened."""
        return bool(self._words[SEEN_WORD] != 1)

    @property
    def is_void(self) -> bool:
        """On, and the program redirects no more: something came up."""
        return bool(self._words[SEEN_WORD] != self._words[RELEASE_WORD])

    def has_all(self, sock: SocketType) -> bool:
        """Everything that TCP has received has been read, no FIN among it."""
        return self.difference(sock) == 0

    def is_at_end(self, sock: SocketType) -> bool:
        """Everything has been read, and a FIN stands behind it."""
        return self.difference(sock) == 1

    def difference(self, sock: SocketType) -> int:
        """How many bytes TCP has received that were not read, a FIN as one."""
        return received(sock) - self._first_received - self.passed

    def arm(
        self, sock: SocketType, now: float, watch: Callable[[int], None], *, credit_bytes: int = CREDIT_BYTES
    ) -> bool:
        """Let the kernel redirect from now on. False: something has just come, it is to be read first.

        `watch` says what the end is watched for: between the two looks at `seen`, so that either the program sees the lease, or
        we see the segment.
        """
        words = self._words
        seen = words[SEEN_WORD]
        if not self.has_all(sock):
            return False
        words[LIMIT_WORD] = credit_bytes
        words[RELEASE_WORD] = seen
        watch(_LEASED)
        if words[SEEN_WORD] != seen and not words[MOVED_WORD]:
            words[RELEASE_WORD] = 0
            watch(EVENTS)
            return False
        self.is_on, self.taken_at, self.counted = True, now, 0
        return True

    def end(self, sock: SocketType, now: float) -> None:
        """Let the kernel redirect no more."""
        if self.is_void and now - self.taken_at < BULK_S:
            self.is_bulk = True
        self._words[RELEASE_WORD] = 0
        received(sock)  # whoever still went by the old value has finished
        self.is_on, self.is_ending, self.look_s = False, True, FIRST_LOOK_S

    def settle(self, peer: SocketType) -> bool:
        """After `end`: whether the peer's socket has taken everything. Then the pump may go on."""
        if written(peer) != self._first_written + self.passed + self.moved:
            return False
        self.passed += self.moved
        self._words[MOVED_WORD] = 0
        self.is_ending, self.look_s = False, FIRST_LOOK_S
        return True


class LeasingMover(GatedMover):
    """A mover that lets the kernel pass small messages on.

    Args:
      maps: of this mover alone.
      watch: changes what an end is watched for.

    Resource handling:
      `close` closes the maps. A pair leaves them when it is dropped.
    """

    def __init__(
        self,
        finish: Callable[[Relay, Ending], None],
        *,
        maps: Maps,
        watch: Callable[[Socket, int], None],
        splice_after: int | None = SPLICE_AFTER,
    ) -> None:
        super().__init__(finish, splice_after=splice_after)
        self.maps = maps
        self.bell_fd = maps.bell.fd
        self.leases = 0
        """Given so far."""
        self.promoted: dict[int, Socket] = {}
        """Ends in the maps, by slot."""
        self._watch = watch
        self.promote_after = PROMOTE_AFTER
        self.credit_bytes = CREDIT_BYTES

    def close(self) -> None:
        """Give back what the kernel holds."""
        self.maps.close()

    async def keep_time(self, on_bug: Callable[[Socket, Exception], None]) -> NoReturn:
        """See `GatedMover.keep_time`; and count what the kernel moves."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().keep_time, on_bug)
            while True:
                await trio.sleep(TICK_S / 2)
                for number, end in enumerate(tuple(self.promoted.values())):
                    self._look_after(end, on_bug)
                    if number % SLICE == SLICE - 1:
                        await trio.lowlevel.checkpoint()
        raise AssertionError("only cancellation ends this")

    def hear_bell(self, on_bug: Callable[[Socket, Exception], None]) -> None:
        """Some directions have spent their credit."""
        for slot in self.maps.bell.rung():
            end = self.promoted.get(slot)
            if end is not None:
                self._look_after(end, on_bug)

    def relay_now(self, end: Socket) -> None:
        """See `Mover.relay_now`. The event may be of a moment before the lease."""
        if end.lease is None or self._is_ours(end, end.lease):
            super().relay_now(end)

    def pull(self, end: Socket) -> None:
        """See `Mover.pull`."""
        if end.lease is None or self._is_ours(end, end.lease):
            super().pull(end)

    def drop(self, end: Socket) -> None:
        """See `Mover.drop`."""
        lease = end.lease
        if lease is not None:
            self._count(end, lease)
            lease.close()
            for slot in {lease.slot, lease.stands_at}:
                self.maps.peers.delete(slot)
                del self.promoted[slot]
            end.lease = None
        super().drop(end)

    # What the way of bytes through here is changed by

    def _send(self, end: Socket, count: int) -> bool:
        relay, lease = end.relay, end.lease
        assert relay is not None
        if lease is not None:
            lease.passed += count
        if not super()._send(end, count):
            return False
        if lease is not None:
            self._arm(end, lease)
        elif count < WINDOW_BYTES:
            relay.messages += 1
            if relay.messages >= self.promote_after:
                self._promote(end, relay)
        return end.relay is not None

    def _reached_eof(self, end: Socket) -> None:
        lease = end.lease
        if lease is None or end.broken or lease.is_at_end(end.sock):
            super()._reached_eof(end)
            return
        # What has come up is still on its way to where we read: moments, and nobody else has a part in it.
        lease.looks += 1
        if lease.looks > MOST_LOOKS:
            raise RuntimeError(
                f"EOF, and {lease.difference(end.sock)} bytes that TCP has received were not read"
            )
        self._look_later(end, lease)

    # Leases

    def _is_ours(self, end: Socket, lease: Lease) -> bool:
        """Whether the pump may read an end; if the kernel does, it is told to stop. False: not now."""
        if not (lease.is_on or lease.is_ending):
            return True
        if end.broken and not self._check(end):
            return False
        if lease.is_on:
            lease.end(end.sock, trio.current_time())
        assert end.peer is not None
        self._count(end, lease)
        if not lease.settle(end.peer.sock):
            self._look_later(end, lease)
            return False
        self._watch(end, EVENTS)
        end.ready = end.thorough = True
        return True

    def _look_later(self, end: Socket, lease: Lease) -> None:
        self._park(end, trio.current_time() + lease.look_s)
        lease.look_s = min(2 * lease.look_s, LONGEST_LOOK_S)

    def _look_after(self, end: Socket, on_bug: Callable[[Socket, Exception], None]) -> None:
        """Count what was moved; take back a lease under which nothing moves any more, whether the bell was heard or not."""
        lease = end.lease
        if lease is None:
            return  # dropped since
        try:
            self._count(end, lease)
            if lease.is_on and lease.is_void:
                self.pull(end)
        except Exception as error:  # noqa: BLE001  the pump's boundary: one session's bug must not end the others
            on_bug(end, error)

    def _count(self, end: Socket, lease: Lease) -> None:
        """Let the meter know."""
        relay = end.relay
        if relay is None:
            return
        moved = lease.moved if lease.is_on or lease.is_ending else lease.counted
        new, lease.counted = moved - lease.counted, moved
        if end.is_client:
            relay.meter.bytes_up += new
        else:
            relay.meter.bytes_down += new

    def _arm(self, end: Socket, lease: Lease) -> None:
        """Lease a direction of which everything was read and handed on."""
        if lease.is_bulk or end.ready or end.stuck or end.queued or end.eof or end.broken:
            return
        now, credit_bytes = trio.current_time(), self.credit_bytes
        if lease.arm(end.sock, now, lambda events: self._watch(end, events), credit_bytes=credit_bytes):
            self.leases += 1

    def _promote(self, end: Socket, relay: Relay) -> None:
        """Put a pair into the maps, if nothing of it is under way. Else the next message is another chance."""
        client, upstream = relay.client, relay.upstream
        if not _is_eligible(relay):
            relay.messages = -math.inf
            return
        if not (_is_quiet(client) and _is_quiet(upstream)):
            return
        words = self.maps.state.words
        lease_up = Lease(words, client.sock, upstream.sock)
        lease_down = Lease(words, upstream.sock, client.sock)
        pair = ((client, lease_up), (upstream, lease_down))
        slots = {lease_up.slot, lease_down.slot}
        # Between what the leases saw and this nothing may have come, or it would be read twice.
        is_drained = all(_unread(each.sock) == 0 and lease.has_all(each.sock) for each, lease in pair)
        if len(slots) < 2 or not self.promoted.keys().isdisjoint(slots) or not is_drained:
            return
        if not self._insert(pair):
            relay.messages = -math.inf
            return
        for each in (client, upstream):
            if each.relay is not None and each.lease is not None:
                self._take_first(each, each.lease)
        if end.relay is not None and end.lease is not None:
            self._arm(end, end.lease)

    def _insert(self, pair: tuple[tuple[Socket, Lease], tuple[Socket, Lease]]) -> bool:
        """Under the slot of each direction stands the socket that its bytes go to. False: one is no longer established.

        If that is the second one, the first stays where it is, and nothing is ever leased: taking it out would destroy what
        has come up since (rule 5). It did: one connection in 60,000.
        """
        (client, lease_up), (upstream, lease_down) = pair
        lease_up.open()
        lease_down.open()
        try:
            self.maps.peers.insert(lease_up.slot, upstream.fd)
        except OSError:
            lease_up.close()
            lease_down.close()
            return False
        client.may_splice = upstream.may_splice = False
        upstream.lease = lease_down
        self.promoted[lease_down.slot] = upstream
        try:
            self.maps.peers.insert(lease_down.slot, client.fd)
        except OSError:
            lease_up.close()
            lease_down.is_bulk = True
            lease_down.stands_at = lease_up.slot
            self.promoted[lease_up.slot] = upstream
        else:
            client.lease = lease_up
            self.promoted[lease_up.slot] = client
        return True

    def _take_first(self, end: Socket, lease: Lease) -> None:
        """Take what came while the pair was put into the maps: all of it at once, or the program would be given the rest of a
        segment whole (rule 2).
        """
        if lease.has_seen or lease.has_all(end.sock):
            return
        # Nothing there: the program was quicker. An error is found by whoever reads next.
        with contextlib.suppress(OSError):
            end.pend = end.sock.recv(MOST_RECEIVED_BYTES)
        if not end.pend:
            return
        lease.passed += len(end.pend)
        if not self._flush_pend(end) and end.relay is not None:
            self._stick(end)


def _is_eligible(relay: Relay) -> bool:
    """Whether a pair may be promoted at all."""
    return not relay.is_gated and all(
        end.tls is None and end.may_splice and end.sock.family in {socket.AF_INET, socket.AF_INET6}
        for end in (relay.client, relay.upstream)
    )


def _is_quiet(end: Socket) -> bool:
    """Nothing of this end is under way, that we know of."""
    return not (end.ready or end.stuck or end.queued or end.bulk or end.eof or end.broken or end.pend)


def _unread(sock: SocketType) -> int:
    """Bytes that wait to be read (SIOCINQ, tcp(7))."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])
