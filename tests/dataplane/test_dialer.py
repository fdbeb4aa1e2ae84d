"""Retry is the next candidate."""

from __future__ import annotations

import random
import ssl
from typing import cast

import attrs
import pytest
import trio

from streamgw.core.discovery import Discovered
from streamgw.core.errors import (
    ConnectFailed,
    Exhausted,
    Fault,
    NoNode,
    NoPortLeft,
    Reason,
    UpstreamTLSFailed,
)
from streamgw.core.model import Address, Pacing, Timeouts, Upstream, UpstreamTLS
from streamgw.dataplane.dialer import LONGEST_PAUSE_S, MAX_ATTEMPTS_KEPT, Dialer, Introduction, Trail
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump import Ending, Limits, Meter
from tests.support.fake_pump import Dialled, FakeEnd, FakePump
from tests.support.scenes import FakeNames, facts, sync, upstream


async def join(
    pump: FakePump,
    to: Upstream,
    trail: Trail,
    *,
    preface: bytes = b"",
    server_name: str = "",
    client: FakeEnd | None = None,
    pool: UpstreamPool | None = None,
) -> Ending:
    if pool is None:
        pool = UpstreamPool(FakeNames(), rng=random.Random(1))
        sync(pool, to)
    dialer = Dialer(pump, pool)
    return await dialer.join(
        client or FakeEnd(),
        to,
        introduction=Introduction(attrs.evolve(facts(), server_name=server_name or None), preface),
        trail=trail,
        meter=Meter(),
        limits=Limits(),
    )


def dialled(pump: FakePump) -> list[str]:
    return [str(end.address) for end in pump.dialled]


async def test_the_first_node_that_answers_gets_the_session(autojump_clock: trio.testing.MockClock) -> None:
    pump, trail = FakePump({"10.0.0.2:1": Dialled()}), Trail()

    ending = await join(pump, upstream("10.0.0.1:1", "10.0.0.2:1", "10.0.0.2:1"), trail, preface=b"PROXY")

    assert ending == Ending(Reason.CLOSED)
    assert str(trail.node) == "10.0.0.2:1"
    assert [str(attempt.node) for attempt in trail.attempts] in ([], ["10.0.0.1:1"])
    assert pump.dialled[-1].preface == b"PROXY"


