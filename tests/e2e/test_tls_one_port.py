"""One port, three names: terminated, handed on untouched, for known clients only. And TLS beside plain clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.certificates import CA_PEM, OTHER_CA, issue
from tests.support.child import find_program, run
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import named_origin
from tests.support.ports import Ports
from tests.support.servers import redis, write_server_tls
from tests.support.tls_clients import (
    Handwritten,
    TLSVisitor,
    Witness,
    is_refused,
    last_words,
    recut,
    ssl_object,
    trusting,
    whom,
)

pytestmark = [pytest.mark.slow, pytest.mark.servers]

A, B, C = issue("a.test.com"), issue("b.test.com"), issue("c.test.com")
ALICE = issue("alice@test.com")


@attrs.frozen
class Scene:
    """a.test.com ends here and goes to alpha; b.test.com ends at the witness; c.test.com needs a client certificate."""

    gateway: Gateway
    port: int
    witness: Witness


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    port, alpha = ports.take(), ports.take()
    with Witness() as witness, named_origin(tmp_path, alpha, "alpha"):
        gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True, "tls_passthrough": True}])
        gateway.write_routes(
            "routes.yaml",
            stream_route("a", alpha, sni="a.test.com"),
            {**stream_route("b", witness.port, sni="b.test.com"), "tls_passthrough": True},
            stream_route("c", alpha, sni="c.test.com"),
            ssls=[
                ssl_object(A, "a.test.com"),
                # Must never be served: what belongs to b.test.com is behind.
                ssl_object(issue("b.test.com", ca=OTHER_CA), "b.test.com"),
                ssl_object(C, "c.test.com", client={"ca": CA_PEM}),
            ],
        )
        yield Scene(gateway, port, witness)


def test_each_name_gets_what_its_route_says(scene: Scene) -> None:
    with scene.gateway.running():
        assert whom(scene.port, "a.test.com") == "alpha"
        assert is_refused(scene.port, "c.test.com")
        assert whom(scene.port, "c.test.com", trusting(identity=ALICE)) == "alpha"
        assert scene.witness.visitors() == 0


@pytest.mark.parametrize("records", [1, 3])
def test_what_is_passed_through_arrives_byte_for_byte(scene: Scene, records: int) -> None:
    with scene.gateway.running(), Handwritten(scene.port, "b.test.com") as client:
        hello = recut(client.hello, records)

        client.send(hello)

        behind = scene.witness.accept()
        received = b""
        while len(received) < len(hello):
            received += behind.recv(65_536)
        behind.close()
        assert received == hello


def test_the_certificate_of_a_passed_through_name_is_the_upstreams(
    scene: Scene, ports: Ports, tmp_path: Path
) -> None:
    plain, secure = ports.take(), ports.take()
    tls = write_server_tls(tmp_path, B)
    route = {**stream_route("b", secure, sni="b.test.com"), "tls_passthrough": True}
    scene.gateway.write_routes("routes.yaml", route)

    with redis(tmp_path, plain, tls=tls, tls_port=secure), scene.gateway.running():
        with TLSVisitor(scene.port, "b.test.com") as visitor:
            assert visitor.common_names == {"b.test.com"}
            assert visitor.echo("PING") == "+PONG\r"

        line = scene.gateway.wait_for_access_line(lambda line: line["route"] == "b", what="route b")
        assert (line["tls"], line["sni"]) == ("passthrough", "b.test.com")


def test_a_listener_that_only_passes_through_needs_no_certificate(
    scene: Scene, ports: Ports, tmp_path: Path
) -> None:
    plain, secure = ports.take(), ports.take()
    scene.gateway.write_settings([{"addr": f"127.0.0.1:{scene.port}", "tls_passthrough": True}])
    scene.gateway.write_routes("routes.yaml", stream_route("any", secure, sni="*.test.com"))

    with (
        redis(tmp_path, plain, tls=write_server_tls(tmp_path, B), tls_port=secure),
        scene.gateway.running(),
        TLSVisitor(scene.port, "b.test.com") as visitor,
    ):
        assert visitor.common_names == {"b.test.com"}


def test_tls_and_plain_clients_share_a_port(scene: Scene, ports: Ports, tmp_path: Path) -> None:
    scene.gateway.write_settings([{"addr": f"127.0.0.1:{scene.port}", "tls": "optional"}])
    server = ports.take()
    scene.gateway.write_routes(
        "routes.yaml", stream_route("redis", server), ssls=[ssl_object(A, "a.test.com")]
    )
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_PEM)
    plain = [find_program("redis-cli", package="redis-tools"), "-h", "127.0.0.1", "-p", str(scene.port)]
    secure = [*plain, "--tls", "--sni", "a.test.com", "--cacert", str(ca)]

    with redis(tmp_path, server), scene.gateway.running():
        assert run([*secure, "SET", "from", "tls"]).stdout.strip() == "OK"
        assert run([*plain, "GET", "from"]).stdout.strip() == "tls"

        secure_line = scene.gateway.wait_for_access_line(lambda line: "tls" in line, what="with TLS")
        plain_line = scene.gateway.wait_for_access_line(lambda line: "tls" not in line, what="without")
        assert secure_line["route"] == plain_line["route"] == "redis"


def test_a_plain_client_is_no_match_for_a_route_with_a_name(scene: Scene) -> None:
    scene.gateway.write_settings([{"addr": f"127.0.0.1:{scene.port}", "tls": "optional"}])
    scene.gateway.write_routes(
        "routes.yaml", stream_route("a", scene.witness.port, sni="*"), ssls=[ssl_object(A, "a.test.com")]
    )

    with scene.gateway.running():
        assert last_words(scene.port, b"PING\r\n") == b""

        line = scene.gateway.wait_for_access_line(lambda line: True, what="of the plain client")
        assert line["reason"] == "no_route"
        assert scene.witness.visitors() == 0


def test_protocols_that_the_client_offers_lead_to_different_upstreams(scene: Scene) -> None:
    """ALPN, of a route that passes through: the client's offer is all there is to see."""
    with Witness() as mail:
        scene.gateway.write_settings([{"addr": f"127.0.0.1:{scene.port}", "tls_passthrough": True}])
        scene.gateway.write_routes(
            "routes.yaml",
            stream_route("mail", mail.port, alpn=["smtp", "imap"]),
            stream_route("others", scene.witness.port),
        )
        with scene.gateway.running():
            for offer, upstream in ((["h2", "imap"], mail), (["h2"], scene.witness), ([], scene.witness)):
                context = trusting()
                if offer:
                    context.set_alpn_protocols(offer)
                with Handwritten(scene.port, "b.test.com", context) as client:
                    client.send(client.hello)
                    with upstream.accept() as behind:
                        assert behind.recv(3) == client.hello[:3]


@pytest.mark.parametrize("piece_bytes", [0, 1], ids=["at once", "byte by byte"])
def test_a_proxy_header_before_the_hello_names_the_client(scene: Scene, piece_bytes: int) -> None:
    header = b"PROXY TCP4 127.0.0.9 127.0.0.1 1234 443\r\n"
    listener = {"addr": f"127.0.0.1:{scene.port}", "tls": True, "proxy_protocol": True}
    trusted = {"stream": {"real_ip_from": ["127.0.0.0/8"]}}
    scene.gateway.write_settings([listener], nginx_config=trusted)

    with scene.gateway.running():
        with Handwritten(scene.port, "a.test.com") as client:
            client.send(header + client.hello, piece_bytes=piece_bytes)
            client.finish()
            assert client.read() == b"alpha\n"

        line = scene.gateway.wait_for_access_line(lambda line: True, what="of the session")
        assert (line["client"], line["sni"]) == ("127.0.0.9:1234", "a.test.com")
