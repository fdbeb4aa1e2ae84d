"""One line per session: JSON of our own, or any format in nginx's language, APISIX's default included.

Runs once for every session, so the JSON is put together by hand: a dictionary through `json.dumps` takes twice as long.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Literal, TypeAlias

import attrs

from streamgw.core.errors import Fault, Reason
from streamgw.core.model import Address, ClientCertificate, Outcome

Escape = Literal["default", "json", "none"]

APISIX_FORMAT = "$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time"

STATUS_BY_REASON: Mapping[str, int] = {
    Reason.CLOSED: 200,
    Reason.RESET: 200,
    Reason.IDLE_TIMEOUT: 200,
    Reason.MAX_DURATION: 200,
    Reason.DRAIN: 200,
    Reason.KILLED: 200,
    Reason.NODE_DOWN: 200,
    Reason.EVICTED: 200,
    Reason.MOVED: 200,
    Reason.BAD_PREFACE: 400,
    Reason.PREREAD_TIMEOUT: 400,
    Reason.PREREAD_LIMIT: 400,
    Reason.NO_ROUTE: 403,
    Reason.REJECTED: 403,
    Reason.NO_UPSTREAM: 500,
    Reason.TLS_FAILED: 500,
    Reason.BUG: 500,
    Reason.NO_NODE: 502,
    Reason.CONNECT_FAILED: 502,
    Reason.EXHAUSTED: 503,
}
"""`$status`. nginx has only 200, 400, 403, 500, 502 and 503 here, and like nginx we call every session 200 that got to
its upstream, however it ended. What nginx cannot say, `$reason` does. A failed handshake is 500 with the client
(`ngx_stream_ssl_handshake_handler`), and with a node what a failed connect is: 502."""


def status_of(outcome: Outcome) -> int:
    """`$status`, for metrics too."""
    if outcome.reason == Reason.TLS_FAILED and outcome.fault == Fault.UPSTREAM:
        return STATUS_BY_REASON[Reason.CONNECT_FAILED]
    return outcome.status or STATUS_BY_REASON[outcome.reason]


def compile_format(
    log_format: str, escape: Escape = "default", *, hostname: str = ""
) -> Callable[[Outcome], str]:
    """A function from an outcome to its line, without a newline.

    Args:
      log_format: `json`, `apisix`, or text with `$variables` (also `${variable}`).
      escape: how a variable's value is written, as nginx's `log_format escape=`; `json` lines need none.
      hostname: the value of `$hostname`.

    Raises:
      ValueError: a variable that there is not, by name.
    """
    if log_format == "json":
        return format_json
    write = _ESCAPES[escape]
    parts: list[str | _Variable] = []
    end = 0
    text = APISIX_FORMAT if log_format == "apisix" else log_format
    for found in _VARIABLE.finditer(text):
        parts += [text[end : found.start()], _variable(found[1] or found[2] or "", hostname)]
        end = found.end()
    parts.append(text[end:])

    def format_text(outcome: Outcome) -> str:
        return "".join([part if isinstance(part, str) else write(part(outcome)) for part in parts])

    return format_text


def format_json(outcome: Outcome) -> str:
    """The default line. Keys in a fixed order; `peer` only when a PROXY header replaced it, `tls` and what belongs to it
    only for a client that spoke TLS, `attempts` only after a failed one, `datagrams_…` only over UDP; `time` is the end of
    the session.
    """
    facts = outcome.facts
    quote = _QUOTE
    peer = "" if outcome.peer == facts.client else f'"peer":"{outcome.peer}",'
    tls = _tls_json(outcome) if outcome.tls_version or facts.server_name is not None else ""
    node = "null" if outcome.node is None else f'"{outcome.node}"'
    connect_ms = "null" if outcome.connect_s is None else f"{outcome.connect_s * 1000:.3f}"
    return (
        f'{{"time":"{_iso_utc(outcome.started_at + outcome.duration_s)}","session":{quote(outcome.session_id)}'
        f',"listener":{quote(facts.listener)},"client":"{facts.client}",{peer}"server":"{facts.server}"{tls}'
        f',"route":{quote(outcome.route_id)},"service":{quote(outcome.service_id)}'
        f',"upstream":{quote(outcome.upstream)},"node":{node},{_attempts_json(outcome)}'
        f'"bytes_up":{outcome.bytes_up},"bytes_down":{outcome.bytes_down},{_datagrams_json(outcome)}'
        f'"duration_s":{outcome.duration_s:.6f}'
        f',"connect_ms":{connect_ms},"phase":"{outcome.phase}","reason":"{outcome.reason}","fault":"{outcome.fault}"'
        f',"side":"{outcome.side}","detail":{quote(outcome.detail)},"revision":{quote(outcome.revision)}}}'
    )


_QUOTE = encode_basestring_ascii
"""Of JSON, for text."""


def _tls_json(outcome: Outcome) -> str:
    """`client_…` only of a client that has proven to be somebody."""
    facts = outcome.facts
    tls = f',"tls":{_QUOTE(outcome.tls_version)},"cipher":{_QUOTE(outcome.tls_cipher)},"sni":{_QUOTE(facts.server_name or "")}'
    certificate = facts.client_certificate
    if certificate is None:
        return tls
    return (
        f'{tls},"client_subject":{_QUOTE(certificate.subject)},"client_fingerprint":{_QUOTE(certificate.fingerprint)}'
        f',"client_sans":{json.dumps(certificate.sans)}'
    )


def _datagrams_json(outcome: Outcome) -> str:
    if outcome.facts.transport == "tcp":
        return ""
    return (
        f'"datagrams_up":{outcome.datagrams_up},"datagrams_down":{outcome.datagrams_down},'
        f'"datagrams_dropped":{outcome.datagrams_dropped},'
    )


def _attempts_json(outcome: Outcome) -> str:
    if not outcome.attempts or not any(attempt.error for attempt in outcome.attempts):
        return ""
    attempts = ",".join(
        f'{{"node":"{attempt.node}","ms":{attempt.seconds * 1000:.3f},"error":{_QUOTE(attempt.error)}}}'
        for attempt in outcome.attempts
    )
    return f'"attempts":[{attempts}],'


def _iso_utc(unix_s: float) -> str:
    second, ms = divmod(int(unix_s * 1000), 1000)
    return f"{_iso_utc_second(second)}.{ms:03d}Z"


@functools.lru_cache(maxsize=8)
def _iso_utc_second(second: int) -> str:
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


@functools.lru_cache(maxsize=8)
def _local_second(second: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(second, dt.UTC).astimezone()


_Variable: TypeAlias = Callable[[Outcome], str | None]
"""None: this session has no such value, which nginx writes as `-`."""

_VARIABLE = re.compile(r"\$(?:\{([a-zA-Z0-9_]+)\}|([a-zA-Z0-9_]+))")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def lookup(name: str, hostname: str = "") -> Callable[[Outcome], str | None] | None:
    """How the value of a variable is had, as that of `core.variables` for facts; None if there is no variable of that name."""
    if name == "hostname":
        return lambda _: hostname or None
    return _VARIABLES.get(name)


def _variable(name: str, hostname: str) -> _Variable:
    variable = lookup(name, hostname)
    if variable is None:
        raise ValueError(f"unknown variable ${name}")
    return variable


def _end(outcome: Outcome) -> dt.datetime:
    return _local_second(int(outcome.started_at + outcome.duration_s))


def _time_local(outcome: Outcome) -> str:
    end = _end(outcome)
    return f"{end:%d}/{_MONTHS[end.month - 1]}/{end:%Y:%H:%M:%S %z}"  # %b would follow the locale


def _proxied(outcome: Outcome) -> Address | None:
    """The client as a PROXY header announced it; None when it was not believed, or said nothing new."""
    return None if outcome.peer == outcome.facts.client else outcome.facts.client


@attrs.frozen
class _UpstreamTry:
    """One peer of nginx's comma-separated `$upstream_…` lists."""

    address: Address
    session_s: float
    connect_s: float | None = None
    is_last: bool = False


