"""The contract of `Pump`, clause by clause, on real sockets and for every way of moving bytes."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import random
import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
import trio.testing

from streamgw.core.bucket import Bucket, Gate
from streamgw.core.errors import ConnectFailed, Drained, Exhausted, Killed, PeerReset, Reason, SessionError
from streamgw.core.model import UNIX_HOST, Address
from streamgw.dataplane.pump import End, Ending, Limits, Meter, Pump
from streamgw.dataplane.pump.bulk import PIPE_BYTES
from streamgw.dataplane.pump.move import WINDOW_BYTES
from streamgw.dataplane.pump.tls import RECORD_BYTES
from tests.support.bridge import (
    HOST,
    TIMEOUT_S,
    Bridge,
    RelayedSession,
    Talker,
    Way,
    accepted_by,
    full_backlog,
    no_descriptor_left,
    open_bridge,
    open_client,
    open_pump,
    receive_exactly,
    receive_to_eof,
    reset,
    send_all,
    skip_unless_possible,
    until,
)

MB = 1_000_000
TLS_BYTES = 2 * RECORD_BYTES
"""What TLS adds to a window: the piece of a record that OpenSSL keeps, and the envelopes of five."""
CLOSED = Ending(Reason.CLOSED)


WAYS = {
    "copy": Way(None),
    "splice": Way(1),
    "observed": Way(4),
    "kernel": Way(4, in_kernel=True),
    "tls-plain": Way(1, client_tls=True),
    "plain-tls": Way(1, upstream_tls=True),
    "tls-tls": Way(1, client_tls=True, upstream_tls=True),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request: pytest.FixtureRequest) -> Way:
    return skip_unless_possible(request.param)


def noise(count: int, seed: int = 1) -> bytes:
    """Bytes that do not repeat: a lost, doubled or swapped piece shows."""
    return random.Random(seed).randbytes(count)


async def relayed(pump: Pump, client: End, upstream: End) -> Ending:
    """`relay` is awaited by the task that called it: for a test that starts one."""
    return await pump.relay(client, upstream, Meter(), Limits())


# Order, completeness, half-close


async def test_what_either_side_says_reaches_the_other(way: Way) -> None:
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await client.send(b"ping")
            assert await receive_exactly(upstream, 4) == b"ping"
            await upstream.send(b"pong!")
            assert await receive_exactly(client, 5) == b"pong!"

            client.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(upstream) == b""
            upstream.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(client) == b""

        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED
        assert (session.meter.bytes_up, session.meter.bytes_down) == (4, 5)


async def test_an_upstream_that_speaks_first_is_heard() -> None:
    """Both ends leave the connecting state when the connect completes, not just the one that is written to."""
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            for line in (b"220 welcome\r\n", b"250 go on\r\n"):
                await upstream.send(line)
                assert await receive_exactly(client, len(line)) == line


async def test_ten_megabytes_each_way_at_once_arrive_in_order_and_complete(way: Way) -> None:
    up, down = noise(10 * MB, 1), noise(10 * MB + 1, 2)
    received = {}
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect()

        async def talk(name: str, sock: Talker, data: bytes) -> None:
            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await send_all(sock, data)
                    sock.shutdown(socket.SHUT_WR)

                nursery.start_soon(say)
                received[name] = await receive_to_eof(sock)

        with client, upstream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, "client", client, up)
                nursery.start_soon(talk, "upstream", upstream, down)

        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED
        assert received["upstream"] == up
        assert received["client"] == down
        assert (session.meter.bytes_up, session.meter.bytes_down) == (len(up), len(down))
        assert bool(bridge.pump.splices) == way.splices


@pytest.mark.parametrize("closes_first", ["client", "upstream"])
async def test_eof_from_one_side_still_lets_ten_megabytes_through_the_other_way(
    way: Way, closes_first: str
) -> None:
    data = noise(10 * MB)
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect()
        quiet, talker = (client, upstream) if closes_first == "client" else (upstream, client)
        with client, upstream:
            await send_all(quiet, b"all I have to say")
            quiet.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(talker) == b"all I have to say"

            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await send_all(talker, data)
                    talker.shutdown(socket.SHUT_WR)

                nursery.start_soon(say)
                assert await receive_to_eof(quiet) == data

        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED


async def test_eof_behind_bytes_that_a_slow_reader_has_not_taken_comes_after_them(
    way: Way,
) -> None:
    """The FIN is announced while the direction is stuck; nobody announces it again when it flows."""
    data = noise(6 * MB)
    async with open_bridge(way, upstream_receive_buffer=8192) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await send_all(client, data)
                    client.shutdown(socket.SHUT_WR)

                nursery.start_soon(say)
                await until(lambda: session.end.stuck)
                assert await receive_to_eof(upstream) == data

            await upstream.send(b"got it")
            upstream.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(client) == b"got it"
        assert await session.wait_ended() == CLOSED


async def test_bytes_sent_before_the_upstream_answers_the_connect_are_not_lost() -> None:
    async with open_bridge() as bridge:
        client = await bridge.dial()
        await client.send(b"early")
        client.shutdown(socket.SHUT_WR)
        upstream, _ = await bridge.origin.accept()
        with client, upstream:
            assert await receive_to_eof(upstream) == b"early"
            await upstream.send(b"late")
            upstream.close()
            assert await receive_to_eof(client) == b"late"


@pytest.mark.parametrize("splice_after", [None, 1, 4])
async def test_an_urgent_byte_neither_stops_the_stream_nor_leaves_it(splice_after: int | None) -> None:
    """Reads end at an urgent mark, though more waits behind it, and splice(2) does not pass one at all."""
    before, after = noise(2 * MB, 1), noise(2 * MB, 2)
    async with open_bridge(Way(splice_after)) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await send_all(client, before)
                    await client.send(b"!", socket.MSG_OOB)
                    await send_all(client, after)
                    client.shutdown(socket.SHUT_WR)

                nursery.start_soon(say)
                assert await receive_to_eof(upstream) == before + b"!" + after


# The preface


async def test_the_preface_goes_first_and_is_not_counted() -> None:
    async with open_bridge(preface=b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n") as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await client.send(b"hello")
            assert await receive_exactly(upstream, 37) == b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nhello"
            session = await bridge.only_session()
            assert session.meter.bytes_up == 5


async def test_a_preface_larger_than_the_send_buffer_is_sent_whole_before_the_client_is_heard() -> None:
    preface, data = noise(8 * MB, 1), noise(3 * MB, 2)
    async with open_bridge(preface=preface, upstream_receive_buffer=8192) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await send_all(client, data)
                    client.shutdown(socket.SHUT_WR)

                nursery.start_soon(say)
                await until(lambda: session.end.stuck)
                assert session.meter.bytes_up == 0
                assert await receive_to_eof(upstream) == preface + data
            assert session.meter.bytes_up == len(data)


async def test_a_side_that_is_sent_more_than_it_takes_is_still_heard() -> None:
    """One event says both that there is room again (less than needed) and that there is something to read."""
    async with open_bridge(preface=bytes(30 * MB), upstream_receive_buffer=8192) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await until(lambda: session.end.stuck)
            for _ in range(5):
                await receive_exactly(upstream, 400_000)
                await upstream.send(b"x")
                assert await receive_exactly(client, 1) == b"x"
                assert session.end.stuck


# Back-pressure and fairness


async def test_a_reader_that_stops_stops_the_writer_and_nothing_piles_up_in_between(way: Way) -> None:
    async with open_bridge(way, upstream_receive_buffer=16 * 1024) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            sent = 0
            with trio.CancelScope() as scope:
                while True:
                    # Half a second without room for a byte: nobody takes anything any more.
                    scope.deadline = trio.current_time() + 0.5
                    # A TLS talker that is cancelled here has sealed its record, and sends it when there is room.
                    sent += 1 << 14 if way.client_tls else 0
                    count = await client.send(bytes(1 << 14))
                    sent += 0 if way.client_tls else count

            assert len(session.end.pend) <= WINDOW_BYTES + TLS_BYTES
            assert session.end.stuck
            # What the pump itself holds is what was taken from the client and not given to the upstream's socket.
            held = sent - session.meter.bytes_up - queued_bytes(client) - received_bytes(session.end.sock)
            window = PIPE_BYTES + WINDOW_BYTES if way.splices else WINDOW_BYTES + TLS_BYTES
            assert held <= window
            assert bridge.pump.pipes <= 1

            async with trio.open_nursery() as nursery:
                if way.client_tls:
                    nursery.start_soon(client.flush)
                received = await receive_exactly(upstream, sent)
            assert len(received) == sent


def queued_bytes(sock: Talker) -> int:
    """Sent, but not acknowledged by the peer's kernel (SIOCOUTQ)."""
    return ioctl_int(sock.fileno(), 0x5411)


