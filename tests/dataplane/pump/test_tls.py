"""TLS between buffers; on sockets, and with everything around it, in tests/conformance/test_pump_tls.py."""

from __future__ import annotations

import ssl

import pytest

from streamgw.dataplane.pump.tls import (
    CIPHER_BYTES,
    MAX_REPLIES_BYTES,
    TLSBroken,
    TLSLayer,
    Truncated,
    words_of,
)
from tests.support.certificates import CA_PEM
from tests.support.scripted_socket import ScriptedSocket
from tests.support.tls_talker import CLIENT, NAME, SERVER

PLAIN = memoryview(bytearray(64 * 1024))
CIPHER = memoryview(bytearray(CIPHER_BYTES))


def handshaken(*, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[TLSLayer, TLSLayer]:
    """(server, client), both done; what the server says last is still in the client's buffer."""
    context = ssl.create_default_context()
    context.load_verify_locations(cadata=CA_PEM)
    context.maximum_version = version
    server = TLSLayer(SERVER, server_side=True)
    client = TLSLayer(context, server_side=False, server_name=NAME)
    words, done = b"", [False, False]
    while not all(done):
        done[1] = client.step(words) or done[1]
        done[0] = server.step(client.replies()) or done[0]
        words = server.replies()
    client._incoming.write(words)
    return server, client


def hear(layer: TLSLayer, *words: bytes) -> tuple[bytes, bool]:
    """What a layer opens of these words, each found by one read; and whether it has ended."""
    sock = ScriptedSocket(reads=list(words))
    heard = b""
    while True:
        try:
            count = layer.receive(sock, CIPHER, PLAIN)
        except BlockingIOError:
            return heard, False
        if count == 0:
            return heard, True
        heard += PLAIN[: count or 0].tobytes()


def test_tickets_wait_for_the_first_bytes_that_follow_them() -> None:
    server, client = TLSLayer(SERVER, server_side=True), TLSLayer(CLIENT, server_side=False, server_name=NAME)
    client.step(b"")
    server.step(client.replies())
    client.step(server.replies())
    assert server.step(client.replies())

    assert not server.has_replies
    assert client._object.session is None or not client._object.session.has_ticket

    assert hear(client, server.seal(memoryview(b"hello"))) == (b"hello", False)
    assert client._object.session.has_ticket
    assert not server.has_replies


def test_before_tls_1_3_the_last_words_of_a_handshake_do_not_wait() -> None:
    context = ssl.create_default_context(cadata=CA_PEM)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server, client = (
        TLSLayer(SERVER, server_side=True),
        TLSLayer(context, server_side=False, server_name=NAME),
    )
    client.step(b"")
    server.step(client.replies())
    client.step(server.replies())
    assert server.step(client.replies())

    assert server.has_replies


def test_what_one_side_seals_the_other_opens_in_any_pieces() -> None:
    server, client = handshaken()
    sealed = client.seal(memoryview(b"hello, " * 10_000))
    step = 1000

    heard, ended = hear(server, *(sealed[at : at + step] for at in range(0, len(sealed), step)))

    assert heard == b"hello, " * 10_000
    assert not ended


def test_close_notify_is_found_behind_the_bytes_before_it() -> None:
    server, client = handshaken()
    words = client.seal(memoryview(b"bye")) + client.farewell()

    sock = ScriptedSocket(reads=[words])
    assert server.receive(sock, CIPHER, PLAIN) == 3
    assert server.more
    assert server.receive(sock, CIPHER, PLAIN) == 0


def test_a_short_read_without_an_end_behind_it_has_drained_the_socket() -> None:
    server, client = handshaken()
    server.receive(ScriptedSocket(reads=[client.seal(memoryview(b"ping"))]), CIPHER, PLAIN)
    assert not server.more


def test_close_notify_is_said_once_and_reading_goes_on() -> None:
    server, client = handshaken()
    assert server.farewell()
    assert server.farewell() == b""

    assert hear(server, client.seal(memoryview(b"one more thing")), client.farewell()) == (
        b"one more thing",
        True,
    )


def test_a_fin_without_close_notify_is_never_an_end() -> None:
    server, _ = handshaken()
    sock = ScriptedSocket()
    sock.reach_eof()
    with pytest.raises(Truncated, match="ended without close_notify"):
        server.receive(sock, CIPHER, PLAIN)


def test_after_a_broken_record_nothing_can_be_said_or_heard() -> None:
    server, client = handshaken()
    sealed = bytearray(client.seal(memoryview(b"changed")))
    sealed[-1] ^= 1
    with pytest.raises(TLSBroken, match="mac"):
        hear(server, bytes(sealed))
    with pytest.raises(TLSBroken, match="mac"):
        hear(server)
    assert server.has_replies, "the alert"
    with pytest.raises(TLSBroken):
        server.seal(memoryview(b"x"))


def test_the_last_words_are_our_alert_where_no_others_may_be_said() -> None:
    server, client = handshaken()
    with pytest.raises(TLSBroken):
        hear(server, b"\x17\x03\x03\x00\x20" + 32 * b"x")

    words = server.last_words(b"no answer to that")

    with pytest.raises(TLSBroken, match="the peer's alert"):
        hear(client, words)
    assert server.last_words(b"nor that") == b""


def test_the_last_words_are_followed_by_close_notify() -> None:
    server, client = handshaken()

    assert hear(client, server.last_words(b"hello")) == (b"hello", True)


def test_whoever_asks_for_renegotiation_without_end_and_reads_nothing_is_noticed() -> None:
    """TLS 1.2: each request is refused by an alert, and the alerts wait for somebody to read them."""
    server, client = handshaken(version=ssl.TLSVersion.TLSv1_2)
    assert not server.flooded
    server._outgoing.write(bytes(MAX_REPLIES_BYTES + 1))
    assert server.flooded
    assert hear(client)[0] == b""


def test_a_failed_step_leaves_an_alert_to_send() -> None:
    server = TLSLayer(SERVER, server_side=True)
    with pytest.raises(TLSBroken, match="http request"):
        server.step(b"GET / HTTP/1.1\r\n\r\n")
    client = TLSLayer(CLIENT, server_side=False, server_name="other.test")
    client.step(b"")
    other = TLSLayer(SERVER, server_side=True)
    other.step(client.replies())
    with pytest.raises(TLSBroken, match="certificate verify failed: Hostname mismatch"):
        client.step(other.replies())
    assert client.has_replies


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("NO_SHARED_CIPHER", "no shared cipher"),
        ("TLSV1_ALERT_UNKNOWN_CA", "the peer's alert: unknown ca"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "the peer's alert: bad certificate"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "the peer's alert: certificate required"),
    ],
)
def test_reasons_are_said_for_people(reason: str, words: str) -> None:
    error = ssl.SSLError(1, "long")
    error.reason = reason
    assert words_of(error) == words
