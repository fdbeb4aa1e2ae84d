"""Conditions on the variables of a session, written as lists: `[["remote_addr", "ipmatch", ["10.0.0.0/8"]]]`.

A list of conditions holds when all of them do. A condition is `[variable, operator, value]`, with `"!"` before the operator
to negate it, or a group `["OR", condition, …]`, also with `AND`, `!OR`, `!AND`.

| operator | holds if |
| --- | --- |
| `==`, `~=` | equal, not equal; as numbers if the value is one; `null` is a variable without a value |
| `>`, `>=`, `<`, `<=` | both are numbers, in this order |
| `~~`, `~*` | the regular expression is found in it; `~*`: in any case |
| `in` | it is equal to one of the list |
| `has` | it is a list with this element: never, as no variable at layer 4 is a list |
| `ipmatch` | it is an address of one of the networks |

A variable without a value fulfils `~=` and negated operators, and `== null`.

Source:
  lua-resty-expr 1.3 (`lib/resty/expr/v1.lua`), which APISIX uses, its README for `ipmatch`. Regular expressions are Python's
  and not PCRE's; both are compiled, and refused, when the configuration is loaded.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import attrs

from streamgw.core.model import Facts, Network
from streamgw.core.networks import NetworkSet

MAX_DEPTH = 16
"""Groups within groups."""

Variable: TypeAlias = Callable[[Facts], str | None]
Lookup: TypeAlias = Callable[[str], Variable | None]
"""From a name to how its value is had; None: there is no such variable."""
Condition: TypeAlias = Callable[[Facts], bool]
_Test: TypeAlias = Callable[[str | None], bool]
_SubjectT = TypeVar("_SubjectT")
"""What has the variables: facts, or an outcome."""


@attrs.frozen
class Comparison:
    """One variable against one value."""

    variable: str
    test: _Test = attrs.field(eq=False, repr=False)
    negated: bool = False


@attrs.frozen
class Group:
    """Several conditions as one."""

    is_or: bool
    negated: bool
    parts: tuple[Comparison | Group, ...]


@attrs.frozen
class Expression:
    """A condition that has been read, and knows no session yet."""

    root: Comparison | Group

    @property
    def variables(self) -> frozenset[str]:
        """The names it asks for."""
        return frozenset(_names(self.root))

    def bind(
        self, lookup: Callable[[str], Callable[[_SubjectT], str | None] | None]
    ) -> Callable[[_SubjectT], bool]:
        """The condition as a function of what has the variables. A variable that there is not never has a value."""
        return _bind(self.root, lookup)


class ExpressionError(ValueError):
    """What is written is no condition. The words are APISIX's: `invalid operator '123'`."""


def parse_expression(data: object) -> Expression:
    """Read a condition.

    Args:
      data: lists as they come out of JSON or YAML. An empty one always holds.

    Raises:
      ExpressionError: what is wrong with it.
    """
    rules = _as_list(data)
    if rules and not isinstance(rules[0], list) and _group_name(rules[0]) is None:
        raise ExpressionError("rule should be wrapped inside brackets")
    return Expression(_parse(rules, 1) if rules else Group(is_or=False, negated=False, parts=()))


def _as_list(data: object) -> Sequence[object]:
    if not isinstance(data, list):
        raise ExpressionError("invalid expression")
    return data


def _group_name(value: object) -> str | None:
    name = value.upper() if isinstance(value, str) else ""
    return name if name in {"OR", "AND", "!OR", "!AND"} else None


def _parse(rules: Sequence[object], depth: int) -> Comparison | Group:
    if depth > MAX_DEPTH:
        raise ExpressionError(f"more than {MAX_DEPTH} groups within each other")
    if not rules:
        raise ExpressionError("rule too short")
    if isinstance(rules[0], list):
        parts = tuple(_parse(_as_list(rule), depth + 1) for rule in rules)
        return Group(is_or=False, negated=False, parts=parts)
    name = _group_name(rules[0])
    if name is None:
        return _comparison(rules)
    if len(rules) <= 2:
        raise ExpressionError("rule too short")
    parts = tuple(_parse(_as_list(rule), depth + 1) for rule in rules[1:])
    return Group(is_or=name.endswith("OR"), negated=name.startswith("!"), parts=parts)


