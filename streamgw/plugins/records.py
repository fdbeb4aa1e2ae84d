"""What loggers have in common: which facts of a session they tell, and when what they tell is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Final, TypeAlias

import attrs

from streamgw.core.access_log import compile_format
from streamgw.core.batch import BatchPolicy
from streamgw.core.model import Outcome
from streamgw.plugins.options import Count, Fault, Seconds, Stated, Wrong, integer, number, shown, text

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


@attrs.frozen(kw_only=True)
class LogMetadata:
    """What all uses of a logger share."""

    log_format: LogFormat | None = None
    max_pending_entries: Annotated[int, integer(1)] = 8192
    """Records that wait for one collector."""


@attrs.frozen(kw_only=True)
class LoggerOptions:
    """What every logger is told. Times are seconds."""

    log_format: LogFormat | None = None
    name: Annotated[str, text(1)] | None = None
    max_retry_count: Count = 0
    retry_delay: Seconds = 1.0
    buffer_duration: Annotated[float, number(1)] = 60.0
    inactive_timeout: Annotated[float, number(1)] = 5.0
    batch_max_size: Annotated[int, integer(1)] = 1000

    def policy(self, metadata: LogMetadata, pending_limit_bytes: int) -> BatchPolicy:
        """When records are sent."""
        return BatchPolicy(
            max_records=self.batch_max_size,
            inactive_s=self.inactive_timeout,
            buffer_s=self.buffer_duration,
            max_retries=self.max_retry_count,
            retry_delay_s=self.retry_delay,
            max_pending=metadata.max_pending_entries,
            pending_limit_bytes=pending_limit_bytes,
        )


def unknown_in(log_format: Mapping[str, str] | None) -> Iterator[Fault]:
    """Entries that no record will have: their variables are of HTTP, or misspelt."""
    for name, value in (log_format or {}).items():
        try:
            compile_format(value)
        except ValueError as error:
            yield Fault(("log_format", name), f"{error}: records are without it")


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
            continue  # `unknown_in` has said so
        entries.append((name, entry, _VARIABLE.fullmatch(value) is not None))

    def record(outcome: Outcome) -> Mapping[str, str]:
        told = ((name, entry(outcome), is_optional) for name, entry, is_optional in entries)
        found = {name: value for name, value, is_optional in told if value or not is_optional}
        found["route_id"] = outcome.route_id
        if outcome.service_id:
            found["service_id"] = outcome.service_id
        return found

    return record
