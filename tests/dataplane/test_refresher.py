"""The refresh tasks on a virtual clock over a scripted lookup."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog
import trio
import trio.testing

from streamgw.dataplane.refresher import FLOOR_S, Answer, LookupFailed, Refresher, Standing
from tests.support.fake_dns import FakeLookup

DB = "db.example"
ONE = Answer(("10.0.0.1",), 60)
TWO = Answer(("10.0.0.1", "10.0.0.2"), 60)


@asynccontextmanager
async def running(
    lookup: FakeLookup, *names: str, stale_s: float = 600.0, changed: list[str] | None = None
) -> AsyncIterator[Refresher[str]]:
    refresher = Refresher(
        lookup,
        min_ttl_s=5,
        max_ttl_s=300,
        stale_s=stale_s,
        on_change=(changed if changed is not None else []).append,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(refresher.run)
        refresher.sync(names)
        await trio.testing.wait_all_tasks_blocked()
        yield refresher
        nursery.cancel_scope.cancel()


async def test_a_name_in_use_is_looked_up_at_once(autojump_clock: trio.testing.MockClock) -> None:
    changed: list[str] = []

    async with running(FakeLookup({DB: TWO}), DB, changed=changed) as refresher:
        assert refresher.known(DB) == ("10.0.0.1", "10.0.0.2")

    assert changed == [DB]


async def test_names_that_were_wanted_before_the_start_are_looked_up_at_the_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refresher = Refresher(
        FakeLookup({DB: ONE}), min_ttl_s=5, max_ttl_s=300, stale_s=0, on_change=lambda _: None
    )
    refresher.sync([DB])

    async with trio.open_nursery() as nursery:
        await nursery.start(refresher.run)
        await refresher.first(DB)
        nursery.cancel_scope.cancel()

    assert refresher.known(DB) == ("10.0.0.1",)


async def test_nothing_is_known_of_a_name_that_nobody_uses(autojump_clock: trio.testing.MockClock) -> None:
    async with running(FakeLookup({})) as refresher:
        await refresher.first("unused.example")

        assert refresher.known("unused.example") == ()


@pytest.mark.parametrize(
    ("ttl_s", "asked_at"),
    [(60, [0, 60, 120, 180]), (0, [0, 5, 10, 15]), (86_400, [0, 300, 600, 900])],
    ids=["its own", "not below the lower bound", "not above the upper bound"],
)
async def test_a_name_is_asked_for_again_when_its_time_to_live_is_over(
    ttl_s: float, asked_at: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    lookup = FakeLookup({DB: Answer(("10.0.0.1",), ttl_s)})

    async with running(lookup, DB):
        await lookup.wait_asked(4)

    assert lookup.times(DB) == asked_at


async def test_only_another_set_of_addresses_is_a_change(autojump_clock: trio.testing.MockClock) -> None:
    changed: list[str] = []
    lookup = FakeLookup({DB: [TWO, TWO, ONE, ONE]})

    async with running(lookup, DB, changed=changed) as refresher:
        await lookup.wait_asked(4)
        assert refresher.known(DB) == ("10.0.0.1",)

    assert changed == [DB, DB]


async def test_a_failing_name_is_retried_after_longer_and_longer_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lookup = FakeLookup({DB: LookupFailed("no answer within 5 s")})

    async with running(lookup, DB) as refresher:
        await lookup.wait_asked(8)
        assert refresher.known(DB) == ()

    assert lookup.times(DB) == [0, 1, 3, 7, 15, 31, 61, 91]


async def test_the_last_addresses_are_served_while_the_servers_fail(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changed: list[str] = []
    lookup = FakeLookup({DB: [ONE, *[LookupFailed("SERVFAIL")] * 3, TWO]})

    async with running(lookup, DB, changed=changed) as refresher:
        await lookup.wait_asked(4)
        assert refresher.known(DB) == ("10.0.0.1",)
        await lookup.wait_asked(5)
        assert refresher.known(DB) == ("10.0.0.1", "10.0.0.2")

    assert changed == [DB, DB]
    assert lookup.times(DB) == [0, 60, 61, 63, 67]


async def test_addresses_are_dropped_at_the_moment_they_are_too_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changed: list[float] = []
    lookup = FakeLookup({DB: [ONE, LookupFailed("SERVFAIL")]})
    refresher = Refresher(
        lookup,
        min_ttl_s=5,
        max_ttl_s=300,
        stale_s=100,
        on_change=lambda _: changed.append(trio.current_time()),
    )

    async with trio.open_nursery() as nursery:
        await nursery.start(refresher.run)
        began_at = trio.current_time()
        refresher.sync([DB])
        await lookup.wait_asked(10)
        nursery.cancel_scope.cancel()

    assert refresher.known(DB) == ()
    assert [at - began_at for at in changed] == [0, 160]


async def test_a_failure_is_logged_once_and_so_is_its_end(autojump_clock: trio.testing.MockClock) -> None:
    down, gone = LookupFailed("SERVFAIL"), LookupFailed("NXDOMAIN")
    lookup = FakeLookup({DB: [ONE, down, down, down, gone, gone, ONE, ONE]})

    with structlog.testing.capture_logs() as logs:
        async with running(lookup, DB):
            await lookup.wait_asked(8)

    assert [(line["event"], line["log_level"], line.get("why")) for line in logs] == [
        ("name_not_resolved", "warning", "SERVFAIL"),
        ("name_not_resolved", "warning", "NXDOMAIN"),
        ("name_resolves_again", "info", None),
    ]
    assert logs[0]["still_used"] == ("10.0.0.1",)


@pytest.mark.parametrize("outcome", [ONE, LookupFailed("NXDOMAIN")], ids=["an answer", "a failure"])
async def test_a_session_waits_for_the_first_answer_only(
    outcome: Answer[str] | LookupFailed, autojump_clock: trio.testing.MockClock
) -> None:
    lookup = FakeLookup({DB: outcome}, takes_s=3)

    async with running(lookup, DB) as refresher:
        began_at = trio.current_time()
        await refresher.first(DB)
        first_s = trio.current_time() - began_at
        await refresher.first(DB)

        assert first_s == 3
        assert trio.current_time() - began_at == 3


async def test_who_waits_for_a_name_that_is_removed_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    async with running(FakeLookup({DB: ONE}, takes_s=10_000), DB) as refresher:
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refresher.first, DB)
                await trio.testing.wait_all_tasks_blocked()
                refresher.sync([])


async def test_a_removed_name_is_not_looked_up_any_more(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({DB: ONE, "other.example": ONE})

    async with running(lookup, DB, "other.example") as refresher:
        refresher.sync(["other.example"])
        await lookup.wait_asked(5)

        assert lookup.times(DB) == [0]
        assert refresher.known(DB) == ()


async def test_a_name_that_stays_is_not_asked_for_again(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({DB: ONE, "other.example": ONE})

    async with running(lookup, DB) as refresher:
        refresher.sync([DB, "other.example"])
        await trio.testing.wait_all_tasks_blocked()

    assert lookup.asked == [DB, "other.example"]


async def test_cancellation_leaves_no_lookup_behind(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({DB: ONE}, takes_s=10_000)

    async with running(lookup, DB) as refresher:
        assert lookup.under_way == 1

    assert lookup.under_way == 0
    refresher.sync(["later.example"])
    assert lookup.asked == [DB]


async def test_trouble_can_be_told_while_it_lasts(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({DB: [ONE, LookupFailed("SERVFAIL"), ONE], "new.example": LookupFailed("NXDOMAIN")})

    async with running(lookup, DB, "new.example") as refresher:
        assert refresher.trouble(DB) == ""
        assert refresher.trouble("unused.example") == ""
        await trio.sleep(60.5)
        assert refresher.standings() == (
            Standing(DB, ("10.0.0.1",), "SERVFAIL"),
            Standing("new.example", (), "NXDOMAIN"),
        )
        await trio.sleep(1)
        assert refresher.trouble(DB) == ""


async def test_an_answer_that_says_nobody_is_there_is_believed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Unlike a failure, which may be a mistake: the last addresses are dropped at once."""
    async with running(FakeLookup({DB: [ONE, Answer((), 60)]}), DB) as refresher:
        await trio.sleep(60.5)

        assert refresher.known(DB) == ()
        assert refresher.trouble(DB) == ""


