from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.balancer import Balancer, build_balancer
from streamgw.core.load import UpstreamLoad
from streamgw.core.model import Address, BalancerType, Facts, Node, Upstream

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
