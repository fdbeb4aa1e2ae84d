"""What the contract does not speak of: time by sweep, serving Trio, the counters, the end of the pump itself."""

from __future__ import annotations

import math
import socket

import pytest
import trio

from streamgw.core.errors import ConnectFailed
from streamgw.core.model import Address
from streamgw.dataplane.pump.loop import SocketPump
from tests.support.bridge import (
    HOST,
    open_bridge,
    receive_exactly,
    receive_to_eof,
    until,
)


async def test_counters_tell_what_happened() -> None:
    async with open_bridge(splice_after=1) as bridge:
        pump = bridge.pump
        client, upstream = await bridge.connect()
        with client, upstream:
            await client.send(b"four")
            assert await receive_exactly(upstream, 4) == b"four"
            await upstream.send(b"seven..")
            assert await receive_exactly(client, 7) == b"seven.."
            assert (pump.accepted, pump.active_ends, pump.active_relays) == (1, 2, 1)
            assert (pump.bytes_up, pump.bytes_down) == (4, 7)
        await until(lambda: pump.active_relays == 0)
        assert pump.active_ends == 0
        assert (pump.bytes_up, pump.bytes_down) == (4, 7), "sessions that are over still count"
        assert (pump.accept_pauses, pump.bugs, pump.splices) == (0, 0, 0)


async def test_other_tasks_run_while_bytes_flow() -> None:
    """The pump keeps the thread while there is traffic; it must not keep it to itself."""
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            async with trio.open_nursery() as nursery:

                async def echo() -> None:
                    while data := await upstream.recv(100):
                        await upstream.send(data)

                nursery.start_soon(echo)
                woken = 0

                async def control_work() -> None:
                    nonlocal woken
                    while True:
                        await trio.lowlevel.checkpoint()
                        woken += 1

                nursery.start_soon(control_work)
                for _ in range(100):
                    await client.send(b"ping")
                    await receive_exactly(client, 4)
                assert woken > 20
                nursery.cancel_scope.cancel()


async def test_a_pump_that_has_ended_takes_nothing_more() -> None:
    pump = SocketPump()
    with socket.create_server((HOST, 0)) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            accepting = pump.listen(listening, lambda *_: None)
            nursery.cancel_scope.cancel()

        with pytest.raises(ConnectFailed, match="the gateway stops"):
            pump.dial(Address(HOST, 1), preface=b"", deadline=math.inf)
        accepting.resume()
        accepting.close()


async def test_an_end_is_relayed_by_one_relay_at_a_time_and_closed_by_it() -> None:
    async with open_bridge() as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            await until(lambda: session.meter.connected_at is not None)
            with pytest.raises(AssertionError, match="closes both"):
                bridge.pump.close(session.end)
            client.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(upstream) == b""
