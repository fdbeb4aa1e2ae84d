"""Upstreams whose nodes DNS says: `service_name` and `discovery_type`; and `discovery.dns` of conf/config.yaml.

The same checks for every upstream, wherever it stands. APISIX lets an upstream through whose `discovery_type` it does not
know, or that has none, and closes its connections.

Source:
  APISIX `apisix/schema_def.lua` (upstream_schema), `apisix/discovery/dns/schema.lua`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Protocol, TypeAlias

import attrs

from streamgw.config import patterns
from streamgw.config.endpoints import Text, ip
from streamgw.config.patterns import whole
from streamgw.config.rules import AnyMapping, integer
from streamgw.config.strict import Fault, Stated, Wrong, shown
from streamgw.config.wording import Schema
from streamgw.core.discovery import ORDER, RecordKind
from streamgw.core.model import Address, Node

ELSEWHERE: Final = ("consul", "consul_kv", "eureka", "kubernetes", "nacos", "tars")
"""Kinds of discovery that APISIX has and this gateway has not."""
TYPE: Final = "dns"


def _service_name(value: object) -> str:
    if type(value) is str and len(value) <= _MAX_LENGTH and (found := _SERVICE_NAME.fullmatch(value)):
        name = found.group(1)
        if len(name) <= 253 and not _DIGITS_AND_DOTS.fullmatch(name):
            return value
    raise Wrong(f"expected a DNS name, or name:port, got {shown(value)}")


_MAX_LENGTH = 256
_SERVICE_NAME = re.compile(f"({patterns.NAME})(?::{patterns.PORT})?")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")
_SERVICE_NAME_SCHEMA: Schema = {
    "type": "string",
    "maxLength": _MAX_LENGTH,
    "pattern": whole(rf"(?![0-9.]+(?::[0-9]*)?$){patterns.NAME}(?::{patterns.PORT})?"),
}


def _discovery_type(value: object) -> Literal["dns"]:
    if value == TYPE:
        return TYPE
    if value in ELSEWHERE:
        raise Wrong(f"discovery by {value} is not available; expected {TYPE}")
    raise Wrong(f"expected {TYPE}, got {shown(value)}")


ServiceName: TypeAlias = Annotated[
    str,
    Stated(_service_name, _SERVICE_NAME_SCHEMA, {"type": "string", "minLength": 1, "maxLength": _MAX_LENGTH}),
]
DiscoveryType: TypeAlias = Annotated[
    Literal["dns"], Stated(_discovery_type, {"const": TYPE}, {"type": "string"})
]

NODES_SCHEMA: Schema = {
    "oneOf": [{"required": ["nodes"]}, {"required": ["service_name", "discovery_type"]}],
    "not": {"required": ["nodes", "service_name"]},
}
"""What `check_nodes` says."""


class Discovering(Protocol):
    """An upstream as written, as far as this module cares (`schema.UpstreamSpec`)."""

    @property
    def nodes(self) -> tuple[Node, ...] | None:
        """None: not written."""
        ...

    @property
    def service_name(self) -> str | None:
        """None: not written."""
        ...

    @property
    def discovery_type(self) -> str | None:
        """None: not written."""
        ...

    @property
    def discovery_args(self) -> AnyMapping | None:
        """Of other kinds."""
        ...


def check_nodes(spec: Discovering) -> Iterator[Fault]:
    """An upstream lists its nodes or names a service: one of both."""
    if spec.nodes is not None and spec.service_name is not None:
        words = "value should match only one schema, but matches both schemas 1 and 2"
        message = "'nodes' and 'service_name' exclude each other"
        yield Fault(("service_name",), message, at_key=True, apisix=words)
    elif spec.service_name is not None and spec.discovery_type is None:
        message = f"'service_name' needs 'discovery_type: {TYPE}'"
        yield Fault(("service_name",), message, at_key=True, apisix=_NONE)
    elif spec.nodes is None and spec.discovery_type is not None and spec.service_name is None:
        message = "'discovery_type' needs 'service_name'"
        yield Fault(("discovery_type",), message, at_key=True, apisix=_NONE)
    elif spec.nodes is None and spec.service_name is None:
        yield Fault(("nodes",), "is required", apisix=_NONE)


_NONE = "value should match only one schema, but matches none"


def warn_of_discovery(spec: Discovering) -> Iterator[Fault]:
    """What is written and has no effect."""
    if spec.nodes is not None and spec.discovery_type is not None:
        yield Fault(("discovery_type",), "does nothing without 'service_name'", at_key=True)
    if spec.discovery_args is not None:
        message = f"does nothing with 'discovery_type: {TYPE}'"
        yield Fault(("discovery_args",), message, at_key=True)


def name_server(value: object) -> Address:
    """`10.0.0.2`, `10.0.0.2:5353`, `[fd00::2]:53`, `fd00::2`."""
    if type(value) is str:
        host, colon, port = value.rpartition(":")
        if colon and port.isdecimal() and (host.count(":") == 0 or host.endswith("]")):
            return Address(ip(host), integer(1, 65535)(int(port)))
    return Address(ip(value), 53)


@attrs.frozen(kw_only=True)
class DNSDiscoverySpec:
    """`discovery.dns`."""

    servers: tuple[Annotated[Address, name_server], ...] | None = None
    resolv_conf: Text | None = None
    order: tuple[RecordKind, ...] = ORDER
    schema: ClassVar[Schema] = {
        "not": {"required": ["servers", "resolv_conf"]},
        "properties": {
            "servers": {"minItems": 1},
            "order": {"minItems": 1, "uniqueItems": True, "contains": {"not": {"const": "last"}}},
        },
    }

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.servers is not None and self.resolv_conf is not None:
            message = "'servers' and 'resolv_conf' exclude each other"
            yield Fault(("resolv_conf",), message, at_key=True)
        if self.servers == ():
            yield Fault(("servers",), "expected at least one server; to have the machine's, leave it out")
        if len(set(self.order)) < len(self.order):
            yield Fault(("order",), "expected each kind of record once")
        if not set(self.order) - {"last"}:
            yield Fault(("order",), f"expected at least one of {', '.join(ORDER[1:])}")


@attrs.frozen(kw_only=True)
class DiscoverySpec:
    """`discovery`."""

    also_known: ClassVar[tuple[str, ...]] = ELSEWHERE
    dns: DNSDiscoverySpec = DNSDiscoverySpec()


@attrs.frozen
class DiscoverySettings:
    """`discovery.dns`: whom services are asked for, and what for."""

    servers: tuple[Address, ...] = ()
    """Empty: those that node names are asked for, unless there is `resolv_conf`."""
    resolv_conf: Path | None = None
    """In place of /etc/resolv.conf, and of servers."""
    order: tuple[RecordKind, ...] = ORDER


def build_discovery(spec: DiscoverySpec) -> DiscoverySettings:
    """The settings of what is written."""
    dns = spec.dns
    return DiscoverySettings(
        servers=dns.servers or (),
        resolv_conf=Path(dns.resolv_conf) if dns.resolv_conf is not None else None,
        order=dns.order,
    )
