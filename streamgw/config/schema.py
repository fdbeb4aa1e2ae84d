"""The objects of an APISIX document, field by field: what may be written, and what of it means something here.

Names are APISIX's; this is where they stop. Each class checks its own object (`check`), says which of its settings have
no effect (`warnings`), and becomes a value of `core.model` (`build`). What other objects are needed for is not known
here: references are resolved in `config/compile.py`, certificates are read in `config/tls.py`.

Longer than 400 lines: the four kinds of objects contain each other, and are read side by side with APISIX's one file.

Source:
  APISIX `apisix/schema_def.lua`: stream_route, upstream, service, ssl. Ours are `priority`, `status`, `remote_addrs`,
  `server_ports`, `snis`, `alpn`, `udp` of a route, `proxy_protocol*` and parts of `tls` of an upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, NoReturn, TypeAlias

import attrs

from streamgw.config.balancing import (
    BALANCING_SCHEMA,
    BalancerKind,
    HashOn,
    PacingSpec,
    check_balancing,
    hash_key,
    warn_of_balancing,
)
from streamgw.config.checks import ChecksSpec
from streamgw.config.datagrams import DatagramSpec
from streamgw.config.discovery import (
    NODES_SCHEMA,
    DiscoveryType,
    ServiceName,
    check_nodes,
    warn_of_discovery,
)
from streamgw.config.nodes import Nodes
from streamgw.config.patterns import whole
from streamgw.config.plugins import Plugins
from streamgw.config.rules import (
    AnyMapping,
    Count,
    Description,
    HostName,
    Id,
    Labels,
    Name,
    Net,
    Port,
    Ports,
    PositiveSeconds,
    Seconds,
    ServerName,
    Time,
    address_of,
    at_least,
    integer,
    mapping,
    secret,
    text,
)
from streamgw.config.strict import Fault, Stated, Wrong, nearest, shown
from streamgw.config.wording import Schema, complaint, nested
from streamgw.core.model import (
    NO_PACING,
    Match,
    Network,
    PortRange,
    ProxyProtocolOut,
    Timeouts,
    Upstream,
    UpstreamTLS,
)

_SCHEMES = ("tcp", "udp", "http", "tls", "https", "grpc", "grpcs", "kafka")
_LAYER_7 = "does nothing at layer 4"


def _scheme(value: object) -> str:
    if type(value) is str and value in _SCHEMES:
        return value
    hint = nearest(value, _SCHEMES) if isinstance(value, str) else ""
    raise Wrong(f"expected one of {', '.join(_SCHEMES)}, got {shown(value)}{hint}")


def _protocol(value: object) -> NoReturn:
    message = f"unknown protocol [{mapping(value).get('name', '')}]"
    raise Wrong(Fault(("name",), message, apisix=message, is_final=True))


_PROTOCOL_SCHEMA: Schema = {"not": {}, "description": "Protocols inside of streams are not available."}
_APISIX_PROTOCOL_SCHEMA: Schema = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
}


def _pem(least: int) -> Stated[str]:
    """A PEM text, or a reference to where one is kept. Never shown."""
    whole = secret(least, 65536)

    def rule(value: object) -> str:
        is_reference = isinstance(value, str) and value.lower().startswith(
            ("$secret://", "$env://", "$file://")
        )
        return str(value) if is_reference else whole(value)

    return Stated(rule, {"anyOf": [whole.schema, {"type": "string", "pattern": _REFERENCE}]}, whole.schema)


_REFERENCE = r"^\$([sS][eE][cC][rR][eE][tT]|[eE][nN][vV]|[fF][iI][lL][eE])://"


def _trusted(value: object) -> str:
    return "system" if value == "system" else _pem(128)(value)


_TRUSTED_SCHEMA: Schema = {"anyOf": [{"const": "system"}, *_pem(128).schema["anyOf"]]}


PemCertificate: TypeAlias = Annotated[str, _pem(128)]
PemKey: TypeAlias = Annotated[str, _pem(64)]
_ALPN = text(1, 255)
ALPN: TypeAlias = Annotated[str, _ALPN]
"""RFC 7301: 1 to 255 bytes."""


_PRINTABLE = re.compile("[ -~]*")


def _offered(value: object) -> str:
    name = _ALPN(value)
    if not _PRINTABLE.fullmatch(name):
        raise Wrong(f"expected printable ASCII, got {shown(value)}")
    return name


OfferedALPN: TypeAlias = Annotated[
    str, Stated(_offered, {**_ALPN.schema, "pattern": whole(_PRINTABLE.pattern)})
]
"""What Python's `ssl` sends is ASCII. What a client offers may be any bytes."""


