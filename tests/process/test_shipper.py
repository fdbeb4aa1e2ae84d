"""Records on real sockets: what arrives, what a collector that is away costs, what is sent at the end."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from streamgw.core.batch import BatchPolicy, Collector
from streamgw.process import shipper as module
from streamgw.process.shipper import Shipper
from tests.support.certificates import CA_PEM, issue

AT_ONCE = BatchPolicy(max_records=1)
LATER = BatchPolicy(inactive_s=1000, buffer_s=1000)


@attrs.define
class Listening:
    """A collector that notes what it reads until its client is done."""

    port: int
    connections: list[bytes] = attrs.Factory(list)


@asynccontextmanager
async def listening(context: ssl.SSLContext | None = None) -> AsyncIterator[Listening]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        found = Listening(listener.socket.getsockname()[1])

        async def serve(stream: trio.SocketStream) -> None:
            talk = stream if context is None else trio.SSLStream(stream, context, server_side=True)
            read = b""
            try:
                async for chunk in talk:
                    read += chunk
                await talk.aclose()
            except trio.BrokenResourceError:
                return
            found.connections.append(read)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield found
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def shipping(trusted: str = "system") -> AsyncIterator[Shipper]:
    async with trio.open_nursery() as nursery:
        shipper = Shipper(lambda: trusted)
        await nursery.start(shipper.run)
        yield shipper
        nursery.cancel_scope.cancel()


async def until(look: object) -> None:
    assert callable(look)
    with trio.fail_after(10):
        while not look():
            await trio.sleep(0.005)


def tcp(port: int, policy: BatchPolicy = AT_ONCE, **settings: object) -> Collector:
    return Collector(transport="tcp", host="127.0.0.1", port=port, policy=policy, **settings)


async def test_a_batch_is_a_line_for_each_record_on_one_connection() -> None:
    async with listening() as server, shipping() as shipper:
        for record in (b"a", b"b", b"c"):
            shipper.ship(tcp(server.port, BatchPolicy(max_records=3)), record)

        await until(lambda: server.connections)

    assert server.connections == [b"a\nb\nc\n"]


async def test_what_was_shipped_before_the_start_is_sent() -> None:
    async with listening() as server, trio.open_nursery() as nursery:
        shipper = Shipper(lambda: "system")
        shipper.ship(tcp(server.port), b"early")

        await nursery.start(shipper.run)
        await until(lambda: server.connections)
        nursery.cancel_scope.cancel()

    assert server.connections == [b"early\n"]


async def test_over_udp_a_record_is_a_datagram() -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        where = Collector(
            transport="udp", host="127.0.0.1", port=server.getsockname()[1], policy=BatchPolicy(max_records=2)
        )
        async with shipping() as shipper:
            shipper.ship(where, b"a")
            shipper.ship(where, b"b")

            with trio.fail_after(10):
                assert [await server.recv(100) for _ in "ab"] == [b"a", b"b"]


@pytest.mark.parametrize("verify", [False, True])
async def test_tls_is_spoken(tmp_path: Path, verify: bool) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_PEM)
    issue("127.0.0.1").write(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "a.pem", tmp_path / "a.key")

    async with listening(context) as server, shipping(str(ca)) as shipper:
        shipper.ship(tcp(server.port, tls=True, verify=verify), b"secret")
        await until(lambda: server.connections)

    assert server.connections == [b"secret\n"]


async def test_a_server_that_is_not_believed_gets_nothing(tmp_path: Path) -> None:
    issue("127.0.0.1").write(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "a.pem", tmp_path / "a.key")

    with capture_logs() as logs:
        async with listening(context) as server, shipping() as shipper:
            shipper.ship(tcp(server.port, tls=True, verify=True), b"secret")
            await until(lambda: shipper.dropped)

    assert server.connections == []
    assert shipper.dropped == {f"tls://127.0.0.1:{server.port}": 1}
    assert "certificate verify failed" in logs[0]["error"]


async def test_a_collector_that_is_away_is_told_of_once_and_when_it_is_back() -> None:
    (closed,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = closed.socket.getsockname()[1]
    await closed.aclose()
    where = tcp(port)

    with capture_logs() as logs:
        async with shipping() as shipper:
            for count in (1, 2):
                shipper.ship(where, b"lost")
                await until(lambda count=count: shipper.dropped[str(where)] == count)
            listener = await trio.open_tcp_listeners(port, host="127.0.0.1")
            async with trio.open_nursery() as nursery:
                got: list[bytes] = []

                async def serve(stream: trio.SocketStream) -> None:
                    got.append(await stream.receive_some())

                nursery.start_soon(trio.serve_listeners, serve, listener)
                shipper.ship(where, b"here")
                await until(lambda: len(logs) == 2)
                nursery.cancel_scope.cancel()

    assert got == [b"here\n"]
    assert [log["event"] for log in logs] == ["collector_failed", "collector_back"]
    assert logs[1]["dropped"] == 2


async def test_a_full_queue_drops_what_comes_and_says_so_once() -> None:
    where = tcp(9, BatchPolicy(max_pending=2))
    shipper = Shipper(lambda: "system")

    with capture_logs() as logs:
        for _ in range(5):
            shipper.ship(where, b"x")

    assert shipper.dropped == {"tcp://127.0.0.1:9": 3}
    assert [(log["event"], log["pending"]) for log in logs] == [("records_dropped", 2)]


async def test_a_failed_batch_is_tried_again() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        got: list[bytes] = []

        async def serve() -> None:
            first = await listener.accept()
            first.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await trio.aclose_forcefully(first)
            async with await listener.accept() as second:
                got.append(await second.receive_some())
            await listener.aclose()

        nursery.start_soon(serve)
        async with shipping() as shipper:
            policy = BatchPolicy(max_records=1, max_retries=1, retry_delay_s=0)
            shipper.ship(tcp(listener.socket.getsockname()[1], policy), b"again")
            await until(lambda: got)

    assert got == [b"again\n"]
    assert not shipper.dropped


async def test_at_the_end_what_is_left_is_sent() -> None:
    async with listening() as server:
        async with shipping() as shipper:
            shipper.ship(tcp(server.port, LATER), b"last")
        await until(lambda: server.connections)

    assert server.connections == [b"last\n"]
    assert not shipper.dropped


async def test_at_the_end_a_collector_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It accepts, and never reads nor closes."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = tcp(listener.socket.getsockname()[1], LATER)

    with trio.fail_after(5):
        async with shipping() as shipper:
            shipper.ship(where, b"last")

    assert shipper.dropped == {str(where): 1}
    await listener.aclose()


async def test_a_server_that_is_silent_in_the_handshake_is_given_up_in_time() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = tcp(listener.socket.getsockname()[1], tls=True, timeout_s=0.05)

    with capture_logs() as logs:
        async with listener, shipping() as shipper:
            shipper.ship(where, b"x")
            await until(lambda: shipper.dropped)

    assert shipper.dropped == {str(where): 1}
    assert [log["error"] for log in logs] == ["no answer in time"]


async def test_a_collector_that_never_closes_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL_S", 0.05)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, shipping() as shipper:
        where = tcp(listener.socket.getsockname()[1])
        shipper.ship(where, b"a")
        async with await listener.accept() as first:
            assert await first.receive_some() == b"a\n"
            shipper.ship(where, b"b")
            async with await listener.accept() as second:
                assert await second.receive_some() == b"b\n"

    assert not shipper.dropped


async def test_the_task_of_a_collector_that_gets_nothing_ends_and_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        where = Collector(transport="udp", host="127.0.0.1", port=server.getsockname()[1], policy=AT_ONCE)
        async with shipping() as shipper:
            for record in (b"a", b"b"):
                shipper.ship(where, record)
                assert await server.recv(10) == record
                await trio.sleep(module.LINGER_S / 2)
                assert len(shipper) == 1
                await trio.sleep(module.LINGER_S)
                assert len(shipper) == 0
