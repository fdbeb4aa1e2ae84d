"""What the contract of `Pump` says of TLS alone; what TLS ends share with plain ones is told in test_pump.py."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from streamgw.core.errors import (
    ConnectFailed,
    Drained,
    Killed,
    PeerReset,
    Reason,
    TLSFailed,
    UpstreamTLSFailed,
)
from streamgw.core.model import Address
from streamgw.dataplane.pump import Ending, TLSInfo
from tests.support.bridge import (
    HOST,
    TIMEOUT_S,
    Bridge,
    RelayedSession,
    Talker,
    Way,
    full_backlog,
    open_bridge,
    open_client,
    open_pump,
    receive_exactly,
    receive_to_eof,
    reset,
    send_all,
    until,
)
from tests.support.certificates import CA_PEM, OTHER_CA, issue
from tests.support.tls_clients import s_client
from tests.support.tls_talker import CLIENT, NAME, SERVER, TLSTalker, load, serving

CLOSED = Ending(Reason.CLOSED)
CUT = "ended without close_notify"
TLS_TLS = Way(1, client_tls=True, upstream_tls=True)
ONE_SIDE = {"client": Way(1, client_tls=True), "upstream": Way(1, upstream_tls=True)}


@pytest.fixture(params=["client", "upstream"])
def side(request: pytest.FixtureRequest) -> str:
    """Which side speaks TLS; the other is plain."""
    return request.param


@pytest.fixture(autouse=True, params=["in steps", "in threads"])
def way_to_shake_hands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With clients. With nodes it is always in threads."""
    monkeypatch.setattr("tests.support.bridge.SHAKES_QUICKLY", request.param == "in steps")


def client_context(**settings: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=CA_PEM)
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def in_order(side: str, client: Talker, upstream: Talker) -> tuple[Any, Any]:
    """(the TLS end, the plain one)."""
    return (client, upstream) if side == "client" else (upstream, client)


# What was agreed


async def test_a_handshake_tells_what_was_agreed() -> None:
    server, client = serving(), client_context()
    server.set_alpn_protocols(["mqtt"])
    client.set_alpn_protocols(["h2", "mqtt"])
    async with open_bridge(Way(client_tls=True)) as bridge:
        bridge.server_context = server
        with TLSTalker(await bridge.dial_plain(), server_side=False, context=client) as visitor:
            await visitor.handshake()
            with await bridge.accept():
                session = await bridge.only_session()
                assert session.info == TLSInfo(
                    version="TLSv1.3",
                    cipher=visitor.tls.cipher()[0],
                    alpn="mqtt",
                    resumed=False,
                    peer_certificate=b"",
                )


async def test_a_client_certificate_is_handed_over_in_der() -> None:
    client = client_context()
    load(client, issue("visitor.test"))
    async with open_bridge(Way(client_tls=True)) as bridge:
        bridge.server_context = serving(client_ca_pem=CA_PEM)
        with TLSTalker(await bridge.dial_plain(), server_side=False, context=client) as visitor:
            await visitor.handshake()
            with await bridge.accept():
                session = await bridge.only_session()
                assert session.info.peer_certificate.startswith(b"\x30\x82")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_resumed_handshake_says_so(version: ssl.TLSVersion) -> None:
    context = client_context(maximum_version=version)
    async with open_bridge(Way(client_tls=True)) as bridge:
        ticket = None
        for number in range(2):
            sock = await bridge.dial_plain()
            with TLSTalker(sock, server_side=False, context=context, session=ticket) as visitor:
                await visitor.handshake()
                with await bridge.accept() as upstream:
                    await upstream.send(b"hello")  # with TLS 1.3 the ticket comes with the first bytes
                    assert await receive_exactly(visitor, 5) == b"hello"
                    ticket = visitor.tls.session
                    assert bridge.sessions[number].info.resumed == bool(number)


# Handshakes, slow and odd


