"""The life of a UDP session on real sockets: every way it can begin and end, and that nothing is left behind."""

from __future__ import annotations

import math

import attrs
import pytest
import trio
import trio.testing

from streamgw.core import udp_room
from streamgw.core.discovery import Discovered
from streamgw.core.errors import Reason, Rejected, SessionError
from streamgw.core.hooks import Decision, Hooks, UseUpstream
from streamgw.core.model import Address, DatagramRules, Facts, Node, Outcome, Timeouts
from streamgw.core.udp_sessions import Drop, UDPLimits
from tests.support.descriptors import open_descriptors
from tests.support.plugins import break_when_cancelled
from tests.support.scenes import FakeNames, route, snapshot, upstream
from tests.support.udp_scenes import (
    Peer,
    UDPGateway,
    exchange,
    to,
    udp_gateway,
    udp_listener,
)


class SilentNames(FakeNames):
    """A resolver that nobody answers."""

    async def first(self, name: str) -> None:
        await trio.sleep_forever()


async def test_questions_and_answers_pass_on_one_session() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())

            seen = {await exchange(client, node, at, b"%d" % number, b"=%d" % number) for number in range(5)}

            assert len(seen) == 1, "one socket towards the node"
            (session,) = gateway.udp.live.values()
            assert (session.datagrams_up, session.datagrams_down, session.assured) == (5, 5, True)
            assert (session.meter.bytes_up, session.meter.bytes_down) == (5, 10)
            assert session.send is not None, "full flow"
            assert gateway.udp.live_by_listener[session.listener.name] == 1

    (outcome,) = gateway.outcomes
    assert (outcome.reason, outcome.fault, outcome.phase) == ("drain", "none", "relay")
    assert (outcome.datagrams_up, outcome.datagrams_down, outcome.datagrams_dropped) == (5, 5, 0)
    assert (outcome.bytes_up, outcome.bytes_down) == (5, 10)
    assert (outcome.route_id, outcome.upstream, str(outcome.node)) == ("1", "upstreams/1", node.place)
    assert outcome.facts.client == Address("127.0.0.1", client.address[1])
    assert outcome.facts.server == Address("127.0.0.1", at[1])
    assert outcome.session_id == "t-u1"
    assert outcome.connect_s is not None


async def test_two_clients_have_two_sessions_and_never_each_other_s_answers() -> None:
    with Peer() as node, Peer() as one, Peer() as other:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            for client, name in ((one, b"one"), (other, b"other")):
                await client.say(name, at)
            for _ in range(2):
                name, session = await node.hear()
                await node.say(b"for " + name, session)

            assert (await one.hear())[0] == b"for one"
            assert (await other.hear())[0] == b"for other"
            assert len(gateway.udp.live) == 2


async def test_the_first_datagrams_wait_for_the_socket_in_order() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await trio.testing.wait_all_tasks_blocked()
            for number in range(10):
                client.sock._sock.sendto(b"%d" % number, at)  # all before the gateway gets a turn

            assert [(await node.hear())[0] for _ in range(10)] == [b"%d" % number for number in range(10)]


# Rules


async def test_a_session_ends_with_its_last_answer() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node, responses=1)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)

            outcome = await gateway.outcome()

            assert (outcome.reason, outcome.datagrams_up, outcome.datagrams_down) == ("closed", 1, 1)
            await exchange(client, node, at)
            await gateway.outcome(2)


async def test_its_duration_ends_with_the_last_answer_however_late_its_task_hears_of_it() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node, responses=1)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"a question", at)
            _, its_port = await node.hear()
            (session,) = gateway.udp.live.values()

            await node.say(b"an answer", its_port)
            outcome = await gateway.outcome()

            assert outcome.duration_s == session.active_at - session.started_at


async def test_no_answer_is_waited_for_where_none_is_wanted() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node, responses=0)) as gateway:
            (at,) = gateway.listen(udp_listener())
            for _ in range(3):
                await client.say(b"<13>a line", at)
                await node.hear()
            await gateway.outcome(3)

            assert {(outcome.reason, outcome.phase) for outcome in gateway.outcomes} == {("closed", "relay")}


async def test_after_so_many_requests_another_node_has_its_turn() -> None:
    with Peer() as one, Peer() as other, Peer() as client:
        async with udp_gateway(to(one, other, requests=2)) as gateway:
            (at,) = gateway.listen(udp_listener())
            heard: list[Peer] = []

            async def listen(node: Peer) -> None:
                for _ in range(2):
                    _, session = await node.hear()
                    heard.append(node)
                    await node.say(b"!", session)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, one)
                nursery.start_soon(listen, other)
                for _ in range(4):
                    await client.say(b"?", at)
                    await client.hear()

            assert heard[0] is heard[1] is not heard[2] is heard[3]
            assert len(gateway.udp.live) == 2, "both may still pass on answers"


