"""Which nodes a session is offered, and what the pool remembers over a reload."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgw.core.discovery import Discovered
from streamgw.core.errors import ConnectFailed, NoNode
from streamgw.core.model import Address, Facts, Pacing, Upstream
from streamgw.dataplane.pool import UpstreamPool
from tests.support.scenes import FakeNames, facts, sync, upstream
from tests.support.scenes import node as node_at


def pool_of(*upstreams: Upstream, names: FakeNames | None = None) -> UpstreamPool:
    pool = UpstreamPool(names or FakeNames(), rng=random.Random(7))
    sync(pool, *upstreams)
    return pool


async def offered(pool: UpstreamPool, to: Upstream) -> list[str]:
    return [str(address) for address in await pool.candidates(to, facts())]


async def after(seconds: float, act: Callable[[], object]) -> None:
    await trio.sleep(seconds)
    act()


async def test_every_node_is_offered_once() -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:2", "[2001:db8::1]:3")

    seen = await offered(pool_of(to), to)

    assert sorted(seen) == ["10.0.0.1:1", "10.0.0.2:2", "[2001:db8::1]:3"]


async def test_sessions_take_turns() -> None:
    to = upstream("10.0.0.1:1=2", "10.0.0.2:1")
    pool = pool_of(to)

    firsts = [(await offered(pool, to))[0] for _ in range(6)]

    assert firsts.count("10.0.0.1:1") == 4
    assert firsts.count("10.0.0.2:1") == 2


async def test_a_reload_that_leaves_the_nodes_alone_keeps_the_turn() -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1")
    pool = pool_of(to)
    first = (await offered(pool, to))[0]

    edited = upstream("10.0.0.1:1", "10.0.0.2:1", name="renamed")
    sync(pool, edited)
    second = (await offered(pool, edited))[0]

    assert {first, second} == {"10.0.0.1:1", "10.0.0.2:1"}


async def test_other_nodes_after_a_reload_are_the_ones_offered() -> None:
    old, new = upstream("10.0.0.1:1"), upstream("10.0.0.2:1")
    pool = pool_of(old)

    sync(pool, new)

    assert await offered(pool, new) == ["10.0.0.2:1"]


async def test_a_session_accepted_before_the_reload_gets_its_own_nodes() -> None:
    old, new = upstream("10.0.0.1:1"), upstream("10.0.0.2:1")
    pool = pool_of(old)
    sync(pool, new)

    assert await offered(pool, old) == ["10.0.0.1:1"]


async def test_an_upstream_that_was_deleted_still_serves_the_session_that_pinned_it() -> None:
    old = upstream("10.0.0.1:1")
    pool = pool_of(old)
    sync(pool)

    assert await offered(pool, old) == ["10.0.0.1:1"]


async def test_all_addresses_of_a_name_become_nodes() -> None:
    names = FakeNames({"db.example": ("10.0.0.1", "2001:db8::1")})
    to = upstream("db.example:3306")

    seen = await offered(pool_of(to, names=names), to)

    assert sorted(seen) == ["10.0.0.1:3306", "[2001:db8::1]:3306"]
    assert names.wanted == {"db.example"}


async def test_a_name_that_changes_its_address_is_followed() -> None:
    names = FakeNames({"db.example": ("10.0.0.1",)})
    to, other = upstream("db.example:3306"), upstream("10.9.9.9:1", key="upstreams/2")
    pool = pool_of(to, other, names=names)

    names.table["db.example"] = ("10.0.0.2",)
    pool.on_names_changed("db.example")

    assert await offered(pool, to) == ["10.0.0.2:3306"]
    assert await offered(pool, other) == ["10.9.9.9:1"]


async def test_the_first_session_waits_for_the_first_answer() -> None:
    names = FakeNames(later={"db.example": ("10.0.0.1",)})
    to = upstream("db.example:3306")
    pool = pool_of(to, names=names)

    assert await offered(pool, to) == ["10.0.0.1:3306"]


async def test_a_name_without_an_answer_offers_nothing() -> None:
    to = upstream("gone.example:3306")

    assert await offered(pool_of(to), to) == []


async def test_a_drained_node_is_neither_offered_nor_looked_up() -> None:
    names = FakeNames({"db.example": ("10.0.0.1",)})
    to = upstream("db.example:3306=0", "10.0.0.2:3306=0")
    pool = pool_of(to, names=names)

    assert await offered(pool, to) == []
    assert names.wanted == set()


# ── Services ─────────────────────────────────────────────────────────────────────────────────────

SERVICE = "_mysql._tcp.db.example"


service = partial(upstream, service_name=SERVICE)


def discovered(*nodes: str, priority: int = 0) -> tuple[Discovered, ...]:
    """As of SRV records of one priority: `10.0.0.1:3306=3`."""
    made = [attrs.evolve(node_at(text), priority=priority) for text in nodes]
    return tuple(Discovered(each, f"at-{each.host}") for each in made)


async def test_the_nodes_of_a_service_are_those_that_dns_says() -> None:
    names = FakeNames(
        services={SERVICE: discovered("10.0.0.1:1=3", "10.0.0.2:1") + discovered("10.0.0.3:9", priority=-1)}
    )
    to = service()
    pool = pool_of(to, names=names)

    offers = [await offered(pool, to) for _ in range(4)]

    assert names.wanted_services == {SERVICE}
    assert [offer[0] for offer in offers].count("10.0.0.1:1") == 3
    assert {offer[2] for offer in offers} == {"10.0.0.3:9"}


async def test_nodes_of_a_service_come_and_go_and_sessions_are_counted_on() -> None:
    names = FakeNames(services={SERVICE: discovered("10.0.0.1:1", "10.0.0.2:1")})
    to = service(type="least_conn")
    pool = pool_of(to, names=names)
    await offered(pool, to)
    lease = pool.lease(to, Address("10.0.0.2", 1))

    names.services[SERVICE] = discovered("10.0.0.2:1", "10.0.0.3:1")
    pool.on_names_changed(SERVICE)

    assert await offered(pool, to) == ["10.0.0.3:1", "10.0.0.2:1"]
    lease.close()
    assert pool.load(to.key).active(Address("10.0.0.2", 1)) == 0


async def test_a_node_that_dns_adds_starts_slowly(autojump_clock: trio.testing.MockClock) -> None:
    names = FakeNames(services={SERVICE: discovered("10.0.0.1:1")})
    to = service(pacing=Pacing(slow_start_s=30))
    pool = pool_of(to, names=names)
    await offered(pool, to)

    names.services[SERVICE] = discovered("10.0.0.1:1", "10.0.0.2:1")
    pool.on_names_changed(SERVICE)
    await offered(pool, to)

    assert pool.load(to.key).share(node_at("10.0.0.2:1")) < 1
    assert pool.load(to.key).share(node_at("10.0.0.1:1")) == 1


async def test_the_first_session_waits_for_what_dns_says_first() -> None:
    to = service()
    names = FakeNames(later_services={SERVICE: discovered("10.0.0.1:1")})

    assert await offered(pool_of(to, names=names), to) == ["10.0.0.1:1"]


async def test_another_service_name_is_another_upstream() -> None:
    names = FakeNames(services={SERVICE: discovered("10.0.0.1:1"), "other:1": discovered("10.0.0.2:1")})
    to, edited = service(), upstream(service_name="other:1")
    pool = pool_of(to, names=names)
    await offered(pool, to)

    sync(pool, edited)

    assert await offered(pool, edited) == ["10.0.0.2:1"]
    assert await offered(pool, to) == ["10.0.0.1:1"], "who came before the edit"


async def test_weights_of_a_service_that_no_ring_has_room_for_are_made_smaller() -> None:
    names = FakeNames(services={SERVICE: discovered("10.0.0.1:1=65535", "10.0.0.2:1=65535")})
    to = service(type="chash", hash_key="$remote_addr")

    assert len(await offered(pool_of(to, names=names), to)) == 2


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("no such name (NXDOMAIN)", f"DNS says none for {SERVICE}: no such name (NXDOMAIN)"),
        ("", f"DNS says none for {SERVICE}: it is not available there"),
    ],
)
async def test_why_a_service_has_no_node_can_be_told(trouble: str, why: str) -> None:
    to = service()
    pool = pool_of(to, names=FakeNames(troubles={SERVICE: trouble}))

    assert await offered(pool, to) == []
    assert pool.why_empty(to) == why


def test_where_the_nodes_of_a_service_are_can_be_told() -> None:
    names = FakeNames(services={SERVICE: discovered("10.0.0.1:1", "[fd00::1]:2")})
    to = service()

    assert pool_of(to, names=names).places(to) == {
        Address("10.0.0.1", 1): "at-10.0.0.1",
        Address("fd00::1", 2): "at-fd00::1",
    }


# ── Types ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_client_is_hashed_by_what_the_upstream_says() -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", type="chash", hash_key="$mqtt_client_id")
    pool = pool_of(to)

    async def pick(client: Facts) -> str:
        return str(next(await pool.candidates(to, client)))

    by_name = {await pick(attrs.evolve(facts(f"192.0.2.{n}"), mqtt_client_id="sensor-7")) for n in range(20)}
    by_address = {await pick(facts(f"192.0.2.{n}")) for n in range(20)}

    assert len(by_name) == 1
    assert len(by_address) == 3, "who has no name is hashed by its address"


async def test_a_big_ring_is_made_once_however_many_ask() -> None:
    """In a thread: 64,000 points."""
    to = upstream("10.0.0.1:1=200", "10.0.0.2:1=200", type="chash", hash_key="$remote_addr")
    pool = pool_of(to)
    seen: list[str] = []

    async def ask() -> None:
        seen.append(str(next(await pool.candidates(to, facts()))))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)

    assert len(seen) == 5
    assert len(set(seen)) == 1


async def test_another_type_is_another_balancer() -> None:
    nodes = ("10.0.0.1:1", "10.0.0.2:1")
    old, new = upstream(*nodes), upstream(*nodes, type="least_conn")
    pool = pool_of(old)
    first = next(await pool.candidates(old, facts()))
    pool.lease(old, first)

    sync(pool, new)

    assert next(await pool.candidates(new, facts())) != first, "its session is still counted"


# ── What the nodes are doing ─────────────────────────────────────────────────────────────────────


async def test_sessions_are_counted_over_reloads_and_over_deletion() -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1")
    pool = pool_of(to)
    node = Address("10.0.0.1", 1)
    lease = pool.lease(to, node)

    sync(pool, upstream("10.0.0.2:1"))
    sync(pool)
    sync(pool, to)

    assert pool.load(to.key).active(node) == 1
    lease.close()
    sync(pool)
    assert pool.load(to.key).active(node) == 0


async def test_what_attempts_told_is_kept() -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1", type="ewma")
    pool = pool_of(to)
    slow, refusing = Address("10.0.0.1", 1), Address("10.0.0.2", 1)
    pool.answered(to, slow, 0.5)
    pool.failed(to, refusing, ConnectFailed("connection refused"))

    assert await offered(pool, to) == [str(slow), str(refusing)]


async def test_of_nodes_that_connect_alike_the_one_that_answers_sooner_is_first() -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1", type="ewma")
    pool = pool_of(to)
    slow, quick = Address("10.0.0.1", 1), Address("10.0.0.2", 1)
    for node, after_s in ((slow, 0.2), (quick, 0.002)):
        pool.answered(to, node, 0.0001)
        pool.first_byte(to, node, after_s)

    assert await offered(pool, to) == [str(quick), str(slow)]


async def test_a_node_that_is_down_is_not_offered() -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1")
    pool = pool_of(to)

    assert pool.set_up(to.key, Address("10.0.0.1", 1), False)
    assert not pool.set_up(to.key, Address("10.0.0.1", 1), False)

    assert await offered(pool, to) == ["10.0.0.2:1"]


async def test_when_all_are_down_and_none_may_be_used_that_is_why() -> None:
    to = upstream("10.0.0.1:1")
    pool = pool_of(to)
    await offered(pool, to)
    pool.load(to.key).fails_open = False
    pool.set_up(to.key, Address("10.0.0.1", 1), False)

    assert await offered(pool, to) == []
    assert pool.why_empty(to) == "every one is down"


async def test_a_new_address_of_a_name_starts_slowly(autojump_clock: trio.testing.MockClock) -> None:
    names = FakeNames({"db.example": ("10.0.0.1",)})
    to = upstream("db.example:1", pacing=Pacing(slow_start_s=30))
    pool = pool_of(to, names=names)
    await offered(pool, to)

    names.table["db.example"] = ("10.0.0.1", "10.0.0.2")
    pool.on_names_changed("db.example")
    firsts = [(await offered(pool, to))[0] for _ in range(22)]

    assert firsts.count("10.0.0.2:1") == 2
    await trio.sleep(30)
    assert sorted([(await offered(pool, to))[0] for _ in range(2)]) == ["10.0.0.1:1", "10.0.0.2:1"]


async def test_an_edit_of_the_slow_start_alone_takes_effect(autojump_clock: trio.testing.MockClock) -> None:
    old, new = (upstream("10.0.0.1:1", "10.0.0.2:1", pacing=Pacing(slow_start_s=s)) for s in (0, 30))
    pool = pool_of(old)
    await offered(pool, old)

    sync(pool, new)
    node = Address("10.0.0.1", 1)
    pool.set_up(new.key, node, False)
    pool.set_up(new.key, node, True)

    assert pool.load(new.key).share(new.nodes[0]) < 1


# ── Waiting ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_full_node_is_passed_over(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1", pacing=Pacing(max_conns=1))
    pool = pool_of(to)
    first = next(await pool.candidates(to, facts()))
    pool.lease(to, first)

    for _ in range(3):
        (only,) = await pool.candidates(to, facts())
        assert only != first


async def test_one_process_of_several_fills_its_part_of_a_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    to = upstream("10.0.0.1:1", pacing=Pacing(max_conns=4, queue_timeout_s=0))
    pool = UpstreamPool(FakeNames(), rng=random.Random(7), part=lambda limit: limit // 2)
    sync(pool, to)
    for _ in range(2):
        pool.lease(to, next(await pool.candidates(to, facts())))

    with pytest.raises(NoNode, match=r"every node of upstreams/1 has its 2 sessions"):
        await pool.candidates(to, facts())


async def test_when_all_are_full_a_client_waits_for_room(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1))
    pool = pool_of(to)
    lease = pool.lease(to, Address("10.0.0.1", 1))
    began_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 3, lease.close)
        assert await offered(pool, to) == ["10.0.0.1:1"]

    assert trio.current_time() - began_at == 3


async def test_room_goes_to_those_who_came_first(autojump_clock: trio.testing.MockClock) -> None:
    """Also when somebody comes at the very moment when there is room."""
    to = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1))
    pool = pool_of(to)
    lease = pool.lease(to, Address("10.0.0.1", 1))
    served: list[int] = []

    async def client(number: int) -> None:
        with pool.lease(to, next(await pool.candidates(to, facts()))):
            assert pool.load(to.key).active(Address("10.0.0.1", 1)) == 1
            served.append(number)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(client, number)
            await trio.testing.wait_all_tasks_blocked()
        lease.close()
        nursery.start_soon(client, 3)

    assert served == [0, 1, 2, 3]


@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_no_node_ever_has_more_than_its_sessions_and_nobody_is_forgotten(
    rng: random.Random, limit: int, count: int
) -> None:
    """Clients that come, stay, are cut, and edits that take nodes away and bring them back."""
    nodes = [f"10.0.0.{number}:1" for number in range(count)]
    pacing = Pacing(max_conns=limit, queue_timeout_s=1000)
    whole, part = upstream(*nodes, pacing=pacing), upstream(nodes[0], pacing=pacing)
    patient, served = 0, 0

    async def client(pool: UpstreamPool, comes_s: float, stays_s: float, patience_s: float) -> None:
        nonlocal patient, served
        patient += patience_s == math.inf
        await trio.sleep(comes_s)
        with trio.move_on_after(patience_s):
            with pool.lease(whole, node := next(await pool.candidates(whole, facts()))):
                assert pool.load(whole.key).active(node) <= limit
                served += patience_s == math.inf
                await trio.sleep(stays_s)

    async def story() -> None:
        pool = pool_of(whole)
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                patience_s = math.inf if rng.random() < 0.7 else rng.uniform(0, 5)
                nursery.start_soon(client, pool, rng.uniform(0, 20), rng.uniform(0, 5), patience_s)
            for _ in range(4):
                await trio.sleep(rng.uniform(0, 5))
                sync(pool, rng.choice([whole, part]))
        assert not pool.load(whole.key).has_sessions()

    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))

    assert served == patient


async def test_no_room_in_time_says_so(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1", pacing=Pacing(max_conns=2, queue_timeout_s=5))
    pool = pool_of(to)
    for node in (Address("10.0.0.1", 1), Address("10.0.0.2", 1)) * 2:
        pool.lease(to, node)

    with pytest.raises(NoNode, match=r"^every node of upstreams/1 has its 2 sessions, for 5 s$"):
        await pool.candidates(to, facts())


async def test_without_a_queue_a_full_upstream_says_so_at_once() -> None:
    to = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1, queue_timeout_s=0))
    pool = pool_of(to)
    pool.lease(to, Address("10.0.0.1", 1))

    with pytest.raises(NoNode, match=r"^every node of upstreams/1 has its 1 sessions$"):
        await pool.candidates(to, facts())


async def test_the_queue_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1, queue_size=2, queue_timeout_s=1))
    pool = pool_of(to)
    pool.lease(to, Address("10.0.0.1", 1))
    said: list[str] = []

    async def client() -> None:
        with pytest.raises(NoNode) as caught:
            await pool.candidates(to, facts())
        said.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(client)

    full = "every node of upstreams/1 has its 1 sessions"
    assert sorted(said) == [f"{full}, and 2 clients wait already", f"{full}, for 1 s", f"{full}, for 1 s"]


async def test_a_client_waits_for_a_node_and_gets_the_one_that_an_edit_brings(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pacing = Pacing(wait_for_node_s=10)
    to = upstream(pacing=pacing)
    pool = pool_of(to)
    began_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 2, lambda: sync(pool, upstream("10.0.0.9:1", pacing=pacing)))
        assert await offered(pool, to) == ["10.0.0.9:1"]

    assert trio.current_time() - began_at == 2


async def test_a_higher_limit_lets_those_in_who_wait_already(autojump_clock: trio.testing.MockClock) -> None:
    """An operator raised `max_conns` because clients waited; they went on waiting for a place of the old limit, and those who
    came later stood behind them, with 99 places free.
    """
    few = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1, queue_timeout_s=60))
    many = upstream("10.0.0.1:1", pacing=Pacing(max_conns=100, queue_timeout_s=60))
    pool = pool_of(few)
    pool.lease(few, Address("10.0.0.1", 1))
    served: list[str] = []

    async def client(who: str, to: Upstream) -> None:
        pool.lease(to, next(await pool.candidates(to, facts())))
        served.append(who)

    async with trio.open_nursery() as nursery:
        for who in ("first", "second"):
            nursery.start_soon(client, who, few)
            await trio.testing.wait_all_tasks_blocked()
        sync(pool, many)
        nursery.start_soon(client, "newcomer", many)
        await trio.testing.wait_all_tasks_blocked()

        assert served == ["first", "second", "newcomer"]


async def test_a_lower_limit_holds_for_those_who_wait_already(autojump_clock: trio.testing.MockClock) -> None:
    two = upstream("10.0.0.1:1", pacing=Pacing(max_conns=2, queue_timeout_s=5))
    one = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1, queue_timeout_s=60))
    pool = pool_of(two)
    leases = [pool.lease(two, Address("10.0.0.1", 1)) for _ in range(2)]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 1, lambda: sync(pool, one))
        nursery.start_soon(after, 2, leases[0].close)
        with pytest.raises(NoNode, match=r"^every node of upstreams/1 has its 1 sessions, for 5 s$"):
            await pool.candidates(two, facts())


async def test_a_client_waits_for_a_node_that_comes_up(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", pacing=Pacing(wait_for_node_s=10))
    pool = pool_of(to)
    await offered(pool, to)
    pool.load(to.key).fails_open = False
    pool.set_up(to.key, Address("10.0.0.1", 1), False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 2, lambda: pool.set_up(to.key, Address("10.0.0.1", 1), True))
        assert await offered(pool, to) == ["10.0.0.1:1"]


async def test_a_client_waits_for_an_address(autojump_clock: trio.testing.MockClock) -> None:
    names = FakeNames()
    to = upstream("db.example:1", pacing=Pacing(wait_for_node_s=10))
    pool = pool_of(to, names=names)

    def answer() -> None:
        names.table["db.example"] = ("10.0.0.1",)
        pool.on_names_changed("db.example")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 2, answer)
        assert await offered(pool, to) == ["10.0.0.1:1"]


async def test_waiting_for_a_node_has_an_end(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream(pacing=Pacing(wait_for_node_s=10))

    with pytest.raises(NoNode, match=r"^upstream upstreams/1 has no node to dial: it lists none, for 10 s$"):
        await pool_of(to).candidates(to, facts())


async def test_nobody_waits_for_a_node_unless_told_to(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream(pacing=Pacing(max_conns=1))

    assert await offered(pool_of(to), to) == []


async def test_a_client_that_is_cut_while_it_waits_leaves_the_line(
    autojump_clock: trio.testing.MockClock,
) -> None:
    to = upstream(pacing=Pacing(wait_for_node_s=100, queue_size=1))
    pool = pool_of(to)
    with trio.move_on_after(1):
        await pool.candidates(to, facts())

    with trio.move_on_after(1) as scope:
        await pool.candidates(to, facts())

    assert scope.cancelled_caught, "there was a place in the line"


async def test_the_time_already_spent_counts(autojump_clock: trio.testing.MockClock) -> None:
    pool = pool_of(to := upstream(pacing=Pacing(wait_for_node_s=10)))
    await trio.sleep(7)

    with pytest.raises(NoNode, match=r", for 10 s$"):
        await pool.candidates(to, facts(), since=0.0)

    assert trio.current_time() == 10


async def test_pausing_is_bounded_like_waiting(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", pacing=Pacing(wait_for_node_s=10, queue_size=1))
    pool = pool_of(to)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.pause, to, 5)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(NoNode, match=r"every node of upstreams/1 refused, and 1 clients wait already"):
            await pool.pause(to, 5)


async def test_a_longer_queue_has_room_for_those_who_waited_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An operator raised `queue_size`; newcomers filled the queue, and who had waited longest was refused by the old size at
    his next pause.
    """
    short, long = (upstream(pacing=Pacing(wait_for_node_s=10, queue_size=size)) for size in (1, 5))
    pool = pool_of(short)
    began_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        sync(pool, long)
        for _ in range(2):
            nursery.start_soon(pool.candidates, long, facts())
        await trio.testing.wait_all_tasks_blocked()
        await pool.pause(short, 4)
        sync(pool, upstream("10.0.0.9:1"))

    assert trio.current_time() > began_at


