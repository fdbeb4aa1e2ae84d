"""Several workers seen as one gateway: what is written, asked, ended and counted."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.admin_api import admin_settings, api_client, to
from tests.support.child import find_program, run, wait_until
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import Visitor, named_origin, whom
from tests.support.ports import Ports
from tests.support.workers import kill, pids, sessions, wait_for_workers, with_workers

pytestmark = pytest.mark.slow

WRITES = 100
NAMES = ("a", "b")
CROWD = 40
"""So many that each of two workers gets some."""


@pytest.fixture
def origins(tmp_path: Path, ports: Ports) -> dict[str, int]:
    found = {name: ports.take() for name in NAMES}
    with ExitStack() as stack:
        for name, port in found.items():
            stack.enter_context(named_origin(tmp_path, port, name))
        yield found


def metrics(gateway: Gateway) -> str:
    url = f"http://127.0.0.1:{gateway.metrics_port}/apisix/prometheus/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def total(text: str, name: str) -> float:
    """Of all samples of a series."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_hundred_writes_are_each_live_in_every_worker_when_they_are_answered(
    gateway: Gateway, ports: Ports, origins: dict[str, int], workers: int
) -> None:
    port, admin_port = ports.take(), ports.take()
    gateway.write_settings(
        [f"127.0.0.1:{port}"], deployment=admin_settings(admin_port), **with_workers(workers)
    )
    with gateway.running(), api_client(admin_port) as api:
        for number in range(WRITES):
            name = NAMES[number % len(NAMES)]

            answer = api.put("/stream_routes/main", json=to(origins[name]))

            assert answer.status_code == (200 if number else 201), answer.text
            assert {whom(port) for _ in range(workers)} == {name}, f"after write {number}"


def test_writes_are_live_at_once_also_while_workers_die(
    gateway: Gateway, ports: Ports, origins: dict[str, int]
) -> None:
    """Whoever takes a dead one's place may have loaded before the write, and must not begin with that."""
    port, admin_port = ports.take(), ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], deployment=admin_settings(admin_port), **with_workers(2))
    with gateway.running() as child, api_client(admin_port) as api:
        number = 0

        def write_until(enough: Callable[[], bool]) -> None:
            nonlocal number
            while not enough():
                name, number = NAMES[number % len(NAMES)], number + 1
                answer = api.put("/stream_routes/main", json=to(origins[name]))
                assert answer.status_code in {200, 201}, answer.text
                assert {whom(port) for _ in range(4)} == {name}, f"after write {number}"

        for slot in (0, 1, 0):
            old = pids(gateway.status())[slot]
            kill(old)
            write_until(lambda slot=slot, old=old: pids(gateway.status()).get(slot, old) != old)
            write_until(lambda enough=number + 10: number >= enough)
        assert child.exit_code is None


def test_a_session_is_found_and_ended_in_whichever_worker_it_is(
    gateway: Gateway, ports: Ports, origins: dict[str, int]
) -> None:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origins["a"]))
    with gateway.running(), ExitStack() as stack:
        visitors = [stack.enter_context(Visitor(port)) for _ in range(CROWD)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}
        rows = sessions(gateway)
        began = [row["started_at"] for row in rows]
        assert {row["worker"] for row in rows} == {0, 1}
        assert began == sorted(began), "oldest first"

        for row in rows:
            url = f"http://127.0.0.1:{gateway.control_port}/v1/sessions/{row['id']}"
            with urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30) as answer:
                assert json.load(answer) == {"killed": row["id"]}

        wait_until(lambda: not sessions(gateway), what="nobody is left")
        assert gateway.wait_for_status(
            lambda status: status["sessions"]["by_reason"].get("killed") == CROWD, what="all are counted"
        )


def test_counters_go_on_when_a_worker_is_killed(
    gateway: Gateway, ports: Ports, origins: dict[str, int]
) -> None:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origins["a"]))
    promtool = find_program("promtool", package="prometheus")
    with gateway.running(), ExitStack() as stack:
        for _ in range(50):
            with Visitor(port) as visitor:
                assert visitor.greeting() == "a"
                assert visitor.echo("hello") == "hello"
        visitors = [stack.enter_context(Visitor(port)) for _ in range(CROWD)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}
        gateway.wait_for_status(
            lambda status: status["sessions"]["active"] == CROWD, what="the others have ended"
        )
        before = metrics(gateway)
        old = pids(gateway.status())
        assert total(before, "streamgw_sessions_total") == 50
        assert total(before, "streamgw_sessions_active") == CROWD
        assert total(before, "streamgw_sessions_accepted_total") == 50 + CROWD
        assert total(before, "streamgw_session_duration_seconds_count") == 50

        kill(old[0])
        wait_for_workers(gateway, 2, instead_of={0: old[0]})
        after = metrics(gateway)

        live = sessions(gateway)
        assert {row["worker"] for row in live} == {1}
        assert total(after, "streamgw_sessions_active") == len(live) < CROWD
        assert total(after, "streamgw_sessions_total") == 50 + CROWD - len(live)
        assert total(after, "streamgw_sessions_accepted_total") == 50 + CROWD
        assert total(after, "streamgw_bytes_total") == total(before, "streamgw_bytes_total")
        for text in (before, after):
            run([promtool, "check", "metrics"], stdin=text.encode())