def _exclusive(*names: str) -> Schema:
    """Not all of these fields at once."""
    return {"not": {"required": list(names)}}


@attrs.frozen(kw_only=True)
class TimeoutSpec:
    """Seconds. All three, as APISIX wants them."""

    connect: PositiveSeconds
    """Of one attempt at one node."""
    send: PositiveSeconds
    """See `read`."""
    read: PositiveSeconds
    """Idleness that ends a session: the longer of `send` and `read`, without a byte either way."""


@attrs.frozen(kw_only=True)
class UpstreamTLSSpec:
    """How to speak TLS to the nodes: `config/tls.py` makes a context of it."""

    client_cert: PemCertificate | None = attrs.field(default=None, repr=False)
    """What is shown to nodes that ask for a certificate: PEM, `$file://`, `$env://`."""
    client_key: PemKey | None = attrs.field(default=None, repr=False)
    """The key of `client_cert`."""
    client_cert_id: Id | None = None
    """An object of `ssls` with `type: client`, in place of the two."""
    verify: bool = False
    """Whether the nodes' certificates are verified."""
    ca_certs: Annotated[str, Stated(_trusted, _TRUSTED_SCHEMA)] | None = attrs.field(default=None, repr=False)
    """Who may have issued the nodes' certificates: PEM, a reference, or `system`."""
    server_name: HostName | None = None
    """What the nodes are asked for, and must have a certificate for. Else the name that the client asked for."""
    alpn: tuple[OfferedALPN, ...] = ()
    """Protocols that are offered to the nodes."""

    schema: ClassVar[Schema] = {
        "dependentRequired": {"client_cert": ["client_key"], "client_key": ["client_cert"]},
        **_exclusive("client_cert", "client_cert_id"),
    }

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        depends = 'failed to validate dependent schema for "client_{}": '.format
        if (self.client_cert is None) != (self.client_key is None):
            has, lacks = ("cert", "key") if self.client_key is None else ("key", "cert")
            words = f'{depends(has)}property "client_{lacks}" is required'
            yield Fault((), "'client_cert' and 'client_key' need each other", apisix=words)
        if self.client_cert_id is not None and self.client_cert is not None:
            message = "'client_cert' and 'client_cert_id' exclude each other"
            words = f"{depends('cert')}value wasn't supposed to match schema"
            yield Fault(("client_cert_id",), message, at_key=True, apisix=words)

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect, or less than one might think."""
        if not self.verify and self.ca_certs is not None:
            yield Fault(("ca_certs",), "does nothing without 'verify: true'", at_key=True)
        if self.verify and self.server_name is None:
            message = (
                "without 'server_name' the nodes' certificates must be for the name that the client asked for, "
                "or for 'apisix_backend' if it named none"
            )
            yield Fault(("verify",), message, at_key=True)


@attrs.frozen(kw_only=True)
class KeepalivePoolSpec:
    """Connections to nodes that HTTP uses again. Read, and nothing comes of it."""

    size: Annotated[int, integer(1)] | None = None
    """How many."""
    idle_timeout: Seconds | None = None
    """Seconds."""
    requests: Annotated[int, integer(1)] | None = None
    """Of each connection, at most."""


@attrs.frozen(kw_only=True)
class UpstreamSpec:
    """An upstream, of its own or inline."""

    id: Id | None = None
    name: Name | None = None
    desc: Description | None = None
    labels: Labels | None = None
    create_time: Time | None = None
    update_time: Time | None = None
    expire_time: Time | None = None
    modifiedIndex: Time | None = None  # noqa: N815  APISIX's name, in documents of its API-driven standalone mode
    nodes: Nodes | None = None
    """Host and port with a weight, `{"10.0.0.5:3306": 1}`, or a list of objects."""
    type: BalancerKind = "roundrobin"
    """How a node is chosen."""
    hash_on: HashOn | None = None
    """Where the key of `chash` comes from."""
    key: str | None = None
    """What `chash` hashes: `remote_addr`, or with `vars_combinations` a text like `$remote_addr$server_port`."""
    retries: Annotated[int, integer(0, 2**31 - 1)] | None = None
    """Further attempts when a node cannot be connected to; one less than there are nodes if left out."""
    retry_timeout: Seconds = 0.0
    """No attempt begins later than this many seconds after the first; 0 is no limit."""
    timeout: TimeoutSpec | None = None
    """In seconds."""
    scheme: Annotated[str, Stated(_scheme, {"enum": list(_SCHEMES)})] = "tcp"
    """`tls`: TLS to the nodes. The others do not matter at layer 4."""
    tls: UpstreamTLSSpec | None = None
    """For `scheme: tls`."""
    keepalive_pool: KeepalivePoolSpec | None = None
    """HTTP only."""
    checks: ChecksSpec | None = None
    """Health checks."""
    pass_host: Literal["pass", "node", "rewrite"] | None = None
    """HTTP only."""
    upstream_host: str | None = None
    """HTTP only."""
    service_name: ServiceName | None = None
    """In place of `nodes`: a name in DNS, `_mysql._tcp.db.example` with SRV records, or `db.example:3306`."""
    discovery_type: DiscoveryType | None = None
    """`dns`, with `service_name`."""
    discovery_args: AnyMapping | None = None
    """Of other kinds of discovery."""
    proxy_protocol: ProxyProtocolOut | None = None
    """The PROXY header that nodes get before anything else; the listener's setting if left out."""
    proxy_protocol_datagrams: Literal["first", "each"] = "first"
    """Over UDP: before the first datagram of a session, or before each."""
    streamgw: PacingSpec | None = None
    """Limits and patience. Ours."""
    schema: ClassVar[Schema] = {
        **NODES_SCHEMA,
        "if": {"properties": {"pass_host": {"const": "rewrite"}}, "required": ["pass_host"]},
        "then": {"required": ["upstream_host"]},
        "allOf": [BALANCING_SCHEMA],
    }

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        yield from check_nodes(self)
        if self.pass_host == "rewrite" and self.upstream_host is None:  # noqa: S105  not a password: APISIX's name
            words = "invalid configuration: `upstream_host` can't be empty when `pass_host` is `rewrite`"
            message = "'rewrite' needs 'upstream_host'"
            yield Fault(("pass_host",), message, apisix=words, is_final=True)
        yield from check_balancing(self)

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        yield from warn_of_discovery(self)
        if self.nodes == ():
            yield Fault(("nodes",), "no node: every session that comes here is closed")
        elif self.nodes and not any(node.weight for node in self.nodes):
            yield Fault(("nodes",), "every weight is 0: no node is ever picked")
        if self.scheme not in {"tcp", "udp", "http", "tls"}:
            yield Fault(("scheme",), f"'{self.scheme}' is treated as tcp")
        for name in ("pass_host", "upstream_host", "keepalive_pool"):
            if getattr(self, name) is not None:
                yield Fault((name,), _LAYER_7, at_key=True)
        yield from warn_of_balancing(self)
        if self.proxy_protocol_datagrams == "each" and self.proxy_protocol != "v2":
            message = "does nothing without 'proxy_protocol: v2'"
            yield Fault(("proxy_protocol_datagrams",), message, at_key=True)
        yield from self._warn_of_tls()
        if self.checks is not None:
            yield from (fault.under(("checks",)) for fault in self.checks.warnings())

    def _warn_of_tls(self) -> Iterator[Fault]:
        if self.scheme != "tls":
            if self.tls is not None:
                yield Fault(("tls",), "does nothing without 'scheme: tls'", at_key=True)
            return
        if self.tls is None or not self.tls.verify:
            message = "whoever answers is believed: the nodes' certificates are not verified (tls.verify)"
            yield Fault(("scheme",), message)
        if self.tls is not None:
            yield from (fault.under(("tls",)) for fault in self.tls.warnings())

    def build(self, key: str, tls: UpstreamTLS | None = None) -> Upstream:
        """The upstream as the data plane knows it."""
        timeouts = Timeouts()
        if self.timeout is not None:
            timeouts = Timeouts(self.timeout.connect, max(self.timeout.send, self.timeout.read))
        return Upstream(
            key=key,
            nodes=self.nodes or (),
            service_name=self.service_name or "",
            type=self.type,
            retries=self.retries,
            retry_timeout_s=self.retry_timeout,
            timeouts=timeouts,
            proxy_protocol=self.proxy_protocol,
            proxy_protocol_on_each=self.proxy_protocol_datagrams == "each",
            name=self.name or "",
            tls=tls,
            hash_key=hash_key(self),
            pacing=NO_PACING if self.streamgw is None else self.streamgw.build(),
            checks=None if self.checks is None else self.checks.build(),
        )


