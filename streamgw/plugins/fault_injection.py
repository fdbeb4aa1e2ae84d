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
from streamgw.core.hooks import Decision, Delay, Hooks, Plugin, PluginContext
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
class FaultInjection:
    """One of the two, or both."""

    abort: AbortOptions | None = None
    delay: DelayOptions | None = None
    schema: ClassVar[Schema] = {"anyOf": [{"required": ["abort"]}, {"required": ["delay"]}]}

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.abort is None and self.delay is None:
            yield Fault(
                (), "expected 'abort' or 'delay'", apisix="expect object to have at least 1 properties"
            )

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        for name, part in (("abort", self.abort), ("delay", self.delay)):
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
    abort, delay = options.abort, options.delay
    aborts = _picks(abort, context)
    delays = _picks(delay, context)

    def on_preread(facts: Facts, _: float) -> Decision:
        if abort is not None and aborts(facts):
            raise Rejected("aborted on purpose", reset=abort.reset)
        return Delay(delay.duration) if delay is not None and delays(facts) else None

    return Hooks(on_preread=on_preread)


def _picks(part: AbortOptions | DelayOptions | None, context: PluginContext) -> Condition:
    if part is None:
        return lambda _: False
    share = Share(part.percentage)
    if part.vars is None:
        return lambda _: share.next()
    holds = part.vars.bind(lambda name: lookup(name, context.known))
    return lambda facts: holds(facts) and share.next()


PLUGIN = Plugin(name="fault-injection", priority=11000, options=FaultInjection, build=build)
