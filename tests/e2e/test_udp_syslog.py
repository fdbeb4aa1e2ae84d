"""rsyslog behind the gateway: messages that nobody answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.udp_servers import SyslogServer, logger, rsyslog

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.fixture
def server(tmp_path: Path, ports: Ports) -> Iterator[SyslogServer]:
    with rsyslog(tmp_path, ports.take_for_udp()) as server:
        yield server


def test_every_message_arrives_and_leaves_no_session_behind(
    gateway: Gateway, ports: Ports, server: SyslogServer
) -> None:
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("syslog.yaml", stream_route("syslog", server.port, udp={"responses": 0}))

    with gateway.running():
        for number in range(20):
            logger(port, "--tag", "app", "--priority", "local0.warning", f" message {number}")
        server.child.wait_until(lambda: len(server.received()) == 20, what="20 messages")
        gateway.wait_for_status(
            lambda status: (status["sessions"]["total"], status["sessions"]["active"]) == (20, 0),
            what="20 sessions, all over",
        )

    assert sorted(server.received()) == sorted(f"132 app message {number}" for number in range(20))
    assert {line["reason"] for line in gateway.access_lines()} == {"closed"}
    assert all(line["datagrams_up"] == 1 and line["datagrams_down"] == 0 for line in gateway.access_lines())


def test_messages_while_the_server_is_away_are_lost_and_said(
    gateway: Gateway, ports: Ports, server: SyslogServer
) -> None:
    """Nobody waits for an answer, so nobody hears the refusal either: what counts is that the next ones arrive."""
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("syslog.yaml", stream_route("syslog", ports.take_for_udp(), udp={"responses": 0}))

    with gateway.running():
        logger(port, "--tag", "app", " into the void")
        gateway.wait_for_status(lambda status: status["sessions"]["total"] == 1, what="a session")
        gateway.write_routes("syslog.yaml", stream_route("back", server.port, udp={"responses": 0}))
        gateway.wait_for_objects("back")
        logger(port, "--tag", "app", " there again")
        server.child.wait_until(server.received, what="a message")

    assert server.received() == ["13 app there again"]
