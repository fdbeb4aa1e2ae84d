"""Waiting for connects and handshakes; on sockets, with every way to end, in tests/conformance/test_pump_tls.py."""

from __future__ import annotations

import errno
import math

import pytest
import trio
import trio.testing

from streamgw.core.errors import ConnectFailed, Killed, PeerReset, Reason, TLSFailed, UpstreamTLSFailed
from streamgw.dataplane.pump.end import Socket
from streamgw.dataplane.pump.handshake import Handshakes
from streamgw.dataplane.pump.peek import Peeks
from tests.support.scripted_socket import ScriptedSocket
from tests.support.tls_talker import CLIENT, NAME, SERVER

GONE = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@pytest.fixture
def said() -> list[bytes]:
    return []


@pytest.fixture
def peeks() -> Peeks:
    return Peeks(on_park=lambda: None, on_wake=lambda: None)


@pytest.fixture
def handshakes(peeks: Peeks, said: list[bytes]) -> Handshakes:
    return Handshakes(peeks, lambda _end, words: said.append(words), hear=lambda _end: None)


def dialled(sock: ScriptedSocket, *, preface: bytes = b"", deadline: float = math.inf) -> Socket:
    end = Socket(sock, is_client=False)
    end.preface, end.deadline, end.writable = preface, deadline, True
    return end


async def test_the_preface_goes_out_piece_by_piece(handshakes: Handshakes, peeks: Peeks) -> None:
    sock = ScriptedSocket(takes=[2, 0, 3])
    end = dialled(sock, preface=b"PROXY")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handshakes.connected, end)
        while sock.sent != b"PROXY":
            await trio.testing.wait_all_tasks_blocked()
            peeks.wake(end)
    assert end.deadline == math.inf


async def test_a_preface_that_nobody_takes_is_a_failed_connect(handshakes: Handshakes) -> None:
    with pytest.raises(ConnectFailed, match="connection reset by peer"):
        await handshakes.connected(dialled(ScriptedSocket(takes=[GONE]), preface=b"PROXY"))


@pytest.mark.parametrize(("is_client", "error"), [(True, PeerReset), (False, UpstreamTLSFailed)])
@pytest.mark.parametrize("failing", ["read", "write"])
async def test_a_reset_is_the_peers(
    handshakes: Handshakes, is_client: bool, error: type[Exception], failing: str
) -> None:
    sock = ScriptedSocket(reads=[GONE], takes=[GONE] if failing == "write" else [])
    end = Socket(sock, is_client=is_client)
    with pytest.raises(error, match="connection reset by peer"):
        await handshakes.shake(end, CLIENT, server_side=False, server_name=NAME, deadline=math.inf)
    assert end.tls is None


async def test_a_fin_and_then_a_reset_is_a_reset(handshakes: Handshakes) -> None:
    sock = ScriptedSocket(pending_error=errno.ECONNRESET)
    sock.reach_eof()
    end = Socket(sock, is_client=True)
    end.broken = True
    with pytest.raises(PeerReset):
        await handshakes.shake(end, SERVER, server_side=True, server_name="", deadline=math.inf)


async def test_what_openssl_says_last_is_said(handshakes: Handshakes, said: list[bytes]) -> None:
    server_hello = b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"
    end = Socket(ScriptedSocket(reads=[server_hello]), is_client=True)
    with pytest.raises(TLSFailed):
        await handshakes.shake(end, SERVER, server_side=True, server_name="", deadline=math.inf)
    assert said
    assert said[0][:1] == b"\x15", "an alert"


async def test_an_end_that_was_aborted_meanwhile_is_left_alone(handshakes: Handshakes) -> None:
    end = Socket(ScriptedSocket(), is_client=True)
    end.aborted = Reason.KILLED
    with pytest.raises(Killed):
        await handshakes.shake(end, CLIENT, server_side=False, server_name=NAME, deadline=math.inf)


async def test_a_quick_one_sleeps_until_its_steps_were_taken(
    handshakes: Handshakes, peeks: Peeks, nursery: trio.Nursery
) -> None:
    end = Socket(ScriptedSocket(), is_client=True)
    failures = []

    async def shake() -> None:
        with pytest.raises(PeerReset) as caught:
            await handshakes.shake(
                end, SERVER, server_side=True, server_name="", deadline=math.inf, is_quick=True
            )
        failures.append(caught.value)

    nursery.start_soon(shake)
    await trio.testing.wait_all_tasks_blocked()
    assert end.shaking is not None
    peeks.wake(end)  # for nothing: it sleeps on
    await trio.testing.wait_all_tasks_blocked()
    end.shaking.failure = PeerReset("gone")
    peeks.wake(end)
    await trio.testing.wait_all_tasks_blocked()

    assert [str(failure) for failure in failures] == ["gone"]
    assert end.shaking is None


async def test_a_quick_one_that_is_cancelled_leaves_nothing_behind(handshakes: Handshakes) -> None:
    end = Socket(ScriptedSocket(), is_client=True)
    with trio.move_on_after(0):
        await handshakes.shake(
            end, SERVER, server_side=True, server_name="", deadline=math.inf, is_quick=True
        )
    assert end.shaking is None
    assert end.waiter is None