@attrs.frozen(kw_only=True)
class ServiceSpec:
    """What several routes share."""

    id: Id | None = None
    name: Name | None = None
    desc: Description | None = None
    labels: Labels | None = None
    create_time: Time | None = None
    update_time: Time | None = None
    expire_time: Time | None = None
    modifiedIndex: Time | None = None  # noqa: N815  APISIX's name, in documents of its API-driven standalone mode
    type: Literal["stream", "http"] = "stream"
    """Stream routes want `stream`."""
    upstream: UpstreamSpec | None = None
    """Where sessions go."""
    upstream_id: Id | None = None
    """Of an object of `upstreams`. Wins over `upstream`."""
    plugins: Plugins = ()
    """Of every route of this service. A route's plugin of the same name replaces it."""
    hosts: tuple[str, ...] | None = None
    """HTTP only."""
    enable_websocket: bool | None = None
    """HTTP only."""
    script: str | None = None
    """HTTP only."""

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        for name in ("hosts", "enable_websocket", "script"):
            if getattr(self, name) is not None:
                yield Fault((name,), _LAYER_7, at_key=True)
        yield from _warn_of_parts(self)


@attrs.frozen(kw_only=True)
class StreamRouteSpec:
    """Which clients, and where they go."""

    id: Id | None = None
    name: Name | None = None
    desc: Description | None = None
    labels: Labels | None = None
    create_time: Time | None = None
    update_time: Time | None = None
    expire_time: Time | None = None
    modifiedIndex: Time | None = None  # noqa: N815  APISIX's name, in documents of its API-driven standalone mode
    priority: Annotated[int, integer(-(2**31), 2**31 - 1)] = 0
    """Routes with a higher one are asked first; among equals, files by name and lines from the top."""
    status: Literal[0, 1] = 1
    """0: switched off."""
    remote_addr: Annotated[Network, address_of("remote_addr")] | None = None
    """Which clients: an address or network."""
    remote_addrs: tuple[Net, ...] | None = None
    """As `remote_addr`, several."""
    server_addr: Annotated[Network, address_of("server_addr")] | None = None
    """Which of our addresses the client connected to."""
    server_port: Port | None = None
    """Which of our ports the client connected to."""
    server_ports: tuple[Ports, ...] | None = None
    """As `server_port`, several, and ranges like `9100-9200`."""
    sni: ServerName | None = None
    """Which name the client asks for over TLS: `db.example`, `*.example`, `*`."""
    snis: tuple[ServerName, ...] | None = None
    """As `sni`, several."""
    alpn: tuple[ALPN, ...] | None = None
    """Which protocol the client offers over TLS: one of these."""
    tls_passthrough: bool = False
    """Hand the client's TLS on untouched, on a listener that leaves the choice to its routes."""
    udp: DatagramSpec | None = None
    """Rules for UDP sessions."""
    upstream: UpstreamSpec | None = None
    """Where its sessions go."""
    upstream_id: Id | None = None
    """Of an object of `upstreams`. Wins over `upstream` and `service_id`."""
    service_id: Id | None = None
    """Of an object of `services`."""
    plugins: Plugins = ()
    """By name, each with its options."""
    schema: ClassVar[Schema] = {
        "allOf": [
            _exclusive("remote_addr", "remote_addrs"),
            _exclusive("server_port", "server_ports"),
            _exclusive("sni", "snis"),
        ],
        "properties": {name: {"minItems": 1} for name in ("remote_addrs", "server_ports", "snis", "alpn")},
    }
    protocol: Annotated[str, Stated(_protocol, _PROTOCOL_SCHEMA, _APISIX_PROTOCOL_SCHEMA)] | None = None
    """Protocols inside of streams: not available."""

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        for one, many in (("remote_addr", "remote_addrs"), ("server_port", "server_ports"), ("sni", "snis")):
            entries = getattr(self, many)
            if entries is not None and getattr(self, one) is not None:
                words = "value should match only one schema, but matches both schemas 1 and 2"
                yield Fault((many,), f"'{one}' and '{many}' exclude each other", at_key=True, apisix=words)
            elif entries == ():
                yield _emptied(many)
        if self.alpn == ():
            yield _emptied("alpn")

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if self.udp is not None:
            yield from (fault.under(("udp",)) for fault in self.udp.warnings())
        yield from _warn_of_parts(self)

    def build_match(self) -> Match:
        """What the route asks of a client."""
        names = self.snis or ((self.sni,) if self.sni is not None else ())
        if self.snis is not None and "*" in names:
            names = ()  # APISIX: `*` among several is no restriction at all, unlike `sni: "*"`
        ports = self.server_ports or ()
        if self.server_port is not None:
            ports = (PortRange(self.server_port, self.server_port),)
        return Match(
            remote_addrs=self.remote_addrs or ((self.remote_addr,) if self.remote_addr is not None else ()),
            server_addrs=(self.server_addr,) if self.server_addr is not None else (),
            server_ports=ports,
            server_names=names,
            alpn=self.alpn or (),
        )


