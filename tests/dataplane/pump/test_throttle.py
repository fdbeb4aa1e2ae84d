"""Bytes that pass a gate, between real sockets and in every way of moving them: no faster than they may, and no further.

That a bucket counts right is told in tests/core/test_bucket.py, on a clock that a test turns. Here time is real: a bound from
below is exact, one from above is generous.
"""

from __future__ import annotations

import contextlib
import itertools
import socket

import attrs
import pytest
import trio

from streamgw.core.bucket import BURST_S, Bucket, Gate
from streamgw.core.errors import Reason
from streamgw.dataplane.pump import Ending, Limits, bulk, throttle
from streamgw.dataplane.pump.end import Socket
from tests.conformance.test_pump import WAYS, noise
from tests.support.bridge import (
    Talker,
    Way,
    open_bridge,
    receive_exactly,
    receive_to_eof,
    reset,
    send_all,
    skip_unless_possible,
    until,
)
from tests.support.tls_talker import TLSTalker

CLOSED = Ending(Reason.CLOSED)
CUT = Ending(Reason.REJECTED, None, "on purpose")
MB = 1_000_000


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request: pytest.FixtureRequest) -> Way:
    return skip_unless_possible(request.param)


@attrs.define
class Load:
    """One side says all it has while the other listens."""

    data: bytes
    begun_at: float = 0.0
    heard: bytes = b""
    took_s: float = 0.0
    stalled_s: float = 0.0
    """How long of that the machine had no time for this process, so that nothing could pass."""

    async def run(self, speaker: Talker, listener: Talker) -> None:
        self.begun_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count_stalls)
            nursery.start_soon(self._say, speaker)
            self.heard = await receive_to_eof(listener)
            self.took_s = trio.current_time() - self.begun_at
            nursery.cancel_scope.cancel()

    async def _count_stalls(self) -> None:
        while True:
            beat_at = trio.current_time() + 0.05
            await trio.sleep_until(beat_at)
            self.stalled_s += trio.current_time() - beat_at

    async def _say(self, speaker: Talker) -> None:
        await send_all(speaker, self.data)
        speaker.shutdown(socket.SHUT_WR)

    def passed_at(self, rate: float, *, slack: float) -> bool:
        """It came whole, not faster than the rate, and not much slower."""
        least_s = (len(self.data) - rate * BURST_S) / rate
        most_s = least_s * (1 + slack) + 0.1 + self.stalled_s
        return self.heard == self.data and 0.98 * least_s <= self.took_s <= most_s


@pytest.mark.parametrize("rate", [40_000, 4 * MB])
async def test_both_directions_are_as_fast_as_they_may_be(way: Way, rate: int) -> None:
    load_up, load_down = Load(noise(rate // 2, 1)), Load(noise(rate // 4, 2))
    limits = Limits(up=Gate([Bucket(rate)]), down=Gate([Bucket(rate)]))
    async with open_bridge(way, limits=limits) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load_up.run, client, upstream)
                nursery.start_soon(load_down.run, upstream, client)
        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED

    assert load_up.passed_at(rate, slack=4)
    assert load_down.passed_at(rate, slack=4)
    assert (session.meter.bytes_up, session.meter.bytes_down) == (rate // 2, rate // 4)


async def test_what_is_limited_is_still_not_copied_where_it_is_much() -> None:
    load = Load(noise(10 * MB))
    async with open_bridge(Way(1), limits=Limits(down=Gate([Bucket(40 * MB)]))) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await load.run(upstream, client)
        assert bridge.pump.splices > 2

    assert load.passed_at(40 * MB, slack=4)


async def test_without_a_pipe_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MAX_PIPES", 0)
    load = Load(noise(4 * MB))
    async with open_bridge(Way(1), limits=Limits(down=Gate([Bucket(40 * MB)]))) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await load.run(upstream, client)
        assert bridge.pump.splices == 0

    assert load.heard == load.data


async def test_a_bulk_direction_that_becomes_a_trickle_is_copied_again() -> None:
    async with open_bridge(Way(1), limits=Limits(down=Gate([Bucket(400 * MB)]))) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            data = noise(4 * MB)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, upstream, data)
                assert await receive_exactly(client, len(data)) == data
            for _ in range(8):
                await upstream.send(b"ping")
                assert await receive_exactly(client, 4) == b"ping"
            assert not session.upstream.bulk
            assert bridge.pump.pipes == bridge.pump.idle_pipes


async def test_small_messages_are_limited_together_and_are_not_late_below_the_limit(way: Way) -> None:
    async with open_bridge(way, limits=Limits(up=Gate([Bucket(100_000)]))) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            begun_at = trio.current_time()
            for _ in range(100):
                await client.send(bytes(64))
                await receive_exactly(upstream, 64)
            assert trio.current_time() - begun_at < 5.0, "within the burst nobody waits"

            begun_at = trio.current_time()
            for _ in range(20):
                await client.send(bytes(2000))
                await receive_exactly(upstream, 2000)
            assert trio.current_time() - begun_at >= 0.29


async def test_the_sender_is_held_back_and_nothing_is_kept_here() -> None:
    async with open_bridge(limits=Limits(up=Gate([Bucket(10_000)]))) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            await receive_some(client, upstream)
            with trio.move_on_after(0.3):
                await send_all(client, bytes(64 * MB))
                pytest.fail("64 MB went into the buffers of the kernel")

            assert session.end.queued
            assert not session.end.pend
            assert session.end.pipe is None
            reset(client)
            assert (await session.wait_ended()).side == "client"


async def receive_some(client: Talker, upstream: Talker) -> None:
    """A byte has passed: the relay is in full flow."""
    await client.send(b"!")
    assert await receive_exactly(upstream, 1) == b"!"


async def test_who_shares_a_bucket_is_served_as_much_as_the_others() -> None:
    bucket, crowd, heard = Bucket(2 * MB), 4, [0] * 4
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        pairs = []
        for _ in range(crowd):
            bridge.limits = Limits(down=Gate([bucket]))
            pairs.append(await bridge.connect())

        async def listen(number: int, client: Talker, upstream: Talker) -> None:
            nursery.start_soon(send_all, upstream, bytes(64 * MB))
            while chunk := await client.recv(1 << 16):
                heard[number] += len(chunk)

        for number, (client, upstream) in enumerate(pairs):
            nursery.start_soon(listen, number, client, upstream)
        with trio.fail_after(10):
            while sum(heard) < MB:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: len(nursery.child_tasks) == 0)
        for sock in itertools.chain.from_iterable(pairs):
            sock.close()

    assert min(heard) > 0.5 * MB / crowd
    assert bucket.waiting == 0, "who has gone is in no line"


