"""What workers know of nodes, and what the supervisor hears of their sessions: one story told to both ends."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.errors import ConnectFailed, NoPortLeft, StreamgwError
from streamgw.core.health import Change
from streamgw.core.model import Address, Node, Upstream
from streamgw.core.probe import Checks, Ejection, Thresholds
from streamgw.dataplane.pool import UpstreamPool
from streamgw.process.health import AT_ONCE, MAX_RESULTS, RETRY_S, NodeStates, RemoteHealth, Tell
from streamgw.process.prober import Prober
from tests.support.scenes import FakeNames, sync, upstream

KEY = "upstreams/1"
A, B = Address("10.0.0.1", 80), Address("10.0.0.2", 80)
PASSIVE = Checks(passive=Thresholds(successes=1, tcp_failures=2, timeouts=3), recover_after_s=30.0)
EJECTING = Checks(passive=None, ejection=Ejection(failures=5, time_s=10.0, max_time_s=60.0, max_percent=100))
REFUSED = ConnectFailed("10.0.0.1:80: connection refused")


def checked(checks: Checks | None = PASSIVE, *nodes: Address) -> Upstream:
    listed = tuple(Node(node.host, node.port) for node in nodes or (A, B))
    return attrs.evolve(upstream(), key=KEY, nodes=listed, checks=checks)


@attrs.define(eq=False)
class Side:
    """A worker."""

    pool: UpstreamPool
    health: RemoteHealth
    changes: list[Change]
    results: list[Sequence[object]]

    def is_up(self, node: Address) -> bool:
        return (node.host, node.port) not in self.pool.load(KEY)._down


@attrs.define(eq=False)
class Story:
    """A supervisor, whose prober only hears of sessions, and workers."""

    nursery: trio.Nursery
    pool: UpstreamPool
    prober: Prober
    states: NodeStates
    sides: list[Side]
    is_lost: bool = False
    """What one side tells the other raises."""
    told: int = 0
    """Messages to workers."""

    def load(self, *upstreams: Upstream, is_on: bool = True) -> None:
        for pool, health in [(self.pool, self.prober), *((side.pool, side.health) for side in self.sides)]:
            sync(pool, *upstreams)
            health.sync({each.key: each for each in upstreams}, is_on=is_on)

    async def begin(self) -> Side:
        """A worker starts."""
        changes, results = list[Change](), list[Sequence[object]]()

        async def to_supervisor(some: Sequence[Sequence[object]]) -> None:
            self._fail()
            results.extend(some)
            self.states.heard(some)
            await trio.lowlevel.checkpoint()

        side = side_of(changes, results, to_supervisor)
        self.sides.append(side)

        async def to_worker(states: Sequence[Sequence[object]]) -> None:
            self._fail()
            self.told += 1
            await side.health.mark({"states": states})

        await self.nursery.start(side.health.run)
        await self.nursery.start(self.states.keep_telling, to_worker)
        return side

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    def _fail(self) -> None:
        if self.is_lost:
            raise StreamgwError("lost on the way")


def side_of(changes: list[Change], results: list[Sequence[object]], tell: Tell) -> Side:
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    health = RemoteHealth(
        pool,
        rng=random.Random(1),
        on_change=lambda _, change: changes.append(change),
        on_bug=never,
        tell=tell,
    )
    return Side(pool, health, changes, results)


def never(error: Exception) -> None:
    raise AssertionError(error)


@asynccontextmanager
async def story(workers: int = 2, *upstreams: Upstream) -> AsyncIterator[Story]:
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    prober, states = Prober(pool, rng=random.Random(2), on_bug=never), NodeStates()
    states.follow(prober)
    async with trio.open_nursery() as nursery:
        await nursery.start(prober.run)
        told = Story(nursery, pool, prober, states, [])
        for _ in range(workers):
            await told.begin()
        told.load(*(upstreams or (checked(),)))
        await told.settle()
        yield told
        nursery.cancel_scope.cancel()


async def test_failures_of_sessions_in_any_worker_take_a_node_from_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story() as told:
        one, two = told.sides

        one.health.failed(KEY, A, REFUSED)
        await told.settle()
        assert one.is_up(A)
        two.health.failed(KEY, A, REFUSED)
        await told.settle()

        assert not one.is_up(A)
        assert not two.is_up(A)
        assert one.is_up(B)
        (change,) = one.changes
        assert (change.node, change.was_up, change.is_up) == (A, True, False)
        assert "connection refused" in change.why


async def test_a_session_that_is_connected_in_another_worker_forgives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story() as told:
        one, two = told.sides
        one.health.failed(KEY, A, REFUSED)
        await told.settle()

        two.health.answered(KEY, A)
        await told.settle()
        one.health.failed(KEY, A, REFUSED)
        await told.settle()

        assert one.is_up(A), "never two in a row"


async def test_sessions_of_nodes_that_are_well_are_nobodys_business(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story() as told:
        one, _ = told.sides

        for _ in range(100):
            one.health.answered(KEY, A)
        await told.settle()

        assert one.results == []
        assert told.told == 0


async def test_a_worker_that_has_no_port_left_has_nothing_to_tell_of_the_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story() as told:
        one, _ = told.sides

        for _ in range(9):
            one.health.failed(KEY, A, NoPortLeft("no local port left to connect from"))
        await told.settle()

        assert one.results == []
        assert one.is_up(A)


async def test_a_success_right_after_a_failure_is_told_before_anybody_asks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story(1, checked(EJECTING)) as told:
        (one,) = told.sides

        one.health.failed(KEY, A, REFUSED)
        one.health.answered(KEY, A)
        one.health.answered(KEY, A)
        await told.settle()

        assert [each[3] for each in one.results] == [str(REFUSED), None]


async def test_a_node_comes_back_everywhere_when_its_time_out_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story() as told:
        one, two = told.sides
        for _ in range(2):
            one.health.failed(KEY, A, REFUSED)
        await told.settle()
        assert not two.is_up(A)

        await trio.sleep(31)

        assert one.is_up(A)
        assert two.is_up(A)
        assert [change.is_up for change in two.changes] == [False, True]


async def test_a_worker_that_starts_later_knows_what_the_others_know(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story(1) as told:
        (one,) = told.sides
        for _ in range(2):
            one.health.failed(KEY, A, REFUSED)
        await told.settle()

        late = await told.begin()
        told.load(checked())

        assert not late.is_up(A), "told before it had loaded anything"
        assert late.changes == [], "it has no session that could end"


async def test_what_got_lost_on_the_way_is_told_again(autojump_clock: trio.testing.MockClock) -> None:
    async with story(1) as told:
        (one,) = told.sides
        told.is_lost = True
        told.states.heard([(KEY, A.host, A.port, "refused")] * 2)
        one.health.failed(KEY, B, REFUSED)
        await told.settle()
        assert one.is_up(A)

        told.is_lost = False
        await trio.sleep(2 * RETRY_S)

        assert not one.is_up(A)


async def test_states_that_change_while_nobody_listens_are_told_as_they_are(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story(1) as told:
        (one,) = told.sides
        told.is_lost = True
        told.states.heard([(KEY, A.host, A.port, "refused")] * 2)
        await told.settle()
        told.load(checked(None))
        told.is_lost = False

        await trio.sleep(2 * RETRY_S)

        assert one.is_up(A)
        assert one.changes == []


async def test_a_mark_survives_that_the_pool_forgets_the_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An upstream that is gone for a moment, or a name that has other addresses for a while."""
    async with story(1) as told:
        (one,) = told.sides
        told.states.heard([(KEY, A.host, A.port, "refused")] * 2)
        await told.settle()

        sync(one.pool)
        one.health.sync({})
        sync(one.pool, checked())
        one.health.sync({KEY: checked()})

        assert not one.is_up(A)
        one.pool.load(KEY).set_up(A, is_up=True)
        one.health.on_names_changed("other.test")
        assert one.is_up(A), "nothing of the kind"
        named = attrs.evolve(checked(), nodes=(Node("db.test", 80),))
        one.health.sync({KEY: named})
        one.pool.load(KEY).set_up(A, is_up=True)
        one.health.on_names_changed("db.test")
        assert not one.is_up(A)


