"""Listeners come and go while sessions live."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import attrs
import pytest
import trio
import trio.testing

from streamgw.core.errors import Reason
from streamgw.core.model import ClientCertificate, Listener, Outcome
from streamgw.dataplane.dialer import Dialer
from streamgw.dataplane.listener import Listeners
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.session import Policy, Sessions
from tests.support.fake_pump import Dialled, FakeAccepting, FakePump
from tests.support.scenes import FakeNames, listener, route, snapshot, sync, upstream
from tests.support.udp_scenes import udp_sessions

A, B = listener(9100), listener(9101)


@attrs.define
class Scene:
    pump: FakePump
    sessions: Sessions
    listeners: Listeners
    outcomes: list[Outcome]

    def sync(self, wanted: Mapping[Listener, str]) -> None:
        self.listeners.sync(cast("Mapping[Listener, object]", wanted))

    def accepting(self, sock: str) -> FakeAccepting:
        return self.pump.accepting[sock]


@asynccontextmanager
async def gateway(policy: Policy = Policy()) -> AsyncIterator[Scene]:
    """Listeners that run; every session stays until somebody ends it. The sockets are strings."""
    current = snapshot(route("1", upstream("10.0.0.1:1")))
    pump = FakePump({"10.0.0.1:1": Dialled(ending=None)})
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    sync(pool, *current.upstreams.values())
    outcomes: list[Outcome] = []
    sessions = Sessions(
        pump=pump,
        dialer=Dialer(pump, pool),
        get_snapshot=lambda: current,
        on_outcome=outcomes.append,
        on_bug=lambda _, error: (_ for _ in ()).throw(error),
        wall_clock=lambda: 0.0,
        read_certificate=lambda der: ClientCertificate(der.decode(), (), "", ""),
        policy=policy,
    )
    listeners = Listeners(pump, sessions, udp_sessions(lambda: current, SocketPump()))
    async with trio.open_nursery() as nursery:
        await nursery.start(listeners.run)
        yield Scene(pump, sessions, listeners, outcomes)
        listeners.drain(trio.current_time())


async def test_each_connection_becomes_a_session(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway() as scene:
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()

        scene.accepting("a").connect()
        scene.accepting("a").connect()
        await trio.testing.wait_all_tasks_blocked()

        assert scene.sessions.live_by_listener[A.name] == 2
        assert scene.listeners.states() == {A.name: "listening"}


async def test_a_removed_listener_stops_accepting_and_its_sessions_live_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with gateway() as scene:
        scene.sync({A: "a", B: "b"})
        await trio.testing.wait_all_tasks_blocked()
        scene.accepting("a").connect()
        await trio.testing.wait_all_tasks_blocked()

        scene.sync({B: "b"})

        assert scene.accepting("a").closed
        assert not scene.accepting("b").closed
        await trio.testing.wait_all_tasks_blocked()
        assert len(scene.sessions.live) == 1
        assert scene.listeners.states() == {A.name: "draining", B.name: "listening"}

        (session,) = scene.sessions.live
        scene.sessions.kill(session)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.listeners.states() == {B.name: "listening"}


async def test_a_listener_removed_before_its_task_ran_never_accepts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with gateway() as scene:
        scene.sync({A: "a"})
        scene.sync({})
        await trio.testing.wait_all_tasks_blocked()

        assert scene.pump.accepting == {}
        assert scene.listeners.states() == {}


async def test_other_settings_of_a_listener_count_for_the_next_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with gateway() as scene:
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()

        scene.sync({attrs.evolve(A, proxy_protocol_to_upstream="v1"): "a"})
        scene.accepting("a").connect()
        await trio.testing.wait_all_tasks_blocked()

        assert not scene.accepting("a").closed
        assert scene.pump.dialled[0].preface.startswith(b"PROXY TCP4")


async def test_the_same_address_on_another_socket_is_a_new_listener(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with gateway() as scene:
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()

        scene.sync({A: "again"})
        await trio.testing.wait_all_tasks_blocked()

        assert scene.accepting("a").closed
        assert not scene.accepting("again").closed


async def test_at_the_limit_of_the_process_everybody_pauses(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway(Policy(max_sessions=2)) as scene:
        scene.sync({A: "a", B: "b"})
        await trio.testing.wait_all_tasks_blocked()

        scene.accepting("a").connect()
        assert not scene.accepting("b").paused
        scene.accepting("b").connect()

        assert scene.accepting("a").paused
        assert scene.accepting("b").paused
        assert scene.listeners.states() == {A.name: "paused", B.name: "paused"}

        await trio.testing.wait_all_tasks_blocked()
        scene.sessions.kill(next(iter(scene.sessions.live)))
        await trio.testing.wait_all_tasks_blocked()
        assert not scene.accepting("a").paused
        assert not scene.accepting("b").paused


@pytest.mark.parametrize(
    ("policy", "a"),
    [(Policy(max_sessions_per_listener=1), A), (Policy(), attrs.evolve(A, max_sessions=1))],
)
async def test_at_its_own_limit_one_listener_pauses(
    autojump_clock: trio.testing.MockClock, policy: Policy, a: Listener
) -> None:
    async with gateway(policy) as scene:
        scene.sync({a: "a", B: "b"})
        await trio.testing.wait_all_tasks_blocked()

        scene.accepting("a").connect()

        assert scene.accepting("a").paused
        assert not scene.accepting("b").paused


async def test_a_higher_limit_resumes(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway(Policy(max_sessions=1)) as scene:
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()
        scene.accepting("a").connect()

        scene.sessions.policy = Policy(max_sessions=2)
        scene.sync({A: "a"})

        assert not scene.accepting("a").paused


async def test_a_listener_added_at_the_limit_starts_paused(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway(Policy(max_sessions=1)) as scene:
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()
        scene.accepting("a").connect()

        scene.sync({A: "a", B: "b"})
        await trio.testing.wait_all_tasks_blocked()

        assert scene.accepting("b").paused


async def test_draining_waits_for_sessions(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway() as scene:
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()
        scene.accepting("a").connect()
        await trio.testing.wait_all_tasks_blocked()
        began_at = trio.current_time()

        scene.listeners.drain(began_at + 240)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.accepting("a").closed
        assert scene.listeners.states() == {A.name: "draining"}
        await trio.sleep(30)
        scene.sessions.kill(next(iter(scene.sessions.live)))

    assert trio.current_time() - began_at == 30
    assert [outcome.reason for outcome in scene.outcomes] == [Reason.KILLED]


async def test_the_deadline_cuts_what_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway() as scene:
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()
        scene.accepting("a").connect()
        began_at = trio.current_time()

        scene.listeners.drain(began_at + 5)
        scene.listeners.drain(began_at + 500)
        await trio.sleep(10)

    assert [(outcome.reason, outcome.duration_s) for outcome in scene.outcomes] == [("drain", 5)]


async def test_after_a_drain_sync_adds_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway() as scene:
        scene.listeners.drain(trio.current_time() + 5)
        scene.sync({A: "a"})
        await trio.testing.wait_all_tasks_blocked()

        assert scene.pump.accepting == {}
