"""Addresses for names in use; the DNS client against a small real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from streamgw.core.model import Address
from streamgw.dataplane.refresher import Answer, LookupFailed
from streamgw.dataplane.resolver import DNSLookup, Kind, NotThere, Resolver
from tests.support.fake_dns import DNSServer, FakeLookup


@asynccontextmanager
async def running(lookup: FakeLookup, *names: str) -> AsyncIterator[Resolver]:
    resolver = Resolver(lookup, min_ttl_s=5, max_ttl_s=300, stale_s=600, on_change=lambda _: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(resolver.run)
        resolver.sync(names)
        await trio.testing.wait_all_tasks_blocked()
        yield resolver
        nursery.cancel_scope.cancel()


async def test_a_name_has_the_addresses_that_were_found(autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({"db.example": Answer(("10.0.0.1", "10.0.0.2"), 60)})

    async with running(lookup, "db.example") as resolver:
        assert resolver.addresses("db.example") == ("10.0.0.1", "10.0.0.2")
        assert resolver.addresses("unused.example") == ()


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1"])
async def test_a_literal_address_stays_as_it_is(literal: str, autojump_clock: trio.testing.MockClock) -> None:
    lookup = FakeLookup({})

    async with running(lookup, literal) as resolver:
        await resolver.first(literal)

        assert resolver.addresses(literal) == (literal,)

    assert lookup.asked == []


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
async def test_a_server_is_asked_for_all_addresses(name: str, answer: Answer[str], etc: Path) -> None:
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
    timeout_s = 0.2 if name == "silent.example" else 30.0
    async with dns_server(ZONE) as server:
        with pytest.raises(LookupFailed) as caught:
            await DNSLookup(servers=[server.address], timeout_s=timeout_s, etc=etc)(name)

    assert why in str(caught.value)


async def test_a_server_that_breaks_on_one_family_is_good_for_the_other(etc: Path) -> None:
    async with dns_server(ZONE) as server:
        server.broken_kinds = {"AAAA"}

        assert await DNSLookup(servers=[server.address], etc=etc)("both.example") == Answer(
            ("192.0.2.9", "192.0.2.10"), 90
        )


@pytest.mark.parametrize(
    ("kind", "addresses"), [("A", ("192.0.2.9", "192.0.2.10")), ("AAAA", ("2001:db8::1",))]
)
async def test_one_family_alone_may_be_wanted(kind: Kind, addresses: tuple[str, ...], etc: Path) -> None:
    async with dns_server(ZONE) as server:
        lookup = DNSLookup(servers=[server.address], etc=etc)
        assert (await lookup("both.example", (kind,))).found == addresses
        (etc / "hosts").write_text(
            "192.0.2.9 both.example\n192.0.2.10 both.example\n2001:db8::1 both.example\n"
        )
        assert (await lookup("both.example", (kind,))).found == addresses

    assert server.asked == [("both.example.", kind)]


async def test_one_family_that_is_missing_is_named(etc: Path) -> None:
    async with dns_server(ZONE) as server:
        with pytest.raises(NotThere, match=r"^has no AAAA record$"):
            await DNSLookup(servers=[server.address], etc=etc)("four.example", ("AAAA",))


async def test_of_too_many_addresses_the_first_are_used(etc: Path) -> None:
    async with dns_server(ZONE) as server:
        lookup = DNSLookup(servers=[server.address], max_records=2, etc=etc)

        assert await lookup("both.example") == Answer(("192.0.2.9", "192.0.2.10"), 30, left_out=1)


async def test_a_server_in_trouble_counts_more_than_one_that_knows_nothing(etc: Path) -> None:
    """Whoever keeps the last answer on trouble only must hear of it."""
    async with dns_server(ZONE) as server:
        server.broken_kinds = {"AAAA"}
        with pytest.raises(LookupFailed, match="SERVFAIL") as caught:
            await DNSLookup(servers=[server.address], etc=etc)("gone.example")

    assert not isinstance(caught.value, NotThere)


async def test_another_resolv_conf_may_be_named(etc: Path) -> None:
    own = etc / "own.conf"
    own.write_text("search corp.example\n")
    (etc / "resolv.conf").write_text("search else.example\n")
    async with dns_server(ZONE) as server:
        lookup = DNSLookup(servers=[server.address], etc=etc, resolv_conf=own)

        assert (await lookup("db")).found == ("192.0.2.7",)


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

    with pytest.raises(LookupFailed, match=r"/resolv\.conf: no nameservers$"):
        await lookup("both.example")

    (etc / "resolv.conf").unlink()
    with pytest.raises(LookupFailed, match=r"/resolv\.conf: No such file"):
        await lookup("both.example")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"nameserver 10.0.0.300", "nameserver '10.0.0.300' is not an IP address"),
        (b"nameserver dns.corp", "nameserver 'dns.corp' is not an IP address"),
        (b"nameserver https://dns.corp/", "nameserver 'https://dns.corp/' is not an IP address"),
        (b"nameserver 127.0.0.9\xff", "nameserver '127.0.0.9\ufffd' is not an IP address"),
        (b"search corp\xff", "Codepoint U+FFFD not allowed"),
        (b"search a..b", "A DNS label is empty"),
    ],
)
async def test_a_wrong_resolv_conf_is_a_failure_that_names_it_until_it_is_mended(
    line: bytes, why: str, etc: Path
) -> None:
    """An unreadable line that a DHCP client wrote, or somebody who edited the file, ended the gateway."""
    conf = etc / "resolv.conf"
    conf.write_bytes(b"nameserver 127.0.0.9\n" + line + b"\n")
    lookup = DNSLookup(timeout_s=0.1, etc=etc)

    for _ in range(2):
        with pytest.raises(LookupFailed) as caught:
            await lookup("both.example")
        assert str(caught.value).startswith(f"{conf}: ")
        assert why in str(caught.value)

    (etc / "new").write_text("nameserver 127.0.0.9\n")
    (etc / "new").rename(conf)
    with pytest.raises(LookupFailed) as caught:
        await lookup("both.example")
    assert "resolv.conf" not in str(caught.value), "it is asked for now"


async def test_a_resolv_conf_that_goes_bad_and_is_mended_while_names_are_in_use(etc: Path) -> None:
    conf = etc / "resolv.conf"
    async with dns_server(ZONE) as server:
        lookup = DNSLookup(servers=[server.address], etc=etc)
        assert (await lookup("db")).found == ("192.0.2.7",)

        conf.write_text("search corp..example\n# broken\n")
        with pytest.raises(LookupFailed, match=r"resolv\.conf: A DNS label is empty"):
            await lookup("db")

        conf.write_text("search corp.example\n# mended\n")
        assert (await lookup("db")).found == ("192.0.2.7",)


@pytest.mark.parametrize("line", ["nameserver 10.0.0.300", "nameserver dns.corp"])
async def test_who_has_servers_of_his_own_does_not_mind_those_of_resolv_conf(line: str, etc: Path) -> None:
    (etc / "resolv.conf").write_text(f"{line}\nsearch corp.example\n")
    async with dns_server(ZONE) as server:
        assert (await DNSLookup(servers=[server.address], etc=etc)("db")).found == ("192.0.2.7",)


@pytest.mark.parametrize(
    "line", [b"# gr\xfc\xdfe", b"options timeout:-5 ndots:-1", b"options timeout:0", b"domain"]
)
async def test_what_the_machine_does_not_mind_in_resolv_conf_does_no_harm(line: bytes, etc: Path) -> None:
    (etc / "resolv.conf").write_bytes(b"search corp.example\n" + line + b"\n")
    async with dns_server(ZONE) as server:
        assert (await DNSLookup(servers=[server.address], etc=etc)("db")).found == ("192.0.2.7",)


async def test_a_wrong_resolv_conf_at_the_start_is_told_of_once_and_ends_nothing(
    etc: Path, autojump_clock: trio.testing.MockClock
) -> None:
    conf = etc / "resolv.conf"
    conf.write_text("nameserver 10.0.0.300\n")
    (etc / "hosts").write_text("10.0.0.5 listed.example\n")
    resolver = Resolver(DNSLookup(etc=etc), min_ttl_s=5, max_ttl_s=300, stale_s=600, on_change=lambda _: None)
    resolver.sync(["db.example", "listed.example"])

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(resolver.run)
            await resolver.first("db.example")
            await trio.sleep(60)
            assert resolver.addresses("listed.example") == ("10.0.0.5",)
            assert resolver.trouble("db.example") == f"{conf}: nameserver '10.0.0.300' is not an IP address"
            nursery.cancel_scope.cancel()

    assert [(line["event"], line["name"]) for line in logs] == [("name_not_resolved", "db.example")]


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
    assert (await lookup("db.example")).found == ("10.0.0.5",)

    (etc / "new").write_text("10.0.0.6 db.example\n")
    (etc / "new").rename(etc / "hosts")

    assert (await lookup("db.example")).found == ("10.0.0.6",)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "app.localhost"])
async def test_localhost_always_resolves(name: str, etc: Path) -> None:
    (etc / "hosts").unlink()

    assert await DNSLookup(etc=etc)(name) == Answer(("127.0.0.1", "::1"), 0)
