"""One worker as it is asked, in this process and over a channel. What both answer alike is in test_fleet.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from streamgw.control.admin.fleet import SessionFilter
from streamgw.process.members import Here, Silent
from tests.support.several import stage_on
from tests.support.worker import says


async def test_a_long_list_travels_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamgw.process.answers.BATCH", 2)
    async with stage_on(tmp_path, 2) as stage, trio.open_nursery():
        clients = []
        while not all(worker.live_sessions > 2 for worker in stage.workers):
            clients.append(await stage.connect())
            await says(clients[-1])
        for colleague in stage.colleagues:
            rows, total = await colleague.member.sessions(SessionFilter())

            here = Here(colleague.worker, 1)
            expected, _ = await here.sessions(SessionFilter())
            assert total == len(rows)
            assert [row.id for row in rows] == [row.id for row in expected]
            assert rows[0] == expected[0] or rows[0].age_s <= expected[0].age_s
        for client in clients:
            await client.aclose()


async def test_a_worker_that_is_silent_is_named_once_until_it_speaks_again(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        stuck = stage.colleagues[0]
        stuck.member.answer_s, stuck.is_stuck = 0.05, True
        with capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(Silent, match=r"worker 0 \(pid \d+\) does not answer"):
                    await stuck.member.status()
            stuck.member.answer_s, stuck.is_stuck = 5.0, False
            await stuck.member.status()
            stuck.member.answer_s, stuck.is_stuck = 0.05, True
            with pytest.raises(Silent):
                await stuck.member.kill("x")

    said = [(each["worker"], each["after_s"]) for each in logs if each["event"] == "worker_silent"]
    assert said.count((0, 0.05)) == 2


async def test_a_worker_that_is_gone_is_silent_at_once(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        victim = stage.colleagues[0]
        await stage.fire(victim)
        victim.member.answer_s = 1000.0

        with pytest.raises(Silent, match=r"worker 0 .*: the other process is gone"), trio.fail_after(30):
            await victim.member.status()


async def test_a_worker_looks_when_it_is_told_to(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        loaded = [colleague.worker.reloader.status for colleague in stage.colleagues]
        stage.write_route(stage.upstream_ports[1])

        for colleague in stage.colleagues:
            colleague.member.look()

        await stage.until(
            lambda: all(
                colleague.worker.reloader.status is not before
                for colleague, before in zip(stage.colleagues, loaded, strict=True)
            )
        )


async def test_the_worker_of_this_process_drains_by_itself(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 1) as stage:
        here = Here(stage.workers[0], 7)
        assert (here.number, here.pid, here.state) == (0, 7, "serving")

        stage.workers[0].draining = True

        assert here.state == "draining"
