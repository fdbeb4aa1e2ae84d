"""Services against a small real name server: what becomes of records, and of servers that know only half."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from streamgw.core.discovery import ORDER, RecordKind
from streamgw.core.model import Node
from streamgw.dataplane.discovery import RETRY_TARGETS_S, Discovery, Naming, ServiceLookup
from streamgw.dataplane.refresher import Answer, LookupFailed
from streamgw.dataplane.resolver import BOTH, DNSLookup, Kind, Resolver
from tests.support.fake_dns import DNSServer

SERVICE = "_mysql._tcp.db.example"
ZONE = """
_mysql._tcp.db.example. 60 IN SRV 10 3 3306 a.db.example.
_mysql._tcp.db.example. 60 IN SRV 10 1 3307 b.db.example.
_mysql._tcp.db.example. 60 IN SRV 20 0 3306 c.db.example.
a.db.example.           30 IN A    10.0.0.1
b.db.example.           50 IN A    10.0.0.2
c.db.example.           40 IN A    10.0.0.3
c.db.example.           40 IN AAAA fd00::3
both.example.           60 IN A    10.0.0.9
both.example.           60 IN SRV  1 1 9000 a.db.example.
plain.example.          60 IN A    10.0.0.8
plain.example.          60 IN AAAA fd00::8
alias.example.          20 IN CNAME _mysql._tcp.db.example.
closed.example.         60 IN SRV  0 0 0 .
portless.example.       60 IN SRV  0 0 0 a.db.example.
mixed.example.          60 IN SRV  0 0 0 .
mixed.example.          60 IN SRV  0 1 9000 A.db.example.
nowhere.example.        60 IN SRV  0 0 1 gone.db.example.
"""


@asynccontextmanager
async def served(zone: str = ZONE) -> AsyncIterator[DNSServer]:
    server = DNSServer(zone)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "hosts").write_text("")
    (tmp_path / "resolv.conf").write_text("")
    return tmp_path


def lookup_at(
    server: DNSServer,
    etc: Path,
    *,
    order: Sequence[RecordKind] = ORDER,
    max_records: int = 100,
    timeout_s: float = 5.0,
    stale_s: float = 600.0,
) -> ServiceLookup:
    dns = DNSLookup(servers=[server.address], etc=etc, max_records=max_records, timeout_s=timeout_s)
    return ServiceLookup(dns, order=order, stale_s=stale_s)


async def nodes(lookup: ServiceLookup, service: str = SERVICE) -> list[str]:
    return [str(found) for found in (await lookup(service)).found]


async def test_srv_records_become_nodes_with_port_weight_and_priority(etc: Path) -> None:
    async with served() as server:
        answer = await lookup_at(server, etc)(SERVICE)

    assert [found.node for found in answer.found] == [
        Node("10.0.0.1", 3306, weight=3, priority=-10),
        Node("10.0.0.2", 3307, weight=1, priority=-10),
        Node("10.0.0.3", 3306, weight=1, priority=-20),
        Node("fd00::3", 3306, weight=1, priority=-20),
    ]
    assert [found.name for found in answer.found][1:3] == ["b.db.example", "c.db.example"]
    assert answer.ttl_s == 30, "the shortest, that of a target"
    assert answer.left_out == 0


@pytest.mark.parametrize(
    ("service", "found"),
    [
        ("plain.example:9", ["10.0.0.8:9", "[fd00::8]:9"]),
        ("both.example:9", ["10.0.0.1:9"]),
        ("both.example", ["10.0.0.1:9000"]),
        ("portless.example:9", ["10.0.0.1:9"]),
        ("mixed.example", ["10.0.0.1:9000"]),
        ("closed.example", []),
        ("closed.example:9", []),
    ],
)
async def test_a_name_is_its_records_or_else_all_its_addresses(
    service: str, found: list[str], etc: Path
) -> None:
    async with served() as server:
        assert await nodes(lookup_at(server, etc), service) == found


async def test_an_alias_is_followed_and_its_time_counts(etc: Path) -> None:
    async with served() as server:
        answer = await lookup_at(server, etc)("alias.example")

    assert (len(answer.found), answer.ttl_s) == (4, 20)


@pytest.mark.parametrize(
    ("order", "service", "found"),
    [
        (["A", "SRV"], "both.example:9", ["10.0.0.9:9"]),
        (["A", "SRV"], "both.example", ["10.0.0.1:9000"]),
        (["SRV", "AAAA"], "plain.example:9", ["[fd00::8]:9"]),
        (["SRV", "AAAA"], SERVICE, ["[fd00::3]:3306"]),
        (["last", "CNAME"], "plain.example:9", ["10.0.0.8:9", "[fd00::8]:9"]),
        (["SRV"], SERVICE, ["10.0.0.1:3306", "10.0.0.2:3307", "10.0.0.3:3306", "[fd00::3]:3306"]),
    ],
)
async def test_the_order_says_what_is_asked_for_and_first(
    order: Sequence[RecordKind], service: str, found: list[str], etc: Path
) -> None:
    async with served() as server:
        assert await nodes(lookup_at(server, etc, order=order), service) == found


@pytest.mark.parametrize(
    ("service", "order", "why"),
    [
        ("gone.example", ORDER, "no such name (NXDOMAIN)"),
        ("gone.example:9", ORDER, "no such name (NXDOMAIN)"),
        ("plain.example", ORDER, "has no SRV record, and service_name no port"),
        ("a.db.example:9", ["SRV", "AAAA"], "has no SRV record; has no AAAA record"),
        ("plain.example", ["A"], "service_name has no port"),
        ("portless.example", ORDER, "no SRV record has a port"),
        ("nowhere.example", ORDER, "gone.db.example: no such name (NXDOMAIN)"),
        ("silent.example", ORDER, "no answer within 0.2 s"),
    ],
)
async def test_a_failure_says_what_is_missing(
    service: str, order: Sequence[RecordKind], why: str, etc: Path
) -> None:
    timeout_s = 0.2 if service == "silent.example" else 30.0
    async with served() as server:
        with pytest.raises(LookupFailed) as caught:
            await lookup_at(server, etc, order=order, timeout_s=timeout_s)(service)

    assert str(caught.value) == why


async def test_a_server_that_breaks_on_srv_is_good_for_addresses(etc: Path) -> None:
    async with served() as server:
        server.broken_kinds = {"SRV"}

        assert await nodes(lookup_at(server, etc), "plain.example:9") == ["10.0.0.8:9", "[fd00::8]:9"]


async def test_a_service_that_had_records_is_not_taken_for_a_plain_name_in_trouble(etc: Path) -> None:
    """Its own address is another machine than the targets of its records."""
    async with served() as server:
        lookup = lookup_at(server, etc)
        assert await nodes(lookup, "both.example:9") == ["10.0.0.1:9"]

        server.broken_kinds = {"SRV"}
        with pytest.raises(LookupFailed, match="SERVFAIL"):
            await lookup("both.example:9")

        server.publish("both.example. 60 IN A 10.0.0.9\n")
        server.broken_kinds = set()
        assert await nodes(lookup, "both.example:9") == ["10.0.0.9:9"], "the records are gone, which is said"


async def test_a_target_in_trouble_keeps_its_addresses_and_is_told_of_once(etc: Path) -> None:
    async with served() as server:
        lookup = lookup_at(server, etc)
        before = await nodes(lookup)
        server.broken_names = {"b.db.example."}

        with structlog.testing.capture_logs() as logs:
            answer = await lookup(SERVICE)
            assert [str(found) for found in answer.found] == before
            assert await nodes(lookup) == before

    assert answer.ttl_s == RETRY_TARGETS_S
    (line,) = logs
    assert (line["event"], line["target"], line["still_used"]) == (
        "target_not_resolved",
        "b.db.example",
        ("10.0.0.2",),
    )
    assert "SERVFAIL" in line["why"]


async def test_a_target_in_trouble_that_was_never_seen_is_left_out(etc: Path) -> None:
    async with served() as server:
        server.broken_names = {"a.db.example.", "c.db.example."}

        assert await nodes(lookup_at(server, etc)) == ["10.0.0.2:3307"]


async def test_addresses_of_a_target_in_trouble_do_not_live_for_ever(etc: Path) -> None:
    async with served(ZONE.replace(" 50 IN", " 0 IN")) as server:
        lookup = lookup_at(server, etc, stale_s=0)
        assert "10.0.0.2:3307" in await nodes(lookup)
        server.broken_names = {"b.db.example."}

        assert "10.0.0.2:3307" not in await nodes(lookup)


async def test_a_silent_target_holds_up_the_others_for_no_longer_than_a_lookup_may_take(etc: Path) -> None:
    zone = ZONE + f"{SERVICE}. 60 IN SRV 10 1 1 silent.example.\n"
    async with served(zone) as server:
        began_at = trio.current_time()

        answer = await lookup_at(server, etc, timeout_s=1.0)(SERVICE)

        assert len(answer.found) == 4
        assert trio.current_time() - began_at < 10


async def test_of_too_many_records_the_best_are_used(etc: Path) -> None:
    zone = "".join(
        f"many.example. 60 IN SRV {number} 1 1 t{number}.example.\n"
        f"t{number}.example. 60 IN A 10.0.1.{number}\nt{number}.example. 60 IN A 10.0.2.{number}\n"
        for number in range(9)
    )
    async with served(zone) as server:
        answer = await lookup_at(server, etc, max_records=3)("many.example")

    assert [found.node.host for found in answer.found] == ["10.0.1.0", "10.0.2.0", "10.0.1.1"]
    assert answer.left_out == 6 + 3
    assert {name for name, kind in server.asked if kind == "A"} == {
        f"t{number}.example." for number in range(3)
    }


async def test_a_service_is_kept_and_forgotten(etc: Path) -> None:
    changed: list[str] = []
    async with served(ZONE.replace(" 50 IN", " 0 IN")) as server:
        lookup = lookup_at(server, etc)
        discovery = Discovery(lookup, min_ttl_s=0.05, max_ttl_s=300, on_change=changed.append)
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery.run)
            discovery.sync([SERVICE])
            await discovery.first(SERVICE)
            assert len(discovery.known(SERVICE)) == 4

            server.publish(ZONE.replace("b.db.example.           50", "b.db.example. 0"))
            discovery.sync([])
            assert discovery.known(SERVICE) == ()
            server.broken_names = {"b.db.example."}
            assert "10.0.0.2:3307" not in await nodes(lookup), "nothing is remembered of it"
            nursery.cancel_scope.cancel()

    assert changed == [SERVICE]


async def test_a_resolv_conf_of_its_own_that_goes_bad_takes_no_node_with_it(
    etc: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Such a file ended the gateway; what was known is used until it is mended."""
    own = etc / "own.conf"
    own.write_text("nameserver 10.0.0.300\n")
    (etc / "hosts").write_text("10.0.0.8 plain.example\n")
    lookup = ServiceLookup(DNSLookup(etc=etc, resolv_conf=own), order=["A", "SRV"], stale_s=600)
    discovery = Discovery(lookup, min_ttl_s=5, max_ttl_s=300, on_change=lambda _: None)
    discovery.sync(["plain.example:9", SERVICE])
    wrong = f"{own}: nameserver '10.0.0.300' is not an IP address"

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery.run)
            await discovery.first(SERVICE)
            await discovery.first("plain.example:9")
            assert [str(found) for found in discovery.known("plain.example:9")] == ["10.0.0.8:9"]
            (etc / "hosts").write_text("# nobody\n")
            await trio.sleep(60)
            assert [str(found) for found in discovery.known("plain.example:9")] == ["10.0.0.8:9"]
            assert discovery.trouble("plain.example:9") == wrong
            assert discovery.trouble(SERVICE) == wrong
            nursery.cancel_scope.cancel()

    assert sorted((line["event"], line["name"], line["why"]) for line in logs) == [
        ("name_not_resolved", SERVICE, wrong),
        ("name_not_resolved", "plain.example:9", wrong),
    ]


