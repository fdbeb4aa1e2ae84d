"""Records on real sockets: what arrives, what a collector that is away costs, what is sent at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from streamgw.core.batch import BatchPolicy, Collector, OverHTTP, OverTCP, OverUDP, ToFile
from streamgw.process import senders
from streamgw.process import shipper as module
from streamgw.process.senders import Senders
from streamgw.process.shipper import Shipper
from tests.support.collectors import listening, receiving, until
from tests.support.ports import Ports

AT_ONCE = BatchPolicy(max_records=1)
LATER = BatchPolicy(inactive_s=1000, buffer_s=1000)


@asynccontextmanager
async def shipping(trusted: str = "system") -> AsyncIterator[Shipper]:
    async with trio.open_nursery() as nursery:
        shipper = Shipper(lambda: trusted)
        await nursery.start(shipper.run)
        yield shipper
        nursery.cancel_scope.cancel()


def tcp(port: int, policy: BatchPolicy = AT_ONCE, timeout_s: float = 30.0, **settings: object) -> Collector:
    return Collector(to=OverTCP(host="127.0.0.1", port=port, **settings), timeout_s=timeout_s, policy=policy)


def udp(port: int, policy: BatchPolicy = AT_ONCE) -> Collector:
    return Collector(to=OverUDP(host="127.0.0.1", port=port), policy=policy)


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
        where = udp(server.getsockname()[1], BatchPolicy(max_records=2))
        async with shipping() as shipper:
            shipper.ship(where, b"a")
            shipper.ship(where, b"b")

            with trio.fail_after(10):
                assert [await server.recv(100) for _ in "ab"] == [b"a", b"b"]


async def test_a_collector_that_is_away_is_told_of_once_and_when_it_is_back() -> None:
    with Ports() as ports, capture_logs() as logs:
        port = ports.take()
        where = tcp(port)
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
                await until(lambda: got and len(logs) == 2)
                nursery.cancel_scope.cancel()

    assert got == [b"here\n"]
    assert [log["event"] for log in logs] == ["collector_failed", "collector_back"]
    assert "refused" in logs[0]["error"]
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


async def test_a_batch_that_arrives_when_its_time_is_over_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop was busy: it hears of both at once."""

    async def late(
        self: object, collector: Collector, records: object, on_arrived: Callable[[], None], *, in_haste: bool
    ) -> None:
        on_arrived()
        sent.append(records)
        raise trio.TooSlowError

    sent: list[object] = []
    monkeypatch.setattr(Senders, "send", late)
    with capture_logs() as logs:
        async with shipping() as shipper:
            shipper.ship(tcp(9), b"one")
            await until(lambda: len(sent) == 1)
            shipper.ship(tcp(9), b"two")
            await until(lambda: len(sent) == 2)

    assert sent == [(b"one",), (b"two",)]
    assert not shipper.dropped
    assert logs == []


async def test_at_the_end_what_is_left_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 60.0)  # however busy the machine is
    async with listening() as server:
        async with shipping() as shipper:
            shipper.ship(tcp(server.port, LATER), b"last")
        await until(lambda: server.connections)

    assert server.connections == [b"last\n"]
    assert not shipper.dropped


async def test_at_the_end_what_is_on_its_way_is_not_sent_again() -> None:
    """The collector has read it, and has yet to close: beginning again would have it twice."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    connections: list[bytes] = []
    is_read = trio.Event()
    may_close = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        connections.append(await stream.receive_some())
        is_read.set()
        await may_close.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with trio.open_nursery() as gateway:
            shipper = Shipper(lambda: "system")
            await gateway.start(shipper.run)
            shipper.ship(tcp(listener.socket.getsockname()[1]), b"once")
            await is_read.wait()
            gateway.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            may_close.set()
        nursery.cancel_scope.cancel()

    assert connections == [b"once\n"]
    assert not shipper.dropped


@asynccontextmanager
async def keeping_open(answer: bytes = b"") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A collector that never closes: its port, and the last line of each batch it has."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    got: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        read = b""
        while not read.endswith((b"\n", b"]")):
            read += await stream.receive_some()
        got.append(read.splitlines()[-1])
        await stream.send_all(answer)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.socket.getsockname()[1], got
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("over", "answer"),
    [(OverTCP, b""), (OverHTTP, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")],
    ids=["tcp", "http"],
)
async def test_what_has_arrived_when_the_time_is_over_is_not_lost(
    over: type[OverTCP | OverHTTP],
    answer: bytes,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Users noticed: records of a gateway that ended were told of as lost, and were there."""
    monkeypatch.setattr(senders, "FAREWELL_S", 60.0)
    async with keeping_open(answer) as (port, got):
        with capture_logs() as logs:
            async with shipping() as shipper:
                shipper.ship(Collector(to=over(host="127.0.0.1", port=port), policy=AT_ONCE), b"1")

    assert len(got) == 1
    assert not shipper.dropped
    assert not logs


