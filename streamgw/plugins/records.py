"""What loggers have in common: of which sessions they tell, what they tell, and when what they tell is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, ClassVar, Final, TypeAlias

import attrs

from streamgw.core.access_log import compile_format, lookup
from streamgw.core.batch import BatchPolicy, Collector, Destination
from streamgw.core.hooks import Hooks, PluginContext
from streamgw.core.model import Facts, Outcome
from streamgw.plugins.options import (
    Count,
    Expression,
    Fault,
    Schema,
    Seconds,
    Stated,
    Wrong,
    does_nothing,
    expression,
    integer,
    number,
    shown,
    text,
)

DEFAULT_FORMAT: Final[Mapping[str, str]] = {
    "time": "$time_iso8601",
    "client_ip": "$remote_addr",
    "client_port": "$remote_port",
    "server_addr": "$server_addr",
    "server_port": "$server_port",
    "server_name": "$ssl_server_name",
    "protocol": "$protocol",
    "upstream_addr": "$upstream_addr",
    "status": "$status",
    "reason": "$reason",
    "bytes_sent": "$bytes_sent",
    "bytes_received": "$bytes_received",
    "session_time": "$session_time",
}
"""What is told without a `log_format`. APISIX then sends nothing."""
MAX_MATCHES: Final = 20
MIN_RETRY_DELAY_S: Final = 0.1
"""Whatever `retry_delay` says: a collector that refuses at once, tried again at once, would keep a core busy."""

_VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")


def _log_format(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping of names to texts, got {shown(value)}")
    faults = [
        Fault((name,), f"expected text, got {shown(each)}")
        for name, each in value.items()
        if type(each) is not str
    ]
    if faults:
        raise Wrong(*faults)
    return dict(value)


LogFormat: TypeAlias = Annotated[
    Mapping[str, str],
    Stated(
        _log_format,
        {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Names with a text each, in which $variables of the access log have their value.",
        },
        {"type": "object"},
    ),
]


def _unknown_variables(log_format: Mapping[str, str] | None) -> Iterator[Fault]:
    for name, value in (log_format or {}).items():
        try:
            compile_format(value)
        except ValueError as error:
            yield Fault(("log_format", name), f"{error}: records are without it")


def _any_list(value: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise Wrong(f"expected a list, got {shown(value)}")
    return tuple(value)


_AnyList: TypeAlias = Annotated[tuple[object, ...], Stated(_any_list, {"type": "array"})]


@attrs.frozen(kw_only=True)
class LogMetadata:
    """What all uses of a logger share."""

    log_format: LogFormat | None = None
    max_pending_entries: Annotated[int, integer(1)] = 8192
    """Records that wait for one collector."""

    def warnings(self) -> Iterator[Fault]:
        """Variables that no session has."""
        yield from _unknown_variables(self.log_format)


@attrs.frozen(kw_only=True)
class LoggerOptions:
    """What every logger is told. Times are seconds."""

    log_format: LogFormat | None = None
    match: tuple[Annotated[Expression, expression("match")], ...] = ()
    """Sessions that are told of: any of these holds of how they went. Empty: every session."""
    name: Annotated[str, text(1)] | None = None
    max_retry_count: Count = 0
    retry_delay: Seconds = 1.0
    buffer_duration: Annotated[float, number(1)] = 60.0
    inactive_timeout: Annotated[float, number(1)] = 5.0
    batch_max_size: Annotated[int, integer(1)] = 1000
    drop_limit: Annotated[int, integer(1)] = 1 << 20
    """Bytes that wait."""
    schema: ClassVar[Schema] = {"properties": {"match": {"maxItems": MAX_MATCHES}}}

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if len(self.match) > MAX_MATCHES:
            words = f'property "match" validation failed: expect array to have at most {MAX_MATCHES} items'
            yield Fault(("match",), f"expected at most {MAX_MATCHES} entries", apisix=words)

    def warnings(self) -> Iterator[Fault]:
        """Variables that no session has: of HTTP, or misspelt."""
        yield from _unknown_variables(self.log_format)
        for position, condition in enumerate(self.match):
            for name in sorted(condition.variables):
                if lookup(name) is None:
                    yield Fault(("match", position), f"unknown variable ${name}: it never has a value")

    def policy(self, metadata: LogMetadata) -> BatchPolicy:
        """When records are sent."""
        return BatchPolicy(
            max_records=self.batch_max_size,
            inactive_s=self.inactive_timeout,
            buffer_s=self.buffer_duration,
            max_retries=self.max_retry_count,
            retry_delay_s=max(self.retry_delay, MIN_RETRY_DELAY_S),
            max_pending=metadata.max_pending_entries,
            pending_limit_bytes=self.drop_limit,
        )


@attrs.frozen(kw_only=True)
class HTTPLoggerOptions(LoggerOptions):
    """Of the loggers that APISIX has for HTTP only: what they say about bodies, which no stream has."""

    include_req_body: bool | None = None
    include_req_body_expr: _AnyList | None = None
    include_resp_body: bool | None = None
    include_resp_body_expr: _AnyList | None = None
    max_req_body_bytes: Count | None = None
    max_resp_body_bytes: Count | None = None

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        own = {field.name for field in attrs.fields(HTTPLoggerOptions)}
        yield from does_nothing(self, *sorted(own - {field.name for field in attrs.fields(LoggerOptions)}))
        yield from LoggerOptions.warnings(self)


def believes_everybody(*, tls: bool, verify: bool) -> Iterator[Fault]:
    """What is said when TLS hides the records from all but whoever pretends to be the server."""
    if tls and not verify:
        message = "whoever answers is believed: the server's certificate is not verified (tls_verify)"
        yield Fault(("tls",), message, at_key=True)


def _no_head(_: Outcome) -> str:
    return ""


def telling(
    options: LoggerOptions,
    context: PluginContext,
    to: Destination,
    *,
    timeout_s: float,
    head: Callable[[Outcome], str] = _no_head,
) -> Hooks:
    """Hand a record of each session to the process at its close, which sends it: `head`, then JSON.

    `timeout_s` is for one batch.
    """
    metadata = context.metadata
    assert isinstance(metadata, LogMetadata)
    collector = Collector(to=to, timeout_s=timeout_s, policy=options.policy(metadata))
    hostname = context.known["hostname"]
    record = compile_record(options, metadata, hostname)
    conditions = [each.bind(lambda name: lookup(name, hostname)) for each in options.match]
    shipping = context.services.shipping

    def on_close(_: Facts, outcome: Outcome) -> None:
        if not conditions or any(holds(outcome) for holds in conditions):
            shipping.ship(collector, (head(outcome) + json.dumps(record(outcome))).encode())

    return Hooks(on_close=on_close)


def compile_record(
    options: LoggerOptions, metadata: LogMetadata, hostname: str
) -> Callable[[Outcome], Mapping[str, str]]:
    """What is told of a session: the entries of the format, then `route_id` and `service_id`.

    An entry that is nothing but a variable is left out of the record when that has no value, as in APISIX.
    """
    log_format = options.log_format or metadata.log_format or DEFAULT_FORMAT
    entries: list[tuple[str, Callable[[Outcome], str], bool]] = []
    for name, value in log_format.items():
        try:
            entry = compile_format(value, "none", hostname=hostname)
        except ValueError:
            continue  # `warnings` has said so
        entries.append((name, entry, _VARIABLE.fullmatch(value) is not None))

    def record(outcome: Outcome) -> Mapping[str, str]:
        told = ((name, entry(outcome), is_optional) for name, entry, is_optional in entries)
        found = {name: value for name, value, is_optional in told if value or not is_optional}
        found["route_id"] = outcome.route_id
        if outcome.service_id:
            found["service_id"] = outcome.service_id
        return found

    return record
