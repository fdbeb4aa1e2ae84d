"""What DNS says, as nodes: priorities, weights, and what nobody would write on purpose."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.discovery import (
    MAX_RING_WEIGHT,
    MAX_TOTAL_WEIGHT,
    ServiceRecord,
    fit_ring,
    nodes_at,
    nodes_of,
    split_service_name,
)
from streamgw.core.model import Node

Answer = tuple[ServiceRecord, tuple[str, ...]]


def srv(target: str, *addresses: str, priority: int = 10, weight: int = 1, port: int = 3306) -> Answer:
    return ServiceRecord(priority, target, port, weight), addresses


def nodes(*answers: Answer, port: int = 0) -> list[Node]:
    return [found.node for found in nodes_of(answers, port)]


@pytest.mark.parametrize(
    ("service_name", "parts"),
    [
        ("_mysql._tcp.db.example", ("_mysql._tcp.db.example", 0)),
        ("db.example:3306", ("db.example", 3306)),
    ],
)
def test_a_service_name_may_have_a_port(service_name: str, parts: tuple[str, int]) -> None:
    assert split_service_name(service_name) == parts


def test_each_address_of_a_name_is_a_node() -> None:
    found = nodes_at("db.example", ["10.0.0.1", "fd00::1"], 3306)

    assert [each.node for each in found] == [Node("10.0.0.1", 3306), Node("fd00::1", 3306)]
    assert {each.name for each in found} == {"db.example"}
    assert [str(each) for each in found] == ["10.0.0.1:3306", "[fd00::1]:3306"]


def test_the_example_of_apisix() -> None:
    """docs/en/latest/discovery/dns.md: port and weight are the record's, a lower priority is tried first."""
    a = srv("a", "1.1.1.1", priority=10, weight=60, port=1980)
    b = srv("b", "1.1.1.2", "1.1.1.3", priority=20, weight=20, port=1981)

    assert nodes(a, b) == [
        Node("1.1.1.1", 1980, weight=1, priority=-10),
        Node("1.1.1.2", 1981, weight=1, priority=-20),
        Node("1.1.1.3", 1981, weight=1, priority=-20),
    ]


def test_the_weight_of_a_record_is_divided_among_its_addresses_exactly() -> None:
    found = nodes(srv("a", "10.0.0.1", weight=1), srv("b", "10.0.0.2", "10.0.0.3", "10.0.0.4", weight=1))

    assert [node.weight for node in found] == [3, 1, 1, 1]


@pytest.mark.parametrize("weight", [0, 1])
def test_a_record_of_weight_nothing_gets_a_little(weight: int) -> None:
    found = nodes(srv("a", "10.0.0.1", weight=9), srv("b", "10.0.0.2", weight=weight))

    assert [node.weight for node in found] == [9, 1]


def test_a_port_in_the_service_name_wins_over_the_records() -> None:
    assert nodes(srv("a", "10.0.0.1", port=1), srv("b", "10.0.0.2", port=0), port=5) == [
        Node("10.0.0.1", 5, priority=-10),
        Node("10.0.0.2", 5, priority=-10),
    ]


def test_a_record_without_a_port_is_of_no_use() -> None:
    assert nodes(srv("a", "10.0.0.1", port=0)) == []


def test_nobody_is_a_node_twice() -> None:
    found = nodes_of(
        [
            srv("b", "10.0.0.1", weight=2),
            srv("a", "10.0.0.1", weight=1),
            srv("c", "10.0.0.2", weight=1),
            srv("late", "10.0.0.1", priority=20, weight=50),
        ]
    )

    assert [each.node for each in found] == [
        Node("10.0.0.1", 3306, weight=3, priority=-10),
        Node("10.0.0.2", 3306, weight=1, priority=-10),
    ]
    assert [each.name for each in found] == ["a", "c"]


def test_weights_in_odd_proportions_stay_within_bounds() -> None:
    primes = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)
    answers = [
        srv(f"p{prime}", *(f"10.0.{prime}.{number}" for number in range(prime)), weight=1) for prime in primes
    ]

    found = nodes(*answers)

    assert min(node.weight for node in found) >= 1
    assert sum(node.weight for node in found) <= MAX_TOTAL_WEIGHT
    of_two = sum(node.weight for node in found if node.host.startswith("10.0.2."))
    assert of_two == pytest.approx(MAX_TOTAL_WEIGHT / len(primes), rel=1e-5)


def test_a_ring_gets_weights_that_it_has_room_for() -> None:
    light = [Node("10.0.0.1", 1, weight=1000), Node("10.0.0.2", 1, weight=1)]
    heavy = [Node("10.0.0.1", 1, weight=60000), Node("10.0.0.2", 1, weight=1)]

    assert fit_ring(light) == tuple(light)
    assert [node.weight for node in fit_ring(heavy)] == [MAX_RING_WEIGHT - 1, 1]


_RECORDS = st.builds(
    srv,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    st.sampled_from(["10.0.0.3", "fd00::1"]),
    priority=st.integers(0, 2),
    weight=st.integers(0, 65535),
    port=st.integers(0, 3),
)


@given(st.lists(_RECORDS, max_size=12), st.randoms(use_true_random=False))
def test_any_records_in_any_order_are_the_same_nodes_each_once(
    answers: list[Answer], rng: random.Random
) -> None:
    found = nodes_of(answers)
    rng.shuffle(answers)

    assert nodes_of(answers) == found
    places = [(each.node.host, each.node.port) for each in found]
    assert len(set(places)) == len(places)
    assert set(places) == {
        (address, record.port) for record, addresses in answers for address in addresses if record.port
    }
    assert all(each.node.weight > 0 and each.node.priority <= 0 for each in found)
