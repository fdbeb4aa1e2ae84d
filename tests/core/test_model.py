from __future__ import annotations

import attrs
import pytest

from streamgw.core.model import (
    UNIX_HOST,
    Address,
    Facts,
    Listener,
    Match,
    Node,
    Passthrough,
    PrereadPlan,
    Route,
    Source,
    Timeouts,
    Upstream,
)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("10.0.0.5", 3306), "10.0.0.5:3306"),
        (Address("::1", 3306), "[::1]:3306"),
        (Address("db.example", 3306), "db.example:3306"),
    ],
)
def test_an_address_prints_as_one_writes_it(address: Address, text: str) -> None:
    assert str(address) == text


def test_a_unix_peer_prints_without_brackets() -> None:
    assert str(Address(UNIX_HOST, 0)) == UNIX_HOST


def test_a_source_prints_as_an_editor_opens_it() -> None:
    assert str(Source("routes.d/mysql.yaml", 8)) == "routes.d/mysql.yaml:8"
    assert str(Source("routes.d/mysql.json", 0)) == "routes.d/mysql.json"


@pytest.mark.parametrize(
    ("listener", "name"),
    [
        (Listener("tcp", "127.0.0.1", 9101), "tcp 127.0.0.1:9101"),
        (Listener("tcp", "::1", 9100), "tcp [::1]:9100"),
        (Listener("tcp", "::", 9100, dual_stack=True), "tcp *:9100"),
        (Listener("udp", "0.0.0.0", 9200), "udp 0.0.0.0:9200"),
        (Listener("tcp", UNIX_HOST, 0, path="/run/streamgw.sock"), "tcp unix:/run/streamgw.sock"),
    ],
)
def test_a_listener_is_called_by_where_it_listens(listener: Listener, name: str) -> None:
    assert listener.name == name


def test_what_may_change_live_is_not_part_of_a_listeners_name() -> None:
    plain = Listener("tcp", "127.0.0.1", 9101)

    assert attrs.evolve(plain, proxy_protocol="required", max_sessions=10).name == plain.name


def test_a_listener_that_moves_is_called_by_where_it_is_then() -> None:
    listener = Listener("tcp", "127.0.0.1", 0)
    assert attrs.evolve(listener, port=9101).name == "tcp 127.0.0.1:9101"


def test_the_addresses_of_a_name_are_nodes_with_addresses_of_their_own() -> None:
    node = Node("db.example", 5432, weight=3)
    found = attrs.evolve(node, host="192.0.2.1")
    assert found.address == Address("192.0.2.1", 5432)
    assert found == Node("192.0.2.1", 5432, weight=3)


def test_an_upstream_knows_the_names_that_its_nodes_come_from() -> None:
    listed = Upstream("u", (Node("10.0.0.1", 1), Node("db.example", 1)))
    discovered = Upstream("u", (), service_name="_db._tcp.example")

    assert [listed.is_from(name) for name in ("db.example", "10.0.0.1", "other")] == [True, True, False]
    assert [discovered.is_from(name) for name in ("_db._tcp.example", "db.example")] == [True, False]


def test_values_are_frozen() -> None:
    facts = Facts("tcp", "tcp *:9100", Address("10.1.2.3", 40000), Address("127.0.0.1", 9100))

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        facts.server_name = "db.example"  # type: ignore[misc]  # what must not work

    assert attrs.evolve(facts, server_name="db.example").client == facts.client


def test_defaults_are_those_of_apisix() -> None:
    upstream = Upstream("upstreams/1", (Node("10.0.0.5", 3306),))

    assert upstream.timeouts == Timeouts(connect_s=60.0, idle_s=600.0)
    assert upstream.retries is None
    assert upstream.nodes[0].weight == 1
    assert not PrereadPlan.NONE


@pytest.mark.parametrize(
    ("node", "is_looked_up"),
    [
        (Node("10.0.0.1", 1), False),
        (Node("2001:db8::1", 1), False),
        (Node("db.example", 1), True),
        (Node("db.example", 1, weight=0), False),
    ],
)
def test_only_names_that_may_be_dialled_are_looked_up(node: Node, is_looked_up: bool) -> None:
    assert node.is_looked_up is is_looked_up


@pytest.mark.parametrize(
    ("passthrough", "tls_passthrough", "passes"),
    [
        ("never", True, False),
        ("always", False, True),
        ("route", True, True),
        ("route", False, False),
    ],
)
def test_the_listener_says_who_decides_about_passthrough(
    passthrough: Passthrough, tls_passthrough: bool, passes: bool
) -> None:
    listener = Listener("tcp", "127.0.0.1", 9100, tls="required", passthrough=passthrough)
    route = Route("1", Match(), None, Source("routes.d/a.yaml", 1), tls_passthrough=tls_passthrough)

    assert route.passes_through(listener) is passes
