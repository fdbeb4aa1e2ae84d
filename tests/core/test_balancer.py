from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.balancer import Balancer, build_balancer
from streamgw.core.load import UpstreamLoad
from streamgw.core.model import Address, BalancerType, Facts, Node, Upstream

KINDS: tuple[BalancerType, ...] = ("roundrobin", "chash", "least_conn", "ewma")
CLIENT = Facts("tcp", "tcp 127.0.0.1:9100", Address("192.0.2.9", 40000), Address("127.0.0.1", 9100))


def nodes(*weights: int, priority: int = 0) -> list[Node]:
    """Hosts a, b, c, … with these weights."""
    return [Node(chr(ord("a") + at), 80, weight, priority) for at, weight in enumerate(weights)]


def balance(kind: BalancerType, upstream: Sequence[Node], *, start: int = 0, seed: int = 1) -> Balancer:
    """Of the type; chash by the client's port."""
    return build_balancer(
        Upstream("upstreams/1", tuple(upstream), type=kind),
        upstream,
        randrange=random.Random(seed).randrange,
        hashed_by=lambda facts: str(facts.client.port),
        start=start,
    )


def round_robin(upstream: Sequence[Node], *, start: int = 0) -> Balancer:
    return balance("roundrobin", upstream, start=start)


def quiet() -> UpstreamLoad:
    """Nothing is going on."""
    return UpstreamLoad(lambda: 0.0)


def order(balancer: Balancer, load: UpstreamLoad | None = None) -> list[Node]:
    return list(balancer.order(CLIENT, load or quiet()))


def picks(balancer: Balancer, count: int, load: UpstreamLoad | None = None) -> list[Node]:
    load = load or quiet()
    return [next(balancer.order(CLIENT, load)) for _ in range(count)]


def hosts(found: list[Node]) -> str:
    return "".join(node.host for node in found)


def test_equal_weights_take_turns() -> None:
    assert hosts(picks(round_robin(nodes(1, 1, 1)), 7)) == "abcabca"


def test_a_common_divisor_is_no_reason_to_pick_in_bursts() -> None:
    assert hosts(picks(round_robin(nodes(100, 100)), 4)) == "abab"


def test_weights_are_interleaved_as_nginx_does() -> None:
    assert hosts(picks(round_robin(nodes(5, 1, 1)), 14)) == "aabacaa" * 2


@pytest.mark.parametrize(("start", "expected"), [(0, "abc"), (1, "bca"), (2, "cab"), (65_536, "bca")])
def test_equal_weights_begin_where_they_are_told_to(start: int, expected: str) -> None:
    assert hosts(picks(round_robin(nodes(1, 1, 1), start=start), 3)) == expected


def test_weighted_nodes_begin_where_they_are_told_to() -> None:
    assert hosts(picks(round_robin(nodes(5, 1, 1), start=2), 7)) == "bacaaaa"
    assert hosts(picks(round_robin(nodes(5, 1, 1), start=7), 7)) == "aabacaa"


def test_a_retry_goes_on_with_the_other_nodes_each_once() -> None:
    balancer = round_robin(nodes(1, 1, 1, 1), start=2)

    assert hosts(order(balancer)) == "cdab"
    assert hosts(order(balancer)) == "dabc"


def test_a_retry_prefers_the_node_that_would_come_next() -> None:
    balancer = round_robin(nodes(5, 3, 1))

    assert hosts(order(balancer)) == "abc"
    assert hosts(order(balancer)) == "bac"


def test_lower_priorities_come_after_all_of_the_higher_ones() -> None:
    low, high, middle = nodes(1, 1, priority=-1), nodes(1, 1, priority=10), nodes(3, 1, priority=0)

    found = order(round_robin([*low, *high, *middle]))

    assert found == [*high, *middle, *low]


def test_a_lower_group_takes_turns_of_its_own_and_only_when_it_is_asked() -> None:
    balancer = round_robin([*nodes(1, priority=1), *nodes(1, 1, 1)])

    picks(balancer, 5)  # nobody got as far as the lower group

    assert [hosts(order(balancer)) for _ in range(3)] == ["aabc", "abca", "acab"]


