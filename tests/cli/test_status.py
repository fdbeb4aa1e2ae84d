"""streamgw status"""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from tests.cli.conftest import Desk
from tests.support.status_endpoint import STATUS, serving


def test_what_runs(desk: Desk) -> None:
    with serving(lambda: STATUS) as url:
        result = desk.run("status", "--url", url)

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "streamgw 0.1.0 (pid 4711): ready, up 2 h",
        "routes: revision 3f2a9b0c applied at 2026-11-21T10:00:00+00:00",
        "settings: revision 00112233 applied at 2026-11-21T10:00:00+00:00",
        "objects: 1 stream_routes",
        "sessions: 2 active, 10 in all (7 closed, 1 no_route), 512 B up, 3.0 TiB down",
        "",
        "LISTENER    STATE      SESSIONS  ACCEPTED",
        "tcp *:9100  listening  2         10",
    ]


def test_a_gateway_is_asked_though_its_settings_are_broken_by_now(desk: Desk) -> None:
    """It runs on with what they were, and whoever broke them asks for its status next."""
    with serving(lambda: STATUS) as url:
        port = url.rpartition(":")[2]
        desk.config.write_text(f"apisix: {{status: {{port: {port}}}, stream_proxy: {{tcp: [0]}}}}\n")
        result = desk.run("status")
    nobody = desk.run("status")

    assert result.exit_code == 0
    assert result.stdout.startswith("streamgw 0.1.0 (pid 4711): ready")
    assert nobody.exit_code == 78
    problem, answer = nobody.stderr.splitlines()
    assert "config.yaml:1:" in problem
    assert f"no gateway answers at http://127.0.0.1:{port}" in answer


def test_a_rejected_change_comes_first_with_every_problem(desk: Desk) -> None:
    answer = copy.deepcopy(dict(STATUS))
    place = {"file": "routes.d/a.yaml", "line": 3, "column": 5, "pointer": "stream_routes[0].x"}
    answer["config"] |= {"state": "rejected", "problems": [{**place, "message": "unknown field"}]}
    answer["settings"] |= {
        "applied_at": None,
        "warnings": [{**place, "file": "conf/config.yaml", "message": "does nothing"}],
    }
    answer |= {"ready": False, "uptime_s": 0.2, "objects": {}}
    answer["sessions"] |= {"by_reason": {}, "bytes_down": 2048}

    with serving(lambda: answer) as url:
        lines = desk.run("status", "--url", url).stdout.splitlines()

    assert lines[:6] == [
        "streamgw 0.1.0 (pid 4711): not ready, up 0 s",
        "routes: REJECTED, revision 3f2a9b0c still runs",
        "  routes.d/a.yaml:3:5 stream_routes[0].x: unknown field",
        "settings: as they were at the start",
        "  warning: conf/config.yaml:3:5 stream_routes[0].x: does nothing",
        "objects: none",
    ]
    assert lines[6] == "sessions: 2 active, 10 in all, 512 B up, 2.0 KiB down"


def test_what_a_udp_listener_dropped(desk: Desk) -> None:
    answer = copy.deepcopy(dict(STATUS))
    udp = {"name": "udp *:53", "state": "listening", "sessions": 1, "accepted": 5}
    answer["listeners"].append({**udp, "dropped": {"client_rate": 2, "no_route": 1}})
    answer["sessions"] |= {"active_udp": 1}

    with serving(lambda: answer) as url:
        lines = desk.run("status", "--url", url).stdout.splitlines()

    assert lines[4].startswith("sessions: 2 active (1 UDP), 10 in all")
    assert lines[6:] == [
        "LISTENER    STATE      SESSIONS  ACCEPTED  DATAGRAMS DROPPED",
        "tcp *:9100  listening  2         10",
        "udp *:53    listening  1         5         2 client_rate, 1 no_route",
    ]


def test_what_dns_says_of_services(desk: Desk) -> None:
    answer = copy.deepcopy(dict(STATUS))
    nodes = [{"host": f"10.0.0.{number}", "port": 1} for number in range(10)]
    answer["discovery"] = [
        {"service_name": "db.example:1", "nodes": nodes, "trouble": ""},
        {"service_name": "gone.example:1", "nodes": [], "trouble": "no such name (NXDOMAIN)"},
    ]

    with serving(lambda: answer) as url:
        lines = desk.run("status", "--url", url).stdout.splitlines()

    shown = ", ".join(f"10.0.0.{number}:1" for number in range(8))
    assert f"service db.example:1: {shown} and 2 more" in lines
    assert "service gone.example:1: no node (no such name (NXDOMAIN))" in lines


def test_a_gateway_that_drains(desk: Desk) -> None:
    with serving(lambda: {**STATUS, "draining": True}) as url:
        assert "(pid 4711): draining" in desk.run("status", "--url", url).stdout


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_for_programs(desk: Desk, output: str, parse: object) -> None:
    assert callable(parse)
    with serving(lambda: STATUS) as url:
        result = desk.run("status", "--url", url, "-o", output)

    assert parse(result.stdout) | {"config": None, "settings": None} == {
        **STATUS,
        "config": None,
        "settings": None,
    }


def test_several_workers_are_listed(desk: Desk) -> None:
    answer = copy.deepcopy(dict(STATUS))
    row = {
        "worker": 0,
        "pid": 81,
        "state": "serving",
        "revision": "3f2a9b0c1d",
        "sessions": 2,
        "uptime_s": 60,
    }
    other = {**row, "worker": 1, "pid": 82, "revision": "00", "config": "rejected"}
    answer["workers"] = [{**row, "config": "applied", "relay": "sockmap"}, {**other, "relay": "pump"}]
    with serving(lambda: answer) as url:
        lines = desk.run("status", "--url", url).stdout.splitlines()

    shown = [" ".join(line.split()) for line in lines]
    assert "WORKER PID STATE SESSIONS REVISION UP" in shown
    assert "0 81 serving 2 3f2a9b0c 1 min" in shown
    assert "1 82 serving, rejects the routes 2 00 1 min" in shown
    assert "relay: pump and sockmap" in shown
