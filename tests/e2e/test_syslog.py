"""rsyslog receives what the plugin `syslog` sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import CA_PEM, issue
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import TIMEOUT_S, named_origin
from tests.support.ports import Ports
from tests.support.servers import write_server_tls
from tests.support.udp_servers import SyslogServer, rsyslog

pytestmark = [pytest.mark.slow, pytest.mark.servers]

SESSIONS = 7
LINE = "%pri% %hostname% %app-name% %procid% %msg%"


@pytest.fixture
def origin(tmp_path: Path, ports: Ports) -> Iterator[int]:
    port = ports.take()
    with named_origin(tmp_path, port, "a"):
        yield port


def write(gateway: Gateway, ports: Ports, origin: int, **options: object) -> int:
    """One route that logs. Returns its port."""
    port = ports.take()
    gateway.write_settings(
        [f"127.0.0.1:{port}"], apisix={"ssl": {"ssl_trusted_certificate": str(gateway.directory / "ca.pem")}}
    )
    (gateway.directory / "ca.pem").write_text(CA_PEM)
    log_format = {"ip": "$remote_addr", "reason": "$reason", "sent": "$bytes_sent"}
    syslog = {"host": "127.0.0.1", "inactive_timeout": 1, "log_format": log_format, **options}
    gateway.write_routes("a.yaml", stream_route("a", origin, plugins={"syslog": syslog}))
    return port


def visit(port: int, times: int = SESSIONS) -> None:
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
            assert client.recv(10)


def told(server: SyslogServer, gateway: Gateway) -> None:
    """Every session was told of, once, in the form of RFC 5424 that rsyslog takes apart."""
    assert gateway.child is not None
    lines = server.received()
    assert len(lines) == SESSIONS
    for line in lines:
        head, _, said = line.partition(" {")
        assert head.split() == ["46", socket.gethostname(), "apisix", str(gateway.child.pid)]
        assert json.loads("{" + said) == {"ip": "127.0.0.1", "reason": "closed", "sent": "2", "route_id": "a"}


@pytest.mark.parametrize("sock_type", ["tcp", "udp"])
def test_each_session_is_a_message(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, sock_type: str
) -> None:
    udp_port, tcp_port = ports.take_for_udp(), ports.take()
    port = write(
        gateway, ports, origin, sock_type=sock_type, port=tcp_port if sock_type == "tcp" else udp_port
    )

    with rsyslog(tmp_path, udp_port, tcp_port=tcp_port, line=LINE) as server, gateway.running():
        visit(port)
        server.child.wait_until(lambda: len(server.received()) == SESSIONS, what="all messages")
        told(server, gateway)


def test_over_tls_they_reach_a_server_that_has_proven_who_it_is(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int
) -> None:
    udp_port, tls_port = ports.take_for_udp(), ports.take()
    tls = write_server_tls(tmp_path, issue("127.0.0.1"))
    port = write(gateway, ports, origin, port=tls_port, tls=True, tls_verify=True)

    with rsyslog(tmp_path, udp_port, tcp_port=tls_port, tls=tls, line=LINE) as server, gateway.running():
        visit(port)
        server.child.wait_until(lambda: len(server.received()) == SESSIONS, what="all messages")
        told(server, gateway)


def test_a_server_that_is_somebody_else_is_told_nothing(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int
) -> None:
    udp_port, tls_port = ports.take_for_udp(), ports.take()
    tls = write_server_tls(tmp_path, issue("localhost"))
    port = write(gateway, ports, origin, port=tls_port, tls=True, tls_verify=True)

    with rsyslog(tmp_path, udp_port, tcp_port=tls_port, tls=tls, line=LINE) as server, gateway.running():
        visit(port)
        assert gateway.child is not None
        gateway.child.wait_for_line("collector_failed")
        gateway.wait_for_metric(
            f'streamgw_records_dropped_total{{collector="tls://127.0.0.1:{tls_port}"}}', SESSIONS
        )

    assert server.received() == []
    assert "IP address mismatch" in gateway.child.output()


def test_a_gateway_that_stops_sends_what_it_still_has(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int
) -> None:
    udp_port, tcp_port = ports.take_for_udp(), ports.take()
    port = write(gateway, ports, origin, port=tcp_port, inactive_timeout=600, buffer_duration=600)

    with rsyslog(tmp_path, udp_port, tcp_port=tcp_port, line=LINE) as server:
        with gateway.running():
            visit(port)
            gateway.wait_for_status(
                lambda status: status["sessions"]["total"] == SESSIONS and status["sessions"]["active"] == 0,
                what="all sessions over",
            )
            assert server.received() == []
        server.child.wait_until(lambda: len(server.received()) == SESSIONS, what="all messages")
        told(server, gateway)
