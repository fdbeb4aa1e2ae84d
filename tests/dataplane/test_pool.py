"""Which nodes a session is offered, and what the pool remembers over a reload."""

from __future__ import annotations

import random

import pytest

from streamgw.core.model import Upstream
from streamgw.dataplane.pool import UpstreamPool
from tests.support.scenes import FakeNames, facts, sync, upstream


def pool_of(*upstreams: Upstream, names: FakeNames | None = None) -> UpstreamPool:
    pool = UpstreamPool(names or FakeNames(), rng=random.Random(7))
    sync(pool, *upstreams)
    return pool


async def offered(pool: UpstreamPool, to: Upstream) -> list[str]:
    return [str(address) for address in await pool.candidates(to, facts())]


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
