"""What the kernel passes on by itself: every byte once and in order, whatever comes in between; and nothing is left of it.

That pairs behave as ever is told by the contract (tests/conformance/test_pump.py, way `kernel`) and by thousands of sessions
(tests/conformance/test_pump_integrity.py). Leases alone are tried without a program: they are numbers and two sockets.
"""

from __future__ import annotations

import math
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import pytest
import trio

from streamgw.core.bucket import Bucket, Gate
from streamgw.core.errors import Reason
from streamgw.core.model import Address
from streamgw.dataplane.pump import End, Ending, Limits, Meter, sockmap
from streamgw.dataplane.pump.bpf import LIMIT_WORD, MOVED_WORD, RELEASE_WORD, SEEN_WORD, SLOTS
from streamgw.dataplane.pump.end import EVENTS, Socket
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.pump.sockmap import CREDIT_BYTES, Lease, LeasingMover
from tests.conformance.test_pump import noise
from tests.support.bridge import (
    Bridge,
    RelayedSession,
    Talker,
    Way,
    open_bridge,
    open_pump,
    receive_exactly,
    receive_to_eof,
    reset,
    send_all,
    skip_unless_possible,
    until,
)

MB = 1_000_000
CLOSED = Ending(Reason.CLOSED)


# A lease: numbers and two sockets


@attrs.frozen
class Pair:
    """A direction: what its speaker says is read at `near` and goes on at `far` to the listener."""

    speaker: socket.socket
    near: socket.socket
    far: socket.socket
    listener: socket.socket
    words: memoryview
    lease: Lease

    @property
    def own(self) -> memoryview:
        """The words of the lease's slot."""
        return self.words[8 * self.lease.slot :][:8]

    def redirect(self, count: int) -> None:
        """What the program does."""
        self.far.sendall(self.near.recv(count, socket.MSG_WAITALL))
        self.own[MOVED_WORD] += count


@contextmanager
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        speaker, listener = (socket.create_connection(listening.getsockname()) for _ in range(2))
        near, far = (listening.accept()[0] for _ in range(2))
    words = memoryview(bytearray(SLOTS * 64)).cast("Q")
    lease = Lease(words, near, far)
    lease.open()
    yield Pair(speaker, near, far, listener, words, lease)
    for sock in (speaker, near, far, listener):
        sock.close()


def nobody(_: int) -> None:
    pass


def test_a_lease_begins_when_everything_was_read() -> None:
    with pair() as it:
        it.speaker.sendall(b"hello")
        assert not it.lease.arm(it.near, 0.0, nobody)

        it.lease.passed += len(it.near.recv(10))
        assert it.lease.arm(it.near, 0.0, nobody)
        assert it.own[RELEASE_WORD] == it.own[SEEN_WORD]
        assert it.own[LIMIT_WORD] == CREDIT_BYTES


def test_a_segment_that_comes_up_while_it_is_armed_undoes_it() -> None:
    with pair() as it:
        watched = []

        def watch(events: int) -> None:
            watched.append(events)
            if len(watched) == 1:
                it.own[SEEN_WORD] += 5

        assert not it.lease.arm(it.near, 0.0, watch)

        assert it.own[RELEASE_WORD] == 0
        assert not watched[0] & select.EPOLLIN
        assert watched[1] == EVENTS
        assert not it.lease.is_on
        assert it.lease.has_seen


def test_it_goes_on_here_once_the_peer_has_taken_what_was_redirected() -> None:
    with pair() as it:
        assert it.lease.arm(it.near, 0.0, nobody)
        it.speaker.sendall(b"hello")
        it.redirect(5)

        it.own[MOVED_WORD] += 3  # these are on their way
        it.lease.end(it.near, 1.0)
        assert not it.lease.settle(it.far)
        assert it.lease.is_ending
        it.far.sendall(b"you")

        assert it.lease.settle(it.far)
        assert it.lease.passed == 8
        assert it.own[MOVED_WORD] == 0


