"""What arrives at one UDP listener: datagrams without a session, with a PROXY header, of a node that refuses; its removal."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from streamgw.core.model import Address, Listener
from streamgw.core.udp_sessions import Drop
from streamgw.core.wire.proxy_protocol import build_v2
from streamgw.dataplane.pump.datagram import UpstreamSide
from streamgw.dataplane.reception import TELL_EVERY_S
from tests.support.bridge import no_descriptor_left
from tests.support.scenes import listener, route, snapshot, upstream
from tests.support.udp_scenes import BIGGEST, Peer, exchange, to, udp_gateway, udp_listener


async def test_clients_without_a_route_or_an_upstream_begin_no_session_and_are_told_of() -> None:
    current = snapshot(route("1", None, port=1))
    with Peer() as client:
        async with udp_gateway(current) as gateway:
            (at,) = gateway.listen(udp_listener())
            gateway.swap(snapshot(route("1", None, port=1), route("2", None, remote="127.0.0.9/32")))
            with Peer("127.0.0.9") as unlucky:
                for _ in range(3):
                    await client.say(b"?", at)
                    await unlucky.say(b"?", at)

            await gateway.until(lambda: gateway.dropped)

            assert gateway.drops() == {Drop.NO_ROUTE: 3, Drop.NO_UPSTREAM: 3}
            name = next(iter(gateway.listeners.states()))
            assert gateway.dropped == [(name, {Drop.NO_ROUTE: 3, Drop.NO_UPSTREAM: 3})]
    assert gateway.outcomes == []


async def test_dropped_datagrams_are_told_of_once_a_second_at_most() -> None:
    with Peer() as client:
        async with udp_gateway(snapshot()) as gateway:
            (at,) = gateway.listen(udp_listener())
            began_at = trio.current_time()
            await client.say(b"?", at)
            await gateway.until(lambda: gateway.dropped)
            await client.say(b"?", at)
            await client.say(b"?", at)

            await gateway.until(lambda: len(gateway.dropped) == 2)

            assert trio.current_time() - began_at >= TELL_EVERY_S
            assert gateway.dropped[1][1] == {Drop.NO_ROUTE: 2}


async def test_what_was_not_told_yet_is_told_at_the_end() -> None:
    with Peer() as client:
        async with udp_gateway(snapshot()) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            await gateway.until(gateway.drops)
    assert [drops for _, drops in gateway.dropped] == [{Drop.NO_ROUTE: 1}]


# Datagrams on their way up


@pytest.mark.parametrize("rules", [{}, {"requests": 1000}], ids=["in full flow", "looked at"])
async def test_a_datagram_that_meets_the_refusal_of_the_one_before_goes_to_another_node(
    rules: dict[str, object],
) -> None:
    """The kernel reports an ICMP error to whoever sends next, and sends nothing. That datagram is not lost."""
    with Peer() as node, Peer() as client, Peer() as dying:
        async with udp_gateway(to(dying, **rules)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, dying, at)
            await exchange(client, dying, at)
            gateway.swap(to(dying, node, **rules))
            dying.sock.close()
            await trio.testing.wait_all_tasks_blocked()

            for payload in (b"refused", b"not lost"):  # in one batch: nothing is read in between
                client.sock._sock.sendto(payload, at)

            assert (await node.hear())[0] == b"not lost"
            assert (await gateway.outcome()).datagrams_up == 3
            assert gateway.drops() == {}


@pytest.mark.parametrize("on_each", [False, True])
async def test_a_proxy_header_goes_before_the_first_datagram_or_before_each(on_each: bool) -> None:
    with Peer() as node, Peer() as client:
        told = upstream(node.place, proxy_protocol="v2", proxy_protocol_on_each=on_each)
        async with udp_gateway(snapshot(route("1", told))) as gateway:
            (at,) = gateway.listen(udp_listener())
            header = build_v2(Address(*client.address), Address(*at), transport="udp")

            for number in range(4):
                await client.say(b"?", at)
                heard, session = await node.hear()
                assert heard == (header if on_each or not number else b"") + b"?"
                await node.say(b"!", session)
                await client.hear()

            (session,) = gateway.udp.live.values()
            assert session.bytes_up == 4, "without the header"
            assert (session.send is None) is on_each


async def test_version_1_does_not_exist_over_udp_and_none_is_sent() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(snapshot(route("1", upstream(node.place, proxy_protocol="v1")))) as gateway:
            (at,) = gateway.listen(udp_listener(proxy_protocol_to_upstream="v2"))
            await client.say(b"?", at)

            assert (await node.hear())[0] == b"?"


async def test_a_datagram_that_the_header_makes_too_long_leaves_it_to_the_next() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(snapshot(route("1", upstream(node.place, proxy_protocol="v2")))) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(bytes(BIGGEST), at)
            await gateway.until(gateway.drops)
            await client.say(b"?", at)

            assert (await node.hear())[0].endswith(b"?")
            assert gateway.drops() == {Drop.SEND_FAILED: 1}
            (session,) = gateway.udp.live.values()
            assert (session.datagrams_up, session.lost) == (1, 1)


async def test_where_the_first_datagram_finds_no_way_it_is_lost_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_way(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "")

    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)  # the pool knows the upstream now
            gateway.udp.kill(next(iter(gateway.udp.live)))
            await gateway.outcome()
            monkeypatch.setattr(UpstreamSide, "send", no_way)
            await client.say(b"?", at)
            outcome = await gateway.outcome(2)

            assert (outcome.reason, outcome.detail) == ("connect_failed", "network is unreachable")
            assert (outcome.datagrams_up, outcome.datagrams_dropped) == (0, 1)
            assert gateway.drops() == {Drop.UNOPENED: 1}


# Removal


async def test_a_removed_listener_serves_the_sessions_it_has_and_no_others() -> None:
    with Peer() as node, Peer() as client, Peer() as stranger:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            session = await exchange(client, node, at)
            (name,) = gateway.listeners.states()

            gateway.listen()

            await gateway.until(lambda: gateway.listeners.states() == {name: "draining"})
            assert await exchange(client, node, at) == session
            await stranger.say(b"?", at)
            await gateway.until(lambda: gateway.drops() == {Drop.LISTENER_GONE: 1})
            gateway.udp.kill(next(iter(gateway.udp.live)))
            await gateway.until(lambda: not gateway.listeners.states())
            with Peer(port=at[1]):
                pass  # its address is free again


async def test_a_listener_that_is_wanted_again_gets_its_address_and_the_old_sessions_move() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)
            gateway.listen()

            gateway.listen(udp_listener(port=at[1]))

            assert (await gateway.outcome()).reason == "moved"
            await exchange(client, node, at)


async def test_an_address_becomes_a_wildcard_in_one_step() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            first = udp_listener(port=at[1])
            gateway.listen(first)
            await exchange(client, node, at)

            gateway.listen(udp_listener("0.0.0.0", at[1]))

            await exchange(client, node, at)
            assert gateway.outcomes[-1].reason == "moved"


async def test_a_removed_listener_without_descriptors_cuts_its_sessions_off() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await exchange(client, node, at)
            (name,) = gateway.listeners.states()
            with no_descriptor_left():
                gateway.listen()

            assert (await gateway.outcome()).reason == "moved"
            assert gateway.troubles == [f"sessions of {name} are cut off: too many open files"]


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (udp_listener(port=53), udp_listener(port=53), True),
        (udp_listener(port=53), udp_listener(port=54), False),
        (udp_listener(port=53), listener(53), False),
        (udp_listener(port=53), udp_listener("127.0.0.2", 53), False),
        (udp_listener(port=53), udp_listener("0.0.0.0", 53), True),
        (udp_listener("::1", 53), udp_listener("0.0.0.0", 53), False),
        (udp_listener("::1", 53), udp_listener("::", 53), True),
        (udp_listener(port=53), udp_listener("::", 53, dual_stack=True), True),
    ],
)
async def test_which_listeners_stand_in_each_other_s_way(
    one: Listener, other: Listener, overlap: bool
) -> None:
    async with udp_gateway(snapshot()) as gateway:
        gateway.listen(udp_listener())
        await gateway.until(lambda: gateway.udp.receptions)
        (reception,) = gateway.udp.receptions
        reception.follow(one)
        assert reception.is_in_the_way_of(other) is overlap
