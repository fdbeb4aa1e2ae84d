"""`apisix.stream_proxy`: what to listen on, in every form that APISIX understands.

Source:
  APISIX `apisix/cli/ops.lua` and `apisix/cli/schema.lua`: forms and error texts. Ours are `optional` and `required`
  PROXY headers, the version sent on, `tls: optional`, `fallback_sni`, `max_sessions`, and objects for UDP.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, TypeAlias, TypeVar

import attrs

from streamgw.config.rules import PORT_SCHEMA, Count, HostName
from streamgw.config.strict import Fault, Stated, Wrong, each, shown, structure
from streamgw.config.wording import Schema
from streamgw.config.yaml_reader import Path
from streamgw.core.model import (
    Address,
    Listener,
    Passthrough,
    ProxyProtocolIn,
    ProxyProtocolOut,
    TLSIn,
    Transport,
)

TCP_PATH: Path = ("apisix", "stream_proxy", "tcp")
UDP_PATH: Path = ("apisix", "stream_proxy", "udp")

_PORTS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_LUA_TYPES = {bool: "boolean", dict: "table", list: "table", type(None): "nil"}


@attrs.frozen
class Endpoint:
    """Where one entry listens: a host and a range of ports, or the path of a Unix socket."""

    host: str = ""
    """Empty: a bare port."""
    first: int = 0
    last: int = 0
    path: str = ""


def endpoint_rule(kind: Transport) -> Stated[Endpoint]:
    """The rule for an address: `9100`, `"127.0.0.1:9101"`, `"[::1]:9100"`, `"2000-2100"`, `"unix:/path"` (TCP)."""

    def rule(value: object) -> Endpoint:
        try:
            return _parse_endpoint(value, kind)
        except ValueError as error:
            raise Wrong(f"invalid stream_proxy.{kind} entry: {error}") from None

    return Stated(rule, _ENDPOINT_SCHEMA)


_ENDPOINT_SCHEMA: Schema = {
    "description": '9100, "127.0.0.1:9101", "[::1]:9100", "2000-2100" or "unix:/path".',
    "anyOf": [PORT_SCHEMA, {"type": "string"}],
}


def _parse_endpoint(value: object, kind: Transport) -> Endpoint:
    if type(value) is int:
        return _with_ports("", value, value, value)
    if type(value) is float:
        raise ValueError(f"port must be an integer, got: {value}")
    if not isinstance(value, str):
        raise ValueError(f"invalid port value type: {_LUA_TYPES[type(value)]}")  # noqa: TRY004 - one type for the rule
    if value.startswith("unix:/") and kind == "tcp":
        return Endpoint(path=value.removeprefix("unix:"))
    host, colon, ports = value.rpartition(":")
    if not ports:
        raise ValueError(f"missing port: {value}")
    found = _PORTS.fullmatch(ports)
    if found is None:
        raise ValueError(f"invalid port format: {value}")
    return _with_ports(
        _literal(host) if colon else "", int(found.group(1)), int(found.group(2) or found.group(1)), value
    )


def _with_ports(host: str, first: int, last: int, written: object) -> Endpoint:
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise ValueError(f"port out of range (1-65535): {written}")
    if first > last:
        raise ValueError(f"invalid port range (start > end): {written}")
    return Endpoint(host, first, last)


def _literal(host: str) -> str:
    if host == "*":
        return "0.0.0.0"  # noqa: S104 - nginx's word for it
    try:
        if host.startswith("[") and host.endswith("]"):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if ":" not in host:
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ValueError(f"expected an IP address, got {shown(host)}") from None
    raise ValueError(f"IPv6 address must be enclosed with '[' and ']', got {shown(host)}")


def _mode_in(value: object) -> ProxyProtocolIn:
    modes: dict[object, ProxyProtocolIn] = {"optional": "optional", "required": "required", "off": "off"}
    if isinstance(value, bool):
        return "required" if value else "off"
    if isinstance(value, str) and value in modes:
        return modes[value]
    raise Wrong(f"expected true, false, 'optional' or 'required', got {shown(value)}")


def _mode_out(value: object) -> ProxyProtocolOut:
    modes: dict[object, ProxyProtocolOut] = {"v1": "v1", "v2": "v2", "off": "off"}
    if isinstance(value, bool):
        return "v1" if value else "off"
    if isinstance(value, str) and value in modes:
        return modes[value]
    raise Wrong(f"expected true, false, 'v1' or 'v2', got {shown(value)}")


_MODES_IN: Schema = {"enum": [True, False, "off", "optional", "required"]}
_MODES_OUT: Schema = {"enum": [True, False, "off", "v1", "v2"]}


def _tls_mode(value: object) -> TLSIn:
    if isinstance(value, bool):
        return "required" if value else "off"
    if value == "optional":
        return "optional"
    raise Wrong(f"expected true, false or 'optional', got {shown(value)}")


@attrs.frozen(kw_only=True)
class Entry:
    """One item of the list, with what it says about its connections."""

    addr: Annotated[Endpoint, endpoint_rule("tcp")]
    tls: Annotated[TLSIn, Stated(_tls_mode, {"enum": [True, False, "optional"]})] = "off"
    tls_passthrough: bool = False
    proxy_protocol: Annotated[ProxyProtocolIn, Stated(_mode_in, _MODES_IN)] | None = None
    proxy_protocol_to_upstream: Annotated[ProxyProtocolOut, Stated(_mode_out, _MODES_OUT)] | None = None
    max_sessions: Count | None = None
    fallback_sni: HostName | None = None

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.fallback_sni is not None and self.tls == "off" and not self.tls_passthrough:
            message = "does nothing: this listener does not look for TLS ('tls', 'tls_passthrough')"
            yield Fault(("fallback_sni",), message, at_key=True)


@attrs.frozen(kw_only=True)
class DatagramEntry:
    """One item of the UDP list. The object form is ours: APISIX has numbers and text only."""

    addr: Annotated[Endpoint, endpoint_rule("udp")]
    max_sessions: Count | None = None


def _tcp_entry(value: object) -> Entry:
    return structure(value, Entry) if isinstance(value, dict) else Entry(addr=endpoint_rule("tcp")(value))


def _udp_entry(value: object) -> DatagramEntry:
    if isinstance(value, dict):
        return structure(value, DatagramEntry)
    return DatagramEntry(addr=endpoint_rule("udp")(value))


_AnyEntry = TypeVar("_AnyEntry", Entry, DatagramEntry)


def _list_of(rule: Callable[[object], _AnyEntry]) -> Callable[[object], tuple[_AnyEntry, ...]]:
    return lambda values: each(rule, values)


def _list_schema(entry: type[Entry | DatagramEntry]) -> Schema:
    return {"type": "array", "items": {"anyOf": [*_ENDPOINT_SCHEMA["anyOf"], entry]}}


TCPEntries: TypeAlias = Annotated[tuple[Entry, ...], Stated(_list_of(_tcp_entry), _list_schema(Entry))]
UDPEntries: TypeAlias = Annotated[
    tuple[DatagramEntry, ...], Stated(_list_of(_udp_entry), _list_schema(DatagramEntry))
]


@attrs.frozen(kw_only=True)
class Defaults:
    """What an entry does not say itself."""

    is_ipv6_on: bool
    proxy_protocol: ProxyProtocolIn
    proxy_protocol_to_upstream: ProxyProtocolOut
    max_sessions: int
    max_udp_sessions: int = 0
    fallback_sni: str = ""
    is_tls_on: bool = True
    """`apisix.ssl.enable`: whether a listener may terminate TLS."""


@attrs.frozen
class Listeners:
    """The lists, spelled out: TCP first."""

    served: tuple[Listener, ...]
    faults: tuple[Fault, ...]


def build_listeners(
    tcp: Sequence[Entry],
    defaults: Defaults,
    udp: Sequence[DatagramEntry] = (),
    *,
    ours: Mapping[str, Address] | None = None,
) -> Listeners:
    """One listener per transport, address and port: TCP and UDP do not meet, so they may share a port number.

    A bare port is one socket for both families, unless the same port also stands in its list with `[::]` or `0.0.0.0`:
    then it is IPv4 only, as it is in APISIX, whose way to listen on both is to list both.

    `ours` is where HTTP servers of ours have to listen, by the name of the setting.
    """
    servers = {name: socket_of(address) for name, address in (ours or {}).items()}
    streams = _spell_out(
        TCP_PATH, [(entry.addr, _stream(entry, defaults)) for entry in tcp], defaults, servers
    )
    datagrams = _spell_out(
        UDP_PATH, [(entry.addr, _datagram(entry, defaults)) for entry in udp], defaults, {}
    )
    refused = tuple(
        Fault((*TCP_PATH, position, "tls"), "expected false: 'apisix.ssl.enable' is false")
        for position, entry in enumerate(tcp)
        if entry.tls != "off" and not defaults.is_tls_on
    )
    return Listeners(streams.served + datagrams.served, streams.faults + refused + datagrams.faults)


def socket_of(address: Address) -> Listener:
    """What an HTTP server of ours listens on: never both families."""
    return Listener("tcp", address.host, address.port)


def exclude_each_other(one: Listener, other: Listener) -> bool:
    """Whether only one of them can be bound, with the options that `process/sockets.py` sets.

    A wildcard is every address of its families. Which options the sockets of a service manager have is not known here.
    """
    if one.port != other.port or one.transport != other.transport or one.path or other.path:
        return False
    hosts = {one.host, other.host}
    return bool(_families(one) & _families(other)) and (len(hosts) == 1 or bool(hosts & _WILDCARDS))


def _families(listener: Listener) -> set[int]:
    if listener.dual_stack:
        return {4, 6}
    return {6 if ":" in listener.host else 4}


def _spell_out(
    path: Path,
    entries: Sequence[tuple[Endpoint, Listener]],
    defaults: Defaults,
    servers: Mapping[str, Listener],
) -> Listeners:
    """The listeners of one list; whatever stands in it twice, or stands in the way of another, is a fault."""
    listed = {
        (endpoint.host, port)
        for endpoint, _ in entries
        if endpoint.host in _WILDCARDS
        for port in _ports(endpoint)
    }
    served: list[Listener] = []
    faults: list[Fault] = []
    on_port: dict[int, list[tuple[int, Listener]]] = {}
    for position, (endpoint, plain) in enumerate(entries):
        for listener in _on_each_port(endpoint, plain, defaults, listed):
            there = on_port.setdefault(listener.port, [])
            if message := _in_the_way(listener, there, servers):
                faults.append(Fault((*path, position), message))
                break
            there.append((position, listener))
            served.append(listener)
    return Listeners(tuple(served), tuple(faults))


def _in_the_way(
    listener: Listener, there: Sequence[tuple[int, Listener]], servers: Mapping[str, Listener]
) -> str:
    """Why it cannot be listened on beside these; empty if it can."""
    for position, other in there:
        place = f"{other.transport}[{position}]"
        if other.name == listener.name:
            return f"{_address_of(listener)} is listed twice, first as {place}"
        if exclude_each_other(listener, other):
            return f"{_address_of(listener)} cannot be bound beside {_address_of(other)}, {place}"
    for name, server in servers.items():
        if exclude_each_other(listener, server):
            return (
                f"{_address_of(listener)} cannot be bound beside {_address_of(server)}, where {name} listens"
            )
    return ""


def _address_of(listener: Listener) -> str:
    return listener.name.removeprefix(f"{listener.transport} ")


def _ports(endpoint: Endpoint) -> range:
    return range(endpoint.first, endpoint.last + 1)


def _passthrough(entry: Entry) -> Passthrough:
    """APISIX: a listener that terminates and passes through leaves the choice to each route."""
    if not entry.tls_passthrough:
        return "never"
    return "always" if entry.tls == "off" else "route"


def _stream(entry: Entry, defaults: Defaults) -> Listener:
    """What an entry says of each of its listeners."""
    has_tls = entry.tls != "off" or entry.tls_passthrough
    return Listener(
        transport="tcp",
        host=entry.addr.host or ("unix:" if entry.addr.path else "::"),
        port=0,
        path=entry.addr.path,
        proxy_protocol=entry.proxy_protocol or defaults.proxy_protocol,
        proxy_protocol_to_upstream=entry.proxy_protocol_to_upstream or defaults.proxy_protocol_to_upstream,
        max_sessions=defaults.max_sessions if entry.max_sessions is None else entry.max_sessions,
        tls="required" if has_tls and entry.tls == "off" else entry.tls,
        passthrough=_passthrough(entry),
        fallback_sni=(entry.fallback_sni or defaults.fallback_sni) if has_tls else "",
    )


def _datagram(entry: DatagramEntry, defaults: Defaults) -> Listener:
    """As `_stream`. No PROXY header is taken from a datagram, nor TLS ended in one, whatever the defaults."""
    return Listener(
        transport="udp",
        host=entry.addr.host or "::",
        port=0,
        max_sessions=defaults.max_udp_sessions if entry.max_sessions is None else entry.max_sessions,
    )


def _on_each_port(
    endpoint: Endpoint, plain: Listener, defaults: Defaults, listed: set[tuple[str, int]]
) -> Iterator[Listener]:
    if endpoint.path:
        yield plain
    elif endpoint.host:
        for port in _ports(endpoint):
            yield attrs.evolve(plain, port=port)
    else:
        for port in _ports(endpoint):
            both = defaults.is_ipv6_on and not listed & {("::", port), ("0.0.0.0", port)}  # noqa: S104 - compared
            host = "::" if both else "0.0.0.0"  # noqa: S104 - what a bare port asks for
            yield attrs.evolve(plain, host=host, port=port, dual_stack=both)
