"""iperf3 over UDP, whose control connection is TCP to the same port number."""

from __future__ import annotations

import sys

import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import Server
from tests.support.udp_servers import iperf3_udp

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.mark.parametrize("direction", [[], ["--reverse"]], ids=["up", "down"])
def test_a_steady_stream_of_datagrams_gets_through(
    gateway: Gateway, ports: Ports, udp_iperf3_server: Server, direction: list[str]
) -> None:
    port = ports.take_for_udp()
    gateway.write_settings([f"127.0.0.1:{port}"], [f"127.0.0.1:{port}"])
    gateway.write_routes("iperf3.yaml", stream_route("iperf3", udp_iperf3_server.port))

    with gateway.running():
        total = iperf3_udp(port, "--bitrate", "5M", "--length", "1200", "--time", "2", *direction)["sum"]

    sys.stdout.write(f"{total['packets']} datagrams, {total['lost_percent']:.3f} % lost\n")
    assert total["packets"] > 800
    # Whoever sends faster than a receiver reads loses datagrams, at each hop: a machine with little to spare does.
    assert total["lost_percent"] < 20
