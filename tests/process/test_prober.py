"""When nodes are probed, what becomes of the results, and what an edit changes: on a clock that jumps."""

from __future__ import annotations

import itertools
import math
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from streamgw.core.discovery import Discovered
from streamgw.core.errors import ConnectFailed, NoPortLeft
from streamgw.core.health import Change, Status
from streamgw.core.model import Address, Node, Upstream, UpstreamTLS
from streamgw.core.probe import ActiveCheck, Checks, Ejection, Finding, Probe, Result, Thresholds
from streamgw.dataplane.pool import UpstreamPool
from streamgw.process.prober import FIRST_WITHIN_S, MAX_PROBES, Prober
from streamgw.process.probes import Target
from tests.support.scenes import FakeNames, facts, sync, upstream

OK = Finding(Result.SUCCESS)
REFUSED = Finding(Result.TCP_FAILURE, "connection refused")
A, B = Address("10.0.0.1", 80), Address("10.0.0.2", 80)
ACTIVE = Checks(active=ActiveCheck(healthy_interval_s=10.0, unhealthy_interval_s=2.0))
PASSIVE = Checks(passive=Thresholds(successes=5, tcp_failures=2, timeouts=3), recover_after_s=30.0)


@attrs.define
class Scene:
    """A prober whose nodes answer as the test says, and what it did."""

    names: FakeNames = attrs.Factory(FakeNames)
    sick: set[str] = attrs.Factory(set)
    """Hosts that refuse."""
    takes_s: float = 0.0
    asked: list[tuple[float, str]] = attrs.Factory(list)
    """When, and which host."""
    targets: list[tuple[Probe, Target, ssl.SSLContext | None]] = attrs.Factory(list)
    under_way: int = 0
    most_under_way: int = 0
    changes: list[Change] = attrs.Factory(list)
    bugs: list[Exception] = attrs.Factory(list)
    before_answer: Callable[[], None] = lambda: None
    pool: UpstreamPool = attrs.field(init=False)
    prober: Prober = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = UpstreamPool(self.names, rng=random.Random(1))
        self.prober = Prober(
            self.pool,
            rng=random.Random(2),
            on_change=lambda _, change: self.changes.append(change),
            on_bug=self.bugs.append,
            run=self.probe,
        )

    async def probe(self, probe: Probe, target: Target, context: ssl.SSLContext | None) -> Finding:
        self.asked.append((trio.current_time(), target.node.host))
        self.targets.append((probe, target, context))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(self.takes_s)
        finally:
            self.under_way -= 1
        self.before_answer()
        return REFUSED if target.node.host in self.sick else OK

    def load(self, *upstreams: Upstream, is_on: bool = True) -> None:
        """What a reload does."""
        sync(self.pool, *upstreams)
        self.prober.sync({each.key: each for each in upstreams}, is_on=is_on)

    async def offered(self, to: Upstream) -> list[str]:
        return sorted(address.host for address in await self.pool.candidates(to, facts()))

    def statuses(self, key: str = "upstreams/1") -> Mapping[str, Status]:
        nodes = self.prober.checkers[key].health.nodes
        return {node.host: health.status for node, health in nodes.items()}


@asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(scene.prober.run)
        yield
        nursery.cancel_scope.cancel()


def checked(*nodes: str, checks: Checks = ACTIVE, **fields: object) -> Upstream:
    return upstream(*(nodes or ("10.0.0.1:80", "10.0.0.2:80")), checks=checks, **fields)


# ── Probes ───────────────────────────────────────────────────────────────────────────────────────


async def test_probes_begin_without_a_client_and_go_on_with_some_jitter(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    scene.load(checked("10.0.0.1:80"))
    began_at = trio.current_time()

    async with running(scene):
        await trio.sleep(100)

    times = [at for at, _ in scene.asked]
    assert times[0] - began_at <= FIRST_WITHIN_S
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(9 <= gap <= 11 for gap in gaps)
    assert len(set(gaps)) > 1


async def test_a_node_that_is_down_gets_no_sessions_until_it_is_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene, to = Scene(sick={"10.0.0.1"}), checked()
    scene.load(to)

    async with running(scene):
        assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]
        await trio.sleep(15)
        assert await scene.offered(to) == ["10.0.0.2"]

        scene.sick.clear()
        await trio.sleep(5)
        assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]

    assert [(str(change.node), change.now, change.is_up) for change in scene.changes] == [
        ("10.0.0.1:80", Status.MOSTLY_HEALTHY, True),
        ("10.0.0.1:80", Status.UNHEALTHY, False),
        ("10.0.0.1:80", Status.MOSTLY_UNHEALTHY, False),
        ("10.0.0.1:80", Status.HEALTHY, True),
    ]


