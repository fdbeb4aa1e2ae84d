"""The refresh tasks on a virtual clock over a scripted lookup; the DNS client against a small real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from streamgw.core.model import Address
from streamgw.dataplane.resolver import Answer, DNSLookup, LookupFailed, Resolver
from tests.support.fake_dns import DNSServer, FakeLookup

DB = "db.example"
ONE = Answer(("10.0.0.1",), 60)
TWO = Answer(("10.0.0.1", "10.0.0.2"), 60)


@asynccontextmanager
async def running(
    lookup: FakeLookup, *names: str, stale_s: float = 600.0, changed: list[str] | None = None
) -> AsyncIterator[Resolver]:
    resolver = Resolver(
        lookup,
        min_ttl_s=5,
        max_ttl_s=300,
        stale_s=stale_s,
        on_change=(changed if changed is not None else []).append,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(resolver.run)
        resolver.sync(names)
        await trio.testing.wait_all_tasks_blocked()
        yield resolver
        nursery.cancel_scope.cancel()


async def test_a_name_in_use_is_looked_up_at_once(autojump_clock: trio.testing.MockClock) -> None:
    changed: list[str] = []

    async with running(FakeLookup({DB: TWO}), DB, changed=changed) as resolver:
        assert resolver.addresses(DB) == ("10.0.0.1", "10.0.0.2")

    assert changed == [DB]


async def test_names_that_were_wanted_before_the_start_are_looked_up_at_the_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    resolver = Resolver(
        FakeLookup({DB: ONE}), min_ttl_s=5, max_ttl_s=300, stale_s=0, on_change=lambda _: None
    )
    resolver.sync([DB])

    async with trio.open_nursery() as nursery:
        await nursery.start(resolver.run)
        await resolver.first(DB)
        nursery.cancel_scope.cancel()

    assert resolver.addresses(DB) == ("10.0.0.1",)


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1"])
async def test_a_literal_address_stays_as_it_is(literal: str, autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({})

    async with running(lookup, literal) as resolver:
        await resolver.first(literal)

        assert resolver.addresses(literal) == (literal,)

    assert lookup.asked == []


async def test_nothing_is_known_of_a_name_that_nobody_uses(autojump_clock: trio.testing.MockClock) -> None:
    async with running(FakeLookup({})) as resolver:
        await resolver.first("unused.example")

        assert resolver.addresses("unused.example") == ()


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

    async with running(lookup, DB, changed=changed) as resolver:
        await lookup.wait_asked(4)
        assert resolver.addresses(DB) == ("10.0.0.1",)

    assert changed == [DB, DB]


async def test_a_failing_name_is_retried_after_longer_and_longer_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lookup = FakeLookup({DB: LookupFailed("no answer within 5 s")})

    async with running(lookup, DB) as resolver:
        await lookup.wait_asked(8)
        assert resolver.addresses(DB) == ()

    assert lookup.times(DB) == [0, 1, 3, 7, 15, 31, 61, 91]


async def test_the_last_addresses_are_served_while_the_servers_fail(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changed: list[str] = []
    lookup = FakeLookup({DB: [ONE, *[LookupFailed("SERVFAIL")] * 3, TWO]})

    async with running(lookup, DB, changed=changed) as resolver:
        await lookup.wait_asked(4)
        assert resolver.addresses(DB) == ("10.0.0.1",)
        await lookup.wait_asked(5)
        assert resolver.addresses(DB) == ("10.0.0.1", "10.0.0.2")

    assert changed == [DB, DB]
    assert lookup.times(DB) == [0, 60, 61, 63, 67]


async def test_addresses_are_dropped_at_the_moment_they_are_too_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changed: list[float] = []
    lookup = FakeLookup({DB: [ONE, LookupFailed("SERVFAIL")]})
    resolver = Resolver(
        lookup,
        min_ttl_s=5,
        max_ttl_s=300,
        stale_s=100,
        on_change=lambda _: changed.append(trio.current_time()),
    )

    async with trio.open_nursery() as nursery:
        await nursery.start(resolver.run)
        began_at = trio.current_time()
        resolver.sync([DB])
        await lookup.wait_asked(10)
        nursery.cancel_scope.cancel()

    assert resolver.addresses(DB) == ()
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
    outcome: Answer | LookupFailed, autojump_clock: trio.testing.MockClock
) -> None:
    lookup = FakeLookup({DB: outcome}, takes_s=3)

    async with running(lookup, DB) as resolver:
        began_at = trio.current_time()
        await resolver.first(DB)
        first_s = trio.current_time() - began_at
        await resolver.first(DB)

        assert first_s == 3
        assert trio.current_time() - began_at == 3


async def test_who_waits_for_a_name_that_is_removed_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    async with running(FakeLookup({DB: ONE}, takes_s=10_000), DB) as resolver:
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(resolver.first, DB)
                await trio.testing.wait_all_tasks_blocked()
                resolver.sync([])


async def test_a_removed_name_is_not_looked_up_any_more(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({DB: ONE, "other.example": ONE})

    async with running(lookup, DB, "other.example") as resolver:
        resolver.sync(["other.example"])
        await lookup.wait_asked(5)

        assert lookup.times(DB) == [0]
        assert resolver.addresses(DB) == ()


async def test_a_name_that_stays_is_not_asked_for_again(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({DB: ONE, "other.example": ONE})

    async with running(lookup, DB) as resolver:
        resolver.sync([DB, "other.example"])
        await trio.testing.wait_all_tasks_blocked()

    assert lookup.asked == [DB, "other.example"]


async def test_cancellation_leaves_no_lookup_behind(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({DB: ONE}, takes_s=10_000)

    async with running(lookup, DB) as resolver:
        assert lookup.under_way == 1

    assert lookup.under_way == 0
    resolver.sync(["later.example"])
    assert lookup.asked == [DB]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """An empty /etc: what the machine of the tests thinks of names does not matter."""
    (tmp_path / "hosts").write_text("")
    (tmp_path / "resolv.conf").write_text("search corp.example\n")
    return tmp_path


@asynccontextmanager
async def dns_server(zone: str) -> AsyncIterator[DNSServer]:
    server = DNSServer(zone)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


ZONE = """
both.example.        90 IN A     192.0.2.9
both.example.        90 IN A     192.0.2.10
both.example.        30 IN AAAA  2001:db8::1
four.example.        90 IN A     192.0.2.4
alias.example.       20 IN CNAME four.example.
text.example.        90 IN TXT   "no address"
db.corp.example.     90 IN A     192.0.2.7
"""


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("both.example", Answer(("192.0.2.9", "192.0.2.10", "2001:db8::1"), 30)),
        ("four.example.", Answer(("192.0.2.4",), 90)),
        ("alias.example", Answer(("192.0.2.4",), 20)),
        ("db", Answer(("192.0.2.7",), 90)),
    ],
    ids=[
        "all records of both families",
        "one family",
        "the shortest of a chain",
        "through the search domain",
    ],
)
async def test_a_server_is_asked_for_all_addresses(name: str, answer: Answer, etc: Path) -> None:
    async with dns_server(ZONE) as server:
        assert await DNSLookup(servers=[server.address], etc=etc)(name) == answer


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone.example", "no such name (NXDOMAIN)"),
        ("text.example", "has neither an A nor an AAAA record"),
        ("servfail.example", "answered SERVFAIL"),
        ("silent.example", "no answer within 0.2 s"),
        ("a..b", "A DNS label is empty"),
    ],
)
async def test_a_failure_says_which_it_was(name: str, why: str, etc: Path) -> None:
    async with dns_server(ZONE) as server:
        with pytest.raises(LookupFailed) as caught:
            await DNSLookup(servers=[server.address], timeout_s=0.2, etc=etc)(name)

    assert why in str(caught.value)


async def test_a_server_that_breaks_on_one_family_is_good_for_the_other(etc: Path) -> None:
    async with dns_server(ZONE) as server:
        server.broken_kinds = {"AAAA"}

        assert await DNSLookup(servers=[server.address], etc=etc)("both.example") == Answer(
            ("192.0.2.9", "192.0.2.10"), 90
        )


async def test_without_search_a_short_name_is_asked_for_as_it_is(etc: Path) -> None:
    async with dns_server(ZONE) as server:
        with pytest.raises(LookupFailed):
            await DNSLookup(servers=[server.address], search=False, etc=etc)("db")

    assert {name for name, _ in server.asked} == {"db."}


async def test_the_operator_may_say_how_long_an_answer_is_good_for(etc: Path) -> None:
    async with dns_server(ZONE) as server:
        answer = await DNSLookup(servers=[server.address], ttl_override_s=7, etc=etc)("both.example")

    assert answer.ttl_s == 7


async def test_without_servers_of_its_own_resolv_conf_counts(etc: Path) -> None:
    lookup = DNSLookup(etc=etc)

    with pytest.raises(LookupFailed, match="no nameservers"):
        await lookup("both.example")

    (etc / "resolv.conf").unlink()
    with pytest.raises(LookupFailed, match="cannot open"):
        await lookup("both.example")


async def test_the_hosts_file_goes_first_and_no_server_is_asked(etc: Path) -> None:
    (etc / "hosts").write_text(
        "# mine\n\n10.0.0.5 DB.example db # and more\nnonsense db.example\n10.0.0.4 db.example\n"
    )

    async with dns_server(ZONE) as server:
        assert await DNSLookup(servers=[server.address], etc=etc)("db.Example.") == Answer(
            ("10.0.0.4", "10.0.0.5"), 0
        )

    assert server.asked == []


async def test_an_edited_hosts_file_is_read_again(etc: Path) -> None:
    lookup = DNSLookup(servers=[Address("127.0.0.1", 9)], timeout_s=0.1, etc=etc)
    (etc / "hosts").write_text("10.0.0.5 db.example\n")
    assert (await lookup("db.example")).addresses == ("10.0.0.5",)

    (etc / "new").write_text("10.0.0.6 db.example\n")
    (etc / "new").rename(etc / "hosts")

    assert (await lookup("db.example")).addresses == ("10.0.0.6",)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "app.localhost"])
async def test_localhost_always_resolves(name: str, etc: Path) -> None:
    (etc / "hosts").unlink()

    assert await DNSLookup(etc=etc)(name) == Answer(("127.0.0.1", "::1"), 0)
