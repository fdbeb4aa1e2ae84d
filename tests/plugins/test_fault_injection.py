from __future__ import annotations

import pytest

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Delay
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
    assert decide(built(PLUGIN, delay={"duration": 1.5})) == Delay(1.5)


def test_a_share_of_the_sessions_is_exact() -> None:
    hooks = built(PLUGIN, abort={"percentage": 30})

    let_in = [is_let_in(hooks) for _ in range(100)]

    assert let_in.count(False) == 30
    assert let_in[:10].count(False) == 3, "evenly spread"


def test_nothing_of_nothing_is_hit() -> None:
    hooks = built(PLUGIN, abort={"percentage": 0}, delay={"duration": 1, "percentage": 0})

    assert decide(hooks) is None


def test_only_some_clients_are_hit() -> None:
    hooks = built(PLUGIN, abort={"vars": ELSEWHERE}, delay={"duration": 1})

    assert decide(hooks) == Delay(1)
    assert not is_let_in(hooks, facts("198.51.100.1"))


def test_what_it_may_not_be_told() -> None:
    assert refusals(PLUGIN) == ["expected 'abort' or 'delay'"]
    assert (
        said_by_api(PLUGIN, delay={}) == 'property "delay" validation failed: property "duration" is required'
    )
    assert warnings(PLUGIN, abort={"vars": [["arg_x", "==", "1"]]}, delay={"duration": 1}) == [
        "abort.vars: no variable 'arg_x' at layer 4: it never has a value"
    ]
