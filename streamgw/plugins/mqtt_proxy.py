"""Let only MQTT clients in, and learn what they call themselves: `mqtt_client_id`, to hash or to decide by.

The bytes stay where they are: the upstream gets the CONNECT as it came.

Source:
  APISIX `apisix/stream/plugins/mqtt-proxy.lua`.
"""

from __future__ import annotations

from typing import Annotated

import attrs

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Hooks, Look, Plugin, PluginContext
from streamgw.core.model import Facts
from streamgw.core.wire import NeedMore
from streamgw.core.wire.mqtt import parse_connect
from streamgw.plugins.options import Stated, integer, text

_byte = integer(0, 255)


@attrs.frozen(kw_only=True)
class MQTTProxy:
    """Which protocol is spoken here."""

    protocol_name: Annotated[str, text(1, 64)] = "MQTT"
    """`MQTT`; `MQIsdp` of version 3.1."""
    protocol_level: Annotated[int, Stated(_byte.rule, _byte.schema, {"type": "integer"})]
    """4 is 3.1.1, 5 is 5.0, 3 is 3.1."""


def build(options: MQTTProxy, _: PluginContext) -> Hooks:
    """Look at the CONNECT, as far as the client identifier."""

    def parse(facts: Facts, buffer: bytes) -> Facts | NeedMore:
        said = parse_connect(buffer)
        if isinstance(said, NeedMore):
            return said
        if (said.protocol_name, said.protocol_level) != (options.protocol_name, options.protocol_level):
            spoken = f"{said.protocol_name!r} level {said.protocol_level}"
            message = f"speaks {spoken}, not {options.protocol_name!r} level {options.protocol_level}"
            raise Rejected(message, status=503)
        return attrs.evolve(facts, mqtt_client_id=said.client_id or None)

    return Hooks(look=Look("an MQTT CONNECT", parse))


PLUGIN = Plugin(name="mqtt-proxy", priority=1000, options=MQTTProxy, build=build)
