"""Looking without taking; the parked side of it is told on real sockets in tests/conformance/test_pump.py."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Iterator

import pytest
import trio

from streamgw.core.errors import Drained, Killed, PeerReset, Reason, SessionError
from streamgw.dataplane.pump.end import Socket
from streamgw.dataplane.pump.peek import PEEK_BYTES, Peeks, look
from streamgw.dataplane.pump.tls import TLSLayer, Truncated
from tests.dataplane.pump.test_tls import CIPHER, PLAIN, handshaken
from tests.support.bridge import reset


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Socket]]:
    """A client, and the end that was accepted from it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.setblocking(False)
    with client, accepted:
        yield client, Socket(accepted, is_client=True)


def test_less_than_asked_is_not_enough_and_nothing_is_taken(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    assert look(end, 1) == (b"", False)
    client.send(b"abc")
    assert look(end, 4) == (b"abc", False)
    assert look(end, 3) == (b"abc", True)


def test_a_fin_behind_the_bytes_makes_them_enough(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    client.send(b"abc")
    client.shutdown(socket.SHUT_WR)
    end.note(select.EPOLLIN | select.EPOLLRDHUP)
    assert look(end, 4) == (b"abc", True)


def test_eof_alone_is_enough(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    client.shutdown(socket.SHUT_WR)
    assert look(end, 4) == (b"", True)


@pytest.mark.parametrize("noted", [True, False], ids=["after its edge", "before its edge"])
def test_a_reset_is_told(pair: tuple[socket.socket, Socket], noted: bool) -> None:
    client, end = pair
    reset(client)
    if noted:
        end.note(select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
    with pytest.raises(PeerReset, match="connection reset by peer"):
        look(end, 1)


@pytest.mark.parametrize(
    ("reason", "error"), [(Reason.DRAIN, Drained), (Reason.KILLED, Killed), (Reason.BUG, Killed)]
)
def test_an_end_that_was_aborted_says_why(
    pair: tuple[socket.socket, Socket], reason: Reason, error: type[SessionError]
) -> None:
    _, end = pair
    end.aborted = reason
    with pytest.raises(error):
        look(end, 1)


async def test_more_than_can_be_looked_at_is_not_waited_for(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    client.sendall(bytes(PEEK_BYTES + 1))
    peeks = Peeks(on_park=lambda: None, on_wake=lambda: None)
    assert len(await peeks.peek(end, 1 << 20, math.inf)) == PEEK_BYTES


async def test_a_parked_task_is_woken_by_its_deadline(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    client.send(b"abc")
    parked = trio.Event()
    peeks = Peeks(on_park=parked.set, on_wake=lambda: None)
    seen: list[bytes] = []
    deadline = trio.current_time() + 0.01

    async def look_long() -> None:
        seen.append(await peeks.peek(end, 10, deadline))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_long)
        await parked.wait()
        peeks.expire(deadline - 0.001)
        assert len(peeks) == 1
        await trio.sleep_until(deadline)
        peeks.expire(trio.current_time())
    assert seen == [b"abc"]
    assert len(peeks) == 0


# ── Plain text behind TLS ────────────────────────────────────────────────────────────────────────


def behind_tls(end: Socket) -> TLSLayer:
    """Make it a TLS end; returns the client's side."""
    end.tls, client = handshaken()
    return client


def read_all(end: Socket) -> bytes:
    """What a relay would get."""
    assert end.tls is not None
    got = b""
    while count := end.tls.receive(end.sock, CIPHER, PLAIN):
        got += PLAIN[:count].tobytes()
    return got


def test_plain_text_is_looked_at_and_stays_for_who_reads_next(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    layer = behind_tls(end)
    assert look(end, 1) == (b"", False)

    client.send(layer.seal(memoryview(b"hel")))
    assert look(end, 5) == (b"hel", False)
    client.send(layer.seal(memoryview(b"lo, world")) + layer.farewell())
    assert look(end, 5) == (b"hello, world", True)

    assert read_all(end) == b"hello, world"


def test_more_than_one_read_takes_is_still_whole(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    layer = behind_tls(end)
    said = bytes(range(256)) * 300
    client.send(layer.seal(memoryview(said)))
    client.send(layer.farewell())

    seen, enough = look(end, PEEK_BYTES)

    assert enough
    assert said.startswith(seen)
    assert read_all(end) == said


def test_the_end_of_tls_is_an_end_to_wait_for_no_longer(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    layer = behind_tls(end)
    client.send(layer.seal(memoryview(b"abc")) + layer.farewell())

    assert look(end, 4) == (b"abc", True)
    assert look(end, 4) == (b"abc", True)


def test_tls_that_is_cut_off_is_enough_and_told_to_who_reads_next(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    layer = behind_tls(end)
    client.send(layer.seal(memoryview(b"abc")))
    client.shutdown(socket.SHUT_WR)

    assert look(end, 4) == (b"abc", True)
    with pytest.raises(Truncated):
        read_all(end)


def test_a_reset_behind_tls_is_told(pair: tuple[socket.socket, Socket]) -> None:
    client, end = pair
    behind_tls(end)
    reset(client)

    with pytest.raises(PeerReset, match="connection reset by peer"):
        look(end, 1)