@pytest.mark.parametrize(
    ("is_spent", "seconds", "is_bulk"), [(True, 0.01, True), (True, 1.0, False), (False, 0.01, False)]
)
def test_who_spends_his_credit_in_no_time_is_bulk(is_spent: bool, seconds: float, is_bulk: bool) -> None:
    with pair() as it:
        assert it.lease.arm(it.near, 100.0, nobody)
        it.own[SEEN_WORD] += 1000 * is_spent

        it.lease.end(it.near, 100.0 + seconds)

        assert it.lease.is_bulk is is_bulk


def test_a_fin_is_the_end_when_everything_before_it_was_read() -> None:
    with pair() as it:
        it.speaker.sendall(b"hello")
        it.speaker.shutdown(socket.SHUT_WR)
        assert not it.lease.is_at_end(it.near)

        it.lease.passed += len(it.near.recv(10))

        assert it.lease.is_at_end(it.near)
        assert not it.lease.has_all(it.near), "no lease over a FIN"


# Pairs that the kernel passes on


@pytest.fixture
def way() -> Way:
    return skip_unless_possible(Way(in_kernel=True))


@asynccontextmanager
async def leased(
    way: Way, *, limits: Limits = Limits()
) -> AsyncIterator[tuple[Bridge, RelayedSession, Talker, Talker]]:
    """A session both directions of which the kernel passes on, and its outer ends."""
    async with open_bridge(way, limits=limits) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            for _ in range(3):
                await round_trip(client, upstream)
            assert session.end.lease.is_on
            assert session.upstream.lease.is_on
            yield bridge, session, client, upstream
        await until(session.ended.is_set)
        assert mover_of(bridge).promoted == {}


def mover_of(bridge: Bridge) -> LeasingMover:
    assert bridge.pump.kernel is not None
    return bridge.pump.kernel


async def round_trip(client: Talker, upstream: Talker) -> None:
    await client.send(b"ping")
    assert await receive_exactly(upstream, 4) == b"ping"
    await upstream.send(b"pong!")
    assert await receive_exactly(client, 5) == b"pong!"


async def test_small_messages_pass_without_the_pump_and_are_counted(way: Way) -> None:
    async with leased(way) as (bridge, session, client, upstream):
        leases = mover_of(bridge).leases

        for _ in range(100):
            await round_trip(client, upstream)

        assert mover_of(bridge).leases == leases
        await until(lambda: (session.meter.bytes_up, session.meter.bytes_down) == (412, 515))
        await round_trip(client, upstream)
        client.shutdown(socket.SHUT_WR)
        assert await receive_to_eof(upstream) == b""
        upstream.shutdown(socket.SHUT_WR)
        assert await receive_to_eof(client) == b""
        assert await session.wait_ended() == CLOSED
        assert (session.meter.bytes_up, session.meter.bytes_down) == (416, 520)
        assert (bridge.pump.bytes_up, bridge.pump.bytes_down) == (416, 520)


async def test_a_session_is_promoted_after_some_messages_and_not_before(way: Way) -> None:
    async with open_bridge(way) as bridge:
        mover_of(bridge).promote_after = 8
        client, upstream = await bridge.connect()
        with client, upstream:
            for _ in range(3):
                await round_trip(client, upstream)
            assert mover_of(bridge).promoted == {}
            for _ in range(2):
                await round_trip(client, upstream)
            assert len(mover_of(bridge).promoted) == 2


@pytest.mark.parametrize("client_host", ["::1", "127.0.0.1"])
async def test_clients_of_a_dual_stack_listener_are_passed_on_to_either_family(client_host: str) -> None:
    skip_unless_possible(Way(in_kernel=True))
    data = noise(3 * MB)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
        for origin_host in ("127.0.0.1", "::1"):
            family = socket.AF_INET6 if ":" in origin_host else socket.AF_INET
            with socket.create_server((origin_host, 0), family=family) as origin:
                async with open_pump(in_kernel=True) as pump, trio.open_nursery() as nursery:
                    node = Address(origin_host, origin.getsockname()[1])

                    async def relay(client: End, node: Address = node, pump: SocketPump = pump) -> None:
                        await pump.relay(
                            client, pump.dial(node, preface=b"", deadline=math.inf), Meter(), Limits()
                        )

                    accepting = pump.listen(listening, lambda end, _c, _s: nursery.start_soon(relay, end))
                    client = await trio.open_tcp_stream(client_host, listening.getsockname()[1])
                    upstream, _ = await trio.socket.from_stdlib_socket(origin).accept()
                    async with client:
                        with upstream:
                            for _ in range(5):
                                await round_trip(client.socket, upstream)
                            assert pump.kernel is not None
                            assert pump.kernel.leases >= 2
                            nursery.start_soon(send_all, upstream, data)
                            assert await receive_exactly(client.socket, len(data)) == data
                            await client.send_eof()
                            assert await receive_to_eof(upstream) == b""
                            upstream.shutdown(socket.SHUT_WR)
                            assert await receive_to_eof(client.socket) == b""
                    accepting.close()


