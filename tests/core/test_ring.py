"""nginx's ring: who gets a key, and who gets it then. tests/e2e/test_hash_ring.py asks nginx itself."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.model import Node
from streamgw.core.ring import Ring

THREE = [Node("10.0.0.1", 80, 1), Node("10.0.0.2", 80, 2), Node("::1", 80, 1)]
KEYS = [f"192.0.2.{number}" for number in range(256)]

places = st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "2001:db8::1", "db.example"]), st.integers(1, 9))
node_sets = st.lists(
    st.builds(lambda place, weight: Node(*place, weight), places, st.integers(1, 3)),
    min_size=1,
    max_size=6,
    unique_by=lambda node: (node.host, node.port),
)


def first(ring: Ring, key: str) -> Node:
    return next(ring.walk(key))


@pytest.mark.parametrize(
    ("key", "hosts"),
    [
        ("192.0.2.9", ["10.0.0.2", "::1", "10.0.0.1"]),
        ("192.0.2.10", ["10.0.0.2", "10.0.0.1", "::1"]),
        ("2001:db8::1", ["10.0.0.2", "::1", "10.0.0.1"]),
        ("", ["10.0.0.1", "10.0.0.2", "::1"]),
        ("sensor-7", ["10.0.0.2", "::1", "10.0.0.1"]),
    ],
)
def test_keys_belong_where_nginx_says(key: str, hosts: list[str]) -> None:
    assert [node.host for node in Ring(THREE).walk(key)] == hosts


def test_a_ring_of_nothing_leads_nowhere() -> None:
    assert list(Ring([]).walk("key")) == []


def test_two_nodes_with_one_address_are_one() -> None:
    """Every point of the second is taken."""
    twins = [Node("10.0.0.1", 80, 1), Node("10.0.0.1", 80, 1, 5)]

    assert {first(Ring(twins), key) for key in KEYS} == {twins[0]}


def test_weights_are_followed_roughly() -> None:
    """A ring is a matter of luck: 160 points a node leave some ten per cent of error."""
    nodes = [Node(f"10.0.0.{number}", 80, number) for number in (1, 2, 3)]
    ring = Ring(nodes)

    counts = Counter(first(ring, f"key {number}").weight for number in range(6000))

    for weight, count in counts.items():
        assert count == pytest.approx(1000 * weight, rel=0.25)


@given(node_sets, st.text())
def test_a_walk_visits_every_node_once(nodes: list[Node], key: str) -> None:
    assert Counter(Ring(nodes).walk(key)) == Counter(nodes)


@given(node_sets)
def test_the_order_in_which_nodes_are_written_does_not_matter(nodes: list[Node]) -> None:
    one, other = Ring(nodes), Ring(nodes[::-1])

    assert [first(one, key) for key in KEYS[:64]] == [first(other, key) for key in KEYS[:64]]


@given(node_sets, st.data())
def test_a_node_that_goes_moves_its_own_keys_only_and_to_the_next_on_the_ring(
    nodes: list[Node], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(nodes))
    before, after = Ring(nodes), Ring([node for node in nodes if node != gone])

    for key in KEYS[:64]:
        left = [node for node in before.walk(key) if node != gone]
        assert list(after.walk(key)) == left