def _emptied(name: str) -> Fault:
    """Absent means any; an emptied list would silently open the route to everybody."""
    message = f"expected at least one entry; to match any, leave out '{name}'"
    return Fault((name,), message, apisix=_too_few(name))


def _too_few(name: str) -> str:
    return nested((name,), "expect array to have at least 1 items")


def _warn_of_parts(spec: ServiceSpec | StreamRouteSpec) -> Iterator[Fault]:
    if spec.upstream is None:
        return
    if spec.upstream_id is not None:
        yield Fault(("upstream",), "does nothing: 'upstream_id' wins", at_key=True)
    for fault in spec.upstream.warnings():
        yield fault.under(("upstream",))


@attrs.frozen(kw_only=True)
class ClientCASpec:
    """Which client certificates are good."""

    ca: PemCertificate = attrs.field(repr=False)
    """Who issues the certificates of clients: PEM, `$file://`, `$env://`."""
    depth: Count = 1
    """How many authorities may stand between."""
    skip_mtls_uri_regex: tuple[str, ...] | None = None
    """HTTP only."""


@attrs.frozen(kw_only=True)
class SSLSpec:
    """A certificate with its key: `config/tls.py` makes a context of it."""

    id: Id | None = None
    desc: Description | None = None
    labels: Labels | None = None
    create_time: Time | None = None
    update_time: Time | None = None
    expire_time: Time | None = None
    modifiedIndex: Time | None = None  # noqa: N815  APISIX's name, in documents of its API-driven standalone mode
    type: Literal["server", "client"] = "server"
    """`client`: a pair that upstreams show to their nodes."""
    cert: PemCertificate | None = attrs.field(default=None, repr=False)
    """PEM with the whole chain, `$file://path` or `$env://NAME`."""
    key: PemKey | None = attrs.field(default=None, repr=False)
    """The key of `cert`."""
    certs: tuple[PemCertificate, ...] = attrs.field(default=(), repr=False)
    """Further certificates for the same names, such as ECDSA beside RSA."""
    keys: tuple[PemKey, ...] = attrs.field(default=(), repr=False)
    """The keys of `certs`, in their order."""
    sni: ServerName | None = None
    """The name it is served for: `db.example`, `*.example` (one label), `*`."""
    snis: tuple[ServerName, ...] | None = None
    """As `sni`, several."""
    client: ClientCASpec | None = None
    """Clients must show a certificate."""
    status: Literal[0, 1] = 1
    """0: switched off."""
    ssl_protocols: tuple[Literal["TLSv1.1", "TLSv1.2", "TLSv1.3"], ...] | None = None
    """In place of the process's own setting."""
    schema: ClassVar[Schema] = {
        "required": ["cert", "key"],
        "if": {"properties": {"type": {"const": "client"}}, "required": ["type"]},
        "else": {"oneOf": [{"required": ["sni"]}, {"required": ["snis"]}]},
        "properties": {"snis": {"minItems": 1}, "ssl_protocols": {"minItems": 1, "uniqueItems": True}},
    }

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.snis == ():
            yield Fault(("snis",), "expected at least one entry", apisix=_too_few("snis"))
        clause = "then" if self.type == "server" else "else"
        words = f"{clause} clause did not match"
        for name in ("cert", "key"):
            if getattr(self, name) is None:
                yield Fault((name,), "is required", apisix=words)
        if self.type == "server" and (self.sni is None) == (self.snis is None):
            yield Fault((), "expected exactly one of 'sni' and 'snis'", apisix=words)
        if len(self.certs) != len(self.keys):
            message = "mismatched number of certs and keys"
            yield Fault((), message, apisix=message, is_final=True)
        yield from _check_versions(self.ssl_protocols)

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if self.client is not None and self.client.skip_mtls_uri_regex is not None:
            yield Fault(("client", "skip_mtls_uri_regex"), _LAYER_7, at_key=True)
        if self.type == "client":
            for name in ("sni", "snis", "client", "certs", "ssl_protocols"):
                if getattr(self, name):
                    yield Fault((name,), "does nothing with 'type: client'", at_key=True)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is served for."""
        return self.snis or ((self.sni,) if self.sni is not None else ())


def _check_versions(protocols: tuple[str, ...] | None) -> Iterator[Fault]:
    if protocols is None:
        return
    if not protocols or len(set(protocols)) < len(protocols):
        schema = at_least(1, {}, unique=True)
        words = nested(("ssl_protocols",), complaint(schema, list(protocols)))
        yield Fault(("ssl_protocols",), "expected each version once, and at least one", apisix=words)
    elif set(protocols) == {"TLSv1.1", "TLSv1.3"}:
        # OpenSSL has a lowest and a highest version.
        yield Fault(("ssl_protocols",), "expected versions without a gap between them")


@attrs.frozen(kw_only=True)
class PluginMetadataSpec:
    """What every use of one plugin shares. The plugin says which fields there are: `config/hooks.py` looks at them."""

    is_open: ClassVar[bool] = True
    id: Id | None = None
    name: Name | None = None
    desc: Description | None = None
    labels: Labels | None = None
    create_time: Time | None = None
    update_time: Time | None = None
    expire_time: Time | None = None
    modifiedIndex: Time | None = None  # noqa: N815  APISIX's name, in documents of its API-driven standalone mode

    def warnings(self) -> Iterator[Fault]:
        """None of its own."""
        return iter(())

    @classmethod
    def common(cls) -> frozenset[str]:
        """The fields that are not the plugin's."""
        return frozenset(field.name for field in attrs.fields(cls))


Spec: TypeAlias = StreamRouteSpec | UpstreamSpec | ServiceSpec | SSLSpec | PluginMetadataSpec
COLLECTIONS: Mapping[str, type[Spec]] = {
    "stream_routes": StreamRouteSpec,
    "upstreams": UpstreamSpec,
    "services": ServiceSpec,
    "ssls": SSLSpec,
    "plugin_metadata": PluginMetadataSpec,
}
HTTP_COLLECTIONS = ("routes", "consumers", "plugin_configs", "global_rules", "consumer_groups", "protos")
UNUSED_COLLECTIONS = ("plugins", "secrets")
ALL_COLLECTIONS = (*COLLECTIONS, *HTTP_COLLECTIONS, *UNUSED_COLLECTIONS)
"""What a document of the whole set may hold."""
