"""What was written with a time to live goes by itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from streamgw.control.admin.expiry import LOOK_S
from tests.support.admin_desk import NOW, ROUTE, UPSTREAM, Desk
from tests.support.passing_time import pass_time


@pytest.fixture
def desk(tmp_path: Path, mock_clock: MockClock) -> Desk:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    desk = Desk(routes)
    # Asked in threads, too.
    desk.clock.reads = lambda: desk.clock.now + mock_clock.current_time()
    return desk


@asynccontextmanager
async def running(desk: Desk) -> AsyncGenerator[None]:
    """With the janitor at work."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.api.run)
        yield
        nursery.cancel_scope.cancel()


async def test_an_object_goes_when_its_time_has_come(desk: Desk, mock_clock: MockClock) -> None:
    async with running(desk):
        answer = await desk.put("stream_routes/1?ttl=30", ROUTE)
        assert answer.json()["value"]["expire_time"] == pytest.approx(NOW + 30, abs=1)
        await pass_time(mock_clock, 25)
        assert desk.files()

        with structlog.testing.capture_logs() as logs:
            await pass_time(mock_clock, 10)

    assert desk.files() == {}
    assert logs == [{"event": "expired", "object": "stream_routes/1", "log_level": "info"}]


async def test_what_expired_while_nobody_ran_goes_at_the_start(desk: Desk, mock_clock: MockClock) -> None:
    await desk.put("stream_routes/1?ttl=5", ROUTE)
    desk.clock.now += 10

    async with running(desk):
        await pass_time(mock_clock, 1)

    assert desk.files() == {}


async def test_an_editor_may_write_the_time_too(desk: Desk, mock_clock: MockClock) -> None:
    async with running(desk):
        await pass_time(mock_clock, 1)
        desk.write("a.yaml", f"stream_routes: [{{id: a, expire_time: {int(NOW) + 10}}}]")
        await pass_time(mock_clock, LOOK_S + 1)

    assert desk.files() == {"a.yaml": "stream_routes: []"}


async def test_a_put_without_a_time_keeps_it_and_one_with_another_prolongs_it(
    desk: Desk, mock_clock: MockClock
) -> None:
    async with running(desk):
        await desk.put("stream_routes/1?ttl=5", ROUTE)
        await desk.put("stream_routes/1", {**ROUTE, "desc": "stays"})
        await desk.put("stream_routes/2?ttl=5", ROUTE)
        await desk.put("stream_routes/2?ttl=100", ROUTE)
        await pass_time(mock_clock, 50)

        assert set(desk.files()) == {"stream_routes/1.yaml", "stream_routes/2.yaml"}
        await pass_time(mock_clock, 100)

    assert set(desk.files()) == {"stream_routes/1.yaml"}


async def test_what_belongs_together_goes_together(desk: Desk, mock_clock: MockClock) -> None:
    await desk.put("upstreams/a?ttl=5", UPSTREAM)
    await desk.put("services/z?ttl=5", {"upstream_id": "a"})
    await desk.put("stream_routes/m?ttl=5", {"service_id": "z"})

    async with running(desk):
        await pass_time(mock_clock, 10)

    assert desk.files() == {}


async def test_what_is_used_stays_until_it_is_not(desk: Desk, mock_clock: MockClock) -> None:
    await desk.put("upstreams/a?ttl=5", UPSTREAM)
    await desk.put("stream_routes/m", {"upstream_id": "a"})

    async with running(desk):
        with structlog.testing.capture_logs() as logs:
            await pass_time(mock_clock, 10)
        assert len(desk.files()) == 2
        assert [line["event"] for line in logs] == ["not_expired"]
        assert logs[0]["reason"] == "can not delete this upstream, stream_route [m] is still using it now"
        await desk.ask("DELETE", "stream_routes/m")
        await pass_time(mock_clock, LOOK_S + 1)

    assert desk.files() == {}


async def test_a_time_that_was_moved_meanwhile_counts(desk: Desk, mock_clock: MockClock) -> None:
    await desk.put("stream_routes/1?ttl=5", ROUTE)
    desk.clock.now += 10
    store = desk.store
    survey = store.survey

    def survey_and_edit() -> object:
        """Somebody saves the file just after it was looked at."""
        seen = survey()
        path = desk.routes / "stream_routes" / "1.yaml"
        path.write_text(path.read_text().replace(str(int(NOW) + 5), str(int(NOW) + 500)))
        return seen

    store.survey = survey_and_edit  # type: ignore[method-assign,assignment]
    async with running(desk):
        with structlog.testing.capture_logs() as logs:
            await pass_time(mock_clock, 2)

    assert [line["reason"] for line in logs] == ["somebody gave it more time"]
    assert len(desk.files()) == 1


async def test_a_broken_directory_is_waited_out(desk: Desk, mock_clock: MockClock) -> None:
    await desk.put("stream_routes/1?ttl=5", ROUTE)
    desk.write("broken.yaml", "stream_routes: [")

    async with running(desk):
        await pass_time(mock_clock, 10)
        assert len(desk.files()) == 2
        (desk.routes / "broken.yaml").unlink()
        await pass_time(mock_clock, LOOK_S + 1)

    assert desk.files() == {}


async def test_a_bug_is_logged_and_the_next_look_comes(
    desk: Desk, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.put("stream_routes/1?ttl=5", ROUTE)
    survey = desk.store.survey
    bugs = [ZeroDivisionError("a bug")]

    def survey_with_a_bug() -> object:
        if bugs:
            raise bugs.pop()
        return survey()

    monkeypatch.setattr(desk.store, "survey", survey_with_a_bug)
    async with running(desk):
        with structlog.testing.capture_logs() as logs:
            await pass_time(mock_clock, 2 * LOOK_S)

    assert [line["event"] for line in logs] == ["expiry_bug", "expired"]
    assert desk.files() == {}