async def test_too_many_records_are_told_of_once(autojump_clock: trio.testing.MockClock) -> None:
    cut = Answer(("10.0.0.1",), 60, left_out=3)
    lookup = FakeLookup({DB: [cut, cut, ONE, cut]})

    with structlog.testing.capture_logs() as logs:
        async with running(lookup, DB):
            await lookup.wait_asked(4)

    line = {
        "event": "too_many_records",
        "log_level": "warning",
        "name": DB,
        "used": 1,
        "left_out": 3,
    }
    assert logs == [line, line]


async def test_time_to_live_0_is_no_busy_loop_where_no_time_is_the_least(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With `min_ttl_s: 0` a name of the hosts file was looked up 60,000 times a second, and one of DNS without pause."""
    lookup = FakeLookup({DB: Answer(("10.0.0.1",), 0)})
    refresher = Refresher(lookup, min_ttl_s=0, max_ttl_s=0.01, stale_s=0, on_change=lambda _: None)
    refresher.sync([DB])

    with trio.move_on_after(10 * FLOOR_S - FLOOR_S / 2):
        await refresher.run()

    assert lookup.times(DB) == pytest.approx([number * FLOOR_S for number in range(10)])
    assert refresher.known(DB) == ("10.0.0.1",)


class BrokenLookup:
    """Meets a bug with every second question."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, name: str) -> Answer[str]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if name == DB and self.asked % 2 == 0:
            raise ZeroDivisionError
        return ONE


async def test_a_bug_in_a_lookup_is_told_of_and_costs_that_refresh_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Any exception ended the gateway, and all sessions with it."""
    bugs: list[Exception] = []
    changed: list[str] = []
    refresher = Refresher(BrokenLookup(), min_ttl_s=5, max_ttl_s=300, stale_s=600, on_change=changed.append)
    refresher.on_bug = bugs.append
    refresher.sync([DB])

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(refresher.run)
            await trio.sleep(60.5)
            assert refresher.standings() == (Standing(DB, ("10.0.0.1",), "a bug: ZeroDivisionError"),)
            await trio.sleep(1)
            assert refresher.trouble(DB) == ""
            nursery.cancel_scope.cancel()

    assert [type(bug) for bug in bugs] == [ZeroDivisionError]
    assert changed == [DB]
    assert [line["event"] for line in logs] == ["name_not_resolved", "name_resolves_again"]


async def test_a_bug_of_whoever_hears_of_changes_costs_no_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bugs: list[Exception] = []

    def on_change(name: str) -> None:
        raise KeyError(name)

    lookup = FakeLookup({DB: [ONE, LookupFailed("SERVFAIL")]})
    refresher = Refresher(lookup, min_ttl_s=5, max_ttl_s=300, stale_s=10, on_change=on_change)
    refresher.on_bug = bugs.append
    refresher.sync([DB])

    async with trio.open_nursery() as nursery:
        await nursery.start(refresher.run)
        await refresher.first(DB)
        assert refresher.known(DB) == ("10.0.0.1",)
        await trio.sleep(100)
        assert refresher.known(DB) == ()
        nursery.cancel_scope.cancel()

    assert [type(bug) for bug in bugs] == [KeyError, KeyError]


async def test_a_lookup_that_breaks_while_it_is_called_off_ends_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bugs: list[Exception] = []

    async def break_in_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError

    async def lookup(name: str) -> Answer[str]:
        if name == DB:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(break_in_the_end)
                await trio.sleep_forever()
        return ONE

    refresher = Refresher(lookup, min_ttl_s=5, max_ttl_s=300, stale_s=10, on_change=lambda _: None)
    refresher.on_bug = bugs.append
    refresher.sync([DB])
    async with trio.open_nursery() as nursery:
        await nursery.start(refresher.run)
        await trio.testing.wait_all_tasks_blocked()
        refresher.sync(["other.example"])
        await refresher.first("other.example")
        assert refresher.known("other.example") == ("10.0.0.1",)
        nursery.cancel_scope.cancel()

    assert len(bugs) == 1


async def test_bugs_are_logged_where_nobody_else_does_it(autojump_clock: trio.testing.MockClock) -> None:
    refresher = Refresher(BrokenLookup(), min_ttl_s=5, max_ttl_s=300, stale_s=600, on_change=lambda _: None)
    refresher.sync([DB])

    with structlog.testing.capture_logs() as logs, trio.move_on_after(60.5):
        await refresher.run()

    assert (logs[0]["event"], logs[0]["phase"]) == ("bug", "background")
    assert "ZeroDivisionError" in logs[0]["traceback"]