async def test_a_node_that_was_down_in_an_upstream_that_was_removed_is_not_when_that_is_put_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A session of it was left in one of the workers, which used the node no more."""
    to, other = checked(), attrs.evolve(checked(None), key="upstreams/2")
    async with story(2, to, other) as told:
        one, _ = told.sides
        told.states.heard([(KEY, A.host, A.port, "refused")] * 2)
        await told.settle()
        assert not one.is_up(A)

        with one.pool.lease(to, B):
            told.load(other)
            await told.settle()
            told.load(to, other)
            await told.settle()

            assert [side.is_up(A) for side in told.sides] == [True, True]


async def test_without_checks_nobody_is_told_and_no_mark_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with story() as told:
        one, two = told.sides
        for _ in range(2):
            one.health.failed(KEY, A, REFUSED)
        await told.settle()

        told.load(checked(None))
        await told.settle()

        assert one.is_up(A)
        assert two.is_up(A)
        one.results.clear()
        one.health.failed(KEY, A, REFUSED)
        one.health.failed("upstreams/unknown", A, REFUSED)
        await told.settle()
        assert one.results == []


@pytest.mark.parametrize(("fails_open", "is_on"), [(True, True), (False, True), (False, False)])
async def test_whether_all_are_used_when_all_are_down_is_as_the_upstream_says(
    autojump_clock: trio.testing.MockClock, fails_open: bool, is_on: bool
) -> None:
    async with story(1) as told:
        (one,) = told.sides

        told.load(checked(attrs.evolve(PASSIVE, fails_open=fails_open)), is_on=is_on)
        assert one.pool.load(KEY).fails_open is (fails_open or not is_on)

        told.load(unchecked := checked(None))
        assert one.pool.load(KEY).fails_open
        told.load(unchecked)
        assert one.pool.load(KEY).fails_open


async def test_a_flood_of_failures_is_cut_to_the_latest(autojump_clock: trio.testing.MockClock) -> None:
    results = list[Sequence[object]]()

    async def tell(some: Sequence[Sequence[object]]) -> None:
        results.extend(some)

    side = side_of([], results, tell)
    sync(side.pool, checked())
    side.health.sync({KEY: checked()})
    for number in range(MAX_RESULTS + 10):
        side.health.failed(KEY, A, ConnectFailed(str(number)))
    async with trio.open_nursery() as nursery:
        await nursery.start(side.health.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert [each[3] for each in results] == [str(number) for number in range(10, MAX_RESULTS + 10)]


async def test_many_states_are_told_in_several_messages(autojump_clock: trio.testing.MockClock) -> None:
    nodes = [Address(f"10.0.{number >> 8}.{number & 255}", 80) for number in range(AT_ONCE + 1)]
    async with story(1, checked(PASSIVE, *nodes)) as told:
        (one,) = told.sides

        told.states.heard([(KEY, node.host, node.port, "refused") for node in nodes for _ in range(2)])
        await told.settle()

        assert not any(one.is_up(node) for node in nodes)
        assert len(one.changes) == AT_ONCE + 1
        assert told.told == 2


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([A, B]), st.booleans()), max_size=40))
def test_whatever_happens_all_agree_in_the_end(moves: list[tuple[int, Address, bool]]) -> None:
    async def play() -> None:
        async with story() as told:
            for number, node, is_well in moves:
                side = told.sides[number]
                if is_well:
                    side.health.answered(KEY, node)
                else:
                    side.health.failed(KEY, node, REFUSED)
                if len(moves) % 3:
                    await told.settle()
            await told.settle()
            for node in (A, B):
                said = told.prober.checkers[KEY].health.nodes[node].is_up
                assert [side.is_up(node) for side in told.sides] == [said, said]

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0.01))
