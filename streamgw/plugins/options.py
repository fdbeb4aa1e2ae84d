"""What a plugin's options are made of: rules for single values, and how to report what they cannot say.

The one door from plugins, built-in or not, to the rules that files are read with. A plugin declares an attrs class:

    @attrs.frozen(kw_only=True)
    class Options:
        limit: Annotated[int, integer(1)]
        key: Annotated[str, text(1, 256)] = "remote_addr"

Nothing is converted, unknown fields are faults, and the JSON Schema that editors use comes from the same class. Optional
methods: `check() -> Iterator[Fault]` for what no field alone can say, `warnings() -> Iterator[Fault]` for what has no effect.
A class attribute `schema` adds to the JSON Schema what `check` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, TypeAlias

from streamgw.config.plugins import expression
from streamgw.config.rules import (
    AnyMapping,
    Count,
    Duration,
    Id,
    Name,
    Net,
    Port,
    PositiveSeconds,
    Seconds,
    Size,
    address_of,
    integer,
    mapping,
    number,
    secret,
    text,
)
from streamgw.config.strict import Fault, Stated, Wrong, each, shown
from streamgw.config.wording import Schema, complaint, nested
from streamgw.core.expression import Expression
from streamgw.core.variables import NAMES, ROUTE_VARIABLES

__all__ = [
    "AnyMapping",
    "Count",
    "Duration",
    "Expression",
    "Fault",
    "Id",
    "InlineUpstream",
    "Name",
    "Net",
    "Port",
    "PositiveSeconds",
    "Schema",
    "Seconds",
    "Size",
    "Stated",
    "Wrong",
    "above_zero",
    "address_of",
    "does_nothing",
    "each",
    "expression",
    "integer",
    "number",
    "secret",
    "shown",
    "text",
    "too_few",
    "unknown_variables",
]

LAYER_7 = "does nothing at layer 4"

InlineUpstream: TypeAlias = Annotated[
    Mapping[str, object],
    Stated(mapping, {"type": "object", "description": "An upstream, as a route may have one."}),
]
"""An upstream that is described on the spot: to be yielded by `Plugin.upstreams`, which has it checked and made."""

_above_zero = integer(1)
above_zero = Stated(_above_zero.rule, _above_zero.schema, {"type": "integer", "exclusiveMinimum": 0})
"""`integer(1)`, in APISIX's words."""


def too_few(name: str) -> Fault:
    """A list that must not be empty is."""
    words = nested((name,), complaint({"type": "array", "minItems": 1}, []))
    return Fault((name,), "expected at least one entry", apisix=words)


def does_nothing(options: object, *names: str) -> Iterator[Fault]:
    """Fields that APISIX has, that are set, and that mean nothing in a stream."""
    for name in names:
        if getattr(options, name) is not None:
            yield Fault((name,), LAYER_7, at_key=True)


def unknown_variables(names: frozenset[str], path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Variables that no client at layer 4 has: of HTTP, or misspelt."""
    for name in sorted(names - NAMES - {*ROUTE_VARIABLES, "hostname"}):
        yield Fault(path, f"no variable '{name}' at layer 4: it never has a value")
