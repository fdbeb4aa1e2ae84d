"""One message for each session to a syslog server: RFC 5424 over TCP, TLS or UDP.

Source:
  APISIX `apisix/stream/plugins/syslog.lua`, `apisix/plugins/syslog/init.lua`, `apisix/utils/rfc5424.lua`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Annotated, Literal

import attrs

from streamgw.core.access_log import compile_format
from streamgw.core.batch import Collector
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.core.model import Facts, Outcome
from streamgw.plugins.options import Fault, Port, integer, text
from streamgw.plugins.records import LoggerOptions, LogMetadata, compile_record, unknown_in

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
    drop_limit: Annotated[int, integer(1)] = 1 << 20
    """Bytes that wait."""
    flush_limit: Annotated[int, integer(1)] | None = None
    pool_size: Annotated[int, integer(5)] | None = None

    def check(self) -> Iterator[Fault]:
        """Nothing may be sent in the clear that was to be encrypted."""
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
        if self.tls and not self.tls_verify:
            message = "whoever answers is believed: the server's certificate is not verified (tls_verify)"
            yield Fault(("tls",), message, at_key=True)
        yield from unknown_in(self.log_format)


def build(options: Syslog, context: PluginContext) -> Hooks:
    """Hand one message to the process at the close; it sends it."""
    metadata = context.metadata
    assert isinstance(metadata, LogMetadata)
    collector = Collector(
        transport=options.sock_type,
        host=options.host,
        port=options.port,
        tls=options.tls,
        verify=options.tls_verify,
        timeout_s=options.timeout / 1000,
        policy=options.policy(metadata, options.drop_limit),
    )
    hostname = context.known["hostname"]
    record = compile_record(options, metadata, hostname)
    stamp = compile_format("$time_iso8601", "none")
    shipping = context.services.shipping

    def on_close(_: Facts, outcome: Outcome) -> None:
        header = f"<{_PRIORITY}>1 {stamp(outcome)} {hostname or '-'} {_APPLICATION} {os.getpid()} - - "
        shipping.ship(collector, (header + json.dumps(record(outcome))).encode())

    return Hooks(on_close=on_close)


PLUGIN = Plugin(name="syslog", priority=401, options=Syslog, build=build, metadata=LogMetadata)