async def test_an_idle_session_times_out_by_its_own_rule_or_by_the_upstream_s() -> None:
    with Peer() as node, Peer() as client, Peer("127.0.0.9") as other:
        patient = upstream(node.place, timeouts=Timeouts(idle_s=0.3))
        endless = upstream(node.place, key="upstreams/2", timeouts=Timeouts(idle_s=3600))
        current = snapshot(
            route("own", endless, remote="127.0.0.9/32", udp=DatagramRules(idle_s=0.01)), route("2", patient)
        )
        async with udp_gateway(current) as gateway:
            (at,) = gateway.listen(udp_listener())
            for each in (client, other):
                await each.say(b"?", at)
                await node.hear()
            await gateway.outcome(2)

    ended = {outcome.route_id: outcome for outcome in gateway.outcomes}
    assert (ended["own"].reason, ended["2"].reason) == ("idle_timeout", "idle_timeout")
    assert ended["2"].duration_s >= 0.3


async def test_no_session_lasts_longer_than_it_may() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            gateway.udp.obey(UDPLimits(), max_duration_s=0.1)
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            await node.hear()

            assert (await gateway.outcome()).reason == Reason.MAX_DURATION


async def test_a_forged_client_gets_no_more_than_so_many_bytes_for_each_of_its_own() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node, amplification=3)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?" * 100, at)
            _, session = await node.hear()
            for size in (200, 101, 100):
                await node.say(bytes(size), session)
            assert [len((await client.hear())[0]) for _ in range(2)] == [200, 100]
            await client.say(b"?", at)
            await node.hear()
            await node.say(bytes(5000), session)

            assert len((await client.hear())[0]) == 5000
            assert gateway.drops() == {Drop.AMPLIFICATION: 1}


# Nodes


async def test_a_node_taken_out_by_a_reload_loses_its_clients_with_their_next_datagram() -> None:
    with Peer() as old, Peer() as new, Peer() as client, Peer() as other:
        async with udp_gateway(to(old)) as gateway:
            (at,) = gateway.listen(udp_listener())
            session = await exchange(client, old, at)
            await exchange(client, old, at)
            await exchange(other, old, at)

            gateway.swap(to(new))
            await old.say(b"late", session)
            assert (await client.hear())[0] == b"late"
            for each in (client, other):
                await exchange(each, new, at)

            assert [outcome.reason for outcome in gateway.outcomes] == ["moved", "moved"]


async def test_other_edits_leave_sessions_where_they_are() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            session = await exchange(client, node, at)

            for edited in (
                to(node, "127.0.0.1:9", idle_s=5.0),  # another node beside it
                snapshot(route("1", upstream(node.place + "=0", "127.0.0.1:9"))),  # no new sessions for it
                snapshot(route("1", upstream(f"localhost:{node.address[1]}"))),  # a name, which may be it
                snapshot(),  # the route is gone, and the upstream with it
            ):
                gateway.swap(edited)
                assert await exchange(client, node, at) == session
            assert gateway.outcomes == []


async def test_a_session_stays_at_a_discovered_node_unless_another_service_is_named() -> None:
    with Peer() as node, Peer() as client, Peer() as new:
        async with udp_gateway(snapshot()) as gateway:
            for service, peer in (("db:1", node), ("other:1", new)):
                host, port = peer.address
                gateway.names.services[service] = (Discovered(Node(host, port), "db"),)
            (at,) = gateway.listen(udp_listener())
            gateway.swap(snapshot(route("1", upstream(service_name="db:1"))))
            session = await exchange(client, node, at)

            gateway.names.services["db:1"] = ()  # DNS names it no more
            gateway.swap(snapshot(route("1", upstream(service_name="db:1", retries=1))))
            assert await exchange(client, node, at) == session
            gateway.swap(snapshot(route("1", upstream(service_name="other:1"))))
            await exchange(client, new, at)


# Limits


async def test_at_the_limit_a_new_client_takes_the_place_of_one_that_says_nothing() -> None:
    with Peer() as node, Peer() as silent, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            gateway.udp.obey(UDPLimits(max_sessions=1), max_duration_s=math.inf)
            (at,) = gateway.listen(udp_listener())
            await exchange(silent, node, at)

            await exchange(client, node, at)

            assert (await gateway.outcome()).reason == "evicted"
            assert len(gateway.udp.live) == 1


