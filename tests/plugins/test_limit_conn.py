from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Delay, Hooks, LocalLedger, PluginServices
from streamgw.plugins.limit_conn import PLUGIN
from tests.support.plugins import built, close, decide, is_let_in, refusals, said_by_api, warnings
from tests.support.scenes import facts

OTHER = facts("192.0.2.10")


def limit(services: PluginServices | None = None, **options: object) -> Hooks:
    usual: dict[str, object] = {"conn": 2, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}
    return built(PLUGIN, services, **usual | options)


def test_as_many_as_allowed_come_in_and_the_next_does_not() -> None:
    hooks = limit()

    assert [is_let_in(hooks) for _ in range(3)] == [True, True, False]
    assert is_let_in(hooks, OTHER), "another key counts by itself"


def test_who_leaves_makes_room() -> None:
    hooks = limit()
    decide(hooks)
    decide(hooks)

    close(hooks)

    assert [is_let_in(hooks) for _ in range(2)] == [True, False]


def test_who_is_refused_takes_no_room() -> None:
    services = PluginServices()
    hooks = limit(services, conn=1)
    decide(hooks)
    for _ in range(5):
        assert not is_let_in(hooks)

    close(hooks)

    assert isinstance(services.ledger, LocalLedger)
    assert services.ledger._counts == {}


def test_those_of_the_burst_wait_the_longer_the_more_there_are() -> None:
    """APISIX: floor((n - 1) / conn) × default_conn_delay."""
    hooks = limit(conn=2, burst=4, default_conn_delay=0.5)

    decisions = [decide(hooks) for _ in range(6)]

    assert decisions == [None, None, Delay(0.5), Delay(0.5), Delay(1.0), Delay(1.0)]
    assert not is_let_in(hooks)


def test_a_refusal_says_how_many_there_are_and_is_a_503() -> None:
    hooks = limit(conn=1)
    decide(hooks)

    with pytest.raises(Rejected, match=r"more than 1 sessions at a time of 192\.0\.2\.9") as refused:
        decide(hooks)

    assert refused.value.status == 503


def test_an_edit_forgets_nobody() -> None:
    """In APISIX the count begins anew with each edit of the route."""
    services = PluginServices()
    before = limit(services, conn=3)
    for _ in range(3):
        decide(before)

    after = limit(services, conn=4)
    assert [is_let_in(after) for _ in range(2)] == [True, False]

    close(before)
    assert is_let_in(after)


def test_a_combination_of_variables_is_one_key() -> None:
    hooks = limit(conn=1, key="$remote_addr $server_port", key_type="var_combination")

    assert is_let_in(hooks, facts(port=9100))
    assert is_let_in(hooks, facts(port=9101))
    assert not is_let_in(hooks, facts(port=9101))


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(0, 4))
def test_there_are_never_more_than_the_limit(comes: list[bool], conn: int, burst: int) -> None:
    hooks, live = limit(conn=conn, burst=burst), 0

    for arrives in comes:
        if arrives:
            live += is_let_in(hooks)
        elif live:
            close(hooks)
            live -= 1
        assert live <= conn + burst


def test_what_belongs_to_http_is_named() -> None:
    http = {"rejected_code": 503, "rejected_msg": "no", "allow_degradation": True}
    usual = {
        "conn": 1,
        "burst": 0,
        "default_conn_delay": 1,
        "key": "consumer_name",
        "only_use_default_delay": True,
    }

    assert warnings(PLUGIN, **usual, **http) == [
        "rejected_code: does nothing at layer 4",
        "rejected_msg: does nothing at layer 4",
        "allow_degradation: does nothing at layer 4",
        "key: no variable 'consumer_name' at layer 4: it never has a value",
    ]


@pytest.mark.parametrize(
    ("change", "ours", "apisix"),
    [
        ({"conn": 0}, "conn: expected an integer ≥ 1, got 0", 'property "conn" validation failed: expected 0 to be greater than 0'),
        ({"burst": -1}, "burst: expected an integer ≥ 0, got -1", 'property "burst" validation failed: expected -1 to be at least 0'),
        ({"default_conn_delay": 0}, "default_conn_delay: expected a number > 0, got 0", 'property "default_conn_delay" validation failed: expected 0 to be greater than 0'),
        ({"key_type": "vars"}, "key_type: expected 'var' or 'var_combination', got 'vars', did you mean 'var'?", 'property "key_type" validation failed: matches none of the enum values'),
        ({"policy": "redis"}, "policy: expected 'local', got 'redis'", 'property "policy" validation failed: matches none of the enum values'),
    ],
)  # fmt: skip
def test_what_it_may_not_be_told(change: dict[str, object], ours: str, apisix: str) -> None:
    options = {"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"} | change

    assert refusals(PLUGIN, **options) == [ours]
    assert said_by_api(PLUGIN, **options) == apisix


@pytest.mark.parametrize("name", ["conn", "burst", "default_conn_delay", "key"])
def test_what_it_must_be_told(name: str) -> None:
    options: dict[str, object] = {"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"}
    del options[name]

    assert said_by_api(PLUGIN, **options) == f'property "{name}" is required'
