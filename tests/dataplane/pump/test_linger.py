"""Closing without destroying the last words; on sockets in tests/conformance/test_pump_tls.py."""

from __future__ import annotations

import errno

from streamgw.dataplane.pump.end import Socket
from streamgw.dataplane.pump.linger import LINGER_S, MAX_DISCARDS, MAX_LINGERING, Lingering, discard, say
from tests.support.scripted_socket import ScriptedSocket

GONE = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def end(sock: ScriptedSocket) -> Socket:
    return Socket(sock, is_client=True)


def test_it_waits_for_the_peers_end_and_then_releases_once() -> None:
    released: list[Socket] = []
    lingering = Lingering(released.append)
    sock = ScriptedSocket()
    one = end(sock)

    assert lingering.begin(one, 100.0)
    assert one in lingering
    assert "shutdown" in sock.log
    sock.reads = [b"still talking"]
    lingering.hear(one)
    assert released == []

    sock.reach_eof()
    lingering.hear(one)
    lingering.expire(1000.0)
    assert released == [one]
    assert len(lingering) == 0


def test_a_peer_that_never_closes_has_had_its_time() -> None:
    released: list[Socket] = []
    lingering = Lingering(released.append)
    one = end(ScriptedSocket())
    lingering.begin(one, 100.0)

    lingering.expire(100.0 + LINGER_S - 0.01)
    assert released == []
    lingering.expire(100.0 + LINGER_S)
    assert released == [one]


def test_nobody_is_waited_for_who_has_closed_or_is_one_too_many() -> None:
    lingering = Lingering(lambda _end: None)
    closed = ScriptedSocket()
    closed.reach_eof()
    assert not lingering.begin(end(closed), 0.0)
    assert not lingering.begin(end(ScriptedSocket(shutdown_error=GONE)), 0.0)
    for _ in range(MAX_LINGERING):
        assert lingering.begin(end(ScriptedSocket()), 0.0)
    assert not lingering.begin(end(ScriptedSocket()), 0.0)


def test_a_flood_is_not_read_to_its_end() -> None:
    flood = ScriptedSocket(endless=b"x")
    assert discard(end(flood))
    assert len(flood.log) == MAX_DISCARDS


def test_whoever_is_gone_does_not_hear_the_last_words() -> None:
    sock = ScriptedSocket(takes=[GONE], reads=[GONE])
    say(end(sock), b"no such name")
    assert sock.sent == b""
    assert discard(end(sock))