async def test_a_handshake_may_come_a_byte_at_a_time(side: str) -> None:
    async with open_bridge(ONE_SIDE[side]) as bridge:
        if side == "client":
            client = await TLSTalker(await bridge.dial_plain(), server_side=False).handshake(piece_bytes=1)
            upstream = await bridge.accept()
        else:
            client = await bridge.dial()
            accepted, _ = await bridge.origin.accept()
            upstream = await TLSTalker(accepted, server_side=True).handshake(piece_bytes=1)
        with client, upstream:
            await client.send(b"ping")
            assert await receive_exactly(upstream, 4) == b"ping"


async def test_what_comes_with_the_end_of_the_handshake_is_not_forgotten() -> None:
    """One segment: the client's Finished, and its first request. No edge announces the request again."""
    async with open_bridge(Way(client_tls=True)) as bridge:
        client = TLSTalker(await bridge.dial_plain(), server_side=False)
        with client:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
            await client.flush()
            while True:
                await client._fill()
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                    break
            await client.seal(b"early")
            with await bridge.accept() as upstream:
                assert await receive_exactly(upstream, 5) == b"early"


async def test_many_records_in_one_segment_arrive_in_order(side: str) -> None:
    async with open_bridge(ONE_SIDE[side]) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            secure, plain = in_order(side, client, upstream)
            for number in range(2000):
                secure.tls.write(b"%06d" % number)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(secure.flush)
                expected = b"".join(b"%06d" % number for number in range(2000))
                assert await receive_exactly(plain, 12_000) == expected


# The end of a stream


@pytest.mark.parametrize("answers", [True, False], ids=["which answers", "which says nothing"])
async def test_a_stream_without_close_notify_resets_the_other_side_after_all_that_came(
    side: str, answers: bool
) -> None:
    async with open_bridge(ONE_SIDE[side]) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            secure, plain = in_order(side, client, upstream)
            await send_all(secure, b"all of th")
            secure.sock.shutdown(socket.SHUT_WR)

            assert await receive_exactly(plain, 9) == b"all of th"
            if answers:
                await plain.send(b"what?")
                assert await receive_exactly(secure, 5) == b"what?"
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(plain)
        session = await bridge.only_session()
        assert await session.wait_ended() == Ending(Reason.RESET, side, CUT)


async def test_a_slow_reader_gets_all_of_a_truncated_stream_before_its_reset() -> None:
    data = bytes(12_000_000)
    async with open_bridge(Way(client_tls=True), upstream_receive_buffer=16 * 1024) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            session = await bridge.only_session()
            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await send_all(client, data)
                    client.sock.shutdown(socket.SHUT_WR)

                nursery.start_soon(say)
                await until(lambda: session.end.stuck)
                received = await receive_exactly(upstream, len(data) - 2_000_000)
                await until(lambda: session.end.truncated)
                await trio.sleep(1.5)  # longer than it would take, had it all arrived: the subject is time
                received += await receive_exactly(upstream, 2_000_000)
            assert len(received) == len(data)
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(upstream)


async def test_a_client_that_just_closes_after_its_goodbye_has_closed_if_the_other_side_ends_too(
    side: str,
) -> None:
    """MySQL's COM_QUIT, then close(2): the server knows what it means and closes as well."""
    async with open_bridge(ONE_SIDE[side]) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            secure, plain = in_order(side, client, upstream)
            await plain.send(b"hello")
            assert await receive_exactly(secure, 5) == b"hello"
            await secure.send(b"quit")
            secure.sock.close()
            assert await receive_exactly(plain, 4) == b"quit"
            plain.close()
        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED


async def test_a_client_that_only_writes_is_sent_no_tickets_that_it_would_close_over() -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        client, upstream = await bridge.connect()
        await send_all(client, b"line\n" * 1000)
        client.shutdown(socket.SHUT_WR)
        client.sock.close()
        session = await bridge.only_session()
        with upstream:
            assert await receive_to_eof(upstream) == b"line\n" * 1000
            assert not session.end.broken
        assert await session.wait_ended() == CLOSED