def received_bytes(sock: socket.SocketType) -> int:
    """Waiting in the receive buffer (SIOCINQ)."""
    return ioctl_int(sock.fileno(), 0x541B)


def ioctl_int(fd: int, request: int) -> int:
    return struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0]


async def test_a_session_that_is_stuck_stops_nobody_else(way: Way) -> None:
    async with open_bridge(way, upstream_receive_buffer=8192) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, client, bytes(20 * MB))
                await until(lambda: session.end.stuck)

                other, other_upstream = await bridge.connect()
                with other, other_upstream:
                    await other.send(b"ping")
                    assert await receive_exactly(other_upstream, 4) == b"ping"
                # And what goes the other way within the session itself.
                await upstream.send(b"slow down")
                assert await receive_exactly(client, 9) == b"slow down"
                nursery.cancel_scope.cancel()


async def test_bulk_flows_do_not_starve_a_ping_pong(way: Way) -> None:
    """Per round trip, four bulk flows may each take a turn or two; never does the small one wait for them to end."""
    async with open_bridge(way) as bridge:
        async with trio.open_nursery() as nursery:
            sockets = []
            for _ in range(4):
                client, upstream = await bridge.connect()
                sockets += [client, upstream]

                async def pour(sock: Talker) -> None:
                    while True:
                        await sock.send(bytes(1 << 18))

                async def drink(sock: Talker) -> None:
                    while await sock.recv(1 << 18):
                        pass

                nursery.start_soon(pour, client)
                nursery.start_soon(drink, upstream)
            await until(lambda: bridge.pump.bytes_up > 20 * MB)

            client, upstream = await bridge.connect()
            sockets += [client, upstream]
            moved_before = bridge.pump.bytes_up
            for _ in range(50):
                await client.send(b"ping")
                assert await receive_exactly(upstream, 4) == b"ping"
                await upstream.send(b"pong")
                assert await receive_exactly(client, 4) == b"pong"
            moved = bridge.pump.bytes_up - moved_before

            nursery.cancel_scope.cancel()
        for sock in sockets:
            sock.close()
    # 100 crossings; in each, every flow may move two turns of 4 pipes.
    assert moved < 100 * 4 * 2 * 4 * PIPE_BYTES


