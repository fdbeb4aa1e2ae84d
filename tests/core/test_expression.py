from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.expression import MAX_DEPTH, ExpressionError, Variable, parse_expression
from streamgw.core.model import Facts
from tests.support.scenes import facts

FACTS = attrs.evolve(facts("10.1.2.3", 9100), server_name="db.example")
VARIABLES: dict[str, Variable] = {
    "remote_addr": lambda f: f.client.host,
    "server_port": lambda f: str(f.server.port),
    "name": lambda f: f.server_name,
    "nothing": lambda _: None,
    "path": lambda _: "unix:",
}


def holds(*rules: object, told: Facts = FACTS) -> bool:
    return parse_expression(list(rules)).bind(VARIABLES.get)(told)


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        (["remote_addr", "==", "10.1.2.3"], True),
        (["remote_addr", "==", "10.1.2.4"], False),
        (["remote_addr", "10.1.2.3"], True),
        (["server_port", "==", 9100], True),
        (["server_port", "==", 9100.0], True),
        (["server_port", "==", "9100"], True),
        (["server_port", "==", "9100.0"], False),
        (["name", "==", 9100], False),
        (["nothing", "==", None], True),
        (["nothing", "=="], True),
        (["name", "==", None], False),
        (["server_port", "==", True], False),
        (["remote_addr", "~=", "10.1.2.3"], False),
        (["server_port", "~=", 9101], True),
        (["server_port", "==", 10**400], False),
        (["server_port", "<", 10**400], False),
        (["nothing", "==", float("nan")], False),
        (["nothing", "~=", 9101], True),
        (["nothing", "~=", None], False),
        (["server_port", ">", 9099], True),
        (["server_port", ">", 9100], False),
        (["server_port", ">=", "9100"], True),
        (["server_port", "<", 9.2e3], True),
        (["server_port", "<=", 9099], False),
        (["name", ">", 1], False),
        (["server_port", ">", "many"], False),
        (["nothing", "<", 1], False),
        (["name", "~~", "^db\\."], True),
        (["name", "~~", "DB"], False),
        (["name", "~*", "DB"], True),
        (["nothing", "~~", ".*"], False),
        (["name", "in", ["a", "db.example"]], True),
        (["server_port", "in", [9100, 9101]], True),
        (["name", "IN", ["a"]], False),
        (["nothing", "in", [None]], True),
        (["name", "has", "db"], False),
        (["remote_addr", "ipmatch", "10.0.0.0/8"], True),
        (["remote_addr", "ipmatch", ["192.0.2.0/24", "10.1.2.3"]], True),
        (["remote_addr", "ipmatch", ["192.0.2.0/24", "::/0"]], False),
        (["name", "ipmatch", "10.0.0.0/8"], False),
        (["path", "ipmatch", "0.0.0.0/0"], False),
        (["nothing", "ipmatch", "0.0.0.0/0"], False),
        (["unheard_of", "==", "1"], False),
        (["unheard_of", "~=", "1"], True),
    ],
    ids=str,
)
def test_a_condition(rule: list[object], answer: bool) -> None:
    assert holds(rule) is answer
    if len(rule) == 3:
        assert holds([rule[0], "!", *rule[1:]]) is not answer


YES, NO = ["name", "==", "db.example"], ["name", "==", "x"]


@pytest.mark.parametrize(
    ("rules", "answer"),
    [
        ([], True),
        ([YES, YES], True),
        ([YES, NO], False),
        (["OR", NO, YES], True),
        (["or", NO, NO], False),
        (["AND", YES, YES], True),
        (["!AND", YES, YES], False),
        (["!OR", NO, NO], True),
        ([["OR", NO, ["AND", YES, ["!OR", NO, NO]]], YES], True),
        ([["AND", [YES, NO], YES]], False),
    ],
    ids=str,
)
def test_groups_of_conditions(rules: list[object], answer: bool) -> None:
    assert holds(*rules) is answer


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({}, "invalid expression"),
        ("remote_addr", "invalid expression"),
        (["remote_addr", "==", "1"], "rule should be wrapped inside brackets"),
        ([["remote_addr", "123", "1"]], "invalid operator '123'"),
        ([["remote_addr", 123, "1"]], "invalid operator '123'"),
        ([["remote_addr"]], "invalid expression"),
        ([[1, "==", 1]], "invalid expression"),
        ([["a", "==", 1, 2, 3]], "invalid expression"),
        ([[]], "rule too short"),
        (["OR", YES], "rule too short"),
        (["OR", YES, ["AND"]], "rule too short"),
        ([YES, "x"], "invalid expression"),
        ([["!", "a", "==", "1"]], "bad 'not' expression"),
        ([["a", "~~", "("]], "invalid regular expression '('"),
        ([["a", "in", "b"]], "'in' needs a list"),
        ([["a", "ipmatch", "10.0.0.300"]], "invalid ip address: 10.0.0.300"),
        ([["a", "ipmatch", [7]]], "invalid ip address: 7"),
        ([["a", "ipmatch", []]], "invalid ip address"),
    ],
    ids=str,
)
def test_what_is_no_condition_is_refused_in_the_words_of_apisix(rules: object, why: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        parse_expression(rules)

    assert str(refused.value).startswith(why)


def test_groups_cannot_nest_for_ever() -> None:
    rules: list[object] = [YES]
    for _ in range(MAX_DEPTH):
        rules = [rules]

    with pytest.raises(ExpressionError, match="groups within each other"):
        parse_expression(rules)


def test_an_expression_names_its_variables() -> None:
    expression = parse_expression([YES, ["OR", ["remote_addr", "==", "1"], ["name", "==", "2"]]])

    assert expression.variables == {"name", "remote_addr"}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["!", "==", "OR"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


@given(anything)
def test_whatever_is_written_has_an_answer_or_is_refused(data: object) -> None:
    try:
        expression = parse_expression(data)
    except ExpressionError:
        return
    assert expression.bind(VARIABLES.get)(FACTS) in {True, False}
