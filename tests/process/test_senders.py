"""One batch over each way there is."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from streamgw.core.batch import Collector, Destination, OverHTTP, OverTCP, OverUDP, ToFile
from streamgw.process import senders as module
from streamgw.process.post import BadAnswer
from streamgw.process.senders import TROUBLES, Senders
from tests.support.collectors import listening, receiving, server_context, until

BATCH = (b"a", b"b")


async def send(to: Destination, *, trusted: str = "system", timeout_s: float = 30.0) -> None:
    """What returns has told of the arrival, and what raises has not."""
    has_arrived = False

    def on_arrived() -> None:
        nonlocal has_arrived
        has_arrived = True

    try:
        with trio.fail_after(60):
            await Senders(lambda: trusted).send(Collector(to=to, timeout_s=timeout_s), BATCH, on_arrived)
    except TROUBLES:
        assert not has_arrived
        raise
    assert has_arrived


async def test_over_tcp_a_record_is_a_line() -> None:
    async with listening() as server:
        await send(OverTCP(host="127.0.0.1", port=server.port))
        await until(lambda: server.connections)

    assert server.connections == [b"a\nb\n"]


async def test_over_udp_a_record_is_a_datagram() -> None:
    with trio.socket.socket(trio.socket.AF_INET6, trio.socket.SOCK_DGRAM) as server:
        await server.bind(("::1", 0))

        await send(OverUDP(host="::1", port=server.getsockname()[1]))

        assert [await server.recv(100) for _ in BATCH] == [b"a", b"b"]


async def test_over_http_a_batch_is_a_request() -> None:
    async with receiving() as receiver:
        await send(OverHTTP(host="127.0.0.1", port=receiver.port, form="lines"))

    assert receiver.bodies == [b"a\nb"]


async def test_in_a_file_a_record_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"

    await send(ToFile(path=str(path)))

    assert path.read_bytes() == b"a\nb\n"


def over_tls(port: int, *, verify: bool) -> OverTCP:
    return OverTCP(host="127.0.0.1", port=port, tls=True, verify=verify)


def over_https(port: int, *, verify: bool) -> OverHTTP:
    return OverHTTP(host="127.0.0.1", port=port, tls=True, verify=verify, form="lines")


@pytest.mark.parametrize("verify", [False, True])
async def test_tls_is_spoken(tmp_path: Path, verify: bool) -> None:
    context, ca = server_context(tmp_path, "127.0.0.1")

    async with listening(context) as server, receiving(context=context) as receiver:
        await send(over_tls(server.port, verify=verify), trusted=ca)
        await send(over_https(receiver.port, verify=verify), trusted=ca)
        await until(lambda: server.connections)

    assert server.connections == [b"a\nb\n"]
    assert receiver.bodies == [b"a\nb"]


async def test_a_server_is_verified_by_the_name_it_is_asked_for(tmp_path: Path) -> None:
    context, ca = server_context(tmp_path, "collector.test")

    async with listening(context) as server:
        here = OverTCP(
            host="127.0.0.1", port=server.port, tls=True, verify=True, server_name="collector.test"
        )
        await send(here, trusted=ca)
        await until(lambda: server.connections)
        with pytest.raises(TROUBLES) as refused:
            await send(over_tls(server.port, verify=True), trusted=ca)

    assert server.connections == [b"a\nb\n"]
    assert "IP address mismatch" in str(refused.value.__cause__)


@pytest.mark.parametrize("to", [over_tls, over_https])
async def test_a_server_that_is_not_believed_gets_nothing(
    tmp_path: Path, to: Callable[..., Destination]
) -> None:
    context, _ = server_context(tmp_path, "127.0.0.1")

    async with listening(context) as server:
        with pytest.raises(trio.BrokenResourceError) as refused:
            await send(to(server.port, verify=True))

    assert server.connections == []
    assert isinstance(refused.value.__cause__, ssl.SSLCertVerificationError)


async def test_without_the_file_of_whom_to_trust_nothing_is_sent() -> None:
    async with listening() as server:
        with pytest.raises(FileNotFoundError):
            await send(over_tls(server.port, verify=True), trusted="/no/such/ca.pem")

    assert server.connections == []


async def test_a_server_that_does_not_want_it_is_a_failure() -> None:
    async with receiving(b"HTTP/1.1 403 No\r\n\r\n") as receiver:
        with pytest.raises(BadAnswer, match="answered 403"):
            await send(OverHTTP(host="127.0.0.1", port=receiver.port))


@pytest.mark.parametrize(
    "to",
    [
        lambda port: OverTCP(host="127.0.0.1", port=port, tls=True),
        lambda port: OverHTTP(host="127.0.0.1", port=port),
    ],
    ids=["handshake", "answer"],
)
async def test_a_server_that_says_nothing_is_given_up_in_time(to: Callable[[int], Destination]) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        with pytest.raises(trio.TooSlowError):
            await send(to(listener.socket.getsockname()[1]), timeout_s=0.05)


async def test_a_server_that_took_the_batch_and_keeps_the_connection_is_no_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its time is over while the end of the answer is waited for."""
    autojump_clock.autojump_threshold = 0.05  # what is on its way over the loopback device arrives
    async with receiving(stays_open=True) as receiver:
        await send(OverHTTP(host="127.0.0.1", port=receiver.port, form="lines"), timeout_s=0.8)

    assert receiver.bodies == [b"a\nb"]
    assert 0.8 < autojump_clock.current_time() < 5


