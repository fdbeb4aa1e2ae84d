"""SIP calls through the gateway: dialogs of several messages each way, from one socket."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import Server
from tests.support.udp_servers import sipp_calls, sipp_server

pytestmark = [pytest.mark.slow, pytest.mark.servers]

CALLS = 50


@pytest.fixture
def server(tmp_path: Path, ports: Ports) -> Iterator[Server]:
    with sipp_server(tmp_path, ports.take_for_udp()) as server:
        yield server


def test_calls_go_through_and_are_one_session(
    gateway: Gateway, ports: Ports, server: Server, tmp_path: Path
) -> None:
    """INVITE, 180, 200, ACK, BYE, 200: what a node said first is followed up with the same node."""
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("sip.yaml", stream_route("sip", server.port, udp={"idle_timeout": 300}))

    with gateway.running():
        said = sipp_calls(tmp_path, port, ports.take_for_udp(), CALLS)
        status = gateway.status()

    assert re.search(rf"Successful call +\| +\d+ +\| +{CALLS} ", said), said[-2000:]
    assert status["sessions"]["total"] == 1