async def test_an_alias_that_leads_to_itself_is_a_failure(etc: Path) -> None:
    async with served("loop.example. 60 IN CNAME loop.example.\n") as server:
        with pytest.raises(LookupFailed):
            await lookup_at(server, etc, timeout_s=0.5)("loop.example")


async def test_names_and_services_are_kept_fresh_together(etc: Path) -> None:
    changed: list[str] = []
    bounds = {"min_ttl_s": 1.0, "max_ttl_s": 300.0}
    async with served() as server:
        dns = DNSLookup(servers=[server.address], etc=etc)
        naming = Naming(
            Resolver(dns, **bounds, stale_s=0, on_change=changed.append),
            Discovery(lookup_at(server, etc), **bounds, on_change=changed.append),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(naming.run)
            naming.sync(["plain.example"], [SERVICE, "gone.example"])
            for name in ("plain.example", SERVICE, "gone.example"):
                await naming.first(name)

            assert naming.addresses("plain.example") == ("10.0.0.8", "fd00::8")
            assert len(naming.nodes(SERVICE)) == 4
            assert naming.nodes("plain.example") == ()
            assert naming.trouble("gone.example") == "no such name (NXDOMAIN)"
            assert [each.name for each in naming.discovery.standings()] == [SERVICE, "gone.example"]
            nursery.cancel_scope.cancel()

    assert sorted(changed) == [SERVICE, "plain.example"]


async def test_a_bug_in_a_lookup_of_either_kind_is_told_of(autojump_clock: trio.testing.MockClock) -> None:
    bugs: list[Exception] = []
    bounds = {"min_ttl_s": 1.0, "max_ttl_s": 300.0}

    class Broken(DNSLookup):
        async def __call__(self, name: str, kinds: Sequence[Kind] = BOTH) -> Answer[str]:
            raise ZeroDivisionError(name)

    naming = Naming(
        Resolver(Broken(), **bounds, stale_s=0, on_change=lambda _: None),
        Discovery(ServiceLookup(Broken(), order=["A"], stale_s=0), **bounds, on_change=lambda _: None),
        on_bug=bugs.append,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(naming.run)
        naming.sync(["plain.example"], ["both.example:9"])
        await naming.first("plain.example")
        await naming.first("both.example:9")
        assert naming.trouble("both.example:9") == "a bug: ZeroDivisionError"
        nursery.cancel_scope.cancel()

    assert sorted(str(bug) for bug in bugs) == ["both.example", "plain.example"]
