"""One message for each session to a syslog server: RFC 5424 over TCP, TLS or UDP.

Source:
  APISIX `apisix/stream/plugins/syslog.lua`, `apisix/plugins/syslog/init.lua`, `apisix/utils/rfc5424.lua`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Literal

import attrs

from streamgw.core.access_log import compile_format
from streamgw.core.batch import OverTCP, OverUDP
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.core.model import Outcome
from streamgw.plugins.options import Fault, Port, integer, text
from streamgw.plugins.records import LoggerOptions, LogMetadata, believes_everybody, telling

_PRIORITY = 5 * 8 + 6
"""Facility syslog, severity informational."""
_APPLICATION = "apisix"
"""What filters of those who come from there look for."""


@attrs.frozen(kw_only=True)
class Syslog(LoggerOptions):
    """Where the messages go, and what they say."""

    host: Annotated[str, text(1, 253)]
    port: Port
    sock_type: Literal["tcp", "udp"] = "tcp"
    tls: bool = False
    tls_verify: bool = False
    """The server's certificate is checked, by what `apisix.ssl.ssl_trusted_certificate` trusts."""
    timeout: Annotated[int, integer(1)] = 3000
    """Milliseconds for one batch."""
    flush_limit: Annotated[int, integer(1)] | None = None
    pool_size: Annotated[int, integer(5)] | None = None

    def check(self) -> Iterator[Fault]:
        """Nothing may be sent in the clear that was to be encrypted."""
        yield from LoggerOptions.check(self)
        if self.tls and self.sock_type == "udp":
            yield Fault(("tls",), "TLS needs sock_type: tcp", at_key=True)
        if self.tls_verify and not self.tls:
            yield Fault(("tls_verify",), "needs tls: true", at_key=True)

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect; and whom TLS lets in."""
        for name in ("flush_limit", "pool_size"):
            if getattr(self, name) is not None:
                yield Fault(
                    (name,),
                    "does nothing: every batch is sent whole, on a connection of its own",
                    at_key=True,
                )
        yield from believes_everybody(tls=self.tls, verify=self.tls_verify)
        yield from LoggerOptions.warnings(self)


def build(options: Syslog, context: PluginContext) -> Hooks:
    """A header of RFC 5424 before each record."""
    host, port = options.host, options.port
    to = (
        OverUDP(host=host, port=port)
        if options.sock_type == "udp"
        else OverTCP(host=host, port=port, tls=options.tls, verify=options.tls_verify)
    )
    stamp = compile_format("$time_iso8601", "none")
    hostname = context.known["hostname"] or "-"

    def head(outcome: Outcome) -> str:
        return f"<{_PRIORITY}>1 {stamp(outcome)} {hostname} {_APPLICATION} {os.getpid()} - - "

    return telling(options, context, to, timeout_s=options.timeout / 1000, head=head)


PLUGIN = Plugin(name="syslog", priority=401, options=Syslog, build=build, metadata=LogMetadata)
