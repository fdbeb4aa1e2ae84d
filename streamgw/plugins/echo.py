"""Answer the client at the gateway: to see that a route is reached, without anything behind it.

Source:
  APISIX `apisix/plugins/echo.lua` (HTTP), for the name and its option.
"""

from __future__ import annotations

from typing import Annotated

import attrs

from streamgw.core.errors import Answered, Rejected
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.core.model import Facts
from streamgw.plugins.options import text

MAX_LETTERS = 4096
"""What any socket takes at once, in UTF-8 too."""


@attrs.frozen(kw_only=True)
class Echo:
    """What is said."""

    body: Annotated[str, text(1, MAX_LETTERS)]
    """Sent as UTF-8, as it is; then the connection is closed."""


def build(options: Echo, _: PluginContext) -> Hooks:
    """Answer after every other plugin had its say: who is refused gets no answer."""
    words = options.body.encode()

    def on_preread(facts: Facts, _: float) -> None:
        if facts.transport == "udp":
            raise Rejected("answers over TCP only")
        raise Answered(words)

    return Hooks(on_preread=on_preread)


PLUGIN = Plugin(name="echo", priority=412, options=Echo, build=build)
