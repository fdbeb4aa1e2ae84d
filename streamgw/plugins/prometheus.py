"""Count the sessions of a route in `apisix_stream_connection_total`. Everything else is measured for all routes anyway.

Source:
  APISIX `apisix/stream/plugins/prometheus.lua`, `apisix/plugins/prometheus/exporter.lua`.
"""

from __future__ import annotations

import attrs

from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.core.model import Facts, Outcome


@attrs.frozen(kw_only=True)
class Prometheus:
    """What the label `route` says."""

    prefer_name: bool = False
    """The name of the route, if it has one; false: its id."""


def build(options: Prometheus, context: PluginContext) -> Hooks:
    """Count at the close, by route."""
    label = (options.prefer_name and context.known["route_name"]) or context.known["route_id"]
    counts = context.services.connections

    def on_close(_: Facts, __: Outcome) -> None:
        counts[label] = counts.get(label, 0) + 1

    return Hooks(on_close=on_close)


PLUGIN = Plugin(name="prometheus", priority=500, options=Prometheus, build=build)
