"""A line of JSON for each session to a TCP server, in TLS if wanted.

Source:
  APISIX `apisix/plugins/tcp-logger.lua` (HTTP only there; it sends a list for each batch).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import attrs

from streamgw.core.batch import OverTCP
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.plugins.options import Fault, Port, integer, text
from streamgw.plugins.records import (
    HTTPLoggerOptions,
    LoggerOptions,
    LogMetadata,
    believes_everybody,
    telling,
)


@attrs.frozen(kw_only=True)
class TCPLogger(HTTPLoggerOptions):
    """Where the lines go."""

    host: Annotated[str, text(1, 253)]
    port: Port
    tls: bool = False
    tls_options: Annotated[str, text(1, 253)] | None = None
    """The name that TLS asks for, and that is verified. Without it: the host."""
    tls_verify: bool = False
    """The server's certificate is checked, by what `apisix.ssl.ssl_trusted_certificate` trusts."""
    timeout: Annotated[int, integer(1)] = 1000
    """Milliseconds for one batch."""

    def check(self) -> Iterator[Fault]:
        """Nothing may be sent in the clear that was to be encrypted."""
        yield from LoggerOptions.check(self)
        if self.tls_verify and not self.tls:
            yield Fault(("tls_verify",), "needs tls: true", at_key=True)

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect; and whom TLS lets in."""
        if self.tls_options is not None and not self.tls:
            yield Fault(("tls_options",), "does nothing without tls: true", at_key=True)
        yield from believes_everybody(tls=self.tls, verify=self.tls_verify)
        yield from HTTPLoggerOptions.warnings(self)


def build(options: TCPLogger, context: PluginContext) -> Hooks:
    """A connection for each batch."""
    to = OverTCP(
        host=options.host,
        port=options.port,
        tls=options.tls,
        verify=options.tls_verify,
        server_name=options.tls_options or "" if options.tls else "",
    )
    return telling(options, context, to, timeout_s=options.timeout / 1000)


PLUGIN = Plugin(name="tcp-logger", priority=405, options=TCPLogger, build=build, metadata=LogMetadata)
