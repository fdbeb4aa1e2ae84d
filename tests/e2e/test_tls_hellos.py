"""Hellos that are hard to read, that never end, or that are none: each ends with the reason that the documentation gives,
and no connection to the upstream is made for what the gateway refuses.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.hello import hello
from tests.support.origin import named_origin
from tests.support.ports import Ports
from tests.support.tls_clients import (
    Handwritten,
    Witness,
    last_words,
    recut,
    ssl_object,
    trusting,
    whom,
)
from tests.support.tls_guarded import (
    BOTH_NAMES,
    GUARDED,
    HANDSHAKE_TIMEOUT_S,
    OPEN,
    PREREAD_LIMIT_BYTES,
    PREREAD_TIMEOUT_S,
    Scene,
    guarded_gateway,
    nobody_uninvited,
)

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_SLOW = 100


@pytest.fixture(scope="module")
def running(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with guarded_gateway(tmp_path_factory.mktemp("guarded"), ports) as scene:
        yield scene


@pytest.fixture
def scene(running: Scene) -> Iterator[Scene]:
    with nobody_uninvited(running):
        yield running


# With a hello that is hard to read


@pytest.mark.parametrize("records", [1, 3, 40])
def test_a_hello_in_single_bytes_is_read_as_what_it_is(scene: Scene, records: int) -> None:
    with Handwritten(scene.port, OPEN) as client:
        client.send(recut(client.hello, records), piece_bytes=1)
        client.finish()
        with scene.behind_open.accept() as behind:
            behind.sendall(b"welcome\n")
        assert client.read() == b"welcome\n"


@pytest.mark.parametrize("records", [1, 3, 40])
def test_a_hello_in_single_bytes_does_not_get_past_the_guard(scene: Scene, records: int) -> None:
    with Handwritten(scene.port, GUARDED) as client:
        client.send(recut(client.hello, records), piece_bytes=1)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            client.finish()
            assert client.read() == b""

        line = scene.ending_of(client.socket)

    assert (line["reason"], line["phase"], line["sni"]) == ("tls_failed", "handshake", GUARDED)


@pytest.mark.parametrize("size", [2_000, 8_000, 16_000])
def test_a_large_hello_is_read_whole(scene: Scene, size: int) -> None:
    """Post-quantum key shares make hellos of 2 kB; at 16 kB the largest record is nearly full."""
    with Handwritten(scene.port, OPEN, _talkative(size)) as client:
        assert len(client.hello) > size
        client.send(client.hello)
        client.finish()
        with scene.behind_open.accept() as behind:
            behind.sendall(b"welcome\n")
        assert client.read() == b"welcome\n"


def test_the_limit_may_be_raised_for_hellos_of_several_records(gateway: Gateway, ports: Ports) -> None:
    port = ports.take()
    limits = {"preread_limit_bytes": 65_536}
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}], streamgw={"limits": limits})

    with Witness() as witness:
        gateway.write_routes(
            "routes.yaml", stream_route("1", witness.port), ssls=[ssl_object(BOTH_NAMES, OPEN)]
        )
        with gateway.running(), Handwritten(port, OPEN, _talkative(40_000)) as client:
            assert len(client.hello) > 40_000
            client.send(client.hello)
            client.finish()
            with witness.accept() as behind:
                behind.sendall(b"welcome\n")
            assert client.read() == b"welcome\n"


def test_a_hello_beyond_the_limit_is_not_waited_for(scene: Scene) -> None:
    data = hello(GUARDED, message_bytes=PREREAD_LIMIT_BYTES + 1)

    line = scene.latest(lambda: last_words(scene.port, data))

    assert (line["reason"], line["fault"]) == ("preread_limit", "client")


def _talkative(size: int) -> ssl.SSLContext:
    """A client that offers so many protocols that its hello has at least so many bytes."""
    context = trusting()
    context.set_alpn_protocols([f"{number:0200}" for number in range(size // 201 + 1)])
    return context


# With what is no TLS


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: guarded.test.com\r\n\r\n",
        b"\x00" * 100,
        bytes(range(255, -1, -1)),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x2e\x01\x03\x01",  # an SSLv2 hello
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x15\x03\x01\x00\x02\x02\x00",  # an alert
        b"\x17\x03\x03\x00\x05hello",  # data before any handshake
        hello(GUARDED)[:20] + b"\xff" * 300,
    ],
    ids=["http", "zeros", "garbage", "ssh", "sslv2", "empty", "server-hello", "alert", "data", "spoiled"],
)
def test_what_is_no_hello_is_refused_at_once(scene: Scene, data: bytes) -> None:
    line = scene.latest(lambda: last_words(scene.port, data))

    assert (line["reason"], line["fault"], line["phase"]) == ("bad_preface", "client", "preread")
    assert line["duration_s"] < PREREAD_TIMEOUT_S


def test_a_hello_that_openssl_refuses_ends_in_the_handshake(scene: Scene) -> None:
    """Good enough to be routed, not to be spoken with: no key share, no common signature."""
    line = scene.latest(lambda: last_words(scene.port, hello(GUARDED)))

    assert (line["reason"], line["phase"]) == ("tls_failed", "handshake")


# With patience


@pytest.mark.parametrize("sent", [b"", b"\x16", hello(GUARDED)[:-1]], ids=["silence", "1 byte", "all but 1"])
def test_who_never_finishes_the_hello_is_cut_off(scene: Scene, sent: bytes) -> None:
    line = scene.latest(lambda: last_words(scene.port, sent))

    assert (line["reason"], line["fault"]) == ("preread_timeout", "client")
    assert PREREAD_TIMEOUT_S <= line["duration_s"] < 2 * PREREAD_TIMEOUT_S


def test_who_goes_away_in_the_middle_of_the_hello_leaves_nothing_behind(scene: Scene) -> None:
    line = scene.latest(lambda: last_words(scene.port, hello(GUARDED)[:-1], ends=True))

    assert (line["reason"], line["fault"]) == ("preread_timeout", "client")
    assert line["duration_s"] < PREREAD_TIMEOUT_S


def test_who_never_finishes_the_handshake_is_cut_off(scene: Scene) -> None:
    with Handwritten(scene.port, OPEN) as client:
        client.send(client.hello)
        with contextlib.suppress(ConnectionResetError):
            while client.socket.recv(65_536):
                pass

        line = scene.ending_of(client.socket)

    assert (line["reason"], line["phase"], line["fault"]) == ("tls_failed", "handshake", "client")
    assert line["duration_s"] < 2 * HANDSHAKE_TIMEOUT_S
    assert scene.behind_open.visitors() == 0


def test_a_flood_of_slow_hellos_starves_nobody(gateway: Gateway, ports: Ports, tmp_path: Path) -> None:
    port, alpha = ports.take(), ports.take()
    limits = {"max_handshakes": 8, "preread_timeout_s": 30, "handshake_timeout_s": 30}
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}], streamgw={"limits": limits})
    gateway.write_routes("routes.yaml", stream_route("1", alpha), ssls=[ssl_object(BOTH_NAMES, OPEN)])

    with contextlib.ExitStack() as stack:
        stack.enter_context(named_origin(tmp_path, alpha, "alpha"))
        stack.enter_context(gateway.running())
        for number in range(_SLOW):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(hello(OPEN)[: number % 50])

        gateway.wait_for_status(
            lambda status: status["sessions"]["total"] == _SLOW and status["sessions"]["active"] == 8,
            what="as many owe their hello as may",
        )

        assert [whom(port, OPEN) for _ in range(5)] == ["alpha"] * 5

        line = gateway.wait_for_access_line(
            lambda line: line["reason"] == "tls_failed", what="one of the slow"
        )
        assert "made room" in line["detail"]
