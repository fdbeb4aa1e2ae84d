"""At most so many new sessions a second of those that have a key in common; some more are let in late.

Ours: APISIX has `limit-req` for HTTP only. The names of the options are its.

Source:
  nginx `ngx_http_limit_req_module` (a leaky bucket per key).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Annotated

import attrs

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Decision, Delay, Hooks, Plugin, PluginContext
from streamgw.core.model import Facts
from streamgw.plugins.keys import KeyType, compile_key, names_of
from streamgw.plugins.options import Count, Fault, number, text, unknown_variables

MAX_KEYS = 65_536
"""Remembered per route. Beyond that the one that was not heard of for longest is forgotten."""


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


class Buckets:
    """How far each key is ahead of its rate. Bounded: a flood of keys makes it forget, not grow."""

    def __init__(self, rate: float, burst: int, *, max_keys: int = MAX_KEYS) -> None:
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """(sessions ahead of the rate, when that was), the one heard of last at the end."""

    def take(self, key: str, now: float) -> float | None:
        """How many seconds too early a session comes; None: too many are waiting already."""
        ahead = 0.0
        if key in self._buckets:
            before, then = self._buckets[key]
            ahead = max(0.0, before - (now - then) * self._rate + 1)
            if ahead > self._burst + _ROUNDING:
                return None
        self._buckets[key] = ahead, now
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return ahead / self._rate


_ROUNDING = 1e-9
"""Exactly on time is not too early, whatever the clock's last bits say."""


def build(options: LimitRate, context: PluginContext) -> Hooks:
    """Refuse or delay before any handshake, if the key allows."""
    key_of = compile_key(options.key, options.key_type, context.known)
    buckets = Buckets(options.rate, options.burst)

    def decide(facts: Facts, now: float) -> Decision:
        key = key_of(facts)
        early_s = buckets.take(key, now)
        if early_s is None:
            raise Rejected(f"more than {options.rate:g} new sessions a second of {key}", status=503)
        return Delay(early_s) if early_s and not options.nodelay else None

    return key_of.hooks(decide)


PLUGIN = Plugin(name="limit-rate", priority=1004, options=LimitRate, build=build)
