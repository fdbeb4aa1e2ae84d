"""Send some of a route's sessions elsewhere: by conditions, by weight, or both.

Unlike in APISIX, an upstream that is described here may have everything that one of a route may have.

Source:
  APISIX `apisix/plugins/traffic-split.lua`, its stream variant `apisix/stream/plugins/traffic-split.lua`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar

import attrs

from streamgw.core.expression import Condition
from streamgw.core.hooks import Decision, Hooks, Plugin, PluginContext, UpstreamUse, UseUpstream
from streamgw.core.model import Facts
from streamgw.core.variables import lookup
from streamgw.plugins.options import (
    Count,
    Expression,
    Fault,
    Id,
    InlineUpstream,
    Schema,
    expression,
    too_few,
    unknown_variables,
)

MAX_CHOICES = 20


@attrs.frozen(kw_only=True)
class Block:
    """One set of conditions, all of which must hold."""

    vars: Annotated[Expression, expression("vars")] | None = None
    """`[["remote_addr", "ipmatch", ["10.0.0.0/8"]]]`. Absent: always."""


@attrs.frozen(kw_only=True)
class Choice:
    """One upstream and its share; without any, the route's own."""

    upstream_id: Id | None = None
    upstream: InlineUpstream | None = None
    weight: Count = 1
    """Of the sum of all: 0 is never chosen."""

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if self.upstream is not None and self.upstream_id is not None:
            yield Fault(("upstream",), "does nothing: 'upstream_id' wins", at_key=True)


@attrs.frozen(kw_only=True)
class Rule:
    """Whose sessions are split, and how."""

    match: tuple[Block, ...] = ()
    """Any of these. Empty: everybody."""
    weighted_upstreams: tuple[Choice, ...] = (Choice(),)
    schema: ClassVar[Schema] = {
        "properties": {"weighted_upstreams": {"minItems": 1, "maxItems": MAX_CHOICES}}
    }

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if not self.weighted_upstreams:
            yield too_few("weighted_upstreams")
        if len(self.weighted_upstreams) > MAX_CHOICES:
            words = f'property "weighted_upstreams" validation failed: expect array to have at most {MAX_CHOICES} items'
            yield Fault(("weighted_upstreams",), f"expected at most {MAX_CHOICES} entries", apisix=words)

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        for number, block in enumerate(self.match):
            if block.vars is not None:
                yield from unknown_variables(block.vars.variables, ("match", number, "vars"))
        for number, choice in enumerate(self.weighted_upstreams):
            for fault in choice.warnings():
                yield fault.under(("weighted_upstreams", number))
        if not any(choice.weight for choice in self.weighted_upstreams):
            yield Fault(("weighted_upstreams",), "every weight is 0: the route's own upstream is used")


@attrs.frozen(kw_only=True)
class TrafficSplit:
    """The first rule that applies decides."""

    rules: tuple[Rule, ...] = ()

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        for number, rule in enumerate(self.rules):
            for fault in rule.warnings():
                yield fault.under(("rules", number))


def upstreams(options: TrafficSplit) -> Iterator[UpstreamUse]:
    """Every one that a rule may choose."""
    for position, rule in enumerate(options.rules):
        for number, choice in enumerate(rule.weighted_upstreams):
            use = _use(choice, position, number)
            if use is not None:
                yield use


def _use(choice: Choice, position: int, number: int) -> UpstreamUse | None:
    path = ("rules", position, "weighted_upstreams", number)
    if choice.upstream_id is not None:
        return UpstreamUse((*path, "upstream_id"), id=choice.upstream_id)
    if choice.upstream is not None:
        return UpstreamUse((*path, "upstream"), options=choice.upstream)
    return None


class Split:
    """Exact shares: after as many turns as the weights add up to, each had its weight, spread evenly.

    Source:
      nginx's smooth weighted round robin: all earn their weight, the richest has its turn and pays for all.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = tuple(weights)
        self._total = sum(weights)
        self._balances = [0] * len(weights)

    def next(self) -> int | None:
        """Whose turn it is, by position. None: every weight is 0."""
        if not self._total:
            return None
        for at, weight in enumerate(self._weights):
            self._balances[at] += weight
        chosen = self._balances.index(max(self._balances))
        self._balances[chosen] -= self._total
        return chosen


def build(options: TrafficSplit, context: PluginContext) -> Hooks:
    """Decide after every plugin that may add to what is known of the client, such as mqtt-proxy."""
    rules = [_build_rule(rule, position, context) for position, rule in enumerate(options.rules)]

    def on_preread(facts: Facts, _: float) -> Decision:
        for applies, choose in rules:
            if applies(facts):
                return choose()
        return None

    return Hooks(on_preread=on_preread)


def _build_rule(
    rule: Rule, position: int, context: PluginContext
) -> tuple[Condition, Callable[[], Decision]]:
    conditions = [
        (lambda _: True) if block.vars is None else block.vars.bind(lambda name: lookup(name, context.known))
        for block in rule.match
    ]
    uses = [_use(choice, position, number) for number, choice in enumerate(rule.weighted_upstreams)]
    decisions = [None if use is None else UseUpstream(use.key(context.key)) for use in uses]
    split = Split([choice.weight for choice in rule.weighted_upstreams])

    def applies(facts: Facts) -> bool:
        return not conditions or any(condition(facts) for condition in conditions)

    def choose() -> Decision:
        at = split.next()
        return None if at is None else decisions[at]

    return applies, choose


PLUGIN = Plugin(name="traffic-split", priority=966, options=TrafficSplit, build=build, upstreams=upstreams)