async def test_small_talk_after_bulk_is_copied_again() -> None:
    """Three system calls per message instead of two would be the price of a bulk phase that never ends."""
    async with open_bridge(Way(1)) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, client, bytes(5 * MB))
                await receive_exactly(upstream, 5 * MB)
            assert session.end.bulk

            for number in range(10):
                line = b"%d\n" % number
                await client.send(line)
                assert await receive_exactly(upstream, 2) == line
            assert not session.end.bulk
            assert session.end.fast


# Resets


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_reset_of_one_side_becomes_a_reset_of_the_other(way: Way, side: str) -> None:
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await client.send(b"x")
            assert await receive_exactly(upstream, 1) == b"x"
            gone, other = (client, upstream) if side == "client" else (upstream, client)

            reset(gone)
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(other)

        session = await bridge.only_session()
        assert await session.wait_ended() == Ending(Reason.RESET, side, "connection reset by peer")


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_reset_after_a_fin_is_a_reset_all_the_same(side: str) -> None:
    """A FIN and then an RST reads as a clean EOF; only the error flag tells."""
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            gone, other = (client, upstream) if side == "client" else (upstream, client)
            await send_all(gone, b"bye")
            gone.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(other) == b"bye"

            reset(gone)
            session = await bridge.only_session()
            assert await session.wait_ended() == Ending(Reason.RESET, side, "connection reset by peer")
            with pytest.raises(ConnectionError):
                await send_all(other, bytes(40 * MB))


async def test_the_connect_is_told_when_it_happens_and_once(way: Way) -> None:
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await until(lambda: session.meter.connected_at is not None)
            assert session.told == [session.meter.connected_at]

            await send_all(client, b"hello")
            assert await receive_exactly(upstream, 5) == b"hello"

    assert len(session.told) == 1


# The first byte of the upstream


SLOW_S = 0.1
"""How long an upstream takes that is slow, or a client that thinks."""


@contextlib.asynccontextmanager
async def silent_at_first(way: Way) -> AsyncIterator[tuple[RelayedSession, Talker, Talker]]:
    """A session that is timed, its client and its upstream: connected for a while, and nobody has said anything."""
    async with open_bridge(way) as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await until(lambda: session.meter.connected_at is not None)
            await trio.sleep(SLOW_S)
            yield session, client, upstream


async def test_an_upstream_that_speaks_first_is_timed_from_the_connect(way: Way) -> None:
    async with silent_at_first(way) as (session, client, upstream):
        for line in (b"220 welcome\r\n", b"250 go on\r\n"):
            await send_all(upstream, line)
            assert await receive_exactly(client, len(line)) == line
        assert session.end.fast is not way.client_tls, "from now on as ever"

    (took_s,) = session.first_bytes
    assert took_s >= SLOW_S


async def test_an_upstream_is_not_blamed_for_a_client_that_thinks_before_it_asks(way: Way) -> None:
    async with silent_at_first(way) as (session, client, upstream):
        asked_at = trio.current_time()
        await exchange(client, upstream)
        answered_at = trio.current_time()

    (took_s,) = session.first_bytes
    assert 0 <= took_s <= answered_at - asked_at


async def exchange(client: Talker, upstream: Talker, *, thinks_s: float = 0.0) -> None:
    """A question, and its answer."""
    await send_all(client, b"ping")
    assert await receive_exactly(upstream, 4) == b"ping"
    await trio.sleep(thinks_s)
    await send_all(upstream, b"pong")
    assert await receive_exactly(client, 4) == b"pong"


async def test_an_upstream_that_answers_late_is_known_to_be_late(way: Way) -> None:
    async with open_bridge(way) as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await exchange(client, upstream, thinks_s=SLOW_S)
            await exchange(client, upstream)

    (took_s,) = session.first_bytes
    assert took_s >= SLOW_S


async def test_an_upstream_is_timed_from_the_first_of_many_bytes_to_the_first_of_many(way: Way) -> None:
    data = noise(3 * MB)
    async with open_bridge(way) as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            asked_at = trio.current_time()
            for speaker, listener in ((client, upstream), (upstream, client)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all, speaker, data)
                    assert await receive_exactly(listener, len(data)) == data
                await trio.sleep(SLOW_S)
            session = await bridge.only_session()
            answered_at = trio.current_time() - SLOW_S

    (took_s,) = session.first_bytes
    assert SLOW_S <= took_s <= answered_at - asked_at