def _comparison(rule: Sequence[object]) -> Comparison:
    match rule:
        case [str(variable), "!", operator, value]:
            return Comparison(variable, _test(operator, value), negated=True)
        case [_, _, _, _]:
            raise ExpressionError("bad 'not' expression")
        case [str(variable), operator, value]:
            return Comparison(variable, _test(operator, value))
        case [str(variable), str(operator)] if operator.lower() in _OPERATORS:
            return Comparison(variable, _test(operator, None))  # Lua cannot tell null from nothing
        case [str(variable), value] if value is not None:
            return Comparison(variable, _test("==", value))  # as old versions of the library wrote it
        case _:
            raise ExpressionError("invalid expression")


def _test(operator: object, value: object) -> _Test:
    make = _OPERATORS.get(operator.lower()) if isinstance(operator, str) else None
    if make is None:
        raise ExpressionError(f"invalid operator '{operator}'")
    return make(value)


def _equal(value: object) -> _Test:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = _number(value)
        return lambda found: number is not None and _number(found) == number
    return lambda found: found == value


def _not_equal(value: object) -> _Test:
    equal = _equal(value)
    return lambda found: not equal(found)


def _ordered(holds: Callable[[float, float], bool]) -> Callable[[object], _Test]:
    def make(value: object) -> _Test:
        limit = _number(value)

        def test(found: str | None) -> bool:
            number = _number(found)
            return number is not None and limit is not None and holds(number, limit)

        return test

    return make


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < _HUGE else None
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


_HUGE = 1e300
"""A longer integer would be too much for a float. NaN is not below it either, and equals nothing."""
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?\s*")


def _found(flags: re.RegexFlag) -> Callable[[object], _Test]:
    def make(value: object) -> _Test:
        try:
            pattern = re.compile(str(value), flags)
        except (re.error, OverflowError, RecursionError) as error:
            raise ExpressionError(f"invalid regular expression {str(value)!r}: {error}") from None
        return lambda found: found is not None and pattern.search(found) is not None

    return make


def _in(value: object) -> _Test:
    if not isinstance(value, list):
        raise ExpressionError("'in' needs a list")
    tests = [_equal(item) for item in value]
    return lambda found: any(test(found) for test in tests)


def _has(_: object) -> _Test:
    return lambda _: False


def _ipmatch(value: object) -> _Test:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ExpressionError("invalid ip address")
    networks = NetworkSet(map(_network, entries))

    def test(found: str | None) -> bool:
        try:
            address = ipaddress.ip_address(found or "")
        except ValueError:
            return False
        return networks.holds(address.version, int(address))

    return test


def _network(value: object) -> Network:
    try:
        if isinstance(value, str):
            return ipaddress.ip_network(value, strict=False)
    except ValueError:
        pass
    raise ExpressionError(f"invalid ip address: {value}")


_OPERATORS: dict[str, Callable[[object], _Test]] = {
    "==": _equal,
    "~=": _not_equal,
    ">": _ordered(lambda one, other: one > other),
    ">=": _ordered(lambda one, other: one >= other),
    "<": _ordered(lambda one, other: one < other),
    "<=": _ordered(lambda one, other: one <= other),
    "~~": _found(re.RegexFlag(0)),
    "~*": _found(re.IGNORECASE),
    "in": _in,
    "has": _has,
    "ipmatch": _ipmatch,
}


def _names(part: Comparison | Group) -> Iterator[str]:
    if isinstance(part, Comparison):
        yield part.variable
    else:
        for inner in part.parts:
            yield from _names(inner)


def _bind(
    part: Comparison | Group, lookup: Callable[[str], Callable[[_SubjectT], str | None] | None]
) -> Callable[[_SubjectT], bool]:
    if isinstance(part, Comparison):
        return _bind_comparison(part, lookup(part.variable) or (lambda _: None))
    conditions = tuple(_bind(inner, lookup) for inner in part.parts)
    decide, negated = any if part.is_or else all, part.negated
    return lambda subject: decide(condition(subject) for condition in conditions) is not negated


def _bind_comparison(
    part: Comparison, variable: Callable[[_SubjectT], str | None]
) -> Callable[[_SubjectT], bool]:
    test, negated = part.test, part.negated
    return lambda subject: test(variable(subject)) is not negated
