"""At most so many sessions at a time of those that have a key in common; some more are let in late.

Source:
  APISIX `apisix/plugins/limit-conn/init.lua`, lua-resty-limit-traffic `resty/limit/conn.lua`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import attrs

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Decision, Delay, Hooks, Plugin, PluginContext
from streamgw.core.model import Facts, Outcome
from streamgw.plugins.keys import KeyType, compile_key, names_of
from streamgw.plugins.options import (
    Count,
    Fault,
    PositiveSeconds,
    above_zero,
    does_nothing,
    integer,
    text,
    unknown_variables,
)


@attrs.frozen(kw_only=True)
class LimitConn:
    """How many, and of whom."""

    conn: Annotated[int, above_zero]
    """Sessions at a time that are let in at once."""
    burst: Count
    """Further ones that are let in after a delay. Whoever comes then is refused."""
    default_conn_delay: PositiveSeconds
    """Seconds that each `conn` sessions before it make one wait."""
    key: Annotated[str, text(1)]
    """A variable, `remote_addr`; or a text with variables, `$remote_addr $server_port`."""
    key_type: KeyType = "var"
    only_use_default_delay: bool = False
    """Changes nothing in a stream, where no other delay is ever learnt."""
    policy: Literal["local"] = "local"
    """Of this gateway: counted together by all its workers, not shared between gateways."""
    rejected_code: Annotated[int, integer(200, 599)] | None = None
    rejected_msg: Annotated[str, text(1)] | None = None
    allow_degradation: bool | None = None

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        yield from does_nothing(self, "rejected_code", "rejected_msg", "allow_degradation")
        yield from unknown_variables(names_of(self.key, self.key_type), ("key",))


def build(options: LimitConn, context: PluginContext) -> Hooks:
    """Count in the ledger, which outlives edits: the sessions that were there before one are counted after it."""
    key_of = compile_key(options.key, options.key_type, context.known)
    ledger, scope = context.services.ledger, f"limit-conn {context.known['route_id']}"
    most = options.conn + options.burst

    def decide(facts: Facts, _: float) -> Decision:
        key = key_of(facts)
        count = ledger.enter(scope, key)
        if count > most:
            ledger.leave(scope, key)
            raise Rejected(f"more than {most} sessions at a time of {key}", status=503)
        if count > options.conn:
            return Delay((count - 1) // options.conn * options.default_conn_delay)
        return None

    def on_close(facts: Facts, _: Outcome) -> None:
        ledger.leave(scope, key_of(facts))

    return key_of.hooks(decide, on_close)


PLUGIN = Plugin(name="limit-conn", priority=1003, options=LimitConn, build=build)
