from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.balancer import RoundRobin
from streamgw.core.model import Node


def nodes(*weights: int, priority: int = 0) -> list[Node]:
    """Hosts a, b, c, … with these weights."""
    return [Node(chr(ord("a") + at), 80, weight, priority) for at, weight in enumerate(weights)]


def picks(balancer: RoundRobin, count: int) -> list[Node]:
    return [next(balancer.order()) for _ in range(count)]


def hosts(found: list[Node]) -> str:
    return "".join(node.host for node in found)


def test_equal_weights_take_turns() -> None:
    assert hosts(picks(RoundRobin(nodes(1, 1, 1)), 7)) == "abcabca"


def test_a_common_divisor_is_no_reason_to_pick_in_bursts() -> None:
    assert hosts(picks(RoundRobin(nodes(100, 100)), 4)) == "abab"


def test_weights_are_interleaved_as_nginx_does() -> None:
    assert hosts(picks(RoundRobin(nodes(5, 1, 1)), 14)) == "aabacaa" * 2


@pytest.mark.parametrize(("start", "expected"), [(0, "abc"), (1, "bca"), (2, "cab"), (65_536, "bca")])
def test_equal_weights_begin_where_they_are_told_to(start: int, expected: str) -> None:
    assert hosts(picks(RoundRobin(nodes(1, 1, 1), start=start), 3)) == expected


def test_weighted_nodes_begin_where_they_are_told_to() -> None:
    assert hosts(picks(RoundRobin(nodes(5, 1, 1), start=2), 7)) == "bacaaaa"
    assert hosts(picks(RoundRobin(nodes(5, 1, 1), start=7), 7)) == "aabacaa"


def test_a_retry_goes_on_with_the_other_nodes_each_once() -> None:
    balancer = RoundRobin(nodes(1, 1, 1, 1), start=2)

    assert hosts(list(balancer.order())) == "cdab"
    assert hosts(list(balancer.order())) == "dabc"


def test_a_retry_prefers_the_node_that_would_come_next() -> None:
    balancer = RoundRobin(nodes(5, 3, 1))

    assert hosts(list(balancer.order())) == "abc"
    assert hosts(list(balancer.order())) == "bac"


def test_lower_priorities_come_after_all_of_the_higher_ones() -> None:
    low, high, middle = nodes(1, 1, priority=-1), nodes(1, 1, priority=10), nodes(3, 1, priority=0)

    order = list(RoundRobin([*low, *high, *middle]).order())

    assert order == [*high, *middle, *low]


def test_a_lower_group_takes_turns_of_its_own_and_only_when_it_is_asked() -> None:
    balancer = RoundRobin([*nodes(1, priority=1), *nodes(1, 1, 1)])

    picks(balancer, 5)  # nobody got as far as the lower group

    assert [hosts(list(balancer.order())) for _ in range(3)] == ["aabc", "abca", "acab"]


def test_weight_zero_is_never_picked_also_when_nothing_else_is_left() -> None:
    assert hosts(list(RoundRobin(nodes(1, 0, 1)).order())) == "ac"
    assert list(RoundRobin(nodes(0)).order()) == []
    assert list(RoundRobin([]).order()) == []


def test_the_nodes_stay_as_they_were_given() -> None:
    given_nodes = nodes(0, 2, 1)

    assert RoundRobin(given_nodes).nodes == tuple(given_nodes)


weight_lists = st.lists(st.integers(1, 12), min_size=1, max_size=6)
starts = st.integers(0, 1 << 16)


@given(weight_lists, st.integers(1, 5), starts)
def test_over_a_cycle_every_node_is_picked_exactly_by_its_weight(
    weights: list[int], factor: int, start: int
) -> None:
    upstream = nodes(*(weight * factor for weight in weights))
    cycle = sum(weights) // math.gcd(*weights)
    balancer = RoundRobin(upstream, start=start)

    for _ in range(3):
        counts = Counter(picks(balancer, cycle))

        assert counts == {
            node: weight // math.gcd(*weights) for node, weight in zip(upstream, weights, strict=True)
        }


@given(weight_lists)
def test_picks_are_interleaved_exactly_as_nginx_does_it(weights: list[int]) -> None:
    upstream = nodes(*weights)

    found = picks(RoundRobin(upstream), 3 * sum(weights))

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
    balancer = RoundRobin(upstream, start=start)

    for _ in range(3):
        order = list(balancer.order())

        assert Counter(order) == Counter(node for node in upstream if node.weight)
        assert [node.priority for node in order] == sorted((node.priority for node in order), reverse=True)