async def test_every_node_is_tried_once_and_the_last_failure_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pump, trail = FakePump(), Trail()

    with pytest.raises(ConnectFailed, match="connection refused"):
        await join(pump, upstream("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), trail)

    assert sorted(dialled(pump)) == ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]
    assert [attempt.error for attempt in trail.attempts] == ["connection refused"] * 3
    assert trail.node == trail.attempts[-1].node


async def test_once_a_node_has_answered_nothing_of_the_search_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A session may idle for days; what only the connect needed would idle with it."""
    pump, trail = FakePump({"10.0.0.2:1": Dialled()}), Trail()
    searching = []
    pump.before_relay = lambda: searching.append(trail.search is not None)

    await join(pump, upstream("10.0.0.1:1", "10.0.0.2:1"), trail)

    assert set(searching) == {True}
    assert trail.search is None
    assert trail.lease is None


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (1, 2), (9, 3)])
async def test_retries_bound_the_attempts(
    autojump_clock: trio.testing.MockClock, retries: int, tries: int
) -> None:
    pump = FakePump()

    with pytest.raises(ConnectFailed):
        await join(pump, upstream("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", retries=retries), Trail())

    assert len(set(dialled(pump))) == len(dialled(pump)) == tries


async def test_a_single_node_is_dialled_again_only_if_retries_say_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    patient, default = FakePump(), FakePump()

    with pytest.raises(ConnectFailed):
        await join(patient, upstream("10.0.0.1:1", retries=2), Trail())
    with pytest.raises(ConnectFailed):
        await join(default, upstream("10.0.0.1:1"), Trail())

    assert dialled(patient) == ["10.0.0.1:1"] * 3
    assert dialled(default) == ["10.0.0.1:1"]


async def test_the_one_node_with_weight_is_not_dialled_twice(autojump_clock: trio.testing.MockClock) -> None:
    pump = FakePump()

    with pytest.raises(ConnectFailed):
        await join(pump, upstream("10.0.0.1:1", "10.0.0.2:1=0", retries=2), Trail())

    assert dialled(pump) == ["10.0.0.1:1"]


async def test_retries_also_bound_the_addresses_of_a_name(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("db.example:1", retries=1)
    pool = UpstreamPool(FakeNames({"db.example": ("10.0.0.1", "10.0.0.2", "10.0.0.3")}), rng=random.Random(1))
    sync(pool, to)
    pump = FakePump()

    with pytest.raises(ConnectFailed):
        await join(pump, to, Trail(), pool=pool)

    assert len(set(dialled(pump))) == len(dialled(pump)) == 2


async def test_a_discovered_node_that_is_the_only_one_is_dialled_again_only_if_retries_say_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    found = tuple(Discovered(node, node.host) for node in upstream("10.0.0.1:1", "10.0.0.2:1").nodes)
    to = upstream(service_name="db.example:1", retries=2)
    names = FakeNames(services={"db.example:1": found[:1]})
    pool = UpstreamPool(names, rng=random.Random(1))
    sync(pool, to)
    alone, in_company = FakePump(), FakePump()

    with pytest.raises(ConnectFailed):
        await join(alone, to, Trail(), pool=pool)
    names.services["db.example:1"] = found
    pool.on_names_changed("db.example:1")
    with pytest.raises(ConnectFailed):
        await join(in_company, to, Trail(), pool=pool)

    assert dialled(alone) == ["10.0.0.1:1"] * 3
    assert sorted(dialled(in_company)) == ["10.0.0.1:1", "10.0.0.2:1"]


async def test_no_attempt_begins_after_the_retry_timeout(autojump_clock: trio.testing.MockClock) -> None:
    slow = Dialled(takes_s=100)
    pump = FakePump({f"10.0.0.{n}:1": slow for n in (1, 2, 3)})
    to = upstream(
        "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", retry_timeout_s=15, timeouts=Timeouts(connect_s=10)
    )
    trail, began_at = Trail(), trio.current_time()

    with pytest.raises(ConnectFailed, match="timed out"):
        await join(pump, to, trail)

    assert trio.current_time() - began_at == 20
    assert len(trail.attempts) == 2
    assert [attempt.seconds for attempt in trail.attempts] == [10, 10]


async def test_an_ending_after_the_connect_is_final(autojump_clock: trio.testing.MockClock) -> None:
    reset = Dialled(ending=Ending(Reason.RESET, "upstream"))
    pump, trail = FakePump({"10.0.0.1:1": reset, "10.0.0.2:1": reset}), Trail()

    ending = await join(pump, upstream("10.0.0.1:1", "10.0.0.2:1"), trail)

    assert ending.reason is Reason.RESET
    assert len(pump.dialled) == 1
    assert not trail.attempts


async def test_no_candidate_at_all_says_so() -> None:
    with pytest.raises(NoNode, match="upstreams/1 has no node to dial: it lists none"):
        await join(FakePump(), upstream(), Trail())
    with pytest.raises(NoNode):
        await join(FakePump(), upstream(retries=3), Trail())


async def test_running_out_of_descriptors_is_not_retried() -> None:
    pump = FakePump({"10.0.0.1:1": Dialled(exhausted=True), "10.0.0.2:1": Dialled(exhausted=True)})

    with pytest.raises(Exhausted):
        await join(pump, upstream("10.0.0.1:1", "10.0.0.2:1"), Trail())


async def test_running_out_of_ports_for_one_node_is_no_lack_of_them_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    nodes = {"10.0.0.1:1": Dialled(portless=True), "10.0.0.2:1": Dialled(portless=True)}

    with pytest.raises(NoPortLeft) as caught:
        await join(FakePump(nodes), upstream(*nodes), trail := Trail())
    nodes["10.0.0.2:1"] = Dialled()
    ending = await join(FakePump(nodes), upstream(*nodes), Trail())

    assert (caught.value.reason, caught.value.fault) == (Reason.EXHAUSTED, Fault.GATEWAY)
    assert len(trail.attempts) == 2
    assert ending == Ending(Reason.CLOSED)


# ── Leases and reports ───────────────────────────────────────────────────────────────────────────


async def test_a_node_has_a_session_from_the_connect_to_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1", type="least_conn")
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    sync(pool, to)
    seen: list[int] = []
    alive = Address("10.0.0.2", 1)
    pump = FakePump({str(alive): Dialled(takes_s=1)}, before_relay=lambda: seen.append(counted()))

    def counted() -> int:
        return sum(pool.load(to.key).active(Address(node.host, node.port)) for node in to.nodes)

    for _ in range(2):
        await join(pump, to, Trail(), pool=pool)

    assert set(seen) == {1}, "a node that refused has none any more"
    assert counted() == 0


async def test_the_pool_hears_of_every_attempt_at_once(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", "10.0.0.2:1")
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    sync(pool, to)
    pump = FakePump({"10.0.0.2:1": Dialled(takes_s=0.25, ending=None)})
    load = pool.load(to.key)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: join(pump, to, Trail(), pool=pool))
        await trio.sleep(1)
        # Both are still relaying; one of them met the node that refuses.
        assert 0 < load.latency_s(to.nodes[1]) <= 0.25
        assert 0 < load.latency_s(to.nodes[0]) <= 1
        nursery.cancel_scope.cancel()

    assert not load.has_sessions()


async def test_the_pool_hears_of_the_first_byte_while_the_session_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    to = upstream("10.0.0.1:1", type="ewma")
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    sync(pool, to)
    pump = FakePump({"10.0.0.1:1": Dialled(takes_s=0.25, first_byte_s=0.5, ending=None)})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: join(pump, to, Trail(), pool=pool))
        await trio.sleep(0.7)
        assert pool.load(to.key).latency_s(to.nodes[0]) == pytest.approx(0.25, rel=0.1)
        await trio.sleep(0.1)
        assert pool.load(to.key).latency_s(to.nodes[0]) == pytest.approx(0.75, rel=0.1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["roundrobin", "chash", "least_conn"])
async def test_where_nobody_asks_for_the_quickest_no_first_byte_is_waited_for(
    autojump_clock: trio.testing.MockClock, kind: str
) -> None:
    to = upstream("10.0.0.1:1", type=kind)
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    sync(pool, to)

    await join(FakePump({"10.0.0.1:1": Dialled(first_byte_s=0.5)}), to, Trail(), pool=pool)

    assert trio.current_time() == 0


# ── Waiting for a node ───────────────────────────────────────────────────────────────────────────


async def test_a_client_is_kept_until_a_node_answers(autojump_clock: trio.testing.MockClock) -> None:
    pump, trail = FakePump(), Trail()
    to = upstream("10.0.0.1:1", pacing=Pacing(wait_for_node_s=10))
    began_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(revive, pump, "10.0.0.1:1", 3)
        ending = await join(pump, to, trail)

    assert ending.reason is Reason.CLOSED
    assert 3 <= trio.current_time() - began_at < 3 + 1.5 * LONGEST_PAUSE_S
    assert {attempt.error for attempt in trail.attempts} == {"connection refused"}
    # 0.1 s, 0.2 s, 0.4 s, 0.8 s, then a second, each more or less: nodes that are down are not stormed.
    assert 4 <= len(trail.attempts) <= 9


async def revive(pump: FakePump, node: str, after_s: float) -> None:
    await trio.sleep(after_s)
    pump.nodes[node] = Dialled()


async def test_a_client_is_not_kept_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    began_at = trio.current_time()

    with pytest.raises(ConnectFailed, match="connection refused"):
        await join(FakePump(), upstream("10.0.0.1:1", pacing=Pacing(wait_for_node_s=10)), Trail())

    assert trio.current_time() - began_at == pytest.approx(10, abs=0.6)


async def test_a_client_that_waits_gets_the_node_that_an_edit_brings(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pacing = Pacing(wait_for_node_s=10)
    to, edited = upstream("10.0.0.1:1", pacing=pacing), upstream("10.0.0.2:1", pacing=pacing)
    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    sync(pool, to)
    pump = FakePump({"10.0.0.2:1": Dialled()})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(edit, pool, edited)
        ending = await join(pump, to, Trail(), pool=pool)

    assert ending.reason is Reason.CLOSED
    assert trio.current_time() == 2.05, "at once, not after the pause"


async def edit(pool: UpstreamPool, edited: Upstream) -> None:
    await trio.sleep(2.05)
    sync(pool, edited)


async def test_the_log_keeps_the_latest_of_many_attempts(autojump_clock: trio.testing.MockClock) -> None:
    trail = Trail()

    with pytest.raises(ConnectFailed):
        await join(FakePump(), upstream("10.0.0.1:1", pacing=Pacing(wait_for_node_s=100)), trail)

    assert len(trail.attempts) == MAX_ATTEMPTS_KEPT


async def test_an_ending_after_the_connect_is_final_also_for_those_who_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pump = FakePump({"10.0.0.1:1": Dialled(ending=Ending(Reason.RESET, "upstream"))})

    ending = await join(pump, upstream("10.0.0.1:1", pacing=Pacing(wait_for_node_s=10)), Trail())

    assert ending.reason is Reason.RESET
    assert len(pump.dialled) == 1


# ── Upstreams that speak TLS ─────────────────────────────────────────────────────────────────────


def speaking_tls(*nodes: str, server_name: str = "") -> Upstream:
    return upstream(*nodes, tls=UpstreamTLS(cast("ssl.SSLContext", "a context"), server_name))


@pytest.mark.parametrize(
    ("own", "clients", "sent"),
    [
        ("db.internal", "a.test.com", "db.internal"),
        ("", "a.test.com", "a.test.com"),
        ("", "", "apisix_backend"),
    ],
)
async def test_the_name_sent_is_its_own_then_the_clients_then_the_dummy(
    autojump_clock: trio.testing.MockClock, own: str, clients: str, sent: str
) -> None:
    pump = FakePump({"10.0.0.1:1": Dialled()})

    await join(
        pump, speaking_tls("10.0.0.1:1", server_name=own), Trail(), server_name=clients, preface=b"PROXY"
    )

    (end,) = pump.dialled
    assert (end.secured_by, end.server_name, end.preface) == ("a context", sent, b"PROXY")


async def test_a_failed_handshake_tries_the_next_node(autojump_clock: trio.testing.MockClock) -> None:
    bad = Dialled(tls_fails="certificate verify failed: self-signed certificate")
    pump, trail = FakePump({"10.0.0.1:1": bad, "10.0.0.2:1": bad, "10.0.0.3:1": Dialled()}), Trail()

    ending = await join(pump, speaking_tls("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), trail)

    assert ending.reason is Reason.CLOSED
    assert str(trail.node) == "10.0.0.3:1"
    assert all(end.closed for end in pump.dialled), "no end of a failed attempt is left"


async def test_when_every_handshake_failed_the_reason_is_tls(autojump_clock: trio.testing.MockClock) -> None:
    pump = FakePump({"10.0.0.1:1": Dialled(tls_fails="certificate has expired")})

    with pytest.raises(UpstreamTLSFailed, match="certificate has expired") as caught:
        await join(pump, speaking_tls("10.0.0.1:1"), Trail())

    assert caught.value.reason is Reason.TLS_FAILED


async def test_cancelled_before_the_handshake_the_end_is_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pump = FakePump({"10.0.0.1:1": Dialled(takes_s=5)})
    with trio.move_on_after(1):
        await join(pump, speaking_tls("10.0.0.1:1"), Trail())

    assert [end.closed for end in pump.dialled] == ["reset"]