async def test_who_waits_for_his_gate_is_not_idle() -> None:
    gate = Gate([Bucket(1000, 1)])
    async with open_bridge(limits=Limits(idle_s=1.0, up=gate)) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            gate.take(1000, trio.current_time())
            assert gate.take(1000, trio.current_time()) == 0
            gate.opens_at += 1.5  # as at the end of a long line
            await client.send(b"late")

            assert await receive_exactly(upstream, 4) == b"late"
            assert session.ending is None
            assert (await session.wait_ended()).reason is Reason.IDLE_TIMEOUT, "who has nothing to say is"


async def test_a_side_that_resets_while_its_bytes_wait_is_noticed_when_it_is_their_turn() -> None:
    async with open_bridge(limits=Limits(up=Gate([Bucket(100_000)]))) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with upstream:
            await client.send(bytes(100_000))
            await until(lambda: session.end.queued)
            reset(client)
            ending = await session.wait_ended()
        assert (ending.reason, ending.side) == (Reason.RESET, "client")
        assert session.meter.bytes_up < 100_000


@pytest.mark.parametrize("reason", [Reason.KILLED, None])
async def test_a_session_that_ends_while_it_waits_leaves_nothing_in_the_line(reason: Reason | None) -> None:
    bucket = Bucket(10_000)
    async with open_bridge(limits=Limits(up=Gate([bucket]))) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            await client.send(bytes(100_000))
            await until(lambda: bucket.waiting == 1)
            if reason is None:
                session.scope.cancel()
            else:
                bridge.pump.abort(session.end, reason)
            await until(session.ended.is_set)
        assert bucket.waiting == 0

        bridge.limits = Limits()
        client, upstream = await bridge.connect()
        with client, upstream:
            await receive_some(client, upstream)


async def test_a_bug_while_it_is_somebodys_turn_ends_that_session_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bugs: list[Exception] = []
    async with open_bridge(limits=Limits(up=Gate([Bucket(10_000)])), on_bug=bugs.append) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        bridge.limits = Limits(up=Gate([Bucket(100_000)]))
        others = await bridge.connect()
        with client, upstream, others[0], others[1]:
            await client.send(bytes(20_000))
            await until(lambda: session.end.queued)
            monkeypatch.setattr(throttle.GatedMover, "_take_some", broken)
            assert (await session.wait_ended()).reason is Reason.BUG
            monkeypatch.undo()

            data = noise(30_000)
            await others[0].send(data)
            assert await receive_exactly(others[1], len(data)) == data
    assert len(bugs) == 1