async def test_a_client_that_writes_says_close_notify_and_closes_over_an_unread_reply_has_closed() -> None:
    """Its kernel makes an RST of the FIN, for the reply's sake. The users of such a log shipper missed lines."""
    async with open_bridge(Way(client_tls=True)) as bridge:
        client, upstream = await bridge.connect()
        session = await bridge.only_session()
        await upstream.send(b"welcome")
        await until(lambda: session.meter.bytes_down == len(b"welcome"))
        await send_all(client, b"line\n" * 1000)
        client.shutdown(socket.SHUT_WR)
        client.sock.close()
        with upstream:
            assert await receive_to_eof(upstream) == b"line\n" * 1000
            await until(lambda: session.end.broken)
            assert not session.ended.is_set()


async def test_close_notify_that_is_not_answered_by_one_is_a_close(side: str) -> None:
    async with open_bridge(ONE_SIDE[side]) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            secure, plain = in_order(side, client, upstream)
            plain.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(secure) == b""
            secure.sock.close()
            assert await receive_to_eof(plain) == b"", "no reset"
        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED


async def test_two_streams_cut_off_are_a_reset_of_both() -> None:
    async with open_bridge(TLS_TLS) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            client.sock.shutdown(socket.SHUT_WR)
            upstream.sock.shutdown(socket.SHUT_WR)
            session = await bridge.only_session()
            ending = await session.wait_ended()
            assert (ending.reason, ending.detail) == (Reason.RESET, CUT)


async def test_a_tls_peer_that_goes_on_after_close_notify_is_heard_to_its_end() -> None:
    data = bytes(range(256)) * 20_000
    async with open_bridge(TLS_TLS) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            upstream.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(client) == b""
            async with trio.open_nursery() as nursery:

                async def go_on() -> None:
                    await send_all(client, data)
                    client.shutdown(socket.SHUT_WR)

                nursery.start_soon(go_on)
                assert await receive_to_eof(upstream) == data
        session = await bridge.only_session()
        assert await session.wait_ended() == CLOSED


async def test_a_tls_peer_that_never_answers_close_notify_is_left_after_a_while() -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            upstream.shutdown(socket.SHUT_WR)
            assert await receive_to_eof(client) == b""
            session = await bridge.only_session()
            assert session.end.relay.quiet_s == 5.0
            session.end.relay.quiet_s = 0.3

            ending = await session.wait_ended()
            assert ending == Ending(Reason.CLOSED, None, "the client did not answer close_notify")
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(upstream)  # it may still be waiting for the client's last word


@pytest.mark.parametrize("way", [TLS_TLS, *ONE_SIDE.values()], ids=["tls-tls", "tls-plain", "plain-tls"])
@pytest.mark.parametrize("gone", ["client", "upstream"])
async def test_a_reset_reaches_the_other_side_as_a_reset_and_not_as_close_notify(way: Way, gone: str) -> None:
    async with open_bridge(way) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            await client.send(b"x")
            assert await receive_exactly(upstream, 1) == b"x"
            goner, other = (client, upstream) if gone == "client" else (upstream, client)
            reset(goner)
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(other)
        session = await bridge.only_session()
        assert await session.wait_ended() == Ending(Reason.RESET, gone, "connection reset by peer")


async def test_bytes_changed_on_the_way_end_the_session_after_those_before_them(side: str) -> None:
    async with open_bridge(ONE_SIDE[side]) as bridge:
        client, upstream = await bridge.connect()
        with client, upstream:
            secure, plain = in_order(side, client, upstream)
            secure.tls.write(b"genuine")
            genuine = secure._outgoing.read()
            secure.tls.write(b"changed")
            changed = bytearray(secure._outgoing.read())
            changed[-1] ^= 1
            await secure.sock.send(genuine + changed)

            assert await receive_exactly(plain, 7) == b"genuine"
            with pytest.raises(ConnectionResetError):
                await receive_to_eof(plain)
        session = await bridge.only_session()
        ending = await session.wait_ended()
        assert (ending.reason, ending.side) == (Reason.RESET, side)
        assert "mac" in ending.detail


