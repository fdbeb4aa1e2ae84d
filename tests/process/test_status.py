"""What `streamgw status` is told."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from pathlib import Path

import trio

from streamgw import __version__
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import Problem
from streamgw.core.model import Listener
from streamgw.process.fleet import LocalFleet
from tests.support.certificates import document, issue
from tests.support.worker import ANY, Scene, says, worker_on


def fleet_of(scene: Scene, settings: ReloadStatus | None = None) -> LocalFleet:
    return LocalFleet(scene.worker, lambda: settings or ReloadStatus(), look_at_settings=lambda: None)


async def test_the_status_board_tells_what_runs(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as client:
        await says(client)
        board = fleet_of(scene)

        status = await board.status()

        assert board.ready()
        assert status["sessions"]["active"] == 1
        assert status["sessions"]["bytes_up"] == 3
        assert status["listeners"][0]["state"] == "listening"
        assert status["config"]["state"] == "applied"
        assert status["config"]["revision"] == scene.worker.reloader.current.revision
        assert list(status["objects"]["stream_routes"]) == ["echo"]
        assert status["certificates"] == []
        assert status["version"] == __version__
        json.dumps(status)


async def test_problems_are_told_with_their_place(tmp_path: Path) -> None:
    problem = Problem("conf/config.yaml", 3, 7, "apisix.stream_proxy.tcp[0]", "expected a port, got 'x'")
    async with worker_on(tmp_path) as scene:
        board = fleet_of(scene, ReloadStatus(state="rejected", problems=(problem,)))

        settings = (await board.status())["settings"]

        assert settings["state"] == "rejected"
        assert settings["problems"] == [
            {
                "file": "conf/config.yaml",
                "line": 3,
                "column": 7,
                "pointer": "apisix.stream_proxy.tcp[0]",
                "message": "expected a port, got 'x'",
            }
        ]


async def test_a_draining_gateway_is_not_ready(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as client:
        await says(client)
        board = fleet_of(scene)

        scene.worker.drain(trio.current_time() + 60)

        assert not board.ready()
        assert (await board.status())["draining"] is True


def datagram_socket() -> trio.socket.SocketType:
    return trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


async def edited(scene: Scene, upstream_port: int, **match: object) -> None:
    """The route leads there from now on."""
    before = scene.worker.reloader.current.revision
    scene.write_route(upstream_port, **match)
    await scene.until(lambda: scene.worker.reloader.current.revision != before)


async def test_udp_sessions_and_what_was_dropped_are_told(tmp_path: Path) -> None:
    listeners = (ANY, Listener("udp", "127.0.0.1", 0))
    async with worker_on(tmp_path, listeners=listeners) as scene:
        board, gateway = fleet_of(scene), ("127.0.0.1", scene.ports[1])
        with datagram_socket() as origin, datagram_socket() as client, datagram_socket() as stranger:
            await origin.bind(("127.0.0.1", 0))
            await edited(scene, origin.getsockname()[1])
            await client.sendto(b"hello", gateway)
            await origin.recv(100)
            await edited(scene, origin.getsockname()[1], remote_addr="192.0.2.1")
            await stranger.sendto(b"hello", gateway)
            while not (await board.listeners())[1]["dropped"]:
                await trio.sleep(0.005)

            status = await board.status()

    assert (status["sessions"]["active"], status["sessions"]["active_udp"]) == (1, 1)
    assert status["sessions"]["total"] == 1
    udp = status["listeners"][1]
    assert (udp["sessions"], udp["accepted"], udp["dropped"]) == (1, 1, {"no_route": 1})
    json.dumps(status)


async def test_certificates_are_told_the_one_that_ends_first_at_the_top(tmp_path: Path) -> None:
    ends = {"late": datetime(2099, 1, 1, tzinfo=UTC), "soon": datetime(2098, 1, 1, tzinfo=UTC)}
    ssls = [
        {"id": id_, "snis": [f"{id_}.test", f"*.{id_}.test"], **issue(f"{id_}.test", not_after=end).fields()}
        for id_, end in ends.items()
    ]
    async with worker_on(tmp_path) as scene:
        before = scene.worker.reloader.current.revision
        (scene.routes / "ssls.yaml").write_text(document(ssls=ssls))
        await scene.until(lambda: scene.worker.reloader.current.revision != before)

        soon, late = (await fleet_of(scene).status())["certificates"]

    assert (soon["id"], late["id"]) == ("soon", "late")
    assert soon["names"] == ["soon.test", "*.soon.test"]
    assert soon["not_after"] == "2098-01-01T00:00:00+00:00"
    assert soon["file"].endswith("ssls.yaml")
    assert not soon["requires_client_certificate"]
    json.dumps([soon, late])


async def test_what_the_kernel_dropped_is_told(tmp_path: Path) -> None:
    async with worker_on(tmp_path, listeners=(ANY, Listener("udp", "127.0.0.1", 0))) as scene:
        with datagram_socket() as origin, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await origin.bind(("127.0.0.1", 0))
            await edited(scene, origin.getsockname()[1])
            await scene.until(lambda: bool(scene.worker.udp.receptions))
            for _ in range(20_000):  # nobody reads before the next await
                client.sendto(b"hello", ("127.0.0.1", scene.ports[1]))

            dropped = (await fleet_of(scene).listeners())[1]["dropped"]

    assert dropped.keys() == {"receive_buffer"}
    assert 0 < dropped["receive_buffer"] < 20_000