def test_a_node_that_a_probe_finds_down_is_left_out_by_every_worker(
    gateway: Gateway, ports: Ports, origins: dict[str, int]
) -> None:
    """And it is probed once, not once by each."""
    port, nobody = ports.take(), ports.take()
    checks = {
        "active": {
            "healthy": {"interval": 1, "successes": 1},
            "unhealthy": {"interval": 1, "tcp_failures": 1},
        },
        "streamgw": {"on_marked_down": "close"},
    }
    nodes = {f"127.0.0.1:{origins['a']}": 1, f"127.0.0.1:{nobody}": 1}
    route = {"id": "a", "upstream": {"type": "roundrobin", "nodes": nodes, "checks": checks}}
    gateway.write_settings([f"127.0.0.1:{port}"], **with_workers(4))
    gateway.write_routes("a.yaml", route)
    with gateway.running() as child:
        sample = f'apisix_upstream_status{{ip="127.0.0.1",name="/apisix/stream_routes/a",port="{nobody}"}}'
        gateway.wait_for_metric(sample, 0)
        failed = f'streamgw_probes_total{{node="127.0.0.1:{nobody}",result="tcp_failure",upstream="stream_routes/a"}}'
        probes = gateway.metric(failed)
        assert probes is not None

        with ExitStack() as stack:
            visitors = [stack.enter_context(Visitor(port)) for _ in range(40)]
            assert {visitor.greeting() for visitor in visitors} == {"a"}
            child.wait_until(lambda: (gateway.metric(failed) or 0) >= probes + 2, what="two more probes")

        gateway.wait_for_status(lambda status: status["sessions"]["active"] == 0, what="everybody has left")
        figures = metrics(gateway)
        assert total(figures, "streamgw_connect_duration_seconds_count") == 40
        assert gateway.status()["sessions"]["by_reason"].get("connect_failed") is None


def test_sessions_on_a_node_that_goes_down_end_in_every_worker(
    gateway: Gateway, ports: Ports, tmp_path: Path, origins: dict[str, int]
) -> None:
    port, other = ports.take(), ports.take()
    active = {"healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1}}
    with ExitStack() as stack:
        probed = stack.enter_context(named_origin(tmp_path, other, "probed"))
        upstream = {
            "type": "roundrobin",
            "nodes": {f"127.0.0.1:{origins['a']}": 1},
            "checks": {"active": {**active, "port": other}, "streamgw": {"on_marked_down": "close"}},
        }
        gateway.write_settings([f"127.0.0.1:{port}"], **with_workers(2))
        gateway.write_routes("a.yaml", {"id": "a", "upstream": upstream})
        stack.enter_context(gateway.running())
        visitors = [stack.enter_context(Visitor(port)) for _ in range(CROWD)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}
        assert {row["worker"] for row in sessions(gateway)} == {0, 1}

        probed.kill()

        gateway.wait_for_status(
            lambda status: status["sessions"]["by_reason"].get("node_down") == CROWD, what="all are closed"
        )


def test_top_shows_the_sessions_of_all_workers(
    gateway: Gateway, ports: Ports, origins: dict[str, int]
) -> None:
    port, admin_port = ports.take(), ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], deployment=admin_settings(admin_port), **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origins["a"]))
    with gateway.running(), ExitStack() as stack:
        visitors = [stack.enter_context(Visitor(port)) for _ in range(20)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}
        rows = sessions(gateway)
        assert {row["worker"] for row in rows} == {0, 1}

        frame = gateway.cli("top", "--once")

        assert all(row["client"] in frame for row in rows), frame


def test_what_would_become_of_a_client_is_explained_once(
    gateway: Gateway, ports: Ports, origins: dict[str, int]
) -> None:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origins["a"], server_port=port))
    with gateway.running():
        url = f"http://127.0.0.1:{gateway.control_port}/v1/explain?server_port={port}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            explained = json.load(answer)

    assert (explained["winner"], explained["listener"]) == ("a", f"tcp 127.0.0.1:{port}")