# openssl s_client, which can do what no Python client can


@pytest.mark.parametrize("command", ["K", "k"], ids=["asking for ours too", "its own only"])
async def test_keys_may_change_in_the_middle_of_a_session(tmp_path: Path, command: str) -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        bridge.server_context = serving(issue("a.test"))
        port = bridge.listening.getsockname()[1]
        with s_client(tmp_path, port, name="a.test") as child, await bridge.accept() as upstream:
            for line in (b"one\n", b"two\n"):
                child.tell(line.decode())
                assert await receive_exactly(upstream, len(line)) == line
                child.tell(f"{command}\n")
                await upstream.send(line)
                await trio.to_thread.run_sync(child.wait_for_line, line.decode().strip())
            assert "KEYUPDATE" in child.output()


async def test_renegotiation_is_refused_at_once(tmp_path: Path) -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        bridge.server_context = serving(issue("a.test"))
        port = bridge.listening.getsockname()[1]
        with s_client(tmp_path, port, "-tls1_2", name="a.test") as child, await bridge.accept() as upstream:
            child.tell("one\n")
            assert await receive_exactly(upstream, 4) == b"one\n"
            child.tell("R\n")
            await trio.to_thread.run_sync(
                lambda: child.wait_until(
                    lambda: re.search("no renegotiation", child.output(), re.IGNORECASE),
                    what="is told no",
                )
            )


async def test_a_client_without_its_certificate_reads_the_alert(tmp_path: Path) -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        bridge.server_context = serving(issue("a.test"), client_ca_pem=CA_PEM)
        port = bridge.listening.getsockname()[1]
        with s_client(tmp_path, port, name="a.test") as child:
            child.tell("hello\n")  # it believes itself connected, and sends: no reset must overtake the alert
            await trio.to_thread.run_sync(
                lambda: child.wait_until(
                    lambda: re.search("alert certificate required", child.output()), what="reads the alert"
                )
            )
        session = await bridge.only_session()
        await until(session.ended.is_set)
        assert isinstance(session.error, TLSFailed)
        assert str(session.error) == "peer did not return a certificate"


# Handshakes that fail


async def believe_to_be_in(talker: TLSTalker) -> None:
    """With TLS 1.3 whoever speaks last in the handshake learns of the other's refusal only by reading on."""
    await talker.handshake()
    await talker.send(b"I think I am in")
    await receive_to_eof(talker)


def self_signed() -> ssl.SSLContext:
    context = client_context()
    load(context, issue("visitor.test", ca=OTHER_CA))
    return context


def v12(**settings: Any) -> ssl.SSLContext:
    context = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    for name, value in settings.items():
        getattr(context, name)(value)
    return context


def strict_server() -> ssl.SSLContext:
    context = serving(client_ca_pem=CA_PEM)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def server_of_one_cipher() -> ssl.SSLContext:
    context = serving()
    context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    return context


