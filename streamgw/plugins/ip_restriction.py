"""Only clients of some networks, or all but those of some.

Source:
  APISIX `apisix/plugins/ip-restriction/init.lua`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import attrs

from streamgw.core.errors import Rejected
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.core.model import Facts, Network
from streamgw.core.networks import NetworkSet
from streamgw.plugins.options import Fault, Schema, address_of, integer, text, too_few

Address = Annotated[Network, address_of("ip address")]


@attrs.frozen(kw_only=True)
class IPRestriction:
    """Exactly one of the two lists."""

    whitelist: tuple[Address, ...] | None = None
    """Addresses and networks that may come."""
    blacklist: tuple[Address, ...] | None = None
    """Addresses and networks that may not."""
    message: Annotated[str, text(1, 1024)] = "Your IP address is not allowed"
    """Of the access log: a stream has no place to show it to the client."""
    response_code: Annotated[int, integer(403, 404)] = 403
    """The status that logs and metrics show."""
    schema: ClassVar[Schema] = {
        "properties": {"whitelist": {"minItems": 1}, "blacklist": {"minItems": 1}},
        "oneOf": [{"required": ["whitelist"]}, {"required": ["blacklist"]}],
    }

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        for name in ("whitelist", "blacklist"):
            if getattr(self, name) == ():
                yield too_few(name)
        if (self.whitelist is None) == (self.blacklist is None):
            found = "none" if self.whitelist is None else "both schemas 1 and 2"
            words = f"value should match only one schema, but matches {found}"
            yield Fault((), "expected exactly one of 'whitelist' and 'blacklist'", apisix=words)


def build(options: IPRestriction, _: PluginContext) -> Hooks:
    """Refuse by the client's address, before any handshake. A peer on a Unix socket is in no list."""
    networks = NetworkSet(options.whitelist or options.blacklist or ())
    is_allowed = options.whitelist is not None

    def on_accept(facts: Facts, _: float) -> None:
        if (facts.client.host in networks) is not is_allowed:
            raise Rejected(options.message, status=options.response_code)

    return Hooks(on_accept=on_accept)


PLUGIN = Plugin(name="ip-restriction", priority=3000, options=IPRestriction, build=build)
