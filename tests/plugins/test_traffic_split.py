from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.strict import structure
from streamgw.core.hooks import UpstreamUse, UseUpstream
from streamgw.plugins.traffic_split import PLUGIN, Split, upstreams
from tests.support.plugins import CLIENT, built, decide, refusals, said_by_api, warnings
from tests.support.scenes import facts

INLINE = {"nodes": {"10.0.0.9:1": 1}}
INTERNAL = {"vars": [["remote_addr", "ipmatch", "10.0.0.0/8"]]}
KEY = "stream_routes/r1/plugins/traffic-split/rules/0/weighted_upstreams/1/upstream"


def split(*rules: dict[str, Any]) -> Any:
    return built(PLUGIN, rules=list(rules))


def shares(hooks: Any, turns: int) -> Counter[str]:
    decisions = (decide(hooks) for _ in range(turns))
    return Counter(decision.key if isinstance(decision, UseUpstream) else "own" for decision in decisions)


def test_sessions_are_split_exactly_by_weight() -> None:
    hooks = split(
        {
            "weighted_upstreams": [
                {"upstream_id": "2", "weight": 2},
                {"upstream": INLINE, "weight": 1},
                {"weight": 7},
            ]
        }
    )

    assert shares(hooks, 10) == {"upstreams/2": 2, KEY: 1, "own": 7}
    assert shares(hooks, 1000) == {"upstreams/2": 200, KEY: 100, "own": 700}


def test_an_upstream_of_weight_0_is_never_chosen() -> None:
    hooks = split({"weighted_upstreams": [{"upstream_id": 1, "weight": 0}, {"upstream_id": 2}]})

    assert shares(hooks, 5) == {"upstreams/2": 5}


def test_without_any_weight_the_route_keeps_its_own() -> None:
    rule = {"weighted_upstreams": [{"upstream_id": 1, "weight": 0}]}

    assert shares(split(rule), 3) == {"own": 3}
    assert warnings(PLUGIN, rules=[rule]) == [
        "rules[0].weighted_upstreams: every weight is 0: the route's own upstream is used"
    ]


def test_the_first_rule_that_applies_decides() -> None:
    hooks = split(
        {"match": [INTERNAL], "weighted_upstreams": [{"upstream_id": 1}]},
        {"weighted_upstreams": [{"upstream_id": 2}]},
    )

    assert decide(hooks, facts("10.1.1.1")) == UseUpstream("upstreams/1")
    assert decide(hooks) == UseUpstream("upstreams/2")


def test_one_block_of_several_is_enough_and_all_of_a_block_must_hold() -> None:
    either = [
        {"vars": [["remote_addr", "==", "192.0.2.1"], ["server_port", "==", 9100]]},
        {"vars": [["mqtt_client_id", "~~", "^sensor"]]},
    ]
    hooks = split({"match": either, "weighted_upstreams": [{"upstream_id": 1}]})

    assert decide(hooks, facts("192.0.2.1", 9100)) is not None
    assert decide(hooks, facts("192.0.2.1", 9101)) is None
    assert decide(hooks, attrs.evolve(CLIENT, mqtt_client_id="sensor-1")) is not None


def test_a_rule_that_asks_for_nothing_applies_to_everybody() -> None:
    for match in ([], [{}], [{"vars": []}]):
        assert decide(split({"match": match, "weighted_upstreams": [{"upstream_id": 1}]})) is not None


def test_without_rules_every_session_stays() -> None:
    assert decide(split()) is None
    assert decide(split({})) is None


def test_a_rule_may_ask_for_the_route() -> None:
    rule = {"match": [{"vars": [["route_name", "==", "db"]]}], "weighted_upstreams": [{"upstream_id": 1}]}

    assert decide(split(rule)) is not None


def test_every_upstream_is_declared() -> None:
    rules = [{"weighted_upstreams": [{"upstream_id": 7}, {"upstream": INLINE}, {"weight": 1}]}]

    found = list(upstreams(structure({"rules": rules}, PLUGIN.options)))

    place = ("rules", 0, "weighted_upstreams")
    assert found == [
        UpstreamUse((*place, 0, "upstream_id"), id="7"),
        UpstreamUse((*place, 1, "upstream"), options=INLINE),
    ]


def test_what_has_no_effect_is_named() -> None:
    rule = {
        "match": [{}, {"vars": [["arg_user", "==", "x"]]}],
        "weighted_upstreams": [{"upstream_id": 1, "upstream": INLINE}],
    }

    assert warnings(PLUGIN, rules=[rule]) == [
        "rules[0].match[1].vars: no variable 'arg_user' at layer 4: it never has a value",
        "rules[0].weighted_upstreams[0].upstream: does nothing: 'upstream_id' wins",
    ]


ITEM = 'property "rules" validation failed: failed to validate item 1: property "weighted_upstreams" validation failed: '


@pytest.mark.parametrize(
    ("rule", "ours", "apisix"),
    [
        (
            {"match": [{"vars": [["remote_addr", "123", "a"]]}]},
            "rules[0].match[0].vars: failed to validate the 'vars' expression: invalid operator '123'",
            "failed to validate the 'vars' expression: invalid operator '123'",
        ),
        (
            {"weighted_upstreams": []},
            "rules[0].weighted_upstreams: expected at least one entry",
            f"{ITEM}expect array to have at least 1 items",
        ),
        (
            {"weighted_upstreams": [{}] * 21},
            "rules[0].weighted_upstreams: expected at most 20 entries",
            f"{ITEM}expect array to have at most 20 items",
        ),
        (
            {"weighted_upstreams": [{"weight": -1}]},
            "rules[0].weighted_upstreams[0].weight: expected an integer ≥ 0, got -1",
            f'{ITEM}failed to validate item 1: property "weight" validation failed: expected -1 to be at least 0',
        ),
    ],
)
def test_what_it_may_not_be_told(rule: dict[str, object], ours: str, apisix: str) -> None:
    assert refusals(PLUGIN, rules=[rule]) == [ours]
    assert said_by_api(PLUGIN, rules=[rule]) == apisix


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 30))
def test_any_stretch_of_one_cycle_is_exact(weights: list[int], offset: int) -> None:
    turns, total = Split(weights), sum(weights)
    for _ in range(offset):
        turns.next()

    counts = Counter(turns.next() for _ in range(total))

    assert [counts[at] for at in range(len(weights))] == weights
