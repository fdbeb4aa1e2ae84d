"""One worker as the HTTP side sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import yaml

from streamgw.control.admin.fleet import SessionFilter
from streamgw.control.reloader import ReloadStatus
from streamgw.core.model import Address, Facts
from streamgw.process.fleet import LocalFleet
from tests.support.worker import Scene, says, worker_on


@asynccontextmanager
async def fleet_on(tmp_path: Path) -> AsyncIterator[tuple[LocalFleet, Scene, list[str]]]:
    asked: list[str] = []
    async with worker_on(tmp_path) as scene:
        fleet = LocalFleet(
            scene.worker,
            ReloadStatus,
            look_at_settings=lambda: asked.append("settings"),
        )
        yield fleet, scene, asked


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"route": "echo"}, True),
        ({"route": "other"}, False),
        ({"upstream": "stream_routes/echo/upstream"}, True),
        ({"upstream": "upstreams/1"}, False),
        ({"node": "127.0.0.1:{node}"}, True),
        ({"node": "127.0.0.1:1"}, False),
        ({"listener": "tcp 127.0.0.1:{port}"}, True),
        ({"listener": "tcp *:{port}"}, False),
        ({"client": "127.0.0.0/8"}, True),
        ({"client": "127.0.0.1"}, True),
        ({"client": "::/0"}, False),
        ({"transport": "tcp"}, True),
        ({"transport": "udp"}, False),
        ({"route": "echo", "transport": "udp"}, False),
    ],
)
async def test_sessions_are_found_by_what_is_asked(
    tmp_path: Path, wanted: dict[str, str], fits: bool
) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, _), await scene.connect() as client:
        await says(client)
        places = {"port": scene.ports[0], "node": scene.upstream_ports[0]}

        rows, total = await fleet.sessions(
            SessionFilter(**{name: value.format(**places) for name, value in wanted.items()})
        )

    assert (len(rows), total) == (fits, fits)


async def test_at_most_so_many_are_shown_oldest_first_and_all_are_counted(tmp_path: Path) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, _), trio.open_nursery():
        clients = [await scene.connect() for _ in range(3)]
        for client in clients:
            await says(client)

        rows, total = await fleet.sessions(SessionFilter(limit=2))

        assert total == 3
        assert [row.client for row in rows] == [
            f"127.0.0.1:{client.socket.getsockname()[1]}" for client in clients[:2]
        ]
        for client in clients:
            await client.aclose()


async def test_a_session_is_killed_by_its_id(tmp_path: Path) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, _), await scene.connect() as client:
        await says(client)
        (row,), _ = await fleet.sessions(SessionFilter())

        assert await fleet.kill(row.id)

        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await client.receive_some()
        await scene.until(lambda: not scene.worker.sessions.live)
        assert not await fleet.kill(row.id)


async def test_it_explains_by_what_runs(tmp_path: Path) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, _):
        server = Address("127.0.0.1", scene.ports[0])
        facts = Facts("tcp", "", Address("10.0.0.1", 0), server, server_name="a.test", alpn=("h2",))

        said = fleet.explain(facts)
        nobody = fleet.explain(attrs.evolve(facts, server=Address("127.0.0.1", 1)))
        plain = fleet.explain(attrs.evolve(facts, server_name=None, alpn=()))

    assert (said["winner"], said["listener"]) == ("echo", f"tcp {server}")
    assert said["sni"] is None, "a plain listener reads no name"
    assert (nobody["listener"], nobody["sni"]) == (None, "a.test")
    assert plain == said


async def test_who_waits_is_told_who_lags(tmp_path: Path) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, _):
        digest = scene.worker.reloader.current.sources["stream_routes", "echo"]
        soon = trio.current_time() + 0.05

        assert await fleet.wait_applied(("stream_routes", "echo"), digest, soon) == ()
        assert await fleet.wait_applied(("stream_routes", "echo"), None, soon) == (0,)


async def test_documents_come_in_the_order_in_which_routes_are_asked(tmp_path: Path) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, _):
        routes = [
            {"id": "late", "server_port": 1},
            {"id": "off", "server_port": 2, "status": 0},
            {"id": "first", "server_port": 3, "priority": 9},
        ]
        document = {"upstreams": [{"id": "u", "nodes": {"127.0.0.1:1": 1}}], "stream_routes": routes}
        (scene.routes / "echo.yaml").write_text(yaml.safe_dump(document))
        await scene.until(lambda: len(fleet.documents()) == 4)

        ids = [document.key[1] for document in fleet.documents() if document.key[0] == "stream_routes"]

        assert ids == ["first", "late", "off"]
        assert fleet.documents() is fleet.documents()


async def test_it_looks_again_at_everything_when_asked(tmp_path: Path) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, asked):
        fleet.reload()
        fleet.poke()

        assert asked == ["settings"]
        assert fleet.ready()
        assert fleet.health() == []
        assert (await fleet.status())["listeners"] == await fleet.listeners()
        assert (await fleet.figures()).objects == {"stream_routes": 1}
        assert scene.worker.reloader.status.state == "applied"


async def test_what_happens_is_heard(tmp_path: Path) -> None:
    async with fleet_on(tmp_path) as (fleet, scene, _):
        feed = fleet.subscribe(["session_opened"], {})
        async with await scene.connect() as client:
            await says(client)

        assert (await feed.receive()).data["route"] == "echo"
