"""iperf3 through the gateway: its control connection and its streams share one port."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.child import find_program, run
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.mark.parametrize("direction", [[], ["--reverse"]], ids=["up", "down"])
def test_four_streams_and_their_control_connection_get_through(
    gateway: Gateway, ports: Ports, iperf3_server: Server, direction: list[str]
) -> None:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"])
    gateway.write_routes("iperf3.yaml", stream_route("iperf3", iperf3_server.port))

    with gateway.running():
        end = _iperf3(port, "--parallel", "4", "--bytes", "200M", *direction)["end"]
        sessions = gateway.wait_for_status(lambda status: status["sessions"]["active"] == 0, what="all over")

    # iperf3 stops reading when the time is up, so a little of what was sent is always left unread; that all arrives is
    # what the reload storm and the pump's conformance tests show.
    assert end["sum_received"]["bytes"] > 0.5 * end["sum_sent"]["bytes"] > 50_000_000
    # Four streams and the control connection.
    assert sessions["sessions"]["total"] == 5


def _iperf3(port: int, *words: str) -> dict[str, Any]:
    program = find_program("iperf3", package="iperf3")
    done = run([program, "--client", "127.0.0.1", "--port", str(port), "--json", *words], timeout_s=60)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
