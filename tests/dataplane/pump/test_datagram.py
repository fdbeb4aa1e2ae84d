"""Datagrams on real sockets: addresses, boundaries, order, turns; and what the kernel may say."""

from __future__ import annotations

import errno
import random
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgw.core.errors import ConnectFailed, Exhausted
from streamgw.core.model import Address
from streamgw.core.udp_sessions import Drop, Entry, ListenerSessions
from streamgw.dataplane.pump import datagram
from streamgw.dataplane.pump.burst import BUFFER_BYTES
from streamgw.dataplane.pump.datagram import TURN, ClientSide, Datagrams, Keeper, Origin
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.reception import Reception, UDPSession
from tests.support.bridge import no_descriptor_left
from tests.support.namespace import run_with_few_ports
from tests.support.scenes import route, snapshot, upstream
from tests.support.udp_scenes import (
    BIGGEST,
    TIMEOUT_S,
    Peer,
    UDPGateway,
    exchange,
    to,
    udp_gateway,
    udp_listener,
)


async def echo(node: Peer) -> None:
    """A node that says what it hears."""
    while True:
        payload, session = await node.sock.recvfrom(1 << 16)
        await node.say(payload, session)


# Addresses


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2", "127.1.2.3"]),
        ("::", ["::1"]),
        ("*", ["127.0.0.1", "127.0.0.2", "::1"]),
    ],
)
async def test_an_answer_comes_from_the_address_that_was_asked(bound: str, asked: list[str]) -> None:
    listener = udp_listener("::" if bound == "*" else bound, dual_stack=bound == "*")
    with Peer() as node:
        async with udp_gateway(to(node)) as gateway, trio.open_nursery() as nursery:
            nursery.start_soon(echo, node)
            ((_, port, *_),) = gateway.listen(listener)
            for host in asked:
                with Peer("::1" if ":" in host else "127.0.0.1") as client:
                    for _ in range(
                        3
                    ):  # the first, the one that makes it an assured session, one in full flow
                        await client.say(b"?", (host, port))
                        payload, (answered_from, answered_port, *_) = await client.hear()
                        assert (payload, answered_from, answered_port) == (b"?", host, port)
            nursery.cancel_scope.cancel()
    assert {(str(each.facts.server), each.facts.client.host) for each in gateway.outcomes} == {
        (str(Address(host, port)), "::1" if ":" in host else "127.0.0.1") for host in asked
    }, "IPv4 is IPv4, also on a dual-stack socket"


async def test_one_client_that_asks_two_addresses_has_two_sessions() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway, trio.open_nursery() as nursery:
            nursery.start_soon(echo, node)
            ((_, port),) = gateway.listen(udp_listener("0.0.0.0"))
            for host in ("127.0.0.1", "127.0.0.2") * 3:
                await client.say(b"?", (host, port))
                assert (await client.hear())[1] == (host, port)
            assert len(gateway.udp.live) == 2
            nursery.cancel_scope.cancel()


async def test_a_broadcast_is_answered_from_an_address_of_ours() -> None:
    with Peer() as node, Peer() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        async with udp_gateway(to(node)) as gateway, trio.open_nursery() as nursery:
            nursery.start_soon(echo, node)
            ((_, port),) = gateway.listen(udp_listener("0.0.0.0"))
            await client.say(b"anybody?", ("127.255.255.255", port))

            assert await client.hear() == (b"anybody?", ("127.0.0.1", port))
            (session,) = gateway.udp.live.values()
            assert session.facts.server == Address("127.255.255.255", port), "what routes can ask for"
            nursery.cancel_scope.cancel()