@pytest.mark.parametrize(
    ("server", "client", "words"),
    [
        (serving(client_ca_pem=CA_PEM), CLIENT, "peer did not return a certificate"),
        (serving(client_ca_pem=CA_PEM), v12(), "peer did not return a certificate"),
        (
            serving(client_ca_pem=CA_PEM),
            self_signed(),
            "certificate verify failed: unable to get local issuer certificate",
        ),
        (strict_server(), v12(), "unsupported protocol"),
        (server_of_one_cipher(), v12(set_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"), "no shared cipher"),
        (SERVER, ssl.create_default_context(), "the peer's alert: unknown ca"),
    ],
)
async def test_a_failed_handshake_says_why_and_the_client_reads_the_alert(
    server: ssl.SSLContext, client: ssl.SSLContext, words: str
) -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        bridge.server_context = server
        with (
            TLSTalker(await bridge.dial_plain(), server_side=False, context=client) as visitor,
            pytest.raises(ssl.SSLError) as caught,
        ):
            await believe_to_be_in(visitor)
        session = await bridge.only_session()
        await until(session.ended.is_set)
        assert isinstance(session.error, TLSFailed)
        assert str(session.error) == words
        if "peer's" not in words:
            assert "ALERT" in str(caught.value.reason)


@pytest.mark.parametrize(
    ("said", "words"),
    [(b"GET / HTTP/1.1\r\n\r\n", "http request"), (b"\x00" * 100, "wrong version number")],
    ids=["http", "garbage"],
)
async def test_what_is_no_tls_is_told_so(said: bytes, words: str) -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        with await bridge.dial_plain() as client:
            await client.send(said)
            await receive_to_eof(client)
        session = await bridge.only_session()
        assert str(session.error) == words


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (
            serving(issue(NAME, ca=OTHER_CA)),
            "certificate verify failed: unable to get local issuer certificate",
        ),
        (
            serving(issue("other.test")),
            "certificate verify failed: Hostname mismatch, certificate is not valid for 'pump.test'",
        ),
    ],
)
async def test_an_upstream_that_is_not_trusted_is_no_upstream(context: ssl.SSLContext, words: str) -> None:
    async with open_bridge(Way(upstream_tls=True)) as bridge:
        with await bridge.dial() as client:
            accepted, _ = await bridge.origin.accept()
            with (
                TLSTalker(accepted, server_side=True, context=context) as upstream,
                pytest.raises(ssl.SSLError, match="alert"),
            ):
                await believe_to_be_in(upstream)
            session = await bridge.only_session()
            await until(session.ended.is_set)
            assert isinstance(session.error, UpstreamTLSFailed)
            assert str(session.error) == words
            assert await receive_to_eof(client) == b""


async def test_a_name_that_cannot_be_is_a_failure_and_no_bug() -> None:
    async with open_bridge() as bridge, open_origin() as (_, node):
        upstream = bridge.pump.dial(node, preface=b"", deadline=math.inf)
        with pytest.raises(UpstreamTLSFailed, match=re.escape("server name 'a..b'")):
            await bridge.pump.handshake(
                upstream, CLIENT, server_side=False, server_name="a..b", deadline=math.inf
            )


async def test_a_peer_that_is_silent_has_until_the_deadline(side: str) -> None:
    async with open_bridge(ONE_SIDE[side]) as bridge:
        bridge.handshake_timeout_s = 0.3
        with await bridge.dial_plain():
            session = await bridge.only_session()
            await until(session.ended.is_set)
            assert type(session.error) is (TLSFailed if side == "client" else UpstreamTLSFailed)
            assert str(session.error) == "no handshake within 0.3 s"


@pytest.mark.parametrize("cut", [False, True], ids=["by FIN", "by RST"])
async def test_a_client_that_goes_during_the_handshake_is_told_of(cut: bool) -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        client = await bridge.dial_plain()
        await client.send(b"\x16\x03\x01")
        session = await bridge.only_session()
        await until(lambda: session.end.waiter is not None)
        if cut:
            reset(client)
        else:
            client.close()
        await until(session.ended.is_set)
        assert type(session.error) is (PeerReset if cut else TLSFailed)


@pytest.mark.parametrize("cut", [False, True], ids=["by FIN", "by RST"])
async def test_an_upstream_that_goes_during_the_handshake_is_one_to_retry(cut: bool) -> None:
    async with open_bridge(Way(upstream_tls=True)) as bridge:
        with await bridge.dial():
            accepted, _ = await bridge.origin.accept()
            await accepted.recv(1000)
            if cut:
                reset(accepted)
            else:
                accepted.close()
            session = await bridge.only_session()
            await until(session.ended.is_set)
            assert isinstance(session.error, UpstreamTLSFailed)
            assert str(session.error).endswith("during the handshake")


