"""What the contract does not speak of: time by sweep, serving Trio, the counters, the end of the pump itself."""

from __future__ import annotations

import contextlib
import math
import select
import socket
from typing import Any

import pytest
import trio
import trio.testing

from streamgw.core.errors import ConnectFailed
from streamgw.core.model import Address
from streamgw.dataplane.pump import End
from streamgw.dataplane.pump.loop import HOT_WAIT_S, SocketPump
from tests.support.bridge import (
    HOST,
    Way,
    open_bridge,
    receive_exactly,
    receive_to_eof,
    until,
)


async def test_counters_tell_what_happened() -> None:
    async with open_bridge(Way(1)) as bridge:
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


class WatchedEpoll:
    """A real epoll that also tells how long each poll was ready to block the thread."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.waits_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def poll(self, wait_s: float, most: int) -> list[tuple[int, int]]:
        self.waits_s.append(wait_s)
        return self._epoll.poll(wait_s, most)


async def test_a_new_session_takes_its_first_steps_before_the_pump_blocks_the_thread() -> None:
    """Even when Trio schedules the pump first, and when the session takes some steps until it is relayed."""
    pump = SocketPump()
    epoll = pump._epoll = WatchedEpoll(pump._epoll)
    with socket.create_server((HOST, 0)) as listening:
        async with trio.open_nursery() as nursery:

            async def session(end: End) -> None:
                for _ in range(2):  # three steps: what a session with a PROXY header takes
                    await trio.lowlevel.checkpoint()
                    assert set(epoll.waits_s) <= {0.0}
                pump.close(end)

            def on_accept(end: End, _client: Address, _server: Address) -> None:
                epoll.waits_s.clear()
                nursery.start_soon(session, end)

            await nursery.start(pump.run)
            pump.listen(listening, on_accept)
            for _ in range(20):
                with trio.socket.socket() as client:
                    await client.connect(listening.getsockname())
                    assert await receive_to_eof(client) == b""
                await until(lambda: HOT_WAIT_S in epoll.waits_s)
                await trio.testing.wait_all_tasks_blocked()
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


async def test_trouble_and_bugs_are_logged_unless_somebody_wants_to_be_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pump = SocketPump()
    async with trio.open_nursery() as nursery:
        with socket.create_server((HOST, 0)) as listening, trio.socket.socket() as client:

            def on_accept(_end: End, _client: Address, _server: Address) -> None:
                raise RuntimeError("nobody expected this")

            await nursery.start(pump.run)
            pump.listen(listening, on_accept)
            pump.tell("accepting pauses")
            with contextlib.suppress(ConnectionResetError):  # the bug's RST may overtake the end of connect
                await client.connect(listening.getsockname())
            await until(lambda: pump.bugs == 1)
        nursery.cancel_scope.cancel()
    assert "accepting pauses" in caplog.text
    assert "nobody expected this" in caplog.text
