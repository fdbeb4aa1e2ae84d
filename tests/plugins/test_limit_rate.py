from __future__ import annotations

import pytest

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Delay, PluginServices
from streamgw.plugins.limit_rate import PLUGIN
from tests.support.plugins import built, decide, is_let_in, refusals, warnings
from tests.support.scenes import facts


def test_sessions_come_in_at_the_rate_and_no_faster() -> None:
    hooks = built(PLUGIN, rate=2)

    let_in = [is_let_in(hooks, now=at / 10) for at in range(11)]

    assert [at for at, came in enumerate(let_in) if came] == [0, 5, 10]


def test_keys_have_a_rate_each() -> None:
    hooks = built(PLUGIN, rate=1)

    assert is_let_in(hooks, facts("192.0.2.1"))
    assert is_let_in(hooks, facts("192.0.2.2"))
    assert not is_let_in(hooks, facts("192.0.2.1"))


def test_those_of_the_burst_wait_until_it_is_their_time() -> None:
    hooks = built(PLUGIN, rate=2, burst=2)

    assert [decide(hooks) for _ in range(3)] == [None, Delay(0.5), Delay(1.0)]
    assert not is_let_in(hooks)


def test_a_burst_may_come_in_at_once() -> None:
    hooks = built(PLUGIN, rate=2, burst=2, nodelay=True)

    assert [decide(hooks) for _ in range(3)] == [None, None, None]
    assert not is_let_in(hooks)


def test_a_refusal_names_the_rate_and_the_key_and_is_a_503() -> None:
    hooks = built(PLUGIN, rate=0.5)
    decide(hooks)

    with pytest.raises(Rejected, match=r"more than 0\.5 new sessions a second of 192\.0\.2\.9") as refused:
        decide(hooks)

    assert refused.value.status == 503


def test_an_edit_forgets_nobody() -> None:
    services = PluginServices()
    decide(built(PLUGIN, services, rate=0.1))

    after = built(PLUGIN, services, rate=0.1, nodelay=True)

    assert not is_let_in(after, now=5.0)
    assert is_let_in(after, now=10.0)


def test_a_higher_rate_counts_at_once() -> None:
    """An operator raised the rate because sessions were refused. Those of the burst had booked the next minute, and all were
    refused until it was over.
    """
    services = PluginServices()
    before = built(PLUGIN, services, rate=1, burst=60, nodelay=True)
    assert [is_let_in(before) for _ in range(62)] == [True] * 61 + [False]

    after = built(PLUGIN, services, rate=100, burst=60, nodelay=True)

    assert is_let_in(after)


def test_a_variable_that_there_is_not_is_named() -> None:
    assert warnings(PLUGIN, rate=1, key="arg_x") == [
        "key: no variable 'arg_x' at layer 4: it never has a value"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "rate: is required"),
        ({"rate": 0}, "rate: expected a number > 0, got 0"),
        ({"rate": 1, "burst": 0.5}, "burst: expected an integer ≥ 0, got 0.5"),
        ({"rate": 1, "key": ""}, "key: expected at least 1 characters, got 0"),
    ],
)
def test_what_it_may_not_be_told(options: dict[str, object], said: str) -> None:
    assert refusals(PLUGIN, **options) == [said]
