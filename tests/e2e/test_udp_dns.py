"""Name servers behind the gateway: dnsmasq and unbound, asked by dig and by dnsperf."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import Server
from tests.support.udp_servers import LONG_NAME, dig, dnsperf, unbound

pytestmark = [pytest.mark.slow, pytest.mark.servers]

ONE_ANSWER = {"responses": 1, "idle_timeout": 5}


def test_a_name_is_resolved_and_the_session_ends_with_its_answer(
    gateway: Gateway, ports: Ports, dnsmasq_server: Server
) -> None:
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("dns.yaml", stream_route("dns", dnsmasq_server.port, udp=ONE_ANSWER))

    with gateway.running():
        assert dig(port, "a.test", "+short") == "192.0.2.1\n"
        line = gateway.wait_for_access_line(lambda line: line["route"] == "dns", what="a session")

    assert (line["listener"], line["reason"]) == (f"udp 127.0.0.1:{port}", "closed")
    assert (line["datagrams_up"], line["datagrams_down"], line["datagrams_dropped"]) == (1, 1, 0)
    assert line["node"] == f"127.0.0.1:{dnsmasq_server.port}"


def test_a_long_answer_is_fetched_over_tcp_from_the_same_port(
    gateway: Gateway, ports: Ports, unbound_server: Server
) -> None:
    """RFC 7766: a truncated answer makes the client ask again over TCP."""
    port = ports.take_for_udp()
    gateway.write_settings([f"127.0.0.1:{port}"], [f"127.0.0.1:{port}"])
    gateway.write_routes("dns.yaml", stream_route("dns", unbound_server.port, udp=ONE_ANSWER))

    with gateway.running():
        said = dig(port, LONG_NAME, "TXT", "+bufsize=512")
        gateway.wait_for_status(lambda status: status["sessions"]["active"] == 0, what="both sessions over")
        gateway.wait_for_access_line(lambda line: line["listener"].startswith("tcp"), what="over TCP")
        gateway.wait_for_access_line(lambda line: line["listener"].startswith("udp"), what="over UDP")

    assert "(TCP)" in said
    assert said.count('IN\tTXT\t"') == 20


def test_an_answer_larger_than_a_packet_gets_through(
    gateway: Gateway, ports: Ports, unbound_server: Server
) -> None:
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("dns.yaml", stream_route("dns", unbound_server.port, udp=ONE_ANSWER))

    with gateway.running():
        said = dig(port, LONG_NAME, "TXT", "+bufsize=4096", "+ignore")

    assert "(UDP)" in said
    assert said.count('IN\tTXT\t"') == 20


def test_two_name_servers_take_turns(
    gateway: Gateway, ports: Ports, dnsmasq_server: Server, unbound_server: Server
) -> None:
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    nodes = {f"127.0.0.1:{server.port}": 1 for server in (dnsmasq_server, unbound_server)}
    gateway.write_routes("dns.yaml", {"id": "dns", "udp": ONE_ANSWER, "upstream": {"nodes": nodes}})

    with gateway.running():
        said = [dig(port, "a.test", "+short").strip() for _ in range(6)]

    assert sorted(said) == ["192.0.2.1"] * 3 + ["192.0.2.2"] * 3


def test_a_server_is_told_whose_question_it_is(gateway: Gateway, ports: Ports, tmp_path: Path) -> None:
    """unbound wants a PROXY header in every datagram, and answers nothing without."""
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    with unbound(tmp_path, ports.take_for_udp(), "192.0.2.2", proxy_protocol=True) as server:
        upstream = {
            "nodes": {f"127.0.0.1:{server.port}": 1},
            "proxy_protocol": "v2",
            "proxy_protocol_datagrams": "each",
        }
        gateway.write_routes("dns.yaml", {"id": "dns", "upstream": upstream})

        with gateway.running():
            # From one port: the second question belongs to the session of the first.
            own = f"127.0.0.5#{ports.take_for_udp()}"
            for _ in range(2):
                assert dig(port, "a.test", "+short", "+tries=1", "-b", own) == "192.0.2.2\n"
            server.child.wait_until(
                lambda: server.child.output().count("127.0.0.5 a.test. A IN") == 2,
                what="two questions of 127.0.0.5",
            )
            assert gateway.status()["sessions"]["total"] == 1


@pytest.mark.parametrize("rules", [ONE_ANSWER, {"idle_timeout": 5}], ids=["session per question", "lasting"])
def test_under_load_no_question_is_lost(
    gateway: Gateway, ports: Ports, dnsmasq_server: Server, tmp_path: Path, rules: dict[str, int]
) -> None:
    """dnsperf keeps 8 sockets, so the second kind of session carries thousands of questions each."""
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("dns.yaml", stream_route("dns", dnsmasq_server.port, udp=rules))

    with gateway.running():
        names = [f"{number}.test" for number in range(100)]
        said = dnsperf(tmp_path, port, names, "-l", "3", "-c", "8", "-q", "64", "-t", "20")

    assert said["Queries lost"].startswith("0 "), said
    assert said["Response codes"] == f"NOERROR {said['Queries completed'].split()[0]} (100.00%)"
    assert int(said["Queries completed"].split()[0]) > 1000
