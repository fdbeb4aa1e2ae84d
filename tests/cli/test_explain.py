"""streamgw explain"""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Desk


def test_the_winner_and_why_not_the_others(desk: Desk) -> None:
    result = desk.run("explain", "--server-port", "9101")

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "127.0.0.1 → 127.0.0.10:9101"
    assert lines[1] == "route mysql wins (routes.d/mine.yaml:3)"
    assert [line.split()[:2] for line in lines[4:]] == [["✓", "mysql"], ["redis", "0"]]
    assert "10.0.0.0/8" in lines[5]


def test_the_same_for_programs(desk: Desk) -> None:
    result = desk.run(
        "explain", "--server-port", "9100", "--remote-addr", "::ffff:10.1.2.3", "--sni", "A.test.", "--json"
    )

    said = json.loads(result.stdout)
    assert (said["client"], said["server"], said["sni"]) == ("10.1.2.3", "127.0.0.1:9100", "a.test")
    assert (said["listener"], said["winner"]) == ("tcp 127.0.0.1:9100", "redis")
    assert {route["id"]: route["wins"] for route in said["routes"]} == {"mysql": False, "redis": True}


def test_a_client_that_no_route_takes(desk: Desk) -> None:
    result = desk.run("explain", "--server-port", "9100", "--sni", "x")

    assert "127.0.0.1 → 127.0.0.1:9100, server name x" in result.stdout
    assert "no route matches: the connection is closed (no_route)" in result.stdout


def test_no_route_at_all(desk: Desk) -> None:
    desk.hand_written.write_text("")

    assert "no route matches" in desk.run("explain", "--server-port", "9100").stdout


def test_a_port_that_nobody_listens_on(desk: Desk) -> None:
    result = desk.run("explain", "--server-port", "1", "--remote-addr", "::1")

    assert "nobody listens on [::1]:1" in result.stdout
    assert (
        "nobody listens on 127.0.0.9:9101"
        in desk.run("explain", "--server-port", "9101", "--server-addr", "127.0.0.9").stdout
    )


@pytest.mark.parametrize(
    ("listener", "server_addr", "expected"),
    [
        ("9100", "[::1]", "tcp *:9100"),
        ("'0.0.0.0:9100'", "127.0.0.1", "tcp 0.0.0.0:9100"),
        ("'0.0.0.0:9100'", "::1", None),
        ("'[::]:9100'", "::1", "tcp [::]:9100"),
    ],
)
def test_the_port_of_the_only_listener_is_meant(
    desk: Desk, listener: str, server_addr: str, expected: str | None
) -> None:
    desk.config.write_text(f"apisix: {{stream_proxy: {{tcp: [{listener}]}}}}")

    result = desk.run("explain", "--server-addr", server_addr, "--json")

    assert json.loads(result.stdout)["listener"] == expected


def test_wrong_usage_says_what_there_is(desk: Desk) -> None:
    assert "--server-port is needed: tcp 127.0.0.1:9100, tcp 127.0.0.10:9101" in desk.run("explain").stderr
    desk.config.write_text("")
    assert "config.yaml has no listener" in desk.run("explain").stderr
    assert (
        "not an IP address: 'db'" in desk.run("explain", "--server-port", "1", "--remote-addr", "db").stderr
    )


def test_broken_files_are_named(desk: Desk) -> None:
    desk.hand_written.write_text("stream_routes: 5")

    result = desk.run("explain", "--server-port", "9100")

    assert result.exit_code == 65
    assert "error: routes.d/mine.yaml:1:" in result.stderr
