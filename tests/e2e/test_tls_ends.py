"""How TLS sessions end: what was complete looks complete, what was cut off never does."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.certificates import CA_PEM, issue
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.tls_clients import TIMEOUT_S, Handwritten, TLSVisitor, Witness, ssl_object

pytestmark = pytest.mark.slow

NAME = "a.test.com"
CERTIFICATE = issue(NAME)
CUT_OFF = (ssl.SSLEOFError, ConnectionResetError)
"""How OpenSSL and the kernel call it."""
MUCH = b"0123456789abcdef" * 65_536


@attrs.frozen
class Scene:
    """A running gateway in front of an upstream that the test plays itself: plain behind TLS, and TLS behind plain."""

    gateway: Gateway
    terminating: int
    plain_upstream: Witness
    originating: int
    tls_upstream: Witness

    def visit(self) -> tuple[ssl.SSLSocket, socket.socket]:
        """A TLS client, and the plain connection that the gateway made for it."""
        visitor = TLSVisitor(self.terminating, NAME)
        return visitor.socket, self.plain_upstream.accept()

    def ending(self) -> str:
        line = self.gateway.wait_for_access_line(lambda line: True, what="of the session")
        return f"{line['reason']} {line['side']}".strip()


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    terminating, originating = ports.take(), ports.take()
    with Witness() as plain, Witness() as secure:
        gateway.write_settings(
            [{"addr": f"127.0.0.1:{terminating}", "tls": True}, f"127.0.0.1:{originating}"]
        )
        tls = {"verify": True, "ca_certs": CA_PEM, "server_name": NAME}
        behind = stream_route("behind", secure.port, server_port=originating)
        assert isinstance(behind["upstream"], dict)
        behind["upstream"] |= {"scheme": "tls", "tls": tls}
        gateway.write_routes(
            "routes.yaml",
            stream_route("front", plain.port, server_port=terminating),
            behind,
            ssls=[ssl_object(CERTIFICATE, NAME)],
        )
        with gateway.running():
            yield Scene(gateway, terminating, plain, originating, secure)


def _reset(sock: socket.socket) -> None:
    """Close it by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _all(sock: socket.socket) -> bytes:
    received = b""
    while chunk := sock.recv(65_536):
        received += chunk
    return received


# TLS in front


def test_an_answer_that_is_complete_ends_with_close_notify(scene: Scene) -> None:
    client, upstream = scene.visit()

    with client:
        upstream.sendall(MUCH)
        upstream.close()

        # Without close_notify this would raise.
        assert _all(client) == MUCH


def test_an_answer_that_is_cut_off_does_not_look_complete(scene: Scene) -> None:
    client, upstream = scene.visit()

    with client:
        upstream.sendall(b"half of")
        assert client.recv(100) == b"half of"
        _reset(upstream)

        with pytest.raises(CUT_OFF):
            client.recv(100)
    assert scene.ending() == "reset upstream"


def test_a_request_that_is_complete_is_answered_after_its_end(scene: Scene) -> None:
    """Half-close: close_notify ends what the client says, not what it hears (RFC 8446 § 6.1)."""
    with Handwritten(scene.terminating, NAME) as client:
        client.send(client.hello)
        client.finish()
        with scene.plain_upstream.accept() as upstream:
            client.write(b"question")
            client.say_goodbye()
            assert _all(upstream) == b"question"
            upstream.sendall(b"answer")

        assert client.read() == b"answer"
        assert client.read() == b"", "a close_notify"
    assert scene.ending() == "closed"


def test_a_request_that_is_cut_off_does_not_look_complete(scene: Scene) -> None:
    """A FIN, and no close_notify before it: somebody between client and gateway may have cut the rest off."""
    client, upstream = scene.visit()

    client.sendall(b"half of")
    assert upstream.recv(100) == b"half of"
    socket.socket.shutdown(client, socket.SHUT_WR)  # of the TCP connection, behind OpenSSL's back

    with pytest.raises(ConnectionResetError):
        upstream.recv(100)
    client.close()
    assert scene.ending() == "reset client"


def test_a_client_that_is_reset_resets_the_upstream(scene: Scene) -> None:
    client, upstream = scene.visit()
    client.sendall(b"half of")
    assert upstream.recv(100) == b"half of"

    _reset(client)

    with pytest.raises(ConnectionResetError):
        upstream.recv(100)
    assert scene.ending() == "reset client"


# TLS behind


def _serve_behind(scene: Scene) -> ssl.SSLSocket:
    """The upstream's side of the handshake with the gateway, which is there as soon as a client is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    directory = scene.gateway.directory
    CERTIFICATE.write(directory, "behind")
    context.load_cert_chain(directory / "behind.pem", directory / "behind.key")
    return context.wrap_socket(scene.tls_upstream.accept(), server_side=True, suppress_ragged_eofs=False)


def test_a_tls_upstream_that_is_done_ends_the_plain_client_politely(scene: Scene) -> None:
    with socket.create_connection(("127.0.0.1", scene.originating), timeout=TIMEOUT_S) as client:
        with _serve_behind(scene) as upstream:
            upstream.sendall(MUCH)
            client.shutdown(socket.SHUT_WR)
            assert upstream.recv(100) == b"", "the client's end came as a close_notify"
            upstream.unwrap()

        assert _all(client) == MUCH
    assert scene.ending() == "closed"


def test_a_tls_upstream_that_is_cut_off_resets_the_plain_client(scene: Scene) -> None:
    with (
        socket.create_connection(("127.0.0.1", scene.originating), timeout=TIMEOUT_S) as client,
        _serve_behind(scene) as upstream,
    ):
        upstream.sendall(b"half of")
        assert client.recv(100) == b"half of"
        socket.socket.shutdown(upstream, socket.SHUT_WR)

        with pytest.raises(ConnectionResetError):
            client.recv(100)
    assert scene.ending() == "reset upstream"
