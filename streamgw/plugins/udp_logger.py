"""A datagram of JSON for each session to a UDP server.

Source:
  APISIX `apisix/plugins/udp-logger.lua` (HTTP only there; it sends a list for each batch, which may not fit).
"""

from __future__ import annotations

from typing import Annotated

import attrs

from streamgw.core.batch import OverUDP
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.plugins.options import Port, integer, text
from streamgw.plugins.records import HTTPLoggerOptions, LogMetadata, telling


@attrs.frozen(kw_only=True)
class UDPLogger(HTTPLoggerOptions):
    """Where the datagrams go."""

    host: Annotated[str, text(1, 253)]
    port: Port
    timeout: Annotated[int, integer(1)] = 3
    """Seconds for one batch."""


def build(options: UDPLogger, context: PluginContext) -> Hooks:
    """Nobody says whether they arrive."""
    to = OverUDP(host=options.host, port=options.port)
    return telling(options, context, to, timeout_s=float(options.timeout))


PLUGIN = Plugin(name="udp-logger", priority=400, options=UDPLogger, build=build, metadata=LogMetadata)
