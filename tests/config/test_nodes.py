from __future__ import annotations

import pytest

from streamgw.config.nodes import parse_nodes
from streamgw.config.strict import Wrong
from streamgw.core.model import Node


def faults(value: object) -> list[tuple[object, ...]]:
    with pytest.raises(Wrong) as caught:
        parse_nodes(value)
    return [(fault.path, fault.message) for fault in caught.value.faults]


def test_a_mapping_keeps_the_order_written() -> None:
    assert parse_nodes({"db:3306": 2, "[::1]:1": 0, "10.0.0.1:65535": 1}) == (
        Node("db", 3306, 2),
        Node("::1", 1, 0),
        Node("10.0.0.1", 65535, 1),
    )


def test_a_list_may_have_priorities() -> None:
    nodes = parse_nodes(
        [
            {"host": "db", "port": 3306, "weight": 1},
            {"host": "[::1]", "port": 1, "weight": 0, "priority": -1, "metadata": {"zone": "a"}},
        ]
    )

    assert nodes == (Node("db", 3306, 1), Node("::1", 1, 0, -1))


@pytest.mark.parametrize("empty", [{}, []])
def test_no_nodes_are_no_nodes(empty: object) -> None:
    assert parse_nodes(empty) == ()


def test_every_bad_node_of_a_mapping_is_named() -> None:
    assert faults(
        {"db": 1, "db:0": 1, "db:65536": 1, ":80": 1, "db:80": "1", "db:81": -1, "::1:80": 1, "ok:1": 1}
    ) == [
        (("db",), "expected host:port with a port 1–65535, got 'db'"),
        (("db:0",), "expected host:port with a port 1–65535, got 'db:0'"),
        (("db:65536",), "expected host:port with a port 1–65535, got 'db:65536'"),
        ((":80",), "expected host:port with a port 1–65535, got ':80'"),
        (("db:80",), "expected an integer ≥ 0, got '1'"),
        (("db:81",), "expected an integer ≥ 0, got -1"),
        (("::1:80",), "IPv6 address must be enclosed with '[' and ']', got '::1'"),
    ]


def test_every_bad_node_of_a_list_is_named() -> None:
    assert faults([{"host": 1, "port": 80, "weight": 1}, {"host": "::1", "port": "80"}, "db:80"]) == [
        ((0, "host"), "expected text, got 1"),
        ((1, "host"), "IPv6 address must be enclosed with '[' and ']', got '::1'"),
        ((1, "port"), "expected an integer 1–65535, got '80'"),
        ((1, "weight"), "is required"),
        ((2,), "expected a mapping, got text"),
    ]


@pytest.mark.parametrize("value", ["db:80", 1, None])
def test_nodes_are_a_mapping_or_a_list(value: object) -> None:
    ((path, message),) = faults(value)

    assert path == ()
    assert str(message).startswith("expected a mapping of host:port to weight, or a list of nodes, got ")