# Boundaries and order


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("size", [0, 1, 1472, 9000, BIGGEST])
async def test_every_size_passes_both_ways(host: str, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway, trio.open_nursery() as nursery:
            nursery.start_soon(echo, node)
            ((_, port),) = gateway.listen(udp_listener(host))
            for _ in range(3):
                await client.say(payload, ("127.0.0.1", port))
                assert (await client.hear())[0] == payload
            nursery.cancel_scope.cancel()


async def test_over_ipv6_a_datagram_may_be_longer_still() -> None:
    payload = random.Random(6).randbytes(65_527)
    with Peer("::1") as node, Peer("::1") as client:
        async with udp_gateway(to(node)) as gateway, trio.open_nursery() as nursery:
            nursery.start_soon(echo, node)
            (at,) = gateway.listen(udp_listener("::1"))
            await client.say(payload, at)
            assert (await client.hear())[0] == payload
            nursery.cancel_scope.cancel()


async def test_an_answer_too_long_for_the_client_s_network_is_dropped_and_counted() -> None:
    with Peer("::1") as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            _, session = await node.hear()
            await node.say(bytes(65_527), session)
            await node.say(b"!", session)

            assert (await client.hear())[0] == b"!"
            assert gateway.drops() == {Drop.SEND_FAILED: 1}
            (live,) = gateway.udp.live.values()
            assert (live.datagrams_down, live.bytes_down, live.withheld) == (1, 1, 1)


bursts = st.lists(st.integers(0, 3000), min_size=1, max_size=60)


@given(bursts, bursts)
@settings(max_examples=15)
def test_bursts_keep_their_boundaries_and_their_order(up: list[int], down: list[int]) -> None:
    async def scene() -> None:
        with Peer() as node, Peer() as client:
            async with udp_gateway(to(node)) as gateway:
                (at,) = gateway.listen(udp_listener())
                await trio.testing.wait_all_tasks_blocked()
                said = [bytes([number]) * size for number, size in enumerate(up)]
                for payload in said:
                    client.sock._sock.sendto(payload, at)  # with no turn of the gateway's in between
                heard = [await node.hear() for _ in up]
                assert [payload for payload, _ in heard] == said
                answers = [bytes([number]) * size for number, size in enumerate(down)]
                for payload in answers:
                    node.sock._sock.sendto(payload, heard[0][1])
                assert [(await client.hear())[0] for _ in down] == answers

    trio.run(scene)


# Bursts


async def served(client: Peer, node: Peer, gateway: UDPGateway, at: Any) -> tuple[UDPSession, Any]:
    """A session in full flow, and the port that its node knows it by."""
    for _ in range(2):
        port = await exchange(client, node, at)
    (session,) = gateway.udp.live.values()
    assert session.send is not None, "full flow"
    await trio.testing.wait_all_tasks_blocked()
    return session, port


def loopback_of(bound: list[Any]) -> Any:
    """Where to send to for a listener on a wildcard, too."""
    ((host, *rest),) = bound
    return ("::1" if ":" in host else "127.0.0.1", *rest)


def shout(peer: Peer, to: Any, said: Sequence[bytes]) -> None:
    """All before the gateway gets a turn, so that its turns find many."""
    for payload in said:
        peer.sock._sock.sendto(payload, to)


BURST = [b"%04d" % number for number in range(5 * TURN)]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
async def test_a_burst_goes_up_in_few_calls_whole_and_in_order(host: str) -> None:
    loopback = "::1" if ":" in host else "127.0.0.1"
    with Peer(loopback) as node, Peer(loopback) as client:
        async with udp_gateway(to(node)) as gateway:
            at = loopback_of(gateway.listen(udp_listener(host)))
            session, _ = await served(client, node, gateway, at)
            calls: list[int] = []
            send_parts = session.send_parts
            assert send_parts is not None

            def counted(parts: tuple[memoryview], ancillary: list[tuple[int, int, bytes]]) -> int:
                calls.append(len(parts[0]) // 4)
                return send_parts(parts, ancillary)

            session.send_parts = counted
            shout(client, at, BURST)

            assert [(await node.hear())[0] for _ in BURST] == BURST
            assert max(calls) == TURN
            assert (session.asked, session.bytes_up) == (2 + len(BURST), 2 + 4 * len(BURST))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
async def test_a_burst_comes_down_in_few_calls_whole_and_in_order(host: str) -> None:
    loopback = "::1" if ":" in host else "127.0.0.1"
    with Peer(loopback) as node, Peer(loopback) as client:
        async with udp_gateway(to(node)) as gateway:
            at = loopback_of(gateway.listen(udp_listener(host)))
            session, there = await served(client, node, gateway, at)
            (reception,) = gateway.udp.receptions
            clients, calls = reception.clients, []
            reply_from = clients.reply_from

            def counted(parts: tuple[memoryview], *rest: Any) -> int:
                calls.append(len(parts[0]) // 4)
                return reply_from(parts, *rest)

            clients.reply_from = counted  # type: ignore[method-assign, assignment]
            shout(node, there, BURST)

            heard = [await client.hear() for _ in BURST]
            assert [payload for payload, _ in heard] == BURST
            assert {sender for _, sender in heard} == {at}
            assert max(calls) == TURN
            assert (session.answers, session.bytes_down) == (2 + len(BURST), 2 + 4 * len(BURST))


async def test_clients_that_shout_at_once_are_not_mixed_up() -> None:
    with Peer() as node, Peer() as one, Peer() as other:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            for client in (one, other):
                for _ in range(2):
                    await exchange(client, node, at)
            await trio.testing.wait_all_tasks_blocked()
            for start in range(0, len(BURST), 8):
                shout(one, at, [b"1" + each for each in BURST[start : start + 5]])
                shout(other, at, [b"2" + each for each in BURST[start + 5 : start + 8]])

            heard = [await node.hear() for _ in BURST]

            by_port: dict[Any, list[bytes]] = {}
            for payload, port in heard:
                by_port.setdefault(port, []).append(payload)
            assert sorted(len({payload[:1] for payload in said}) for said in by_port.values()) == [1, 1]
            assert all(said == sorted(said) for said in by_port.values())


def refusing(number: int) -> tuple[list[int], Callable[..., int]]:
    """A kernel that does not take runs, and how often it was asked."""
    asked: list[int] = []

    def sendmsg(parts: tuple[memoryview], *_: object) -> int:
        asked.append(len(parts[0]))
        raise OSError(number, "")

    return asked, sendmsg


@pytest.mark.parametrize(
    ("number", "is_remembered"), [(errno.EINVAL, True), (errno.EIO, True), (errno.ENOBUFS, False)]
)
async def test_where_the_kernel_cuts_nothing_a_burst_goes_up_one_by_one(
    number: int, is_remembered: bool
) -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            session, _ = await served(client, node, gateway, at)
            asked, session.send_parts = refusing(number)
            shout(client, at, BURST)

            assert [(await node.hear())[0] for _ in BURST] == BURST
            assert (len(asked) == 1) is is_remembered
            assert session.asked == 2 + len(BURST)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOBUFS])
async def test_where_the_kernel_cuts_nothing_a_burst_comes_down_one_by_one(number: int) -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            session, there = await served(client, node, gateway, at)
            (reception,) = gateway.udp.receptions
            asked, reception.clients.reply_from = refusing(number)
            shout(node, there, BURST)

            assert [(await client.hear())[0] for _ in BURST] == BURST
            assert asked
            assert session.datagrams_down == 2 + len(BURST)


async def test_a_burst_that_meets_a_refusal_is_the_next_session_s() -> None:
    with Peer() as node, Peer() as other, Peer() as client:
        async with udp_gateway(to(node, other)) as gateway:
            (at,) = gateway.listen(udp_listener())
            first = await gateway_s_pick(client, at, node, other)
            second = other if first is node else node
            session, _ = await served(client, first, gateway, at)
            _, session.send_parts = refusing(errno.ECONNREFUSED)
            shout(client, at, BURST)

            outcome = await gateway.outcome()
            before = outcome.datagrams_up - 3
            assert (outcome.reason, outcome.fault) == ("connect_failed", "upstream")
            assert [(await first.hear())[0] for _ in range(before)] == BURST[:before]
            assert [(await second.hear())[0] for _ in BURST[before:]] == BURST[before:]


async def gateway_s_pick(client: Peer, at: Any, *nodes: Peer) -> Peer:
    """The node that this client has got."""
    await client.say(b"?", at)
    picked: list[Peer] = []
    async with trio.open_nursery() as nursery:

        async def listen(node: Peer) -> None:
            await node.hear()
            picked.append(node)
            nursery.cancel_scope.cancel()

        for node in nodes:
            nursery.start_soon(listen, node)
    return picked[0]


async def test_answers_read_before_a_refusal_are_passed_on() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            session, there = await served(client, node, gateway, at)
            side = session.upstream_side
            assert side is not None
            receive = side._recv_into

            def refused_after_ten(room: memoryview) -> int:
                if session.answers > 1 and len(room) < BUFFER_BYTES - 10 * 4:
                    raise ConnectionRefusedError(errno.ECONNREFUSED, "")
                return receive(room)

            side._recv_into = refused_after_ten  # type: ignore[assignment]
            shout(node, there, BURST)
            outcome = await gateway.outcome()

            assert (outcome.reason, outcome.fault) == ("connect_failed", "upstream")
            passed_on = BURST[: outcome.datagrams_down - 2]
            assert len(passed_on) > 10
            assert [(await client.hear())[0] for _ in passed_on] == passed_on


# Turns


async def test_a_flood_at_one_listener_does_not_starve_a_client_of_another() -> None:
    with Peer() as sink, Peer() as node, Peer() as client, Peer() as flooder:
        async with udp_gateway(to(node)) as gateway, trio.open_nursery() as nursery:
            flooded, quiet = udp_listener(), udp_listener("127.0.0.2")
            flood_at, at = gateway.listen(flooded, quiet)
            gateway.swap(
                snapshot(
                    route("flood", upstream(sink.place, key="upstreams/2"), port=flood_at[1]),
                    route("quiet", upstream(node.place)),
                )
            )
            nursery.start_soon(echo, node)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(20 * TURN):
                flooder.sock._sock.sendto(b"flood", flood_at)
            await client.say(b"?", at)

            await client.hear()

            (flood,) = [each for each in gateway.udp.live.values() if each.route.id == "flood"]
            assert flood.datagrams_up + flood.lost < 20 * TURN, "it is still being read"
            nursery.cancel_scope.cancel()


async def test_a_node_that_floods_its_client_has_turns_like_everybody() -> None:
    with Peer() as noisy, Peer() as node, Peer() as victim, Peer() as client:
        both = snapshot(
            route("noisy", upstream(noisy.place, key="upstreams/2"), server="127.0.0.2/32"),
            route("quiet", upstream(node.place)),
        )
        async with udp_gateway(both) as gateway, trio.open_nursery() as nursery:
            nursery.start_soon(echo, node)
            noisy_at, at = gateway.listen(udp_listener("127.0.0.2"), udp_listener())
            await victim.say(b"?", noisy_at)
            _, session = await noisy.hear()
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(10 * TURN):
                noisy.sock._sock.sendto(b"noise", session)
            await client.say(b"?", at)

            await client.hear()

            (live,) = [each for each in gateway.udp.live.values() if each.route.id == "noisy"]
            assert live.datagrams_down < 10 * TURN
            nursery.cancel_scope.cancel()


async def test_what_the_kernel_drops_because_nobody_reads_is_known() -> None:
    with Peer() as client:
        async with udp_gateway(snapshot()) as gateway:
            (at,) = gateway.listen(udp_listener())
            (sock,) = gateway.sockets.bound().values()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(100):
                client.sock._sock.sendto(bytes(1000), at)

            (reception,) = gateway.udp.receptions
            assert reception.clients.overflowed > 50
            reception.clients.close()
            assert reception.clients.overflowed == 0


# Connecting


@pytest.fixture
def alone() -> Datagrams:
    """Of a pump that does not run."""
    return SocketPump().datagrams


def test_only_ip_literals_are_connected_to(alone: Datagrams) -> None:
    with pytest.raises(ConnectFailed, match="not an IP address: 'localhost'"):
        alone.connect(Address("localhost", 53))


def test_without_descriptors_there_is_no_socket(alone: Datagrams) -> None:
    with no_descriptor_left(), pytest.raises(Exhausted, match="too many open files"):
        alone.connect(Address("127.0.0.1", 53))


def test_where_no_way_leads_nobody_is_connected(alone: Datagrams) -> None:
    with pytest.raises(ConnectFailed, match="permission denied"):
        alone.connect(Address("255.255.255.255", 53))


def test_having_no_port_left_is_the_gateway_s_own_trouble() -> None:
    assert isinstance(datagram._failure(errno.EAGAIN), Exhausted)


_ITS_OWN_PORT = """
from streamgw.core.errors import ConnectFailed
from streamgw.core.model import Address
from streamgw.dataplane.pump.loop import SocketPump

try:
    SocketPump().datagrams.connect(Address("127.0.0.1", 40000))
except ConnectFailed as error:
    print(error)
"""


@pytest.mark.slow
def test_a_port_where_nobody_is_is_not_answered_by_the_socket_that_is_connected_to_it() -> None:
    """The kernel may choose that very port to send from."""
    assert run_with_few_ports(_ITS_OWN_PORT, ports="40000 40000") == "connection refused\n"


class FullEpoll:
    """An epoll whose user watches too much already."""

    def register(self, fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, "")


def test_a_kernel_without_room_for_one_more_to_watch_is_out_of_it(alone: Datagrams) -> None:
    side = alone.connect(Address("127.0.0.1", 53))
    alone.epoll = FullEpoll()  # type: ignore[assignment]
    entry = Entry(key=1, client="", home=ListenerSessions())
    origin = Origin(1, ("192.0.2.1", 1), Address("127.0.0.1", 53), None)

    with pytest.raises(Exhausted, match=r"fs\.epoll\.max_user_watches is too low"):
        side.watch(entry, cast("ClientSide", None), origin, cast("Keeper", None))

    side.close()


# Bugs


async def test_a_bug_while_a_datagram_is_received_costs_that_datagram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Exception] = []
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            gateway.pump._on_bug = seen.append
            (at,) = gateway.listen(udp_listener())
            with monkeypatch.context() as patch:
                patch.setattr(Reception, "begin", lambda *_: 1 // 0)
                await client.say(b"lost", at)
                await gateway.until(lambda: seen)
            await client.say(b"fine", at)

            assert (await node.hear())[0] == b"fine"
            assert gateway.pump.bugs == 1


async def test_a_bug_while_an_answer_is_passed_on_ends_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Exception] = []
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            gateway.pump._on_bug = seen.append
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            _, session = await node.hear()
            monkeypatch.setattr(Reception, "answered", lambda *_: 1 // 0)
            await node.say(b"!", session)
            outcome = await gateway.outcome()

    assert (outcome.reason, outcome.fault) == ("bug", "gateway")
    assert outcome.detail == "ZeroDivisionError: integer division or modulo by zero"
    assert [type(error) for error in seen] == [ZeroDivisionError]


# Closing


async def test_closing_twice_and_keeping_what_is_closed_do_nothing() -> None:
    async with udp_gateway(snapshot()) as gateway:
        gateway.listen(udp_listener())
        await gateway.until(lambda: gateway.udp.receptions)
        (reception,) = gateway.udp.receptions

        reception.clients.close()
        reception.clients.close()
        reception.clients.keep()

        assert gateway.pump.datagrams.sides == {}


async def test_a_kept_socket_is_watched_once_and_closed() -> None:
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            await client.say(b"?", at)
            _, session = await node.hear()
            gateway.listen()
            (side,) = [reception.clients for reception in gateway.udp.receptions]

            await node.say(b"!", session)

            assert (await client.hear())[0] == b"!"
            assert sum(each is side for each in gateway.pump.datagrams.sides.values()) == 1
            with trio.fail_after(TIMEOUT_S):
                gateway.udp.kill(next(iter(gateway.udp.live)))
                while gateway.udp.receptions:
                    await trio.sleep(0.002)
            with pytest.raises(OSError, match="Bad file descriptor"):
                side.reply_to(b"", at)


async def test_whoever_has_a_successor_answers_and_reads_no_more() -> None:
    """The successor has the same socket: what was read here would be missing there."""
    with Peer() as node, Peer() as client:
        async with udp_gateway(to(node)) as gateway:
            (at,) = gateway.listen(udp_listener())
            (successor,) = [sock.dup() for sock in gateway.sockets.bound().values()]
            await client.say(b"?", at)
            _, session = await node.hear()

            gateway.listeners.drain(trio.current_time() + TIMEOUT_S, is_succeeded=True)
            await node.say(b"!", session)
            await client.say(b"next", at)

            assert (await client.hear())[0] == b"!"
            await trio.lowlevel.wait_readable(successor)
            assert successor.recv(10) == b"next"
            assert await node.hears_nothing_more()
            successor.close()


def test_a_pump_that_was_stopped_has_no_datagram_sockets(alone: Datagrams) -> None:
    epoll = select.epoll()
    alone.epoll = epoll
    alone.stop()
    epoll.close()

    assert not alone.handle(0)
