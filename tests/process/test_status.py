"""What `streamgw status` is told."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from streamgw import __version__
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import Problem
from streamgw.process.status import StatusBoard
from tests.support.worker import says, worker_on


async def test_the_status_board_tells_what_runs(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as client:
        await says(client)
        board = StatusBoard(scene.worker, ReloadStatus)

        status = board.status()

        assert board.ready()
        assert status["sessions"]["active"] == 1
        assert status["sessions"]["bytes_up"] == 3
        assert status["listeners"][0]["state"] == "listening"
        assert status["config"]["state"] == "applied"
        assert status["config"]["revision"] == scene.worker.reloader.current.revision
        assert list(status["objects"]["stream_routes"]) == ["echo"]
        assert status["version"] == __version__
        json.dumps(status)


async def test_problems_are_told_with_their_place(tmp_path: Path) -> None:
    problem = Problem("conf/config.yaml", 3, 7, "apisix.stream_proxy.tcp[0]", "expected a port, got 'x'")
    async with worker_on(tmp_path) as scene:
        board = StatusBoard(scene.worker, lambda: ReloadStatus(state="rejected", problems=(problem,)))

        settings = board.status()["settings"]

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
        board = StatusBoard(scene.worker, ReloadStatus)

        scene.worker.drain(trio.current_time() + 60)

        assert not board.ready()
        assert board.status()["draining"] is True