def _tries(outcome: Outcome) -> list[_UpstreamTry]:
    failed = [attempt for attempt in outcome.attempts if attempt.error]
    tries = [_UpstreamTry(attempt.node, attempt.seconds) for attempt in failed]
    node = outcome.node
    if node is not None and not (outcome.connect_s is None and failed and failed[-1].node == node):
        # nginx counts from the start of this connect. What came before the first one is microseconds.
        rest_s = max(0.0, outcome.duration_s - sum(attempt.seconds for attempt in failed))
        tries.append(_UpstreamTry(node, rest_s, outcome.connect_s, is_last=True))
    return tries


def _each_try(show: Callable[[Outcome, _UpstreamTry], str]) -> _Variable:
    return lambda outcome: ", ".join(show(outcome, upstream_try) for upstream_try in _tries(outcome)) or None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _status(outcome: Outcome) -> str:
    return str(status_of(outcome))


def _ssl_protocol(outcome: Outcome) -> str | None:
    """As in nginx, empty unless TLS is terminated here; `$tls` also says `passthrough`."""
    return outcome.tls_version if outcome.tls_version not in ("", "passthrough") else None


def _of_client(show: Callable[[ClientCertificate], str]) -> _Variable:
    def variable(outcome: Outcome) -> str | None:
        certificate = outcome.facts.client_certificate
        return None if certificate is None else show(certificate) or None

    return variable