async def test_a_stream_that_spends_its_credit_goes_through_the_pump_and_loses_nothing(way: Way) -> None:
    async with leased(way) as (_, session, client, upstream):
        data = noise(20 * MB)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, data)
            assert await receive_exactly(upstream, len(data)) == data

        assert session.end.lease.passed > 2 * CREDIT_BYTES, "read here, but for what was leased"
        await round_trip(client, upstream)
        await until(lambda: session.meter.bytes_up == len(data) + 4 * 4)


async def test_a_credit_that_is_spent_in_silence_is_noticed_all_the_same(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring buffer was full: nobody heard the bell."""
    async with leased(way) as (_, _, client, upstream):
        monkeypatch.setattr(LeasingMover, "hear_bell", lambda self, on_bug: tuple(self.maps.bell.rung()))
        data = noise(3 * MB)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, data)
            assert await receive_exactly(upstream, len(data)) == data


async def test_a_reader_that_stops_stops_the_sender(way: Way) -> None:
    async with leased(way) as (_, session, client, upstream):
        sent = 0
        with trio.move_on_after(1.0):
            while True:
                sent += await client.send(bytes(1 << 16))

        assert sent < 40 * MB, "what sockets hold, and a credit"
        await until(lambda: not session.end.lease.is_on)
        received = await receive_exactly(upstream, sent)
        assert received == bytes(sent)


async def test_bytes_that_came_while_the_pair_was_promoted_are_read_once(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect()
        data = noise(300_000)
        insert = mover_of(bridge).maps.peers.insert
        with client, upstream:

            def slow(key: int, value: int) -> None:
                if not sent:
                    with socket.socket(fileno=os.dup(client.fileno())) as raw:  # not through trio: at once
                        sent.append(raw.send(data))
                insert(key, value)

            sent: list[int] = []
            monkeypatch.setattr(mover_of(bridge).maps.peers, "insert", slow)
            await client.send(b"ping")
            assert await receive_exactly(upstream, 4) == b"ping"
            await until(lambda: bool(sent))
            assert await receive_exactly(upstream, sent[0]) == data[: sent[0]]
            for _ in range(3):
                await round_trip(client, upstream)
            assert len(mover_of(bridge).promoted) == 2


async def test_what_the_kernel_moves_is_not_idle_and_what_it_does_not_is(way: Way) -> None:
    async with leased(way, limits=Limits(idle_s=3.0)) as (_, session, client, upstream):
        begun_at = trio.current_time()
        while trio.current_time() < begun_at + 3.5:
            await round_trip(client, upstream)
            await trio.sleep(0.05)
        assert session.ending is None

        assert (await session.wait_ended()).reason is Reason.IDLE_TIMEOUT


@pytest.mark.parametrize("gone", ["client", "upstream"])
async def test_a_reset_reaches_the_other_side(way: Way, gone: str) -> None:
    async with leased(way) as (_, session, client, upstream):
        leaves, stays = (client, upstream) if gone == "client" else (upstream, client)

        reset(leaves)

        with pytest.raises(ConnectionResetError):
            await receive_to_eof(stays)
        ending = await session.wait_ended()
        assert (ending.reason, ending.side) == (Reason.RESET, gone)


@pytest.mark.parametrize("how", ["killed", "cancelled"])
async def test_a_session_that_is_ended_is_reset_and_nothing_is_left_of_it(way: Way, how: str) -> None:
    async with leased(way) as (bridge, session, client, upstream):
        if how == "killed":
            bridge.pump.abort(session.end, Reason.KILLED)
        else:
            session.scope.cancel()

        for sock in (client, upstream):
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(sock)


async def test_a_bug_costs_the_session_that_met_it_and_no_other(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    bugs: list[Exception] = []
    async with open_bridge(way, on_bug=bugs.append) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            for _ in range(3):
                await round_trip(client, upstream)
            session = await bridge.only_session()
            count, calls = LeasingMover._count, []

            def broken(self: LeasingMover, end: Socket, lease: Lease) -> None:
                calls.append(end)
                if len(calls) == 1:
                    raise ZeroDivisionError
                count(self, end, lease)

            monkeypatch.setattr(LeasingMover, "_count", broken)
            assert (await session.wait_ended()).reason is Reason.BUG
            assert len(bugs) == 1


@pytest.mark.parametrize(
    ("why", "kind", "limits"),
    [
        ("it is limited", Way(in_kernel=True), Limits(up=Gate([Bucket(1e9)]))),
        ("its client speaks TLS", Way(in_kernel=True, client_tls=True), Limits()),
        ("its upstream speaks TLS", Way(in_kernel=True, upstream_tls=True), Limits()),
    ],
)
async def test_a_pair_that_is_not_for_the_kernel_stays_with_the_pump(
    why: str, kind: Way, limits: Limits
) -> None:
    async with open_bridge(skip_unless_possible(kind), limits=limits) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            for _ in range(5):
                await round_trip(client, upstream)
            assert mover_of(bridge).promoted == {}, why


async def test_a_slot_that_is_taken_leaves_the_pair_with_the_pump(way: Way) -> None:
    async with open_bridge(way) as bridge:
        mover = mover_of(bridge)
        mover.promote_after = 1 << 30
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            await round_trip(client, upstream)
            lease = Lease(mover.maps.state.words, session.end.sock, session.upstream.sock)
            mover.promoted[lease.slot] = session.end
            mover.promote_after = 1
            for _ in range(3):
                await round_trip(client, upstream)
            assert session.end.lease is None
            del mover.promoted[lease.slot]
            lease.close()


async def test_a_pair_that_cannot_be_put_into_the_maps_stays_with_the_pump(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bridge(way) as bridge:
        tried = []

        def refuse(key: int, _: int) -> None:
            tried.append(key)
            raise OSError

        monkeypatch.setattr(mover_of(bridge).maps.peers, "insert", refuse)
        client, upstream = await bridge.connect()
        with client, upstream:
            for _ in range(5):
                await round_trip(client, upstream)
        assert len(tried) == 1, "it is tried once"
        assert mover_of(bridge).promoted == {}


async def test_a_pair_half_of_which_cannot_be_put_into_the_maps_loses_nothing_that_came_meanwhile(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bridge(way) as bridge:
        mover = mover_of(bridge)
        insert, tried = mover.maps.peers.insert, []
        client, upstream = await bridge.connect()
        with client, upstream, socket.socket(fileno=os.dup(upstream.fileno())) as raw:

            def refuse_the_second(key: int, value: int) -> None:
                tried.append(key)
                if len(tried) == 2:
                    raw.send(b"in between")  # the socket that it comes to is in the map already
                    raise OSError
                insert(key, value)

            monkeypatch.setattr(mover.maps.peers, "insert", refuse_the_second)
            await client.send(b"ping")
            assert await receive_exactly(upstream, 4) == b"ping"
            assert await receive_exactly(client, 10) == b"in between"
            for _ in range(3):
                await round_trip(client, upstream)
            assert mover.leases == 0
            upstream.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(client) == b""
        await until((await bridge.only_session()).ended.is_set)
        assert mover.promoted == {}


async def test_an_eof_before_bytes_that_never_come_is_a_reset_and_a_bug(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockmap, "MOST_LOOKS", 3)
    bugs: list[Exception] = []
    async with open_bridge(way, on_bug=bugs.append) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            for _ in range(3):
                await round_trip(client, upstream)
            session.end.lease._first_received -= 7  # as if these had not been read

            client.shutdown(socket.SHUT_WR)

            assert (await session.wait_ended()).reason is Reason.BUG
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(upstream)
    assert "8 bytes that TCP has received were not read" in str(bugs[0])
