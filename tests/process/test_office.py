"""What a gateway of several workers has once."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import trio
from structlog.testing import capture_logs

from streamgw.process.members import Silent
from streamgw.process.office import Office
from streamgw.process.stderr import STDERR
from tests.support.several import Stage, stage_on
from tests.support.worker import says


def write_checked(stage: Stage, *ports: int, **checks: object) -> None:
    upstream = {"nodes": {f"127.0.0.1:{port}": 1 for port in ports}, "checks": checks}
    (stage.routes / "echo.yaml").write_text(
        json.dumps({"stream_routes": [{"id": "echo", "upstream": upstream}]})
    )


async def test_nodes_are_probed_once_and_seen_by_every_worker(tmp_path: Path) -> None:
    active = {"healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1}}
    async with stage_on(tmp_path, 2) as stage:
        feed = stage.fleet.subscribe(["health"], {})
        write_checked(stage, stage.upstream_ports[0], 1, active=active)

        await stage.until(
            lambda: all(
                ("127.0.0.1", 1) in worker.pool.load("stream_routes/echo/upstream")._down
                for worker in stage.workers
            )
        )

        with trio.fail_after(30):
            event = await feed.receive()
        assert (event.data["node"], event.data["is_up"]) == ("127.0.0.1:1", False)
        (row,) = stage.fleet.health()
        assert [node["is_up"] for node in row["nodes"]] == [True, False]
        assert [each.is_up for each in (await stage.fleet.figures()).nodes] == [True, False]
        assert not any(worker.prober.checkers for worker in stage.workers)
        feed.close()


async def test_sessions_that_find_nobody_are_heard_of_by_all(tmp_path: Path) -> None:
    passive = {"unhealthy": {"tcp_failures": 2}}
    async with stage_on(tmp_path, 2) as stage:
        write_checked(stage, 1, stage.upstream_ports[0], passive=passive, streamgw={"recover_after": "60s"})
        await stage.until(lambda: bool(stage.fleet.health()))
        revision = stage.central.reloader.current.revision
        await stage.until(lambda: all(each.reloader.current.revision == revision for each in stage.workers))

        for _ in range(8):
            async with await stage.connect() as client:
                await says(client)

        await stage.until(
            lambda: all(
                ("127.0.0.1", 1) in worker.pool.load("stream_routes/echo/upstream")._down
                for worker in stage.workers
            )
        )


async def test_health_checks_can_be_switched_off(tmp_path: Path) -> None:
    active = {"healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1}}
    async with stage_on(tmp_path, 2) as stage:
        assert stage.office is not None
        write_checked(stage, 1, active=active)
        key = "stream_routes/echo/upstream"
        await stage.until(lambda: all(worker.pool.load(key)._down for worker in stage.workers))

        stage.office.apply(attrs.evolve(stage.office.settings, checks_health=False))

        await stage.until(lambda: not any(worker.pool.load(key)._down for worker in stage.workers))
        assert stage.fleet.health() == []


async def test_reloads_are_told_once_and_not_by_each_worker(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        feed = stage.fleet.subscribe(["reload"], {})
        stage.write_route(stage.upstream_ports[1], desc="another")
        before = stage.central.reloader.current.revision
        await stage.until(
            lambda: all(each.reloader.current.revision != before for each in (stage.central, *stage.workers))
        )

        with trio.fail_after(30):
            event = await feed.receive()

        assert event.data["revision"] == stage.central.reloader.current.revision
        assert feed.queued == 0
        feed.close()


async def test_a_bug_of_a_probe_is_counted(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        assert stage.office is not None
        stage.office.reports.bug("background")(ZeroDivisionError())

        assert (await stage.fleet.figures()).bugs == 1


async def test_lines_that_standard_error_did_not_take_are_counted_for_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are this one here."""
    monkeypatch.setattr(STDERR, "dropped", 3)
    async with stage_on(tmp_path, 2) as stage:
        assert (await stage.fleet.figures()).log_dropped == 3 * (2 + 1)


async def test_a_worker_that_does_not_catch_up_begins_nevertheless_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamgw.process.office.CATCH_UP_S", 0.05)
    async with stage_on(tmp_path, 2) as stage:
        assert stage.office is not None
        member = stage.colleagues[0].member
        current = stage.office.reloader._current
        assert current is not None
        stage.office.reloader._current = attrs.evolve(current, revision="of another day")

        with capture_logs() as logs:
            await stage.office._catch_up(member)

        assert [(each["worker"], each["behind"]) for each in logs if each["event"] == "worker_lags"] == [
            (0, "of another day")
        ]
        stage.office.reloader._current = current


async def test_a_worker_that_has_loaded_before_the_office_waits_for_it(tmp_path: Path) -> None:
    """With thousands of routes either may be first."""
    async with stage_on(tmp_path, 2) as stage:
        early = Office(stage.central.settings, stage.routes, stage.central.sockets)
        worker = stage.colleagues[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(early._catch_up, worker.member)
            await trio.testing.wait_all_tasks_blocked(0.01)

            await nursery.start(early.run)

            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()

    assert early.reloader.current.revision == worker.worker.reloader.current.revision


async def test_a_worker_that_was_silent_is_told_what_is_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamgw.process.office.RETRY_S", 0.01)
    async with stage_on(tmp_path, 2) as stage:
        stuck = stage.colleagues[0]
        stuck.member.answer_s, stuck.is_stuck = 0.02, True
        feed = stage.fleet.subscribe(["session_opened"], {})
        with pytest.raises(Silent):
            await stuck.member.status()

        stuck.is_stuck, stuck.member.answer_s = False, 5.0

        await stage.until(lambda: bool(stuck.worker.hub.wanted))
        feed.close()


async def test_a_question_that_no_worker_asks_is_a_bug(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        assert stage.office is not None
        with pytest.raises(AssertionError, match="nobody asks weather"):
            await stage.office.answer(stage.colleagues[0].member, "weather", {})
