"""What a worker that is a process of its own says to its supervisor, beside what test_fleet.py and test_members.py ask."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from streamgw.process.answers import MAX_PARKED
from streamgw.process.channel import Refused
from tests.support.several import stage_on
from tests.support.worker import says


async def test_of_long_answers_nobody_fetches_the_oldest_makes_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamgw.process.answers.BATCH", 1)
    async with stage_on(tmp_path, 2) as stage, trio.open_nursery():
        clients = [await stage.connect() for _ in range(12)]
        for client in clients:
            await says(client)
        channel = next(each for each in stage.colleagues if each.worker.live_sessions > 2).ours
        arguments = {"limit": 10}

        first, *others = [await channel.ask("sessions", arguments) for _ in range(MAX_PARKED + 1)]

        with pytest.raises(Refused, match="that list is forgotten"):
            await channel.ask("more", {"of": first["more"]})
        for each in others:
            (await channel.ask("more", {"of": each["more"]}))["items"]
        for client in clients:
            await client.aclose()


async def test_events_that_find_no_room_are_lost_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage_on(tmp_path, 2) as stage:
        feed = stage.fleet.subscribe(["session_closed"], {})
        await stage.until(lambda: all(worker.hub.wanted for worker in stage.workers))
        with monkeypatch.context() as patch:
            patch.setattr("streamgw.process.channel.MAX_NEWS", 0)
            async with await stage.connect() as client:
                await says(client)
            await stage.until(lambda: any(each.theirs.dropped for each in stage.colleagues))

        with trio.fail_after(30):
            event = await feed.receive()

        assert (event.kind, event.data["count"]) == ("lost", 1)
        assert (await stage.fleet.figures()).events_lost == 1
        feed.close()


async def test_a_burst_of_events_travels_together(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        feed = stage.fleet.subscribe(["session_closed"], {})
        await stage.until(lambda: all(worker.hub.wanted for worker in stage.workers))
        worker = stage.workers[1]
        for number in range(250):
            worker.hub.publish("session_closed", {"id": number})

        with trio.fail_after(30):
            heard = [await feed.receive() for _ in range(250)]

        assert [each.data["id"] for each in heard] == list(range(250))
        assert {each.data["worker"] for each in heard} == {1}
        feed.close()


async def test_nobody_tells_what_nobody_listens_to(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        feed = stage.fleet.subscribe(["session_closed", "health", "reload"], {})
        await stage.until(lambda: all(worker.hub.wanted == {"session_closed"} for worker in stage.workers))

        feed.close()

        await stage.until(lambda: not any(worker.hub.wanted for worker in stage.workers))


async def test_a_worker_that_is_behind_catches_up(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        member = stage.colleagues[0].member
        stage.write_route(stage.upstream_ports[1], desc="another")
        stage.central.reloader.poke()
        before = stage.workers[0].reloader.current.revision
        await stage.until(lambda: stage.central.reloader.current.revision != before)
        revision = stage.central.reloader.current.revision

        assert await member.catch_up(revision, 5.0)

        assert stage.workers[0].reloader.current.revision == revision
        assert not await member.catch_up("of another day", 0.05)


async def test_only_looking_is_heard_for_the_fleets_sake(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        answers = stage.colleagues[0].answers

        assert answers.heard("look")
        assert not answers.heard("something else")