class BreaksAtItsEnd(Gate):
    def close(self, now: float) -> None:
        raise ZeroDivisionError


async def test_a_gate_that_breaks_at_its_end_keeps_neither_its_session_nor_others() -> None:
    """The end may be the sweep's doing, or Trio's: what it raised there would end the data plane."""
    bugs: list[Exception] = []
    gated = Limits(up=BreaksAtItsEnd([Bucket(100_000)]), idle_s=0.01)
    async with open_bridge(limits=gated, on_bug=bugs.append) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        bridge.limits = Limits()
        others = await bridge.connect()
        with client, upstream, others[0], others[1]:
            assert (await session.wait_ended()).reason is Reason.IDLE_TIMEOUT

            await others[0].send(b"y")
            assert await receive_exactly(others[1], 1) == b"y"
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]
    assert bridge.pump.bugs == 1


def broken(_: object, __: Socket, ___: int) -> int:
    raise ZeroDivisionError


async def test_a_tls_side_that_is_cut_off_while_it_is_limited_does_not_look_complete() -> None:
    way = Way(client_tls=True)
    async with open_bridge(way, limits=Limits(up=Gate([Bucket(MB)]), down=Gate([Bucket(MB)]))) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await receive_some(client, upstream)
            assert isinstance(client, TLSTalker)
            client.sock.shutdown(socket.SHUT_WR)

            ending = await (await bridge.only_session()).wait_ended()
        assert (ending.reason, ending.detail) == (Reason.RESET, "ended without close_notify")


# No further


@pytest.mark.parametrize("count", [1, 1000, 3 * MB])
async def test_exactly_so_many_bytes_pass_and_then_both_sides_are_reset(way: Way, count: int) -> None:
    data = noise(5 * MB)
    gate = Gate(ends_after=count, why="on purpose")
    async with open_bridge(way, limits=Limits(down=gate)) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say_until_reset, upstream, data)
                heard = await hear_until_reset(client)
        session = await bridge.only_session()

        assert await session.wait_ended() == CUT
        assert heard == data[:count]
        assert session.meter.bytes_down == count


async def say_until_reset(sock: Talker, data: bytes) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await send_all(sock, data)
        while await sock.recv(1 << 16):
            pass


async def hear_until_reset(sock: Talker) -> bytes:
    """All that comes before the reset. Fails when it is no reset that comes."""
    heard = bytearray()
    with trio.fail_after(20), contextlib.suppress(ConnectionResetError):
        while chunk := await sock.recv(1 << 16):
            heard += chunk
        pytest.fail("EOF: it looks complete")
    return bytes(heard)


async def test_an_answer_that_ends_where_it_is_cut_off_does_not_look_complete() -> None:
    async with open_bridge(limits=Limits(down=Gate(ends_after=5, why="on purpose"))) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await upstream.send(b"hello")
            with contextlib.suppress(OSError):  # it may be reset already
                upstream.shutdown(socket.SHUT_WR)

            assert await hear_until_reset(client) == b"hello"
        assert await (await bridge.only_session()).wait_ended() == CUT


async def test_nothing_passes_the_other_way_once_a_session_is_being_cut_off() -> None:
    limits = Limits(up=Gate([Bucket(MB)], ends_after=3, why="on purpose"), down=Gate([Bucket(MB)]))
    async with open_bridge(Way(1), limits=limits, upstream_receive_buffer=2048) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        with client, upstream:
            await client.send(b"hello")
            await until(lambda: session.end.gate.is_spent)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await upstream.send(b"too late")

            assert await session.wait_ended() == CUT
            assert (session.meter.bytes_up, session.meter.bytes_down) == (3, 0)


async def test_a_reader_that_is_slow_gets_all_that_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2 * MB
    limits = Limits(down=Gate(ends_after=count, why="on purpose"))
    async with open_bridge(limits=limits) as bridge:
        client = await bridge.dial(receive_buffer=4096)
        upstream = await bridge.accept()
        session = await bridge.only_session()
        data = noise(4 * MB)
        with client, upstream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say_until_reset, upstream, data)
                await until(lambda: session.meter.bytes_down > 0)
                assert await hear_until_reset(client) == data[:count]
        assert await session.wait_ended() == CUT


async def test_a_reader_that_does_not_read_is_cut_off_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "DELIVERY_S", 0.1)
    async with open_bridge(limits=Limits(down=Gate(ends_after=50_000, why="on purpose"))) as bridge:
        client = await bridge.dial(receive_buffer=4096)
        upstream = await bridge.accept()
        session = await bridge.only_session()
        with client, upstream:
            await upstream.send(bytes(60_000))

            assert await session.wait_ended() == CUT
