"""Whose turn it is, and when a change has been made."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from streamgw.control.admin.changes import Made
from streamgw.control.admin.replies import RequestError, bad
from streamgw.control.admin.writer import APPLY_S, TURN_S, Applied, Writer
from tests.support.fake_fleet import FakeFleet
from tests.support.passing_time import pass_time

R = ("stream_routes", "r")


def made(digest: str | None = "1") -> Made:
    return Made(R, {"id": "r"}, awaited=((R, digest),))


async def test_a_change_is_made_and_the_workers_are_told() -> None:
    fleet = FakeFleet(lambda: {R: "1"})

    applied = await Writer(fleet).make(made)

    assert applied == Applied(made(), [])
    assert fleet.pokes == 1


async def test_who_lags_is_named(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    fleet = FakeFleet(lambda: {R: "1"})
    fleet.lags = True
    nursery.start_soon(pass_time, mock_clock, 60)
    began_at = trio.current_time()

    applied = await Writer(fleet).make(made)

    assert applied.late == [0]
    assert trio.current_time() - began_at == pytest.approx(APPLY_S, abs=1)


async def test_many_objects_have_one_deadline(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    fleet = FakeFleet(dict)
    nursery.start_soon(pass_time, mock_clock, 60)
    began_at = trio.current_time()

    applied = await Writer(fleet).make(
        lambda: Made(R, awaited=tuple((("stream_routes", str(number)), "1") for number in range(100)))
    )

    assert applied.late == [0]
    assert trio.current_time() - began_at == pytest.approx(APPLY_S, abs=1)


async def test_a_refused_change_is_told_too_and_the_next_has_its_turn() -> None:
    fleet = FakeFleet(lambda: {R: "1"})
    writer = Writer(fleet)

    def refuse() -> Made:
        raise bad("no")

    with pytest.raises(RequestError, match="no"):
        await writer.make(refuse)

    assert fleet.pokes == 1
    assert not (await writer.make(made)).late


async def test_writers_take_turns(nursery: trio.Nursery) -> None:
    writing = 0
    most = 0
    order: list[int] = []

    def change(number: int) -> Made:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        order.append(number)
        writing -= 1
        return made()

    writer = Writer(FakeFleet(lambda: {R: "1"}))
    async with trio.open_nursery() as writers:
        for number in range(10):
            writers.start_soon(writer.make, lambda number=number: change(number))

    assert (most, sorted(order)) == (1, list(range(10)))


async def test_nobody_waits_for_ever_for_the_others(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """Each change that no worker runs takes its five seconds."""
    fleet = FakeFleet(dict)
    writer = Writer(fleet)
    answers: list[str] = []

    async def write() -> None:
        try:
            await writer.make(made)
        except RequestError as error:
            answers.append(f"{error.status} {error}")
        else:
            answers.append("202")

    nursery.start_soon(pass_time, mock_clock, 60)
    async with trio.open_nursery() as writers:
        for _ in range(5):
            writers.start_soon(write)

    busy = [answer for answer in answers if answer.startswith("503")]
    assert 2 <= len(busy) <= 4
    assert set(busy) == {f"503 other writes took longer than {TURN_S:g} s; nothing was written"}


async def test_a_client_that_hangs_up_after_the_write_changes_nothing() -> None:
    """The thread ends, the file is there, and the workers are told to look."""
    fleet = FakeFleet(dict)
    writer = Writer(fleet)
    written: list[str] = []
    with trio.CancelScope() as scope:

        def change() -> Made:
            trio.from_thread.run_sync(scope.cancel)
            written.append("file")
            return made()

        await writer.make(change)

    assert scope.cancelled_caught
    assert (written, fleet.pokes) == (["file"], 1)
    fleet.running = {R: "1"}
    fleet.lags = True
    assert not (await writer.make(made)).late