def _of_udp(outcome: Outcome, count: int) -> str | None:
    return str(count) if outcome.facts.transport == "udp" else None


_VARIABLES: Mapping[str, _Variable] = {
    "remote_addr": lambda o: o.facts.client.host,
    "remote_port": lambda o: str(o.facts.client.port),
    "server_addr": lambda o: o.facts.server.host,
    "server_port": lambda o: str(o.facts.server.port),
    "protocol": lambda o: o.facts.transport.upper(),
    "connection": lambda o: o.session_id,
    "bytes_sent": lambda o: str(o.bytes_down),
    "bytes_received": lambda o: str(o.bytes_up),
    "session_time": lambda o: _seconds(o.duration_s),
    "status": _status,
    "msec": lambda o: _seconds(o.started_at + o.duration_s),
    "time_iso8601": lambda o: _end(o).isoformat(),
    "time_local": _time_local,
    "upstream_addr": _each_try(lambda _, t: str(t.address)),
    "upstream_bytes_sent": _each_try(lambda o, t: str(o.bytes_up if t.is_last else 0)),
    "upstream_bytes_received": _each_try(lambda o, t: str(o.bytes_down if t.is_last else 0)),
    "upstream_connect_time": _each_try(lambda _, t: _seconds(t.connect_s)),
    "upstream_session_time": _each_try(lambda _, t: _seconds(t.session_s)),
    "realip_remote_addr": lambda o: o.peer.host,
    "realip_remote_port": lambda o: str(o.peer.port),
    "proxy_protocol_addr": lambda o: None if (client := _proxied(o)) is None else client.host,
    "proxy_protocol_port": lambda o: None if (client := _proxied(o)) is None else str(client.port),
    "ssl_server_name": lambda o: o.facts.server_name,
    "ssl_protocol": _ssl_protocol,
    "ssl_cipher": lambda o: o.tls_cipher or None,
    "ssl_client_s_dn": _of_client(lambda certificate: certificate.subject),
    "ssl_client_serial": _of_client(lambda certificate: certificate.serial.upper()),
    "mqtt_client_id": lambda o: o.facts.mqtt_client_id or None,
    "route_id": lambda o: o.route_id or None,
    "route_name": lambda o: o.route_name or None,
    "service_id": lambda o: o.service_id or None,
    "service_name": lambda o: o.service_name or None,
    "balancer_ip": lambda o: None if o.node is None else o.node.host,
    "balancer_port": lambda o: None if o.node is None else str(o.node.port),
    # Ours.
    "listener": lambda o: o.facts.listener,
    "upstream": lambda o: o.upstream or None,
    "tls": lambda o: o.tls_version or None,
    "client_fingerprint": _of_client(lambda certificate: certificate.fingerprint),
    "client_sans": _of_client(lambda certificate: ",".join(certificate.sans)),
    "datagrams_up": lambda o: _of_udp(o, o.datagrams_up),
    "datagrams_down": lambda o: _of_udp(o, o.datagrams_down),
    "datagrams_dropped": lambda o: _of_udp(o, o.datagrams_dropped),
    "phase": lambda o: o.phase,
    "reason": lambda o: o.reason,
    "fault": lambda o: o.fault,
    "side": lambda o: o.side or None,
    "detail": lambda o: o.detail or None,
    "revision": lambda o: o.revision or None,
}


_UNSAFE_IN_DEFAULT = re.compile(r"[^ !#-\[\]-~]")


def _escape_default(value: str | None) -> str:
    r"""nginx: `"`, `\` and whatever is not printable ASCII as `\xXX`, byte by byte; `-` for no value."""
    if value is None:
        return "-"
    return _UNSAFE_IN_DEFAULT.sub(_as_hex, value)


def _as_hex(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


def _escape_json(value: str | None) -> str:
    """nginx: what may stand between the quotes of a JSON string; nothing for no value."""
    return "" if value is None else _QUOTE(value)[1:-1]


def _escape_none(value: str | None) -> str:
    """As it is, but for line ends: one session is one line."""
    return "" if value is None else " ".join(value.splitlines())


_ESCAPES: Mapping[Escape, Callable[[str | None], str]] = {
    "default": _escape_default,
    "json": _escape_json,
    "none": _escape_none,
}
