"""DTLS passes through untouched: OpenSSL on both sides, and a certificate that the gateway does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.certificates import CA_PEM, issue
from tests.support.child import find_program, running
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.udp_servers import is_receiving

pytestmark = [pytest.mark.slow, pytest.mark.servers]


def test_dtls_is_between_client_and_node(gateway: Gateway, ports: Ports, tmp_path: Path) -> None:
    timeout, openssl = (
        find_program("timeout", package="coreutils"),
        find_program("openssl", package="openssl"),
    )
    node, port = ports.take_for_udp(), ports.take_for_udp()
    issue("node.test").write(tmp_path, "node")
    (tmp_path / "ca.pem").write_text(CA_PEM)
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("dtls.yaml", stream_route("dtls", node))
    own = ["-cert", tmp_path / "node.pem", "-key", tmp_path / "node.key"]
    serve = [timeout, "60", openssl, "s_server", "-dtls", "-accept", f"127.0.0.1:{node}", *own]
    verify = ["-CAfile", tmp_path / "ca.pem", "-verify_return_error", "-verify_hostname", "node.test"]
    connect = [timeout, "60", openssl, "s_client", "-dtls", "-connect", f"127.0.0.1:{port}", *verify]

    with (
        running(serve, log=tmp_path / "s_server.log", talk=True) as server,
        gateway.running(),
    ):
        server.wait_until(lambda: is_receiving(node), what="receives")
        with running(connect, log=tmp_path / "s_client.log", talk=True) as client:
            client.wait_for_line("Verify return code: 0 (ok)")
            client.tell("hello node\n")
            server.wait_for_line("hello node")
            server.tell("hello client\n")
            client.wait_for_line("hello client")

    assert "New, TLSv1.2" in client.output() or "DTLSv1.2" in client.output()