# connected


@contextlib.asynccontextmanager
async def open_origin(receive_buffer: int = 0) -> Any:
    """A listening socket, and its address."""
    with trio.socket.socket() as origin:
        if receive_buffer:
            origin.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await origin.bind((HOST, 0))
        origin.listen()
        yield origin, Address(*origin.getsockname())


async def test_connected_sends_the_preface_whole_however_slowly_it_is_read() -> None:
    preface = bytes(range(256)) * 40_000
    async with open_pump() as pump, open_origin(8192) as (origin, node):
        upstream = pump.dial(node, preface=preface, deadline=trio.current_time() + TIMEOUT_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.connected, upstream)
            accepted, _ = await origin.accept()
            with accepted:
                assert await receive_exactly(accepted, len(preface)) == preface
        pump.close(upstream)


async def test_connected_says_who_does_not_listen_or_answer() -> None:
    async with open_pump() as pump:
        with socket.socket() as nobody, full_backlog() as silent:
            nobody.bind((HOST, 0))
            refusing = Address(*nobody.getsockname())
            for node, words in ((refusing, "connection refused"), (silent, "timed out after 0.3 s")):
                upstream = pump.dial(node, preface=b"", deadline=trio.current_time() + 0.3)
                with pytest.raises(ConnectFailed, match=words):
                    await pump.connected(upstream)
        assert pump.active_ends == 0


# Abort and cancellation


Moment = Callable[[Bridge, contextlib.ExitStack], Awaitable[Any]]


async def owing_a_hello(bridge: Bridge, stack: contextlib.ExitStack) -> Any:
    stack.enter_context(await bridge.dial_plain())
    bridge.way = Way(client_tls=True)
    await until(lambda: bool(bridge.sessions) and bridge.sessions[0].end.waiter is not None)
    return bridge.sessions[0].end


async def owing_its_finished(bridge: Bridge, stack: contextlib.ExitStack) -> Any:
    client = TLSTalker(stack.enter_context(await bridge.dial_plain()), server_side=False)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    await client.flush()
    await client._fill()
    await until(lambda: bridge.sessions[0].end.waiter is not None)
    return bridge.sessions[0].end


async def connecting(bridge: Bridge, stack: contextlib.ExitStack) -> Any:
    bridge.way, bridge.node = Way(upstream_tls=True), stack.enter_context(full_backlog())
    stack.enter_context(await bridge.dial())
    await until(lambda: bool(bridge.sessions) and bridge.sessions[0].upstream is not None)
    await until(lambda: bridge.sessions[0].upstream.waiter is not None)
    return bridge.sessions[0].upstream


async def owed_a_hello(bridge: Bridge, stack: contextlib.ExitStack) -> Any:
    bridge.way = Way(upstream_tls=True)
    stack.enter_context(await bridge.dial())
    accepted, _ = await bridge.origin.accept()
    stack.enter_context(accepted)
    await accepted.recv(1000)
    await until(lambda: bridge.sessions[0].upstream.waiter is not None)
    return bridge.sessions[0].upstream


@pytest.mark.parametrize("shakes_quickly", [True, False])
async def test_what_was_peeked_at_before_its_edge_was_heard_is_handed_on(shakes_quickly: bool) -> None:
    """Opened for the look, it is in the socket no more: no edge will ever tell of it."""
    async with open_bridge(Way(client_tls=True)) as bridge:
        shaken = trio.Event()

        async def peek(session: RelayedSession) -> None:
            await shaken.wait()
            client.tls.write(b"hello")
            os.write(client.sock.fileno(), client.sealed())
            assert await bridge.pump.peek(session.end, 5, deadline=math.inf) == b"hello"

        bridge.shakes_quickly, bridge.before_dial = shakes_quickly, peek
        client = await bridge.dial()
        assert isinstance(client, TLSTalker)
        shaken.set()
        upstream = await bridge.accept()

        with trio.fail_after(TIMEOUT_S):
            assert await receive_exactly(upstream, 5) == b"hello"
        for each in (client, upstream):
            each.close()
        await bridge.sessions[0].ended.wait()