async def test_a_listener_s_own_limit_may_change_live() -> None:
    with Peer() as node, Peer() as one, Peer() as other:
        async with udp_gateway(to(node)) as gateway:
            limited = udp_listener(max_sessions=1)
            (at,) = gateway.listen(limited)
            await exchange(one, node, at)
            await exchange(one, node, at)
            await other.say(b"?", at)
            await gateway.until(gateway.drops)
            assert gateway.drops() == {Drop.LISTENER_LIMIT: 1}

            gateway.listen(attrs.evolve(limited, max_sessions=2))

            await exchange(other, node, at)


# Plugins


async def test_a_plugin_may_refuse_a_client() -> None:
    def refuse(*_: object) -> None:
        raise Rejected("not you", status=403)

    with Peer() as node, Peer() as client:
        hooks = (Hooks(plugin="bouncer", on_accept=refuse),)
        async with udp_gateway(snapshot(route("1", upstream(node.place), hooks=hooks))) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            outcome = await gateway.outcome()

    assert (outcome.reason, outcome.detail, outcome.status) == ("rejected", "bouncer: not you", 403)


async def test_a_client_that_plugins_refuse_makes_few_sessions_however_much_it_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise Rejected("not you", status=403)

    monkeypatch.setattr(udp_room, "PAUSE_S", 60.0)  # sending takes less, on any machine
    with Peer() as node, Peer() as client, Peer() as other:
        hooks = (Hooks(plugin="bouncer", on_accept=refuse),)
        async with udp_gateway(snapshot(route("1", upstream(node.place), hooks=hooks))) as gateway:
            (at,) = gateway.listen(udp_listener())
            for _ in range(100):
                await client.say(b"?", at)
                await trio.sleep(0.001)
            await gateway.until(lambda: gateway.drops().get(Drop.REFUSED, 0) > 50)
            assert [outcome.reason for outcome in gateway.outcomes] == ["rejected"]

            await other.say(b"?", at)
            await gateway.until(lambda: len(gateway.outcomes) == 2)


async def test_nor_does_one_for_whom_there_is_no_node_whatever_port_it_sends_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(udp_room, "PAUSE_S", 60.0)
    with Peer() as client, Peer() as other:
        async with udp_gateway(to()) as gateway:
            (at,) = gateway.listen(udp_listener())
            for _ in range(50):
                await client.say(b"?", at)
                await other.say(b"?", at)
                await trio.sleep(0.001)
            await gateway.until(lambda: gateway.drops().get(Drop.REFUSED, 0) > 50)

            assert {str(outcome.reason) for outcome in gateway.outcomes} == {"no_node"}
            assert len(gateway.outcomes) <= 2


async def test_a_plugin_may_choose_the_upstream_and_hears_of_the_end() -> None:
    told = []
    with Peer() as node, Peer() as client:
        hooks = Hooks(
            plugin="picker",
            on_accept=lambda *_: UseUpstream("upstreams/other"),
            on_close=lambda _, outcome: told.append(outcome.reason),
        )
        other = upstream(node.place, key="upstreams/other", timeouts=Timeouts(idle_s=0.01))
        current = snapshot(route("1", None, hooks=(hooks,)), route("2", other, port=1))
        async with udp_gateway(current) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            await node.hear()

            assert (await gateway.outcome()).upstream == "upstreams/other"
    assert told == ["idle_timeout"]


async def test_a_route_whose_plugins_choose_no_upstream_has_none() -> None:
    with Peer() as client:
        current = snapshot(route("1", None, hooks=(Hooks(plugin="idler", on_accept=lambda *_: None),)))
        async with udp_gateway(current) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)

            assert (await gateway.outcome()).reason == "no_upstream"