async def test_a_node_that_is_down_is_probed_in_its_own_interval(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene(sick={"10.0.0.1"})
    scene.load(checked())

    async with running(scene):
        await trio.sleep(100)

    counts = Counter(host for _, host in scene.asked)
    assert counts["10.0.0.1"] > 3 * counts["10.0.0.2"]


async def test_probes_of_one_upstream_at_a_time_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(takes_s=0.3)
    checks = Checks(active=ActiveCheck(concurrency=3))
    scene.load(checked(*(f"10.0.0.{number}:80" for number in range(1, 21)), checks=checks))

    async with running(scene):
        await trio.sleep(10)

    assert scene.most_under_way == 3


async def test_probes_of_all_upstreams_are_bounded_too(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(takes_s=1.0)
    nodes = [f"10.0.0.{number}:80" for number in range(1, 11)]
    scene.load(*(checked(*nodes, key=f"upstreams/{number}") for number in range(40)))

    async with running(scene):
        await trio.sleep(2)

    assert scene.most_under_way == MAX_PROBES


async def test_results_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(sick={"10.0.0.1"})
    scene.load(checked())

    async with running(scene):
        await trio.sleep(5)

    results = scene.prober.checkers["upstreams/1"].results
    assert results[A].keys() == {"tcp_failure"}
    assert results[B] == {"success": 1}


async def test_a_node_of_weight_zero_is_not_probed(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene()
    drained, served = checked().nodes
    scene.load(attrs.evolve(checked(), nodes=(attrs.evolve(drained, weight=0), served)))

    async with running(scene):
        await trio.sleep(5)

    assert {host for _, host in scene.asked} == {"10.0.0.2"}


async def test_tls_is_spoken_as_the_sessions_do_it(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene()
    tls = UpstreamTLS(ssl.create_default_context())
    probe = Probe(kind="tls")
    checks = Checks(active=ActiveCheck(probe=probe))
    plain = checked("10.0.0.2:80", checks=checks, key="upstreams/2")
    unverified = Checks(active=ActiveCheck(probe=Probe(kind="https", verify=False)))
    scene.load(
        checked("10.0.0.1:80", checks=checks, tls=tls),
        plain,
        checked("10.0.0.3:80", checks=unverified, key="upstreams/3"),
    )

    async with running(scene):
        # A thread makes contexts meanwhile, and time stands still for it only if nobody waits for the clock.
        while len({target.node.host for _, target, _ in scene.targets}) < 3:
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.1)

    contexts = {target.node.host: context for _, target, context in scene.targets}
    assert contexts["10.0.0.1"] is tls.context
    assert contexts["10.0.0.2"] is not None
    assert contexts["10.0.0.2"].verify_mode is ssl.CERT_REQUIRED
    assert contexts["10.0.0.3"] is not None
    assert contexts["10.0.0.3"].verify_mode is ssl.CERT_NONE


async def test_a_bug_in_a_probe_is_told_and_says_nothing_of_the_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene(before_answer=[].pop)
    scene.load(checked("10.0.0.1:80"))

    async with running(scene):
        await trio.sleep(25)

    assert len(scene.bugs) == len(scene.asked) == 3
    assert isinstance(scene.bugs[0], IndexError)
    assert scene.statuses() == {"10.0.0.1": Status.HEALTHY}


@pytest.mark.parametrize("stays", [False, True], ids=["gone", "probed in another way"])
async def test_an_answer_that_comes_with_an_edit_is_not_counted(
    autojump_clock: trio.testing.MockClock, stays: bool
) -> None:
    """The node is taken out, or gets another check, in the very step in which its probe ends."""
    scene = Scene(sick={"10.0.0.1"})
    other = Checks(active=ActiveCheck(probe=Probe(timeout_s=9.0), healthy_interval_s=100.0))
    edited = checked("10.0.0.1:80", checks=other) if stays else checked("10.0.0.9:80")

    def edit() -> None:
        scene.before_answer = lambda: None
        scene.load(edited)

    scene.before_answer = edit
    scene.load(checked("10.0.0.1:80"))
    async with running(scene):
        await trio.sleep(1)

    results = scene.prober.checkers["upstreams/1"].results
    assert not scene.bugs
    assert results == ({A: {"tcp_failure": 1}} if stays else {Address("10.0.0.9", 80): {"success": 1}})


async def test_many_nodes_come_and_go_while_probes_wait_for_their_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seed = random.randrange(1 << 32)
    rng, scene = random.Random(seed), Scene(takes_s=0.1)
    checks = Checks(active=ActiveCheck(concurrency=1))

    async with running(scene):
        for _ in range(300):
            hosts = rng.sample(range(1, 9), rng.randrange(1, 8))
            scene.load(checked(*(f"10.0.0.{host}:80" for host in hosts), checks=checks))
            await trio.sleep(rng.choice([0, 0, 0.05, 0.1, 0.3]))

    assert not scene.bugs, f"seed {seed}"
    assert {node.host for node in scene.prober.checkers["upstreams/1"].results} <= {
        f"10.0.0.{host}" for host in hosts
    }


# ── Sessions ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("words", "times"), [("connection refused", 2), ("timed out after 60.0 s", 3)])
async def test_connects_that_fail_take_a_node_down_for_a_while(
    autojump_clock: trio.testing.MockClock, words: str, times: int
) -> None:
    scene, to = Scene(), checked(checks=PASSIVE)
    scene.load(to)

    async with running(scene):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(times - 1):
            scene.pool.failed(to, A, ConnectFailed(words))
        assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]
        scene.pool.failed(to, A, ConnectFailed(words))
        assert await scene.offered(to) == ["10.0.0.2"]

        await trio.sleep(29)
        assert await scene.offered(to) == ["10.0.0.2"]
        await trio.sleep(1.1)
        assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]

        for _ in range(5):
            scene.pool.answered(to, A, 0.001)
        assert scene.statuses()["10.0.0.1"] is Status.HEALTHY
    assert not scene.asked


async def test_a_node_that_hung_is_used_again_whatever_connects_time_out_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It was ejected while it was down, which nobody noted: `healthy`, and left out for ever."""
    scene = Scene(sick={"10.0.0.1"})
    to = checked(checks=attrs.evolve(ACTIVE, ejection=Ejection(failures=5, time_s=30.0)))
    scene.load(to)

    async with running(scene):
        await trio.sleep(15)
        for _ in range(5):
            scene.pool.failed(to, A, ConnectFailed("timed out after 60.0 s"))
        assert await scene.offered(to) == ["10.0.0.2"]

        scene.sick.clear()
        await trio.sleep(40)

        assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]


async def test_a_node_that_goes_down_while_it_is_ejected_is_shown_as_tried_again_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    to = checked(checks=attrs.evolve(PASSIVE, ejection=Ejection(failures=1, time_s=300.0)))
    scene.load(to)

    async with running(scene):
        for _ in range(2):
            await trio.testing.wait_all_tasks_blocked()
            scene.pool.failed(to, A, ConnectFailed("connection refused"))
        assert scene.statuses()["10.0.0.1"] is Status.UNHEALTHY

        await trio.sleep(31)

        assert scene.statuses()["10.0.0.1"] is Status.MOSTLY_HEALTHY
        assert await scene.offered(to) == ["10.0.0.2"], "it is ejected still"


async def test_sessions_that_got_no_port_of_ours_say_nothing_of_a_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene, to = Scene(), checked(checks=attrs.evolve(PASSIVE, ejection=Ejection(failures=2)))
    scene.load(to)

    for _ in range(9):
        scene.pool.failed(to, A, NoPortLeft("no local port left to connect from"))

    assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]
    assert scene.statuses()["10.0.0.1"] is Status.HEALTHY


async def test_sessions_of_an_upstream_without_checks_concern_nobody() -> None:
    scene, to = Scene(), upstream("10.0.0.1:80")
    scene.load(to)

    scene.pool.failed(to, A, ConnectFailed("connection refused"))
    scene.pool.answered(to, A, 0.001)

    assert not scene.prober.checkers


# ── All down ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fails_open", "offered", "then"),
    [
        (True, ["10.0.0.1", "10.0.0.2"], "every one is used"),
        (False, [], "no session is connected"),
    ],
)
async def test_while_all_are_down_all_or_none_are_used_and_the_log_says_so_once(
    autojump_clock: trio.testing.MockClock, fails_open: bool, offered: list[str], then: str
) -> None:
    scene = Scene(sick={"10.0.0.1", "10.0.0.2"})
    to = checked(checks=attrs.evolve(ACTIVE, fails_open=fails_open))
    scene.load(to)

    with capture_logs() as lines:
        async with running(scene):
            await trio.sleep(60)
            assert await scene.offered(to) == offered
            scene.sick.clear()
            await trio.sleep(5)
            assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]

    said = [(line["event"], line.get("then")) for line in lines if "all_nodes" in line["event"]]
    assert said == [("all_nodes_down", then), ("not_all_nodes_down", None)]
    assert [line["event"] for line in lines].count("node_down") == 2
    assert [line["event"] for line in lines].count("node_up") == 2


# ── Edits ────────────────────────────────────────────────────────────────────────────────────────


async def test_an_edit_elsewhere_disturbs_no_probe(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(sick={"10.0.0.1"})
    scene.load(checked())

    async with running(scene):
        await trio.sleep(15)
        before = list(scene.asked)
        for number in range(20):
            scene.load(checked(name=f"edit {number}"))
        await trio.sleep(0.5)
        assert scene.statuses()["10.0.0.1"] is Status.UNHEALTHY

    assert len(scene.asked) - len(before) <= 1


async def test_other_checks_start_anew_and_forget_no_state(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(sick={"10.0.0.1"})
    scene.load(checked())

    async with running(scene):
        await trio.sleep(15)
        edited = checked(checks=Checks(active=ActiveCheck(probe=Probe(timeout_s=9.0))))
        scene.load(edited)
        assert scene.statuses()["10.0.0.1"] is Status.UNHEALTHY
        assert await scene.offered(edited) == ["10.0.0.2"]
        await trio.sleep(1)

    assert scene.targets[-1][0].timeout_s == 9.0


async def test_a_node_that_is_new_is_probed_and_one_that_is_gone_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene(sick={"10.0.0.1"})
    scene.load(checked())

    async with running(scene):
        await trio.sleep(15)
        scene.load(checked("10.0.0.2:80", "10.0.0.3:80"))
        scene.asked.clear()
        await trio.sleep(15)
        assert {host for _, host in scene.asked} == {"10.0.0.2", "10.0.0.3"}

        again = checked()
        scene.sick.clear()
        scene.load(again)
        assert await scene.offered(again) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("is_gone", [False, True], ids=["switched off", "checks removed"])
async def test_without_checks_every_node_is_up_and_none_is_probed(
    autojump_clock: trio.testing.MockClock, is_gone: bool
) -> None:
    scene = Scene(sick={"10.0.0.1", "10.0.0.2"})
    scene.load(checked(checks=attrs.evolve(ACTIVE, fails_open=False)))

    async with running(scene):
        await trio.sleep(60)
        to = upstream("10.0.0.1:80", "10.0.0.2:80") if is_gone else checked()
        scene.load(to, is_on=is_gone)
        scene.asked.clear()
        await trio.sleep(60)

        assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]
    assert not scene.asked
    assert scene.pool.load("upstreams/1").fails_open


async def test_an_upstream_that_is_removed_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(sick={"10.0.0.1"})
    scene.load(checked())

    async with running(scene):
        await trio.sleep(15)
        scene.load()
        scene.asked.clear()
        await trio.sleep(60)
        assert not scene.asked

        scene.sick.clear()
        to = checked()
        scene.load(to)
        assert await scene.offered(to) == ["10.0.0.1", "10.0.0.2"]


async def test_the_addresses_of_a_name_are_probed_as_they_come_and_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    scene.load(checked("db.example:80", "10.0.0.9:80"))

    async with running(scene):
        await trio.sleep(1)
        assert {host for _, host in scene.asked} == {"10.0.0.9"}

        for addresses in (("10.0.0.1", "10.0.0.2"), ("10.0.0.2",)):
            scene.names.table["db.example"] = addresses
            scene.pool.on_names_changed("db.example")
            scene.prober.on_names_changed("db.example")
            scene.asked.clear()
            await trio.sleep(15)
            assert {host for _, host in scene.asked} == {*addresses, "10.0.0.9"}
        scene.prober.on_names_changed("other.example")

    assert {target.name for _, target, _ in scene.targets} == {"db.example", "10.0.0.9"}


async def test_the_nodes_of_a_service_are_probed_as_they_come_and_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    scene.load(attrs.evolve(checked(), nodes=(), service_name="db.example"))

    async with running(scene):
        for hosts in (("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.3")):
            found = tuple(Discovered(Node(host, 80), f"at-{host}") for host in hosts)
            scene.names.services["db.example"] = found
            scene.pool.on_names_changed("db.example")
            scene.prober.on_names_changed("db.example")
            scene.asked.clear()
            await trio.sleep(15)
            assert {host for _, host in scene.asked} == set(hosts)

    assert {target.name for _, target, _ in scene.targets} == {f"at-10.0.0.{n}" for n in (1, 2, 3)}


async def test_upstreams_that_are_loaded_before_it_runs_are_probed_when_it_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene()
    scene.load(checked())
    await trio.sleep(60)
    assert not scene.asked

    async with running(scene):
        await trio.sleep(1)

    assert len(scene.asked) == 2
    assert all(each.health.due_at == math.inf for each in scene.prober.checkers.values())