def test_weight_zero_is_never_picked_also_when_nothing_else_is_left() -> None:
    assert hosts(order(round_robin(nodes(1, 0, 1)))) == "ac"
    assert order(round_robin(nodes(0))) == []
    assert order(round_robin([])) == []


def test_the_nodes_stay_as_they_were_given() -> None:
    given_nodes = nodes(0, 2, 1)

    assert round_robin(given_nodes).nodes == tuple(given_nodes)


weight_lists = st.lists(st.integers(1, 12), min_size=1, max_size=6)
starts = st.integers(0, 1 << 16)


@given(weight_lists, st.integers(1, 5), starts)
def test_over_a_cycle_every_node_is_picked_exactly_by_its_weight(
    weights: list[int], factor: int, start: int
) -> None:
    upstream = nodes(*(weight * factor for weight in weights))
    cycle = sum(weights) // math.gcd(*weights)
    balancer = round_robin(upstream, start=start)

    for _ in range(3):
        counts = Counter(picks(balancer, cycle))

        assert counts == {
            node: weight // math.gcd(*weights) for node, weight in zip(upstream, weights, strict=True)
        }


@given(weight_lists)
def test_picks_are_interleaved_exactly_as_nginx_does_it(weights: list[int]) -> None:
    upstream = nodes(*weights)

    found = picks(round_robin(upstream), 3 * sum(weights))

    assert found == [upstream[at] for at in smooth_picks_of_nginx(weights, 3 * sum(weights))]


def smooth_picks_of_nginx(weights: list[int], count: int) -> Iterator[int]:
    """The algorithm of ngx_http_upstream_get_peer, as plainly as it can be written."""
    current = [0] * len(weights)
    for _ in range(count):
        current = [have + weight for have, weight in zip(current, weights, strict=True)]
        best = current.index(max(current))
        current[best] -= sum(weights)
        yield best


@given(
    st.lists(
        st.builds(Node, st.uuids().map(str), st.just(80), st.integers(0, 3), st.integers(-1, 1)), max_size=8
    ),
    starts,
)
def test_an_order_is_a_permutation_of_the_usable_nodes_with_priorities_descending(
    upstream: list[Node], start: int
) -> None:
    balancer = round_robin(upstream, start=start)

    for _ in range(3):
        found = order(balancer)

        assert Counter(found) == Counter(node for node in upstream if node.weight)
        assert [node.priority for node in found] == sorted((node.priority for node in found), reverse=True)


# ── Nodes that are down, or start slowly ─────────────────────────────────────────────────────────


def at(node: Node) -> Address:
    return Address(node.host, node.port)


def load_of(upstream: Sequence[Node], *, down: Sequence[Node] = (), fails_open: bool = True) -> UpstreamLoad:
    load = quiet()
    load.fails_open = fails_open
    load.keep(upstream)
    for node in down:
        load.set_up(at(node), False)
    return load


@pytest.mark.parametrize(
    ("weights", "down", "expected"),
    [((1, 1, 1), "b", "acacac"), ((5, 1, 1), "a", "bcbcbc"), ((5, 1, 1), "b", "aaacaa"), ((1, 1, 1), "ab", "cccccc")],
)  # fmt: skip
def test_the_others_share_what_a_node_that_is_down_would_have_had(
    weights: tuple[int, ...], down: str, expected: str
) -> None:
    upstream = nodes(*weights)
    load = load_of(upstream, down=[node for node in upstream if node.host in down])

    assert hosts(picks(round_robin(upstream), 6, load)) == expected


