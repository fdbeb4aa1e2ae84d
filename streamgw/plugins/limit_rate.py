"""At most so many new sessions a second of those that have a key in common; some more are let in late.

Ours: APISIX has `limit-req` for HTTP only. The names of the options are its.

Source:
  nginx `ngx_http_limit_req_module` (a leaky bucket per key).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import attrs

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Decision, Delay, Hooks, Plugin, PluginContext
from streamgw.core.model import Facts
from streamgw.plugins.keys import KeyType, compile_key, names_of
from streamgw.plugins.options import Count, Fault, number, text, unknown_variables


@attrs.frozen(kw_only=True)
class LimitRate:
    """How many a second, and of whom."""

    rate: Annotated[float, number(0, exclusive=True)]
    """New sessions a second, evenly spread: 0.5 is one every other second."""
    burst: Count = 0
    """How many may come too early. They wait until it is their time; whoever comes then is refused."""
    nodelay: bool = False
    """Those of the burst do not wait."""
    key: Annotated[str, text(1)] = "remote_addr"
    """A variable, `remote_addr`; or a text with variables, `$remote_addr $server_port`."""
    key_type: KeyType = "var"

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        yield from unknown_variables(names_of(self.key, self.key_type), ("key",))


def build(options: LimitRate, context: PluginContext) -> Hooks:
    """Refuse or delay before any handshake, if the key allows. The ledger remembers, and outlives edits.

    Of another rate it knows nothing: moments are booked, and those that a slow rate has given away are so far ahead that
    a higher one would refuse everybody until then.
    """
    key_of = compile_key(options.key, options.key_type, context.known)
    ledger, scope = context.services.ledger, f"limit-rate {context.known['route_id']} {options.rate}"
    interval_s, ahead_s = 1 / options.rate, options.burst / options.rate

    def decide(facts: Facts, now: float) -> Decision:
        key = key_of(facts)
        early_s = ledger.book(scope, key, now, interval_s=interval_s, ahead_s=ahead_s)
        if early_s is None:
            raise Rejected(f"more than {options.rate:g} new sessions a second of {key}", status=503)
        return Delay(early_s) if early_s and not options.nodelay else None

    return key_of.hooks(decide)


PLUGIN = Plugin(name="limit-rate", priority=1004, options=LimitRate, build=build)