async def test_a_bug_in_a_plugin_costs_its_session_and_no_other() -> None:
    with Peer() as node, Peer() as client, Peer("127.0.0.9") as other:
        broken = Hooks(plugin="broken", on_accept=lambda *_: 1 // 0)
        current = snapshot(
            route("1", upstream(node.place), remote="127.0.0.9/32", hooks=(broken,)),
            route("2", upstream(node.place)),
        )
        async with udp_gateway(current) as gateway:
            (at,) = gateway.listen(udp_listener())
            await other.say(b"?", at)
            outcome = await gateway.outcome()

            assert (outcome.reason, outcome.fault) == ("bug", "gateway")
            assert [type(bug) for bug in gateway.bugs] == [ZeroDivisionError]
            await exchange(client, node, at)


class Reasonless(SessionError):
    """A plugin's own, which names no reason."""


async def test_an_exception_of_a_plugin_that_is_odd_itself_costs_its_session_and_no_other() -> None:
    def odd(_: Facts, __: float) -> Decision:
        raise Reasonless("odd")

    with Peer() as node, Peer() as client, Peer("127.0.0.9") as other:
        current = snapshot(
            route("1", upstream(node.place), remote="127.0.0.9/32", hooks=(Hooks(on_accept=odd),)),
            route("2", upstream(node.place)),
        )
        async with udp_gateway(current) as gateway:
            (at,) = gateway.listen(udp_listener())
            await other.say(b"?", at)

            assert (await gateway.outcome()).reason == "bug"
            assert [type(bug) for bug in gateway.bugs] == [AttributeError]
            await exchange(client, node, at)


async def test_an_outcome_that_cannot_be_told_costs_no_other_session() -> None:
    """Users noticed that one session's end ended those of every listener."""

    def explode(_: Outcome) -> None:
        raise ZeroDivisionError

    with Peer() as node, Peer() as client, Peer("127.0.0.9") as other:
        current = snapshot(route("1", upstream(), remote="127.0.0.9/32"), route("2", upstream(node.place)))
        async with udp_gateway(current) as gateway:
            (at,) = gateway.listen(udp_listener())
            gateway.udp.on_outcome = explode
            await other.say(b"?", at)
            await gateway.until(lambda: gateway.bugs)

            assert [type(bug) for bug in gateway.bugs] == [ZeroDivisionError]
            assert gateway.udp.totals.by_reason == {"no_node": 1}
            assert not gateway.udp.live
            gateway.udp.on_outcome = gateway.outcomes.append
            await exchange(client, node, at)


@pytest.mark.parametrize(("how", "reason"), [("drain", "drain"), ("kill", "killed")])
async def test_a_plugin_that_breaks_while_it_is_cancelled_costs_its_session_and_no_other(
    how: str, reason: str
) -> None:
    """Users noticed that a gateway at its drain deadline ended as one that crashed."""
    with Peer() as client:
        hooks = Hooks(plugin="odd", on_accept=break_when_cancelled)
        async with udp_gateway(snapshot(route("1", upstream("127.0.0.1:9"), hooks=(hooks,)))) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            await gateway.until(lambda: gateway.udp.live)
            await trio.testing.wait_all_tasks_blocked()

            if how == "kill":
                assert gateway.udp.kill(next(iter(gateway.udp.live)))
                await gateway.outcome()

        assert [outcome.reason for outcome in gateway.outcomes] == [reason]
        assert [type(bug) for bug in gateway.bugs] == [ExceptionGroup]


async def test_a_session_that_waits_for_its_node_can_be_ended() -> None:
    with Peer() as client:
        async with udp_gateway(to("never.example:53"), SilentNames()) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            await gateway.until(lambda: gateway.udp.live)
            await trio.testing.wait_all_tasks_blocked()

            assert gateway.udp.kill(next(iter(gateway.udp.live)))

            assert (await gateway.outcome()).reason == "killed"


# Ends


async def test_an_operator_may_kill_a_session() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)

            assert gateway.udp.kill("t-u1")
            assert not gateway.udp.kill("t-u2")

            assert (await gateway.outcome()).reason == "killed"
            assert not gateway.udp.live
            await exchange(client, node, at)


async def test_sessions_of_a_node_that_is_left_end_and_no_others() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)
            (session,) = gateway.udp.live.values()
            assert session.trail.node is not None
            assert session.upstream is not None

            gateway.udp.leave_node("upstreams/another", session.trail.node)
            gateway.udp.leave_node(session.upstream.key, Address("192.0.2.1", 1))
            assert gateway.udp.live
            gateway.udp.leave_node(session.upstream.key, session.trail.node)

            outcome = await gateway.outcome()
            assert (outcome.reason, outcome.fault) == ("node_down", "upstream")
            await exchange(client, node, at)


async def test_draining_waits_for_sessions_and_serves_them() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)

            gateway.listeners.drain(trio.current_time() + 60)
            gateway.sockets.close_all()

            await exchange(client, node, at)
            gateway.udp.kill(next(iter(gateway.udp.live)))


async def test_nothing_is_left_open() -> None:
    before = open_descriptors()
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            for host in ("127.0.0.1", "0.0.0.0", "::1"):
                gateway.listen(udp_listener(host))
                if host != "::1":
                    (at,) = (sock.getsockname() for sock in gateway.sockets.bound().values())
                    await exchange(client, node, ("127.0.0.1", at[1]))
    gateway.pump._epoll.close()

    assert open_descriptors() - before == frozenset()


async def test_sessions_cut_by_the_end_of_the_pump_say_drain() -> None:
    with Peer() as node, Peer() as client:
        gateway = UDPGateway(to(node))
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.listeners.run)
            async with trio.open_nursery() as inner:
                await inner.start(gateway.pump.run)
                (at,) = gateway.listen(udp_listener())
                await exchange(client, node, at)
                inner.cancel_scope.cancel()

            assert (await gateway.outcome()).reason == "drain"
            gateway.listeners.drain(trio.current_time())
        gateway.sockets.close_all()
