"""FreeRADIUS behind the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import Server
from tests.support.udp_servers import freeradius, radclient

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.fixture
def server(tmp_path: Path, ports: Ports) -> Iterator[Server]:
    with freeradius(tmp_path, ports.take_for_udp()) as server:
        yield server


def test_who_may_come_in_is_told_through_the_gateway(gateway: Gateway, ports: Ports, server: Server) -> None:
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("radius.yaml", stream_route("radius", server.port, udp={"responses": 1}))

    with gateway.running():
        welcome, refused = radclient(port), radclient(port, "wrong")
        gateway.wait_for_status(lambda status: status["sessions"]["active"] == 0, what="no session")

    assert "Received Access-Accept" in welcome
    assert 'Reply-Message = "Hello, bob"' in welcome
    assert "Received Access-Reject" in refused
    assert [line["reason"] for line in gateway.access_lines()] == ["closed", "closed"]
