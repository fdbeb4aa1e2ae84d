"""What is too long, and too long by how much; the clock is an argument."""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import Any, cast

import pytest
import trio

from streamgw.core.errors import Reason
from streamgw.dataplane.pump import Ending, Limits, Meter
from streamgw.dataplane.pump.end import Relay, Socket
from streamgw.dataplane.pump.linger import Lingering
from streamgw.dataplane.pump.peek import Peeks
from streamgw.dataplane.pump.sweep import DELIVERY_S, SLICE, Sweep, slices
from tests.support.bridge import open_bridge
from tests.support.scripted_socket import Finished, ScriptedSocket


class Judge:
    """Keeps what the sweep ends."""

    def __init__(self) -> None:
        self.verdicts: list[Ending | str] = []
        peeks = Peeks(on_park=lambda: None, on_wake=lambda: None)
        self.sweep = Sweep((), peeks, Lingering(lambda end: None), finish=self.finish, fail=self.fail)

    def finish(self, relay: Relay, ending: Ending) -> None:
        relay.ending = ending
        self.verdicts.append(ending)

    def fail(self, _relay: Relay, message: str) -> None:
        self.verdicts.append(message)


def relay_with(limits: Limits, *, connecting: bool = False, meter: Meter | None = None) -> Relay:
    client, upstream = (
        Socket(cast("Any", ScriptedSocket()), is_client=is_client) for is_client in (True, False)
    )
    upstream.dialed_at, upstream.deadline = 100.0, 103.0
    relay = Relay(client, upstream, meter or Meter(), limits, Finished())
    relay.connecting = connecting
    relay.active_at = 100.0
    return relay


def test_a_connect_has_until_its_deadline() -> None:
    judge, relay = Judge(), relay_with(Limits(idle_s=1.0), connecting=True)
    judge.sweep.check(relay, 102.9)
    assert judge.verdicts == []
    judge.sweep.check(relay, 103.0)
    assert judge.verdicts == ["timed out after 3.0 s"]


@pytest.mark.parametrize("connecting", [True, False])
def test_a_session_has_until_it_ends_whatever_it_does(connecting: bool) -> None:
    judge, relay = Judge(), relay_with(Limits(ends_at=101.0), connecting=connecting)
    judge.sweep.check(relay, 100.9)
    assert judge.verdicts == []
    judge.sweep.check(relay, 101.0)
    assert judge.verdicts == [Ending(Reason.MAX_DURATION)]


def test_idle_is_counted_from_the_tick_that_saw_the_last_byte_and_never_ends_early() -> None:
    meter = Meter()
    judge, relay = Judge(), relay_with(Limits(idle_s=1.0), meter=meter)
    for step in itertools.count():
        now = 100.0 + step * 0.25
        if now in (100.5, 100.75):
            meter.bytes_down += 1
        judge.sweep.check(relay, now)
        if judge.verdicts:
            break
    assert judge.verdicts == [Ending(Reason.IDLE_TIMEOUT)]
    assert now == 101.75


def expecting(ending: Ending) -> Relay:
    relay = relay_with(Limits())
    relay.quiet_since, relay.quiet_s, relay.quiet_ending = 100.0, 2.0, ending
    return relay


def test_an_end_that_is_expected_waits_until_nothing_moves_any_more() -> None:
    judge, relay = Judge(), expecting(Ending(Reason.CLOSED))
    judge.sweep.check(relay, 101.9)
    relay.meter.bytes_up += 1
    judge.sweep.check(relay, 102.0)
    judge.sweep.check(relay, 103.9)
    assert judge.verdicts == []
    judge.sweep.check(relay, 104.0)
    assert judge.verdicts == [Ending(Reason.CLOSED)]


def test_the_reset_of_a_truncated_stream_waits_for_what_is_under_way_but_not_for_ever() -> None:
    ending = Ending(Reason.RESET, "client", "ended without close_notify")
    judge, relay = Judge(), expecting(ending)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as slow:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(listening.getsockname())
        slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                slow.send(bytes(1 << 16))
        relay.upstream.sock = slow

        judge.sweep.check(relay, 102.0)
        judge.sweep.check(relay, 100.0 + DELIVERY_S - 0.1)
        assert judge.verdicts == []
        judge.sweep.check(relay, 100.0 + DELIVERY_S)
        assert judge.verdicts == [ending]


def test_what_is_over_is_left_alone() -> None:
    judge, relay = Judge(), relay_with(Limits(ends_at=0.0))
    relay.ending = Ending(Reason.CLOSED)
    judge.sweep.check(relay, 200.0)
    assert judge.verdicts == []


def test_big_tables_are_looked_at_in_slices() -> None:
    relays = tuple(relay_with(Limits()) for _ in range(2 * SLICE + 1))
    pieces = list(slices(relays))
    assert [len(piece) for piece in pieces] == [SLICE, SLICE, 1]
    assert sum(pieces, ()) == relays


async def test_every_relay_of_a_big_table_is_looked_at() -> None:
    count = SLICE + 10
    async with open_bridge() as bridge:
        sockets = []
        for _ in range(count):
            sockets += await bridge.connect()
        relays = [session.end.relay for session in bridge.sessions]
        assert len(relays) == count

        for relay in relays:
            relay.limits = Limits(ends_at=trio.current_time())

        for session in bridge.sessions:
            assert (await session.wait_ended()).reason is Reason.MAX_DURATION
        for sock in sockets:
            sock.close()