async def test_a_collector_that_never_closes_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL_S", 0.05)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        await send(OverTCP(host="127.0.0.1", port=listener.socket.getsockname()[1]))
        async with await listener.accept() as connection:
            assert await connection.receive_some() == b"a\nb\n"


async def test_in_haste_a_collector_that_never_closes_is_believed_sooner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        where = Collector(to=OverTCP(host="127.0.0.1", port=listener.socket.getsockname()[1]))
        arrived: list[float] = []

        await Senders(lambda: "system").send(
            where, BATCH, lambda: arrived.append(trio.current_time()), in_haste=True
        )

    assert arrived == [pytest.approx(autojump_clock.current_time())]
    assert arrived[0] <= module.HASTE_S + 0.01


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_collector_that_dies_over_a_batch_has_not_got_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tls: bool
) -> None:
    """A process that is killed with bytes unread: its kernel sends an RST."""
    monkeypatch.setattr(module, "FAREWELL_S", 60.0)  # it is waited for, however busy the machine is
    context, _ = server_context(tmp_path, "127.0.0.1")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def accept_and_die() -> None:
        connection = await listener.accept()
        if is_tls:
            await trio.SSLStream(connection, context, server_side=True).do_handshake()
        with trio.fail_after(5):
            while not await _has_bytes(connection):
                await trio.sleep(0.005)
        await trio.aclose_forcefully(connection)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept_and_die)
        with pytest.raises(trio.BrokenResourceError):
            await send(OverTCP(host="127.0.0.1", port=listener.socket.getsockname()[1], tls=is_tls))


async def test_a_collector_that_ends_tls_without_a_word_has_got_it(tmp_path: Path) -> None:
    context, _ = server_context(tmp_path, "127.0.0.1")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    read = b""

    async def read_and_close() -> None:
        nonlocal read
        connection = await listener.accept()
        stream = trio.SSLStream(connection, context, server_side=True)
        while len(read) < 4:
            read += await stream.receive_some()
        await connection.send_eof()
        with trio.move_on_after(5):
            while await connection.receive_some():
                pass
        await trio.aclose_forcefully(stream)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(read_and_close)
        await send(OverTCP(host="127.0.0.1", port=listener.socket.getsockname()[1], tls=True))

    assert read == b"a\nb\n"


async def _has_bytes(connection: trio.SocketStream) -> bool:
    """More than the end of TLS's handshake needs."""
    peeked = await connection.socket.recv(100, trio.socket.MSG_PEEK)
    return len(peeked) > 0
