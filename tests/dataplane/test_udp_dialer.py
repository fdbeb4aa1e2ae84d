"""How UDP sessions find their node: refusals, nodes that cannot be reached, and running out of descriptors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import trio
import trio.testing

from streamgw.core import udp_room
from streamgw.core.model import Address
from streamgw.core.udp_sessions import Drop
from streamgw.dataplane import udp_dialer
from streamgw.dataplane.pump import datagram
from tests.support.bridge import no_descriptor_left
from tests.support.ports import Ports
from tests.support.scenes import facts, route, snapshot, upstream
from tests.support.udp_scenes import Peer, exchange, to, udp_gateway, udp_listener

ClosedPort: TypeAlias = Callable[[], str]


@pytest.fixture
def closed_port() -> Iterator[ClosedPort]:
    """Names nodes that refuse, each time another one."""
    with Ports() as ports:
        yield lambda: f"127.0.0.1:{ports.take_for_udp()}"


async def test_a_node_that_refuses_ends_the_session_and_the_next_datagram_goes_elsewhere(
    closed_port: ClosedPort,
) -> None:
    dead = closed_port()
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(dead + "=1000", node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            outcome = await gateway.outcome()

            for _ in range(3):  # whatever the turns say
                await exchange(client, node, at)
                gateway.udp.kill(next(iter(gateway.udp.live)))

    assert (outcome.reason, outcome.fault, outcome.side) == ("connect_failed", "upstream", "upstream")
    assert (outcome.phase, outcome.detail) == ("connect", "connection refused")
    assert [(str(each.node), each.error) for each in outcome.attempts] == [(dead, "connection refused")]


async def test_a_client_that_sends_on_and_on_to_nodes_that_refuse_makes_few_sessions(
    closed_port: ClosedPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_room, "PAUSE_S", 60.0)  # sending takes less, on any machine
    with Peer() as client:
        async with udp_gateway(to(closed_port(), closed_port())) as gateway:
            (at,) = gateway.listen(udp_listener())
            for _ in range(100):
                await client.say(b"?", at)
                await trio.sleep(0.001)
            await gateway.until(lambda: gateway.drops().get(Drop.REFUSED, 0) > 50)

            assert len(gateway.outcomes) == 3, "each node, and the first once more"


async def test_two_sessions_that_are_refused_together_say_nothing_of_other_nodes(
    closed_port: ClosedPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagram, "_ONE", datagram._MANY)  # both are read before the first refusal is known
    with Peer() as node, Peer() as one, Peer() as other:
        async with udp_gateway(to(closed_port() + "=1000", node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await gateway.pool.candidates(
                gateway.current.upstreams["upstreams/1"], facts()
            )  # it knows it now
            await trio.testing.wait_all_tasks_blocked()
            for client in (one, other):
                client.sock._sock.sendto(b"?", at)
            await gateway.outcome(2)

            await exchange(one, node, at)
            assert gateway.drops() == {}


async def test_the_only_node_is_tried_again_although_it_refused(closed_port: ClosedPort) -> None:
    place = closed_port()
    with Peer() as client:
        async with udp_gateway(to(place)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            await gateway.outcome()

            with Peer(port=int(place.rpartition(":")[2])) as node:
                await exchange(client, node, at)


async def test_what_is_queued_behind_a_refusal_is_lost_and_counted(closed_port: ClosedPort) -> None:
    with Peer() as client:
        async with udp_gateway(to(closed_port())) as gateway:
            (at,) = gateway.listen(udp_listener())
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                client.sock._sock.sendto(b"?", at)
            outcome = await gateway.outcome()

            assert (outcome.reason, outcome.phase) == ("connect_failed", "connect")
            assert (outcome.datagrams_up, outcome.bytes_up, outcome.datagrams_dropped) == (1, 1, 2)
            assert gateway.drops() == {Drop.UNOPENED: 2}


async def test_a_node_that_can_not_be_reached_at_all_is_passed_over() -> None:
    with Peer() as node, Peer() as client:
        nowhere = "255.255.255.255:9"  # connect(2): permission denied, without SO_BROADCAST
        async with udp_gateway(snapshot(route("1", upstream(nowhere + "=1000", node.place)))) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            await node.hear()
            (session,) = gateway.udp.live.values()

            assert [str(attempt.node) for attempt in session.trail.attempts] == [nowhere]


async def test_where_no_node_can_be_reached_the_session_says_so() -> None:
    with Peer() as client:
        async with udp_gateway(to("255.255.255.255:9", "255.255.255.255:10")) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            outcome = await gateway.outcome()

            assert (outcome.reason, len(outcome.attempts)) == ("connect_failed", 2)
            assert (outcome.datagrams_up, outcome.datagrams_dropped) == (0, 1)
            assert gateway.drops() == {Drop.UNOPENED: 1}


async def test_retries_bound_the_attempts() -> None:
    nodes = upstream("255.255.255.255:9", "255.255.255.255:10", retries=0)
    with Peer() as client:
        async with udp_gateway(snapshot(route("1", nodes))) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)

            assert len((await gateway.outcome()).attempts) == 1


async def test_an_upstream_without_nodes_is_told() -> None:
    with Peer() as client:
        async with udp_gateway(to()) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            outcome = await gateway.outcome()

            assert (outcome.reason, outcome.fault) == ("no_node", "upstream")
            assert outcome.detail == "upstream upstreams/1 has no node to send to: it lists none"


async def test_least_active_nodes_are_known_by_their_leases() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)
            load = gateway.pool.load("upstreams/1")
            assert load.active(Address(*node.address)) == 1

            gateway.udp.kill(next(iter(gateway.udp.live)))
            await gateway.outcome()

            assert load.active(Address(*node.address)) == 0


@pytest.mark.parametrize(("kind", "at_least_s"), [("ewma", 0.04), ("roundrobin", 0.0)])
async def test_how_long_the_first_answer_takes_is_known_where_the_quickest_is_wanted(
    kind: str, at_least_s: float
) -> None:
    with Peer() as node, Peer() as client:
        nodes = upstream(node.place, type=kind)
        async with udp_gateway(snapshot(route("1", nodes))) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            _, session = await node.hear()
            await trio.sleep(0.05)
            await node.say(b"!", session)
            await client.hear()

            latency_s = gateway.pool.load("upstreams/1").latency_s(nodes.nodes[0])
            assert (latency_s > 0, latency_s >= at_least_s) == (kind == "ewma", True)


class CrowdedEpoll:
    """Of a user who may watch no more."""

    def register(self, fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, "")


async def test_where_nothing_more_can_be_watched_nobody_begins_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Users noticed two log lines for each datagram."""
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            datagrams: Any = gateway.pump.datagrams
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(udp_dialer, "REST_S", 60.0)  # it is not over before the next datagram comes
            roomy, datagrams.epoll = datagrams.epoll, CrowdedEpoll()
            await client.say(b"?", at)
            outcome = await gateway.outcome()
            await client.say(b"?", at)
            await gateway.until(lambda: gateway.drops().get(Drop.EXHAUSTED))
            gateway.udp.dialer.rests_until = trio.current_time()
            await client.say(b"?", at)
            await gateway.outcome(2)
            assert (outcome.reason, outcome.phase, outcome.connect_s) == ("exhausted", "connect", None)

            datagrams.epoll = roomy
            gateway.udp.dialer.rests_until = trio.current_time()
            await exchange(client, node, at)

            assert gateway.troubles == [
                "no UDP session can begin: fs.epoll.max_user_watches is too low",
                "beginning UDP sessions again",
            ]


async def test_without_descriptors_nobody_begins_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Peer() as node, Peer() as client, Peer() as other:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await trio.testing.wait_all_tasks_blocked()
            with no_descriptor_left():
                with monkeypatch.context() as patient:
                    patient.setattr(
                        udp_dialer, "REST_S", 60.0
                    )  # it is not over before the next datagram comes
                    await client.say(b"?", at)
                    outcome = await gateway.outcome()
                    await client.say(b"?", at)
                    await gateway.until(lambda: gateway.drops().get(Drop.EXHAUSTED))
                gateway.udp.dialer.rests_until = trio.current_time()
                await client.say(b"?", at)
                await gateway.outcome(2)
            assert (outcome.reason, outcome.fault) == ("exhausted", "gateway")

            await gateway.until(lambda: trio.current_time() > gateway.udp.dialer.rests_until)
            await exchange(other, node, at)

            assert gateway.troubles == [
                "no UDP session can begin: too many open files",
                "beginning UDP sessions again",
            ]
