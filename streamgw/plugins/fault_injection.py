"""Make some sessions wait or break: to see what clients and alarms do then.

Source:
  APISIX `apisix/plugins/fault-injection.lua` (HTTP), for the names of the options.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import attrs

from streamgw.core.errors import Rejected
from streamgw.core.expression import Condition
from streamgw.core.hooks import Cut, Decision, Decisions, Delay, Hooks, Plugin, PluginContext
from streamgw.core.model import Facts
from streamgw.core.variables import lookup
from streamgw.plugins.options import (
    Expression,
    Fault,
    PositiveSeconds,
    Schema,
    expression,
    integer,
    unknown_variables,
)

Percentage = Annotated[int, integer(0, 100)]


@attrs.frozen(kw_only=True)
class AbortOptions:
    """Whose sessions end before they reach an upstream."""

    reset: bool = True
    """By RST; false: by FIN, as if the service had closed."""
    percentage: Percentage = 100
    vars: Annotated[Expression, expression("vars")] | None = None


@attrs.frozen(kw_only=True)
class DelayOptions:
    """Whose sessions wait."""

    duration: PositiveSeconds
    percentage: Percentage = 100
    vars: Annotated[Expression, expression("vars")] | None = None


@attrs.frozen(kw_only=True)
class PartialOptions:
    """Whose sessions are cut off in the middle, by RST to both sides."""

    up: Annotated[int, integer(1)] | None = None
    """Bytes from the client to the upstream that still pass."""
    down: Annotated[int, integer(1)] | None = None
    """The same from the upstream to the client. Whichever has passed first ends the session."""
    percentage: Percentage = 100
    vars: Annotated[Expression, expression("vars")] | None = None
    schema: ClassVar[Schema] = {"anyOf": [{"required": ["up"]}, {"required": ["down"]}]}

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.up is None and self.down is None:
            yield Fault((), "expected 'up' or 'down'")


@attrs.frozen(kw_only=True)
class FaultInjection:
    """One of them, or several."""

    abort: AbortOptions | None = None
    delay: DelayOptions | None = None
    partial: PartialOptions | None = None
    schema: ClassVar[Schema] = {
        "anyOf": [{"required": ["abort"]}, {"required": ["delay"]}, {"required": ["partial"]}]
    }

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.abort is None and self.delay is None and self.partial is None:
            yield Fault(
                (),
                "expected 'abort', 'delay' or 'partial'",
                apisix="expect object to have at least 1 properties",
            )

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        for name, part in (("abort", self.abort), ("delay", self.delay), ("partial", self.partial)):
            if part is not None and part.vars is not None:
                yield from unknown_variables(part.vars.variables, (name, "vars"))


class Share:
    """Exactly so many of a hundred, spread evenly: a test that counts need not allow for luck."""

    def __init__(self, percentage: int) -> None:
        self._percentage = percentage
        self._owed = 0

    def next(self) -> bool:
        """Whether the next one is of the share."""
        self._owed += self._percentage
        if self._owed < 100:
            return False
        self._owed -= 100
        return True


def build(options: FaultInjection, context: PluginContext) -> Hooks:
    """Abort goes before delay: who will be refused need not wait."""
    abort, delay, partial = options.abort, options.delay, options.partial
    aborts = _picks(abort, context)
    delays = _picks(delay, context)
    cuts = _picks(partial, context)

    def on_preread(facts: Facts, _: float) -> Decisions:
        if abort is not None and aborts(facts):
            raise Rejected("aborted on purpose", reset=abort.reset)
        decisions: list[Decision] = []
        if delay is not None and delays(facts):
            decisions.append(Delay(delay.duration))
        if partial is not None and cuts(facts):
            decisions.append(Cut(partial.up, partial.down))
        return tuple(decisions)

    return Hooks(on_preread=on_preread)


def _picks(part: AbortOptions | DelayOptions | PartialOptions | None, context: PluginContext) -> Condition:
    if part is None:
        return lambda _: False
    share = Share(part.percentage)
    if part.vars is None:
        return lambda _: share.next()
    holds = part.vars.bind(lambda name: lookup(name, context.known))
    return lambda facts: holds(facts) and share.next()


PLUGIN = Plugin(name="fault-injection", priority=11000, options=FaultInjection, build=build)