async def test_a_line_and_its_counts_outlive_the_upstream_and_go_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Deleted while somebody waits, and back again: room is still told to who waits."""
    to = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1))
    pool = pool_of(to)
    lease = pool.lease(to, Address("10.0.0.1", 1))

    def delete_and_leave() -> None:
        sync(pool)
        sync(pool, to)
        lease.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 1, delete_and_leave)
        assert await offered(pool, to) == ["10.0.0.1:1"]


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ((), "it lists none"),
        (("10.0.0.1:1=0",), "every weight is 0"),
        (("b.example:1", "a.example:1", "b.example:2"), "no address for a.example, b.example"),
    ],
)
async def test_why_nothing_is_offered_can_be_told(nodes: tuple[str, ...], why: str) -> None:
    to = upstream(*nodes)

    assert pool_of(to).why_empty(to) == why


def test_where_its_nodes_are_can_be_told() -> None:
    to = upstream("db.example:3306", "10.0.0.9:1", "10.0.0.8:1=0", "new.example:1")
    pool = pool_of(to, names=FakeNames({"db.example": ("10.0.0.1", "fd00::1")}))

    assert pool.places(to) == {
        Address("10.0.0.1", 3306): "db.example",
        Address("fd00::1", 3306): "db.example",
        Address("10.0.0.9", 1): "10.0.0.9",
    }


async def test_whoever_keeps_health_hears_of_connects() -> None:
    to = upstream("10.0.0.1:1")
    pool, node, heard = pool_of(to), Address("10.0.0.1", 1), list[tuple[object, ...]]()
    pool.answered(to, node, 0.1)
    pool.failed(to, node, ConnectFailed("nobody listens yet"))
    pool.on_answered = lambda *told: heard.append(told)
    pool.on_failed = lambda *told: heard.append(told)

    error = ConnectFailed("connection refused")
    pool.answered(to, node, 0.1)
    pool.failed(to, node, error)

    assert heard == [("upstreams/1", node), ("upstreams/1", node, error)]
