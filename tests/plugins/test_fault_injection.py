from __future__ import annotations

import pytest

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Cut, Delay
from streamgw.plugins.fault_injection import PLUGIN
from tests.support.plugins import built, decide, is_let_in, refusals, said_by_api, warnings
from tests.support.scenes import facts

ELSEWHERE = [["remote_addr", "!", "ipmatch", "192.0.2.0/24"]]


@pytest.mark.parametrize("reset", [True, False])
def test_a_session_is_aborted(reset: bool) -> None:
    with pytest.raises(Rejected, match="aborted on purpose") as refused:
        decide(built(PLUGIN, abort={"reset": reset}))

    assert refused.value.reset is reset


def test_a_session_is_delayed() -> None:
    assert decide(built(PLUGIN, delay={"duration": 1.5})) == (Delay(1.5),)


def test_a_session_is_cut_off_in_the_middle() -> None:
    assert decide(built(PLUGIN, partial={"down": 100})) == (Cut(None, 100),)
    assert decide(built(PLUGIN, partial={"up": 1000, "down": 100})) == (Cut(1000, 100),)


def test_who_is_delayed_may_be_cut_off_as_well() -> None:
    hooks = built(PLUGIN, delay={"duration": 1}, partial={"up": 5, "percentage": 50})

    assert [decide(hooks) for _ in range(2)] == [(Delay(1),), (Delay(1), Cut(5, None))]


def test_a_share_of_the_sessions_is_exact() -> None:
    hooks = built(PLUGIN, abort={"percentage": 30})

    let_in = [is_let_in(hooks) for _ in range(100)]

    assert let_in.count(False) == 30
    assert let_in[:10].count(False) == 3, "evenly spread"


def test_nothing_of_nothing_is_hit() -> None:
    hooks = built(
        PLUGIN,
        abort={"percentage": 0},
        delay={"duration": 1, "percentage": 0},
        partial={"up": 1, "percentage": 0},
    )

    assert decide(hooks) == ()


def test_only_some_clients_are_hit() -> None:
    hooks = built(PLUGIN, abort={"vars": ELSEWHERE}, delay={"duration": 1})

    assert decide(hooks) == (Delay(1),)
    assert not is_let_in(hooks, facts("198.51.100.1"))


def test_what_it_may_not_be_told() -> None:
    assert refusals(PLUGIN) == ["expected 'abort', 'delay' or 'partial'"]
    assert refusals(PLUGIN, partial={}) == ["partial: expected 'up' or 'down'"]
    assert refusals(PLUGIN, partial={"up": 0}) == ["partial.up: expected an integer ≥ 1, got 0"]
    assert (
        said_by_api(PLUGIN, delay={}) == 'property "delay" validation failed: property "duration" is required'
    )
    assert warnings(PLUGIN, abort={"vars": [["arg_x", "==", "1"]]}, delay={"duration": 1}) == [
        "abort.vars: no variable 'arg_x' at layer 4: it never has a value"
    ]
