"""Believe the PROXY header of load balancers that only this route trusts.

Ours at layer 4. `nginx_config.stream.real_ip_from` does the same for every route, before the match: routes, and limits of
the listener, then see the client that the header names. Here it is the plugins that run afterwards, the balancer, the log,
and the upstream that see it.

Source:
  APISIX `apisix/plugins/real-ip.lua` (HTTP).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from streamgw.core.hooks import Decision, Hooks, Plugin, PluginContext
from streamgw.core.model import Facts
from streamgw.core.networks import NetworkSet
from streamgw.plugins.options import Fault, Net, Schema, too_few


@attrs.frozen(kw_only=True)
class RealIP:
    """Whose headers are believed."""

    trusted_addresses: tuple[Net, ...]
    """Of the peers that connect to us."""
    schema: ClassVar[Schema] = {"properties": {"trusted_addresses": {"minItems": 1}}}

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if not self.trusted_addresses:
            yield too_few("trusted_addresses")


def build(options: RealIP, _: PluginContext) -> Hooks:
    """Take the client from the header, where the listener has read one and nobody has believed it yet."""
    trusted = NetworkSet(options.trusted_addresses)

    def on_accept(facts: Facts, _: float) -> Decision:
        if facts.claimed is None or facts.client.host not in trusted:
            return None
        return attrs.evolve(facts, client=facts.claimed, peer=facts.client, claimed=None)

    return Hooks(on_accept=on_accept)


PLUGIN = Plugin(name="real-ip", priority=23000, options=RealIP, build=build)