async def test_a_proxy_header_is_no_question() -> None:
    async with open_bridge(preface=b"PROXY UNKNOWN\r\n") as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            assert await receive_exactly(upstream, 15) == b"PROXY UNKNOWN\r\n"
            await trio.sleep(SLOW_S)
            asked_at = trio.current_time()
            await exchange(client, upstream)
            answered_at = trio.current_time()

    ((took_s,),) = [session.first_bytes for session in bridge.sessions]
    assert took_s <= answered_at - asked_at


async def test_an_answer_with_an_end_behind_it_is_timed_too(way: Way) -> None:
    async with open_bridge(way) as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            await send_all(client, b"one question")
            client.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(upstream) == b"one question"
            await send_all(upstream, b"one answer")
            upstream.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(client) == b"one answer"
        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED

    assert len(session.first_bytes) == 1


@pytest.mark.parametrize("question", [b"", b"are you there?"])
async def test_a_session_that_ends_before_the_first_byte_says_nothing(way: Way, question: bytes) -> None:
    async with open_bridge(way) as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            await send_all(client, question)
            assert await receive_exactly(upstream, len(question)) == question
            for end in (upstream, client):
                end.shutdown(socket.SHUT_WR)
            session = await bridge.only_session()
            assert await session.wait_ended() == CLOSED

    assert session.first_bytes == []


@pytest.mark.parametrize(("is_up", "words"), [(True, b"ask"), (False, b"220")])
async def test_where_a_gate_made_somebody_wait_the_upstream_is_not_blamed(is_up: bool, words: bytes) -> None:
    gate = Gate([Bucket(5)])  # one byte at once, then one in 200 ms
    async with open_bridge(limits=Limits(up=gate) if is_up else Limits(down=gate)) as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            speaker, listener = (client, upstream) if is_up else (upstream, client)
            assert gate.take(1, trio.current_time()) == 1
            await send_all(speaker, words)
            assert await receive_exactly(listener, len(words)) == words
            await send_all(listener, b"well")
            assert await receive_exactly(speaker, 4) == b"well"

    assert [session.first_bytes for session in bridge.sessions] == [[]]


async def test_behind_a_gate_that_is_wide_enough_the_upstream_is_timed(way: Way) -> None:
    limits = Limits(up=Gate([Bucket(MB)]), down=Gate([Bucket(MB)]))
    async with open_bridge(way, limits=limits) as bridge:
        bridge.times_first_bytes = True
        client, upstream = await bridge.connect()
        with client, upstream:
            await exchange(client, upstream, thinks_s=SLOW_S)

    ((took_s,),) = [session.first_bytes for session in bridge.sessions]
    assert took_s >= SLOW_S


async def test_a_fin_and_a_reset_found_together_are_a_reset() -> None:
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await until(lambda: session.meter.connected_at is not None)

            # Without an await in between the pump finds both at once, and the read says EOF.
            client.shutdown(socket.SHUT_WR)
            reset(client)
            assert (await session.wait_ended()).reason is Reason.RESET


async def test_a_stream_cut_by_the_upstream_looks_cut_to_the_client(way: Way) -> None:
    """Bytes were on their way when the upstream reset: the client may get some of them, but never an EOF."""
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect(receive_buffer=16 * 1024)
        with client, upstream:
            session = await bridge.only_session()
            await send_until_stuck(session, upstream)

            reset(upstream)
            assert (await session.wait_ended()).side == "upstream"
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(client)
        assert bridge.pump.pipes == 0, "the dirty pipe was closed"


async def test_a_reader_that_resets_with_bytes_on_their_way_ends_the_writer_by_reset(
    way: Way,
) -> None:
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect(receive_buffer=16 * 1024)
        with client, upstream:
            session = await bridge.only_session()
            await send_until_stuck(session, upstream)

            reset(client)
            assert (await session.wait_ended()).side == "client"
            with pytest.raises(ConnectionError):
                await send_all(upstream, bytes(40 * MB))
        assert bridge.pump.pipes == 0


async def test_what_the_upstream_said_before_its_reset_is_passed_on() -> None:
    """A server that answers and closes with unread input resets; without a gateway its answer would be readable."""
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await client.send(b"a request that nobody reads")
            await until(lambda: bridge.pump.bytes_up == 27)
            await upstream.send(b"413 too large")
            upstream.close()

            assert await receive_exactly(client, 13) == b"413 too large"
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(client)
        session = await bridge.only_session()
        assert (await session.wait_ended()).reason is Reason.RESET