async def test_at_the_end_no_batch_is_lost_for_the_courtesy_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Five, where a second for each would be more than there is."""
    async with keeping_open() as (port, got), shipping() as shipper:
        for record in (b"1", b"2", b"3", b"4", b"5"):
            shipper.ship(tcp(port), record)

    assert got == [b"1", b"2", b"3", b"4", b"5"]
    assert not shipper.dropped


async def test_what_comes_after_the_end_is_counted_and_told() -> None:
    """Users noticed: a bug of the plugin was reported, and further records were lost without a word."""
    async with shipping() as shipper:
        pass

    with capture_logs() as logs:
        for _ in range(3):
            shipper.ship(udp(9), b"late")

    assert shipper.dropped == {"udp://127.0.0.1:9": 3}
    assert [(log["event"], log["pending"]) for log in logs] == [("records_dropped", 0)]
    assert len(shipper) == 0


async def test_one_that_is_ended_before_its_first_step_ends() -> None:
    """Users noticed: a gateway that was told to end while it started hung until SIGKILL."""
    shipper = Shipper(lambda: "system")
    shipper.ship(udp(9), b"early")

    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        await nursery.start(shipper.run)

    assert len(shipper) == 0


async def test_at_the_end_a_collector_that_says_nothing_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It reads, and does not answer."""
    with capture_logs() as logs:
        async with keeping_open() as (port, got):
            where = Collector(to=OverHTTP(host="127.0.0.1", port=port), policy=LATER)
            async with shipping() as shipper:
                shipper.ship(where, b"1")

    assert got == [b"[1]"]
    assert shipper.dropped == {str(where): 1}
    assert [(log["event"], log.get("pending")) for log in logs] == [("records_dropped", 1)]
    assert autojump_clock.current_time() == pytest.approx(module.PATIENCE_S, abs=0.01)


async def test_a_server_that_is_silent_in_the_handshake_is_given_up_in_time() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = tcp(listener.socket.getsockname()[1], tls=True, timeout_s=0.05)

    with capture_logs() as logs:
        async with listener, shipping() as shipper:
            shipper.ship(where, b"x")
            await until(lambda: shipper.dropped)

    assert shipper.dropped == {str(where): 1}
    assert [log["error"] for log in logs] == ["no answer in time"]


async def test_the_task_of_a_collector_that_gets_nothing_ends_and_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        where = udp(server.getsockname()[1])
        async with shipping() as shipper:
            for record in (b"a", b"b"):
                shipper.ship(where, record)
                assert await server.recv(10) == record
                await trio.sleep(module.LINGER_S / 2)
                assert len(shipper) == 1
                await trio.sleep(module.LINGER_S)
                assert len(shipper) == 0


async def test_a_server_that_refuses_gets_the_batch_again_and_then_the_next_one() -> None:
    busy = b"HTTP/1.1 503 Busy\r\n\r\n"
    with capture_logs() as logs:
        async with receiving(busy, busy, busy) as receiver, shipping() as shipper:
            policy = BatchPolicy(max_records=1, max_retries=1, retry_delay_s=0)
            where = Collector(to=OverHTTP(host="127.0.0.1", port=receiver.port, form="object"), policy=policy)
            shipper.ship(where, b"1")
            shipper.ship(where, b"2")
            await until(lambda: len(receiver.requests) == 4)
            await until(lambda: len(logs) == 2)

    assert receiver.bodies == [b"1", b"1", b"2", b"2"]
    assert shipper.dropped == {f"http://127.0.0.1:{receiver.port}": 1}
    assert [(log["event"], log.get("error")) for log in logs] == [
        ("collector_failed", "answered 503"),
        ("collector_back", None),
    ]


async def test_a_directory_that_vanishes_is_told_of_once_and_when_it_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    where = Collector(to=ToFile(path=str(directory / "a.log")), policy=AT_ONCE)

    with capture_logs() as logs:
        async with shipping() as shipper:
            for count in (1, 2):
                shipper.ship(where, b"lost")
                await until(lambda count=count: shipper.dropped[str(where)] == count)
            directory.mkdir()
            shipper.ship(where, b"here")
            await until(lambda: len(logs) == 2)

    assert (directory / "a.log").read_bytes() == b"here\n"
    assert [log["event"] for log in logs] == ["collector_failed", "collector_back"]
    assert "No such file or directory" in logs[0]["error"]


async def test_a_queue_whose_policy_was_edited_is_still_sent() -> None:
    """The route ships to another queue from now on; what waits in the old one is sent when it is due."""
    async with listening() as server, shipping() as shipper:
        shipper.ship(tcp(server.port, BatchPolicy(inactive_s=0.1)), b"before")
        shipper.ship(tcp(server.port, BatchPolicy(max_records=1)), b"after")

        await until(lambda: len(server.connections) == 2)

    assert sorted(server.connections) == [b"after\n", b"before\n"]
    assert not shipper.dropped


async def test_a_slow_collector_holds_up_nobody_else() -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with silent, listening() as server, shipping() as shipper:
        slow = tcp(silent.socket.getsockname()[1], tls=True, timeout_s=60)
        shipper.ship(slow, b"waits")
        async with await silent.accept():
            for number in range(5):
                shipper.ship(tcp(server.port), b"%d" % number)
            await until(lambda: b"".join(server.connections) == b"0\n1\n2\n3\n4\n")