MOMENTS: list[Moment] = [owing_a_hello, owing_its_finished, connecting, owed_a_hello]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", ["cancelled", "aborted", "by the end of the pump"])
async def test_ended_at_any_moment_of_a_handshake_nothing_is_left(moment: Moment, how: str) -> None:
    async with open_bridge(Way(client_tls=True)) as bridge:
        with contextlib.ExitStack() as stack:
            end = await moment(bridge, stack)
            session = bridge.sessions[0]
            if how == "cancelled":
                session.scope.cancel()
            elif how == "aborted":
                bridge.pump.abort(end, Reason.KILLED)
            else:
                bridge.pump_scope.cancel()
            with trio.fail_after(TIMEOUT_S):
                await session.ended.wait()
            if how == "cancelled":
                bridge.pump.close(session.end)
            else:
                assert type(session.error) is (Killed if how == "aborted" else Drained)
            assert bridge.pump.active_ends == 0


async def test_a_cancelled_handshake_waits_for_its_thread() -> None:
    """A hundred handshakes cut off anywhere: no thread works on an end that somebody has closed."""
    async with open_bridge(Way(client_tls=True)) as bridge:
        for number in range(100):
            client = TLSTalker(await bridge.dial_plain(), server_side=False)
            with client:
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                await client.flush()
                for _ in range(number % 7):
                    await trio.lowlevel.checkpoint()
                if bridge.sessions:
                    bridge.sessions[-1].scope.cancel()
        for session in bridge.sessions:
            await until(session.ended.is_set)
            bridge.pump.close(session.end, reset=True)
        await until(lambda: bridge.pump.active_ends == 0)


# Last words


async def test_last_words_arrive_though_the_client_goes_on_talking() -> None:
    async with open_client() as (pump, end, client):
        await client.send(bytes(100_000))
        pump.say_last(end, b"no such name")
        pump.close(end)
        for _ in range(10):
            await client.send(bytes(1000))
        assert await receive_to_eof(client) == b"no such name"
        client.close()
        await until(lambda: pump.active_ends == 0)


@pytest.mark.parametrize("record", ["17 03 03 00 20" + 32 * "78", "15 03 03 00 02 02 28"])
async def test_last_words_for_a_client_that_broke_the_rules_meanwhile_hurt_nobody(record: str) -> None:
    """Users noticed that one such client, on a route that answers by itself, reset the sessions of all others."""
    async with open_client() as (pump, end, client):
        talker = TLSTalker(client, server_side=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talker.handshake)
            await pump.handshake(end, SERVER, server_side=True, deadline=math.inf)
        talker.tls.write(b"hello")
        await client.send(talker.sealed() + bytes.fromhex(record))
        assert await pump.peek(end, 1000, deadline=math.inf) == b"hello"

        pump.say_last(end, b"no answer to that")
        pump.close(end)

        with pytest.raises(ssl.SSLError):
            await talker.recv(1000)
        client.close()
        await until(lambda: pump.active_ends == 0)


async def test_a_client_that_never_closes_after_the_last_words_is_left() -> None:
    async with open_client() as (pump, end, client):
        pump.say_last(end, b"no such name")
        pump.close(end)
        pump.close(end)
        assert await receive_to_eof(client) == b"no such name"
        assert pump.active_ends == 1
        await until(lambda: pump.active_ends == 0)


async def test_an_end_that_lingers_is_closed_at_once_by_reset() -> None:
    async with open_client() as (pump, end, client):
        pump.say_last(end, b"no such name")
        pump.close(end)
        pump.close(end, reset=True)
        assert pump.active_ends == 0
        assert await receive_to_eof(client) == b"no such name"
        with pytest.raises(ConnectionError):
            await send_all(client, bytes(10_000_000))