async def send_until_stuck(session: RelayedSession, upstream: Talker) -> None:
    """More than anybody takes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, upstream, bytes(200 * MB))
        await until(lambda: session.upstream is not None and session.upstream.stuck)
        nursery.cancel_scope.cancel()


# Connecting


async def test_a_refused_connect_leaves_the_client_untouched_for_the_next_node() -> None:
    data = noise(100_000)
    async with open_pump() as pump, trio.open_nursery() as nursery:
        with socket.socket() as listening, trio.socket.socket() as origin, socket.socket() as nobody:
            nobody.bind((HOST, 0))  # bound, not listening: refuses
            await origin.bind((HOST, 0))
            origin.listen()
            listening.bind((HOST, 0))
            listening.listen()
            failures: list[str] = []

            async def run(end: End) -> None:
                for port in (nobody.getsockname()[1], nobody.getsockname()[1], origin.getsockname()[1]):
                    node = pump.dial(Address(HOST, port), preface=b"", deadline=math.inf)
                    try:
                        await pump.relay(end, node, Meter(), Limits())
                    except ConnectFailed as error:
                        failures.append(str(error))

            accepting = pump.listen(listening, lambda end, _client, _server: nursery.start_soon(run, end))
            with trio.socket.socket() as client:
                await client.connect(listening.getsockname())
                await send_all(client, data)
                client.shutdown(socket.SHUT_WR)
                upstream, _ = await origin.accept()
                with upstream:
                    assert await receive_to_eof(upstream) == data
            accepting.close()
        assert failures == ["connection refused", "connection refused"]


@pytest.fixture
def nobody_answers() -> Iterator[Address]:
    with full_backlog() as node:
        yield node


async def test_a_connect_that_nobody_answers_fails_at_its_deadline(nobody_answers: Address) -> None:
    async with open_bridge() as bridge:
        bridge.node, bridge.connect_timeout_s = nobody_answers, 0.3
        with await bridge.dial() as client:
            await client.send(b"hello?")
            session = await bridge.only_session()
            with trio.fail_after(TIMEOUT_S):
                await session.ended.wait()
            assert str(session.error) == "timed out after 0.3 s"


async def test_a_client_that_resets_during_the_connect_ends_the_session(nobody_answers: Address) -> None:
    async with open_bridge() as bridge:
        bridge.node = nobody_answers
        with await bridge.dial() as client:
            session = await bridge.only_session()
            reset(client)
        assert await session.wait_ended() == Ending(Reason.RESET, "client", "connection reset by peer")


async def test_a_client_that_resets_before_the_relay_begins_ends_it_at_once(nobody_answers: Address) -> None:
    async with open_client() as (pump, end, client):
        reset(client)
        await until(lambda: end.broken)
        upstream = pump.dial(nobody_answers, preface=b"", deadline=math.inf)

        ending = await pump.relay(end, upstream, Meter(), Limits())
        assert ending == Ending(Reason.RESET, "client", "connection reset by peer")


async def test_an_upstream_that_connected_before_the_relay_began_is_noticed() -> None:
    async with open_client() as (pump, end, _client):
        with trio.socket.socket() as origin:
            await origin.bind((HOST, 0))
            origin.listen()
            upstream = pump.dial(Address(*origin.getsockname()), preface=b"hi", deadline=math.inf)
            await until(lambda: upstream.writable)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relayed, pump, end, upstream)
                accepted, _ = await origin.accept()
                with accepted:
                    assert await receive_exactly(accepted, 2) == b"hi"
                nursery.cancel_scope.cancel()


async def test_an_upstream_that_refused_before_the_relay_began_is_noticed() -> None:
    async with open_client() as (pump, end, client):
        with socket.socket() as nobody:
            nobody.bind((HOST, 0))
            upstream = pump.dial(Address(*nobody.getsockname()), preface=b"", deadline=math.inf)
            await until(lambda: upstream.broken)
            with pytest.raises(ConnectFailed, match="connection refused"):
                await pump.relay(end, upstream, Meter(), Limits())
        pump.close(end)
        assert await receive_to_eof(client) == b""


async def test_a_name_is_not_looked_up() -> None:
    async with open_pump() as pump:
        with pytest.raises(ConnectFailed):
            pump.dial(Address("localhost", 80), preface=b"", deadline=math.inf)


# Time


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(idle_s=0.3), Reason.IDLE_TIMEOUT), (Limits(ends_at=0.0), Reason.MAX_DURATION)],
    ids=["idle", "too long"],
)
async def test_time_ends_a_session_by_reset_on_both_sides(limits: Limits, reason: Reason) -> None:
    async with open_bridge(limits=limits) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            assert await session.wait_ended() == Ending(reason)
            for sock in (client, upstream):
                with pytest.raises(ConnectionResetError):
                    await receive_to_eof(sock)


async def test_a_session_that_moves_a_byte_now_and_then_is_not_idle() -> None:
    async with open_bridge(limits=Limits(idle_s=2.0)) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            began = trio.current_time()
            while trio.current_time() < began + 3.0:
                await client.send(b".")
                assert await receive_exactly(upstream, 1) == b"."
                await trio.sleep(0.1)  # the subject of this test is time
            session = await bridge.only_session()
            assert not session.ended.is_set()


# Abort and cancellation, at every moment


async def connecting(bridge: Bridge, stack: contextlib.ExitStack) -> RelayedSession:
    if bridge.way.upstream_tls:
        pytest.skip("no relay has begun: see test_pump_tls.py")
    bridge.node = stack.enter_context(full_backlog())
    stack.enter_context(await bridge.dial())
    session = await bridge.only_session()
    await until(lambda: session.upstream is not None)
    return session


async def idle(bridge: Bridge, stack: contextlib.ExitStack) -> RelayedSession:
    for sock in await bridge.connect():
        stack.enter_context(sock)
    session = await bridge.only_session()
    await until(lambda: session.meter.connected_at is not None)
    return session


async def half_closed(bridge: Bridge, stack: contextlib.ExitStack) -> RelayedSession:
    client, upstream = await bridge.connect()
    stack.enter_context(client)
    stack.enter_context(upstream)
    client.shutdown(socket.SHUT_WR)
    assert await receive_to_eof(upstream) == b""
    return await bridge.only_session()


async def stuck(bridge: Bridge, stack: contextlib.ExitStack) -> RelayedSession:
    """Copying: bytes in `pend`. Splicing: a dirty pipe."""
    client, upstream = await bridge.connect(receive_buffer=8192)
    stack.enter_context(client)
    stack.enter_context(upstream)
    session = await bridge.only_session()
    await send_until_stuck(session, upstream)
    return session


Moment: TypeAlias = Callable[[Bridge, contextlib.ExitStack], Awaitable[RelayedSession]]
MOMENTS: list[Moment] = [connecting, idle, half_closed, stuck]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_aborted_at_any_moment_a_session_ends_with_that_reason_and_leaves_nothing(
    way: Way, moment: Moment
) -> None:
    async with open_bridge(way) as bridge:
        with contextlib.ExitStack() as stack:
            session = await moment(bridge, stack)

            bridge.pump.abort(session.end, Reason.KILLED)

            assert await session.wait_ended() == Ending(Reason.KILLED)
            assert_nothing_left(bridge)
            bridge.pump.abort(session.end, Reason.DRAIN)
            bridge.pump.close(session.end)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_cancelled_at_any_moment_a_session_is_gone_before_cancelled_is_raised(
    way: Way, moment: Moment
) -> None:
    async with open_bridge(way) as bridge:
        with contextlib.ExitStack() as stack:
            session = await moment(bridge, stack)

            session.scope.cancel()

            assert_nothing_left(bridge)
            await session.ended.wait()
            assert session.ending is None


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_pump_that_stops_lets_nobody_hang(moment: Moment) -> None:
    """The sessions' nursery may outlive the pump's task by a moment."""
    async with trio.open_nursery() as nursery, open_bridge() as bridge:
        bridge.nursery = nursery
        with contextlib.ExitStack() as stack:
            session = await moment(bridge, stack)
            bridge.pump_scope.cancel()
            assert (await session.wait_ended()).reason is Reason.DRAIN


async def test_a_pipe_left_dirty_by_one_session_never_serves_another() -> None:
    data = noise(3 * MB)
    async with open_bridge(Way(1)) as bridge:
        with contextlib.ExitStack() as stack:
            session = await stuck(bridge, stack)
            assert session.upstream.pipe.held
            bridge.pump.abort(session.end, Reason.KILLED)
            await session.wait_ended()

        client, upstream = await bridge.connect()
        with client, upstream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, client, data)
                assert await receive_exactly(upstream, len(data)) == data


def assert_nothing_left(bridge: Bridge) -> None:
    assert bridge.pump.active_ends == 0
    assert bridge.pump.active_relays == 0
    assert bridge.pump.pipes == bridge.pump.idle_pipes, "a pipe is held by nobody"


# Peek and consume


async def test_peek_sees_what_waits_and_leaves_it_there() -> None:
    async with open_client() as (pump, end, client):
        header = b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"
        async with trio.open_nursery() as nursery:

            async def say_it_byte_by_byte() -> None:
                for at in range(len(header)):
                    await client.send(header[at : at + 1])
                    await trio.testing.wait_all_tasks_blocked()

            nursery.start_soon(say_it_byte_by_byte)
            for count in range(1, len(header) + 1):
                seen = await pump.peek(end, count, deadline=math.inf)
                assert len(seen) >= count
                assert header.startswith(seen)
        pump.close(end)


@pytest.mark.parametrize("consumed", [0, 1, 31, 32])
async def test_consume_takes_exactly_what_it_is_told(consumed: int) -> None:
    header, rest = noise(32), noise(1000, 2)
    async with open_client() as (pump, end, client):
        await send_all(client, header + rest)
        client.shutdown(socket.SHUT_WR)
        assert len(await pump.peek(end, 1032, deadline=math.inf)) == 1032
        pump.consume(end, consumed)

        with trio.socket.socket() as origin:
            await origin.bind((HOST, 0))
            origin.listen()
            node = pump.dial(Address(*origin.getsockname()), preface=b"", deadline=math.inf)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relayed, pump, end, node)
                upstream, _ = await origin.accept()
                with upstream:
                    assert await receive_to_eof(upstream) == (header + rest)[consumed:]


async def test_peek_returns_what_there_is_at_eof_and_at_the_deadline() -> None:
    async with open_client() as (pump, end, client):
        await client.send(b"abc")
        assert await pump.peek(end, 10, deadline=trio.current_time() + 0.3) == b"abc"
        assert await pump.peek(end, 10, deadline=trio.current_time() - 1) == b"abc"

        async with trio.open_nursery() as nursery:
            seen = []

            async def look() -> None:
                seen.append(await pump.peek(end, 10, deadline=math.inf))

            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            client.shutdown(socket.SHUT_WR)
        assert seen == [b"abc"]
        pump.consume(end, 3)
        assert await pump.peek(end, 1, deadline=math.inf) == b""
        pump.close(end)


async def test_peek_says_that_the_client_reset() -> None:
    async with open_client() as (pump, end, client):
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                with pytest.raises(PeerReset, match="connection reset by peer"):
                    await pump.peek(end, 1, deadline=math.inf)

            nursery.start_soon(look)
            await until(lambda: end.waiter is not None)
            reset(client)
        pump.close(end)


@pytest.mark.parametrize(("reason", "error"), [(Reason.KILLED, Killed), (Reason.DRAIN, Drained)])
async def test_an_aborted_peek_says_why_and_the_end_is_closed(
    reason: Reason, error: type[SessionError]
) -> None:
    async with open_client() as (pump, end, client):
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                with pytest.raises(error):
                    await pump.peek(end, 1, deadline=math.inf)

            nursery.start_soon(look)
            await until(lambda: end.waiter is not None)
            pump.abort(end, reason)
        with pytest.raises(ConnectionResetError):
            await receive_to_eof(client)


async def test_an_end_aborted_between_two_waits_says_so_at_the_next(nobody_answers: Address) -> None:
    async with open_client() as (pump, end, client):
        pump.abort(end, Reason.KILLED)
        with pytest.raises(ConnectionResetError):
            await receive_to_eof(client)

        with pytest.raises(Killed):
            await pump.peek(end, 1, deadline=math.inf)
        upstream = pump.dial(nobody_answers, preface=b"", deadline=math.inf)
        assert await pump.relay(end, upstream, Meter(), Limits()) == Ending(Reason.KILLED)
        assert pump.active_ends == 0


async def test_a_cancelled_peek_leaves_the_end_to_its_owner() -> None:
    async with open_client() as (pump, end, client):
        with trio.move_on_after(0.05):
            await pump.peek(end, 1, deadline=math.inf)
        await client.send(b"x")
        assert await pump.peek(end, 1, deadline=math.inf) == b"x"
        pump.close(end)


@pytest.mark.parametrize("cut", [False, True], ids=["politely", "by reset"])
async def test_close_ends_a_connection_that_was_never_relayed(cut: bool) -> None:
    async with open_client() as (pump, end, client):
        pump.close(end, reset=cut)
        pump.close(end, reset=cut)
        if cut:
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(client)
        else:
            assert await receive_to_eof(client) == b""


# Accepting


async def test_both_addresses_come_with_the_connection() -> None:
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            assert session.client == Address(*client.getsockname())
            assert session.server == Address(*client.getpeername())


async def test_addresses_of_a_dual_stack_listener_are_folded_and_name_the_address_dialled() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
        port = listening.getsockname()[1]
        async with accepted_by(listening) as (_pump, accepted):
            for host in ("127.0.0.1", "127.0.0.5", "::1"):
                with trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
                    await client.connect((host, port))
                    _end, peer, server = await accepted.receive()
                    assert peer == Address(*client.getsockname()[:2])
                    assert server == Address(host, port)


async def test_a_unix_socket_is_relayed_too(tmp_path: Path) -> None:
    path = str(tmp_path / "in.sock")
    data = noise(3 * MB)
    with socket.socket(socket.AF_UNIX) as listening, trio.socket.socket() as origin:
        listening.bind(path)
        listening.listen()
        await origin.bind((HOST, 0))
        origin.listen()
        async with accepted_by(listening) as (pump, accepted), trio.open_nursery() as nursery:
            with trio.socket.socket(socket.AF_UNIX) as client:
                await client.connect(path)
                end, peer, server = await accepted.receive()
                assert peer == server == Address(UNIX_HOST, 0)

                node = pump.dial(Address(*origin.getsockname()), preface=b"", deadline=math.inf)
                nursery.start_soon(relayed, pump, end, node)
                upstream, _ = await origin.accept()
                with upstream:
                    nursery.start_soon(send_all, client, data)
                    assert await receive_exactly(upstream, len(data)) == data
                    nursery.start_soon(send_all, upstream, data)
                    assert await receive_exactly(client, len(data)) == data
                    upstream.close()
                assert await receive_to_eof(client) == b""


async def test_a_paused_listener_leaves_clients_in_the_backlog_until_it_resumes() -> None:
    async with open_pump() as pump:
        with socket.socket() as listening:
            listening.bind((HOST, 0))
            listening.listen()
            ends: list[End] = []

            def on_accept(end: End, _client: Address, _server: Address) -> None:
                ends.append(end)
                if len(ends) == 2:
                    accepting.pause()

            accepting = pump.listen(listening, on_accept)
            with contextlib.ExitStack() as stack:
                for _ in range(5):
                    client = stack.enter_context(trio.socket.socket())
                    await client.connect(listening.getsockname())
                await until(lambda: len(ends) == 2)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert len(ends) == 2

                accepting.resume()
                await until(lambda: len(ends) == 5)
                assert pump.accepted == 5

                accepting.close()
                accepting.resume()
                client = stack.enter_context(trio.socket.socket())
                await client.connect(listening.getsockname())
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert len(ends) == 5


async def test_running_out_of_descriptors_pauses_accepting_and_ends_nobody() -> None:
    told: list[str] = []
    async with open_bridge(on_trouble=told.append) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            late = trio.socket.socket()
            with no_descriptor_left():
                await late.connect(bridge.listening.getsockname())
                await until(lambda: bridge.pump.accept_pauses >= 2)
                assert len(told) == 1
                assert "too many open files" in told[0]

                await client.send(b"still here")
                assert await receive_exactly(upstream, 10) == b"still here"
            with late:
                late_upstream, _ = await bridge.origin.accept()
                with late_upstream:
                    await late.send(b"at last")
                    assert await receive_exactly(late_upstream, 7) == b"at last"
            assert len(told) == 2
            assert told[1].startswith("accepting again")


async def test_dialling_without_a_descriptor_is_exhausted() -> None:
    async with open_pump() as pump:
        with no_descriptor_left(), pytest.raises(Exhausted, match="too many open files"):
            pump.dial(Address(HOST, 1), preface=b"", deadline=math.inf)


async def test_bulk_is_copied_when_no_pipe_can_be_had() -> None:
    data = noise(5 * MB)
    async with open_bridge(Way(1)) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await until(lambda: session.meter.connected_at is not None)
            with no_descriptor_left():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all, client, data)
                    assert await receive_exactly(upstream, len(data)) == data
            assert bridge.pump.splices == 0


# One session's trouble is its own


async def test_a_bug_ends_its_own_session_and_no_other() -> None:
    bugs: list[Exception] = []
    async with open_bridge(on_bug=bugs.append) as bridge:
        client, upstream = await bridge.connect()
        other, other_upstream = await bridge.connect()
        with client, upstream, other, other_upstream:
            victim = bridge.sessions[0]
            await until(lambda: victim.meter.connected_at is not None)
            victim.end.bulk, victim.end.fast = True, False
            victim.end.short = "no number"  # the next splice raises what no socket would

            await client.send(b"x")
            assert (await victim.wait_ended()).reason is Reason.BUG
            await other.send(b"y")
            assert await receive_exactly(other_upstream, 1) == b"y"
        assert bridge.pump.bugs == 1
        assert bridge.pump.pipes == 0, "the victim's pipe was dirty"
        assert isinstance(bugs[0], TypeError)


async def test_an_on_accept_that_raises_costs_that_connection_only() -> None:
    bugs: list[Exception] = []
    async with open_pump(on_bug=bugs.append) as pump:
        with socket.socket() as listening:
            listening.bind((HOST, 0))
            listening.listen()

            def on_accept(end: End, _client: Address, _server: Address) -> None:
                if not bugs:
                    raise RuntimeError("no")
                pump.close(end)

            pump.listen(listening, on_accept)

            async def visit() -> bytes:
                with trio.socket.socket() as client:
                    await client.connect(listening.getsockname())
                    return await receive_to_eof(client)

            with pytest.raises(ConnectionResetError):
                await visit()
            assert await visit() == b""
        assert len(bugs) == pump.bugs == 1


async def test_a_descriptor_is_not_reused_within_a_batch_of_events() -> None:
    """One event ends a session, the next accepts a client, a third was meant for the one that ended."""
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await until(lambda: session.meter.connected_at is not None)
            old_fd, old_upstream_fd = session.end.fd, session.upstream.fd

            # From here to `_batch` the pump does not run: these are the events it would find.
            reset(client)
            late = socket.create_connection(bridge.listening.getsockname())
            flags = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
            stale = [(old_fd, flags), (old_upstream_fd, flags)]
            bridge.pump._batch([(old_fd, flags), (bridge.listening.fileno(), select.EPOLLIN), *stale])

            late_upstream, _ = await bridge.origin.accept()
            with late, late_upstream:
                assert bridge.sessions[1].end.fd not in {old_fd, old_upstream_fd}
                late.send(b"fine")
                assert await receive_exactly(late_upstream, 4) == b"fine"


async def test_session_sockets_are_non_blocking_for_splice_too() -> None:
    """MSG_DONTWAIT would do for send and recv; splice(2) looks at the file's flags, and would stop the process."""
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            for end in (session.end, session.upstream):
                assert not os.get_blocking(end.fd)
                assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_without_sessions_the_sweep_sleeps() -> None:
    """An idle gateway wakes up for nothing."""
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await bridge.only_session()
        await until(lambda: bridge.pump.active_relays == 0)
        await until(lambda: trio.lowlevel.current_statistics().seconds_to_next_deadline > 1)
