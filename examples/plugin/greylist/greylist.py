"""Who comes for the first time has to come again: scanners do not, mail servers and people do."""

from __future__ import annotations

import attrs

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.core.model import Facts
from streamgw.plugins.options import Duration

MAX_CLIENTS = 100_000


@attrs.frozen(kw_only=True)
class Greylist:
    """What a route may say to it."""

    retry_after: Duration = 60.0
    """How soon is too soon."""


def build(options: Greylist, _: PluginContext) -> Hooks:
    """Called once for each route that names it; what it remembers lives as long as these options do."""
    first_seen: dict[str, float] = {}

    def on_accept(facts: Facts, now: float) -> None:
        came = first_seen.setdefault(facts.client.host, now)
        if len(first_seen) > MAX_CLIENTS:
            del first_seen[next(iter(first_seen))]
        if now - came < options.retry_after:
            raise Rejected("come again later")

    return Hooks(on_accept=on_accept)


PLUGIN = Plugin(name="greylist", priority=2500, options=Greylist, build=build, version="1.0")
