"""Sessions and reloads as the HTTP side shows them."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import trio

from streamgw.control.reloader import ReloadStatus
from streamgw.core.discovery import Discovered
from streamgw.core.errors import Problem
from streamgw.core.model import Listener, Node, Revision
from streamgw.dataplane.refresher import Standing
from streamgw.process.rows import MAX_PROBLEMS, health_row, reload_event, service_row, session_row
from tests.support.gateway import write_atomically
from tests.support.worker import ANY, says, worker_on


async def test_a_live_session_is_a_row(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as client:
        await says(client)
        (session,) = scene.worker.sessions.live.values()

        row = session_row(session, trio.current_time())

        local = client.socket.getsockname()
        assert (row.transport, row.phase, row.route, row.upstream) == (
            "tcp",
            "relay",
            "echo",
            "stream_routes/echo/upstream",
        )
        assert row.client == row.peer == f"127.0.0.1:{local[1]}"
        assert row.server == f"127.0.0.1:{scene.ports[0]}"
        assert row.node == f"127.0.0.1:{scene.upstream_ports[0]}"
        assert row.bytes_up == 3
        assert row.age_s >= 0
        assert row.revision == scene.worker.reloader.current.revision


async def test_the_feed_tells_of_a_session_from_its_route_to_its_end(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        feed = scene.worker.hub.subscribe(["session_opened", "session_closed"], {"route": "echo"})
        async with await scene.connect() as client:
            await says(client)
        with trio.fail_after(30):
            opened, closed = await feed.receive(), await feed.receive()

    assert [opened.kind, closed.kind] == ["session_opened", "session_closed"]
    assert opened.data["phase"] == "connect"
    assert closed.data["phase"] == "relay"
    assert opened.data["id"] == closed.data["id"]
    assert opened.data["upstream"] == closed.data["upstream"] == "stream_routes/echo/upstream"
    further = {"reason", "fault", "side", "detail", "duration_s", "connect_s"}
    assert closed.data.keys() == opened.data.keys() | further
    assert closed.data["reason"] == "closed"
    json.dumps([attrs.asdict(opened), attrs.asdict(closed)])


async def test_the_feed_tells_of_reloads_applied_and_rejected(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        feed = scene.worker.hub.subscribe(["reload"], {})
        with trio.fail_after(10):
            scene.write_route(scene.upstream_ports[1])
            applied = await feed.receive()
            write_atomically(scene.routes / "echo.yaml", "stream_routes: 7")
            rejected = await feed.receive()

    assert (applied.data["what"], applied.data["state"], applied.data["routes"]) == ("routes", "applied", 1)
    assert rejected.data["state"] == "rejected"
    assert rejected.data["revision"] == applied.data["revision"], "of what runs"
    (problem,) = rejected.data["problems"]
    assert "echo.yaml:1:16 stream_routes: " in problem


def test_a_flood_of_problems_is_no_event() -> None:
    problems = tuple(Problem("a", line, 0, "", "x") for line in range(1000))
    status = ReloadStatus(state="rejected", revision=Revision("r"), problems=problems)

    assert len(reload_event("routes", status, 0)["problems"]) == MAX_PROBLEMS


async def test_a_udp_session_has_a_row_and_events_too(tmp_path: Path) -> None:
    listeners = (ANY, Listener("udp", "127.0.0.1", 0))
    async with worker_on(tmp_path, listeners=listeners) as scene:
        (udp,) = [each for each in scene.worker.sockets.bound() if each.transport == "udp"]
        feed = scene.worker.hub.subscribe(["session_opened", "session_closed"], {"transport": "udp"})
        with (
            trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as client,
            trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as upstream,
            trio.fail_after(10),
        ):
            await upstream.bind(("127.0.0.1", 0))
            scene.write_route(upstream.getsockname()[1])
            await scene.until(lambda: scene.worker.reloader.status.reloads == 1)
            await client.sendto(b"?", ("127.0.0.1", udp.port))
            opened = await feed.receive()
            assert await upstream.recv(10) == b"?"
            (session,) = scene.worker.udp.live.values()

            row = session_row(session, trio.current_time())

            assert (row.transport, row.listener, row.route, row.phase) == ("udp", udp.name, "echo", "relay")
            assert row.client == row.peer == f"127.0.0.1:{client.getsockname()[1]}"
            assert row.node == f"127.0.0.1:{upstream.getsockname()[1]}"
            assert row.bytes_up == 1
            assert scene.worker.udp.kill(row.id)
            closed = await feed.receive()

    assert (opened.kind, opened.data["id"]) == ("session_opened", row.id)
    assert (closed.data["reason"], closed.data["id"]) == ("killed", row.id)


async def test_a_node_that_goes_down_is_an_event_and_a_row_and_ends_its_sessions(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as client:
        await says(client)
        feed = scene.worker.hub.subscribe(["health"], {})
        port = scene.upstream_ports[0]
        # Sessions go to one port, probes to another, where nobody listens.
        active = {"port": 1, "unhealthy": {"interval": 60}}
        checks = {"active": active, "streamgw": {"on_marked_down": "close"}}
        route = {"id": "echo", "upstream": {"nodes": {f"127.0.0.1:{port}": 1}, "checks": checks}}
        (scene.routes / "echo.yaml").write_text(json.dumps({"stream_routes": [route]}))
        with trio.fail_after(10):
            first, second = await feed.receive(), await feed.receive()
        await scene.until(lambda: not scene.worker.sessions.live)
        (checker,) = scene.worker.prober.checkers.values()

    common = {
        "upstream": "stream_routes/echo/upstream",
        "node": f"127.0.0.1:{port}",
        "why": "connection refused",
    }
    assert first.data == {**common, "status": "mostly_healthy", "before": "healthy", "is_up": True}
    assert second.data == {**common, "status": "unhealthy", "before": "mostly_healthy", "is_up": False}
    assert health_row(checker) == {
        "name": "/apisix/stream_routes/echo",
        "type": "tcp",
        "upstream": "stream_routes/echo/upstream",
        "nodes": [
            {
                "ip": "127.0.0.1",
                "port": port,
                "hostname": "127.0.0.1",
                "status": "unhealthy",
                "counter": {"success": 0, "tcp_failure": 2, "http_failure": 0, "timeout_failure": 0},
                "is_up": False,
                "is_ejected": False,
                "why": "connection refused",
            }
        ],
    }
    assert scene.worker.sessions.totals.by_reason == {"node_down": 1}


async def test_without_probes_the_row_says_that_connections_count(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        upstream = {"nodes": {"127.0.0.1:1": 1}, "checks": {"passive": {}, "streamgw": {}}}
        document = {"stream_routes": [{"id": "echo", "upstream": upstream}]}
        (scene.routes / "echo.yaml").write_text(json.dumps(document))
        await scene.until(lambda: bool(scene.worker.prober.checkers))
        (checker,) = scene.worker.prober.checkers.values()

    assert health_row(checker)["type"] == "tcp"


def test_a_service_is_a_row_with_its_nodes() -> None:
    found = (Discovered(Node("fd00::1", 3306, weight=2, priority=-10), "a.example"),)

    assert service_row(Standing("db.example", found, "SERVFAIL")) == {
        "service_name": "db.example",
        "nodes": [{"host": "fd00::1", "port": 3306, "weight": 2, "priority": -10, "name": "a.example"}],
        "trouble": "SERVFAIL",
    }