def test_turns_go_on_where_they_were_when_all_are_up_again() -> None:
    upstream = nodes(1, 1, 1)
    balancer, load = round_robin(upstream), load_of(upstream)
    picks(balancer, 2, load)
    load.set_up(at(upstream[0]), False)
    picks(balancer, 5, load)
    load.set_up(at(upstream[0]), True)

    assert hosts(picks(balancer, 3, load)) == "cab"


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_is_down_spills_over_into_the_next(kind: BalancerType) -> None:
    high, low = nodes(1, 2, priority=1), [Node("x", 80, 1), Node("y", 80, 1)]
    balancer = balance(kind, [*low, *high])

    found = order(balancer, load_of([*low, *high], down=high))

    assert sorted(hosts(found)) == ["x", "y"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fails_open", "count"), [(True, 3), (False, 0)])
def test_when_all_are_down_all_are_tried_or_none_by_choice(
    kind: BalancerType, fails_open: bool, count: int
) -> None:
    upstream = nodes(1, 2, 1)

    found = order(balance(kind, upstream), load_of(upstream, down=upstream, fails_open=fails_open))

    assert len(found) == count


@pytest.mark.parametrize("kind", ["roundrobin", "least_conn", "ewma"])
def test_a_node_that_starts_slowly_gets_a_tenth_at_first(kind: BalancerType) -> None:
    now = [0.0]
    load = UpstreamLoad(lambda: now[0])
    load.slow_start_s = 30
    upstream = nodes(1, 1)
    load.keep(upstream[:1])
    load.keep(upstream)
    balancer = balance(kind, upstream)
    for node in upstream:
        load.answered(at(node), 0.010)

    firsts = Counter(node.host for node in attend(balancer, load, 110))
    now[0] = 30.0
    later = Counter(node.host for node in attend(balancer, quiet(), 110))

    assert firsts["b"] == pytest.approx(10, abs=2)
    assert later["b"] == pytest.approx(55, abs=6)


def attend(balancer: Balancer, load: UpstreamLoad, count: int) -> Iterator[Node]:
    """Sessions that stay, each at the node it was given first."""
    for _ in range(count):
        node = next(balancer.order(CLIENT, load))
        load.lease(at(node))
        yield node


# ── Every type ───────────────────────────────────────────────────────────────────────────────────


@given(
    st.sampled_from(KINDS),
    st.lists(
        st.builds(Node, st.uuids().map(str), st.just(80), st.integers(0, 3), st.integers(-1, 1)), max_size=6
    ),
    st.integers(0, 1 << 16),
    st.data(),
)
def test_every_type_gives_a_permutation_of_the_nodes_that_are_up_with_priorities_descending(
    kind: BalancerType, upstream: list[Node], start: int, data: st.DataObject
) -> None:
    usable = [node for node in upstream if node.weight]
    down = data.draw(st.lists(st.sampled_from(usable), unique=True)) if usable else []
    load = load_of(usable, down=down, fails_open=False)
    for node in data.draw(st.lists(st.sampled_from(usable), max_size=9)) if usable else []:
        load.lease(at(node))
        load.answered(at(node), data.draw(st.floats(0, 2)))
    balancer = balance(kind, upstream, start=start)

    for _ in range(3):
        found = order(balancer, load)

        assert Counter(found) == Counter(node for node in usable if node not in down)
        assert [node.priority for node in found] == sorted((node.priority for node in found), reverse=True)


# ── chash ────────────────────────────────────────────────────────────────────────────────────────


def client(port: int) -> Facts:
    return attrs.evolve(CLIENT, client=Address("192.0.2.9", port))


def test_a_key_keeps_its_node_whoever_else_comes() -> None:
    balancer = balance("chash", nodes(1, 1, 1))
    first = {port: next(balancer.order(client(port), quiet())) for port in range(100)}

    again = {port: next(balancer.order(client(port), quiet())) for port in reversed(range(100))}

    assert again == first
    assert len(set(first.values())) == 3


def test_only_the_keys_of_a_node_that_is_down_move_and_they_come_back() -> None:
    upstream = nodes(1, 1, 1)
    balancer, load = balance("chash", upstream), load_of(upstream)
    before = {port: list(balancer.order(client(port), load)) for port in range(100)}
    load.set_up(at(upstream[0]), False)

    during = {port: next(balancer.order(client(port), load)) for port in range(100)}
    load.set_up(at(upstream[0]), True)
    after = {port: list(balancer.order(client(port), load)) for port in range(100)}

    for port, node in during.items():
        first, second, _ = before[port]
        assert node == (second if first == upstream[0] else first)
    assert after == before


# ── least_conn ───────────────────────────────────────────────────────────────────────────────────


def test_sessions_that_stay_are_spread_evenly() -> None:
    upstream = nodes(1, 1, 1)

    assert hosts(list(attend(balance("least_conn", upstream), quiet(), 6))) == "abcabc"


def test_sessions_that_stay_are_spread_by_weight() -> None:
    upstream = nodes(1, 2, 3)

    counts = Counter(hosts(list(attend(balance("least_conn", upstream), quiet(), 60))))

    assert counts == {"a": 10, "b": 20, "c": 30}


def test_a_node_whose_sessions_ended_is_next() -> None:
    upstream = nodes(1, 1, 1)
    load = load_of(upstream)
    leases = [load.lease(at(node)) for node in upstream * 2]
    leases[1].close()

    assert hosts(order(balance("least_conn", upstream), load))[0] == "b"


def test_a_quiet_gateway_uses_every_node() -> None:
    """No session lasts: there is always a tie."""
    assert hosts(picks(balance("least_conn", nodes(1, 1, 1)), 6)) == "abcabc"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_at_equal_weights_a_busier_node_never_comes_before_an_idler_one(
    sessions: list[int], earlier: int
) -> None:
    upstream = nodes(*([2] * len(sessions)))
    load = load_of(upstream)
    for node, count in zip(upstream, sessions, strict=True):
        for _ in range(count):
            load.lease(at(node))
    balancer = balance("least_conn", upstream)
    picks(balancer, earlier, load)

    found = order(balancer, load)

    assert [load.active(node) for node in found] == sorted(sessions)


# ── ewma ─────────────────────────────────────────────────────────────────────────────────────────


def with_latencies(upstream: Sequence[Node], *latencies_s: float) -> UpstreamLoad:
    load = load_of(upstream)
    for node, latency_s in zip(upstream, latencies_s, strict=True):
        load.answered(at(node), latency_s)
    return load


def test_of_two_the_quicker_is_always_first() -> None:
    upstream = nodes(1, 1)

    assert hosts(picks(balance("ewma", upstream), 20, with_latencies(upstream, 0.2, 0.1))) == "b" * 20


def test_the_slowest_of_many_is_never_first_and_the_quickest_not_always() -> None:
    upstream = nodes(1, 1, 1, 1)
    load = with_latencies(upstream, 0.4, 0.1, 0.2, 0.3)

    counts = Counter(hosts(picks(balance("ewma", upstream), 600, load)))

    assert counts["a"] == 0
    # Of the six pairs the quickest is in three, the second in two more, the third in the one that is left.
    assert counts["b"] == pytest.approx(300, abs=50)
    assert counts["c"] == pytest.approx(200, abs=50)


def test_a_quick_node_with_many_sessions_is_dearer_than_a_slow_idle_one() -> None:
    upstream = nodes(1, 1)
    load = with_latencies(upstream, 0.3, 0.1)
    for _ in range(3):
        load.lease(at(upstream[1]))

    assert hosts(order(balance("ewma", upstream), load)) == "ab"


def test_a_heavy_node_may_be_slower() -> None:
    upstream = nodes(4, 1)

    assert hosts(order(balance("ewma", upstream), with_latencies(upstream, 0.3, 0.1))) == "ab"


def test_after_the_two_the_others_follow_by_cost() -> None:
    upstream = nodes(1, 1, 1, 1)
    load = with_latencies(upstream, 0.4, 0.1, 0.2, 0.3)
    balancer = balance("ewma", upstream)

    for _ in range(20):
        pair, rest = (found := order(balancer, load))[:2], found[2:]
        assert [load.latency_s(node) for node in pair] == sorted(load.latency_s(node) for node in pair)
        assert [load.latency_s(node) for node in rest] == sorted(load.latency_s(node) for node in rest)


def test_a_node_that_was_never_asked_is_tried() -> None:
    upstream = nodes(1, 1)
    load = load_of(upstream)
    load.answered(at(upstream[0]), 0.001)

    assert hosts(order(balance("ewma", upstream), load)) == "ba"


def test_one_node_is_one_node() -> None:
    assert hosts(order(balance("ewma", nodes(1)))) == "a"
