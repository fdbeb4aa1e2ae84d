"""The values everything else talks about. Frozen, slotted, built once, shared freely between tasks.

Wire names (`server_port`, `remote_addr`, `upstream_id`) stop at `config/documents.py`; here the names are ours. Units
stand last in a name: `_s` is seconds, `_bytes` is bytes.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NewType, TypeAlias

import attrs

from streamgw.core.probe import Checks

if TYPE_CHECKING:
    import ssl

    from streamgw.core.hooks import Hooks

Transport = Literal["tcp", "udp"]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Key: TypeAlias = tuple[str, str]
"""(collection, id) of a configured object: `("stream_routes", "mysql")`."""
Awaited: TypeAlias = Sequence[tuple[Key, str | None]]
"""Objects as they shall run, each by its digest as written; None: there shall be no such object."""
Revision = NewType("Revision", str)
"""Digest of every document. Equal revisions behave equally."""

UNIX_HOST = "unix:"
"""The host of a peer on a Unix socket, as nginx prints it. No address or network matches it."""


@attrs.frozen(weakref_slot=False)
class Address:
    """A host and a port. The host is a literal IP once it comes from a socket, IPv4-mapped addresses folded to IPv4."""

    host: str
    port: int

    def __str__(self) -> str:
        if self.host == UNIX_HOST:
            return UNIX_HOST
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class Source:
    """Where an object is written, for messages: prints as `routes.d/mysql.yaml:8`."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@attrs.frozen
class ClientCertificate:
    """Who the client proved to be."""

    subject: str
    """RFC 4514: `CN=alice,O=Example`."""
    sans: tuple[str, ...]
    """`DNS:alice.example`, `IP:10.0.0.1`, `URI:spiffe://…`, `email:…`."""
    fingerprint: str
    """SHA-256 of the DER form, lower-case hex."""
    serial: str
    """Lower-case hex."""


@attrs.frozen(weakref_slot=False)
class Facts:
    """Everything known about a client before its route is chosen. Grows by attrs.evolve, never in place."""

    transport: Transport
    listener: str
    """`Listener.name`."""
    client: Address
    """After the PROXY header, if the listener expects one and trusts the peer."""
    server: Address
    """The local address the client connected to."""
    server_name: str | None = None
    """From the ClientHello, lower-cased, trailing dot removed. Always None on a plain listener."""
    alpn: tuple[str, ...] = ()
    """What the client offers, in its order (RFC 7301)."""
    client_certificate: ClientCertificate | None = None
    """Verified in the handshake; None without TLS, without a certificate, or before the handshake."""
    mqtt_client_id: str | None = None
    """What an MQTT client calls itself in its CONNECT; None for any other, and for one that leaves the choice to the server."""
    peer: Address | None = None
    """Who really connected, when a PROXY header named the client: the load balancer. None: the client itself."""
    claimed: Address | None = None
    """The client that the PROXY header of an untrusted peer names. Not believed, unless a plugin says so (`real-ip`)."""


class PrereadPlan(enum.Flag):
    """Which facts are worth waiting for. Plain TCP routes need none; MQTT will be a member."""

    NONE = 0
    TLS = enum.auto()
    """The ClientHello: server name and ALPN."""


ProxyProtocolIn = Literal["off", "optional", "required"]
ProxyProtocolOut = Literal["off", "v1", "v2"]


TLSIn = Literal["off", "required", "optional"]
Passthrough = Literal["never", "always", "route"]


@attrs.frozen
class Listener:
    """One listening socket, as configured. A port range is one Listener per port.

    Two listeners are the same socket when their `name` is equal; every other field may change live.
    """

    transport: Transport
    host: str
    """A literal IP without brackets; `::` with `dual_stack` accepts IPv4 too; `unix:` for a Unix socket."""
    port: int
    """0 for a Unix socket. Port 0 on an IP asks the kernel for a free port (tests, `streamgw demo`)."""
    path: str = ""
    """Path of the Unix socket."""
    dual_stack: bool = False
    """A bare port: one socket for IPv4 and IPv6."""
    proxy_protocol: ProxyProtocolIn = "off"
    proxy_protocol_to_upstream: ProxyProtocolOut = "off"
    max_sessions: int = 0
    """0: only the limit of the whole process counts."""
    tls: TLSIn = "off"
    """Required: the client owes a ClientHello. Optional: whoever does not begin with one is a plain client."""
    passthrough: Passthrough = "never"
    """What happens to TLS here: never = terminated, always = handed on untouched, route = `Route.tls_passthrough`."""
    fallback_sni: str = ""
    """The name of a client that sends none. The listener's own, else `apisix.ssl.fallback_sni`."""

    name: str = attrs.field(init=False, eq=False, repr=False)
    """What logs, metrics and `status` call it: `tcp 127.0.0.1:9101`, `tcp [::1]:9100`, `tcp *:9100`, `tcp unix:/run/x`.
    Put together once: each session asks for it several times."""

    @name.default
    def _name(self) -> str:
        if self.path:
            return f"{self.transport} {UNIX_HOST}{self.path}"
        if self.dual_stack:
            return f"{self.transport} *:{self.port}"
        return f"{self.transport} {Address(self.host, self.port)}"


@functools.lru_cache(maxsize=65536)
def _is_name(host: str) -> bool:
    """Cached: asked of every node at each reload."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


@attrs.frozen
class Node:
    """One place to connect to. The host is an IP literal or a DNS name, without brackets."""

    host: str
    port: int
    weight: int = 1
    """0: never picked, also when it is the only node."""
    priority: int = 0
    """Higher is preferred; lower groups are for when the higher ones failed."""
    address: Address = attrs.field(init=False, eq=False, repr=False)
    """Where to connect, once the host is an IP literal. Put together once: each session needs it."""

    @address.default
    def _address(self) -> Address:
        return Address(self.host, self.port)

    @property
    def is_looked_up(self) -> bool:
        """The host is a name, and its addresses are wanted. A node with weight 0 may have lost its DNS record."""
        return self.weight != 0 and _is_name(self.host)


@attrs.frozen
class Timeouts:
    """Per upstream, in seconds. Defaults of APISIX's stream proxy (connect 60 s; idle 10 min)."""

    connect_s: float = 60.0
    idle_s: float = 600.0
    """No byte either way for this long ends the session: max(`timeout.send`, `timeout.read`)."""


@attrs.frozen
class UpstreamTLS:
    """How to speak TLS to the nodes of an upstream."""

    context: ssl.SSLContext = attrs.field(repr=False)
    """Client side, with verification, client certificate and ALPN set."""
    server_name: str = ""
    """Sent and verified. Empty: the client's server name, else `apisix_backend` (APISIX)."""
    verify: bool = False


BalancerType = Literal["roundrobin", "chash", "least_conn", "ewma"]


@attrs.frozen
class Pacing:
    """How clients are held back from the nodes of an upstream. Seconds; 0 is off."""

    slow_start_s: float = 0.0
    """How long a node that came up, or was added, takes to get its whole weight. Nothing with chash."""
    max_conns: int = 0
    """Sessions of one node at a time. Whoever finds no node with room waits for it."""
    wait_for_node_s: float = 0.0
    """How long a new client waits while no node can be had: none is listed, none is up, or every one refused."""
    queue_timeout_s: float = 10.0
    """How long a client waits for room."""
    queue_size: int = 1000
    """Clients that may wait, for whatever it is. One more is refused at once."""


NO_PACING = Pacing()


@attrs.frozen
class Upstream:
    """Where a route's sessions go."""

    key: str
    """Identity across reloads: `upstreams/1`, or `stream_routes/mysql/upstream` for an inline one. The pool keeps
    the balancer's position of an upstream whose key and nodes did not change."""
    nodes: tuple[Node, ...]
    type: BalancerType = "roundrobin"
    retries: int | None = None
    """Further nodes tried after a failed connect. None: one less than there are nodes; 0: none."""
    retry_timeout_s: float = 0.0
    """No new attempt this long after the first began; 0 is no limit."""
    timeouts: Timeouts = Timeouts()
    proxy_protocol: ProxyProtocolOut | None = None
    """None: what the listener says. Over UDP only v2 exists, and only the upstream's own setting counts."""
    name: str = ""
    tls: UpstreamTLS | None = None
    """`scheme: tls`."""
    hash_key: str = ""
    """Of chash: a template with nginx's variables, `$remote_addr` or `$remote_addr$server_port`."""
    proxy_protocol_on_each: bool = False
    """Over UDP: the PROXY header stands before every datagram of the client, not only before the first."""
    pacing: Pacing = NO_PACING
    checks: Checks | None = None
    """None: every node is taken for healthy."""
    service_name: str = ""
    """`name` or `name:port`: the nodes are those that DNS says, and `nodes` is empty."""

    def is_from(self, name: str) -> bool:
        """Whether a name in DNS, of a node or a service, says what its nodes are."""
        return name == self.service_name or any(node.host == name for node in self.nodes)


@attrs.frozen
class PortRange:
    """Ports `first` to `last`, both included."""

    first: int
    last: int


@attrs.frozen
class Match:
    """What a route asks of a client. Fields are ANDed; the entries of one field are ORed; empty means any."""

    remote_addrs: tuple[Network, ...] = ()
    server_addrs: tuple[Network, ...] = ()
    server_ports: tuple[PortRange, ...] = ()
    server_names: tuple[str, ...] = ()
    """`db.example`, `*.example` (any depth), `*example`, `*`: lower case."""
    alpn: tuple[str, ...] = ()
    """Any of these must be among what the client offers. A plain client offers none."""


@attrs.frozen
class DatagramRules:
    """What a route says about its UDP sessions. Nothing of it counts for TCP."""

    idle_s: float | None = None
    """No datagram either way for this long ends the session. None: the upstream's `timeouts.idle_s`."""
    responses: int | None = None
    """The session ends when each datagram of the client has had this many answers (nginx `proxy_responses`). 0: it ends
    with the datagram, none is waited for: right for syslog. None: only idleness ends it."""
    requests: int = 0
    """The datagram after this many begins a new session, with a new pick; the old one still passes on its answers (nginx
    `proxy_requests`). 0: no limit."""
    amplification: float = 0.0
    """Until the client has answered: at most this many bytes to it for each byte from it. 0: no limit."""


@attrs.frozen
class Route:
    """One stream route, references resolved: `upstream_id` and `service_id` never reach the data plane."""

    id: str
    match: Match
    upstream: Upstream | None
    source: Source
    priority: int = 0
    name: str = ""
    service_id: str = ""
    service_name: str = ""
    """What people call the service."""
    tls_passthrough: bool = False
    """Counts on listeners with `passthrough: route` only."""
    udp: DatagramRules = DatagramRules()
    hooks: tuple[Hooks, ...] = ()
    """Of its plugins and its service's, in the order in which they run."""

    def passes_through(self, listener: Listener) -> bool:
        """Whether a TLS client of this listener and route is handed on untouched."""
        if listener.passthrough == "route":
            return self.tls_passthrough
        return listener.passthrough == "always"


@attrs.frozen(eq=False)
class Certificate:
    """A server certificate with its key, ready to serve the names it is configured for."""

    id: str
    source: Source
    names: tuple[str, ...]
    """`sni`/`snis`, lower case. `*.example` covers one label, unlike a route's."""
    context: ssl.SSLContext = attrs.field(repr=False)
    """Server side. Each object has a context, and so session-ticket keys, of its own: a session resumed under another
    name would carry a client past that name's client-certificate rule."""
    requires_client_certificate: bool
    not_after_s: float
    """Unix time."""
    issuer: str
    fingerprint: str
    """SHA-256 of the first certificate, lower-case hex."""
    signs_quickly: bool = False
    """No step of a handshake takes long, whichever of its keys it is about: no thread is worth it."""


@attrs.frozen
class Attempt:
    """One try at one node that failed."""

    node: Address
    seconds: float
    error: str
    """For a person: `connection refused`."""


@attrs.frozen
class Outcome:
    """How one session went: the access-log line, before formatting. Times in seconds, sizes in bytes.

    `reason` and `fault` are the words of core.errors; `started_at` is Unix time.
    """

    session_id: str
    facts: Facts
    peer: Address
    """Who really connected: the load balancer, when `facts.client` came from its PROXY header."""
    reason: str
    fault: str
    phase: str
    """How far it got: accept, preread, match, handshake, connect, relay."""
    started_at: float
    duration_s: float
    connect_s: float | None
    """Of the attempt that succeeded."""
    bytes_up: int
    """Client to upstream, as handed to the upstream's socket."""
    bytes_down: int
    route_id: str = ""
    route_name: str = ""
    service_id: str = ""
    service_name: str = ""
    upstream: str = ""
    """`Upstream.key`."""
    node: Address | None = None
    attempts: tuple[Attempt, ...] = ()
    """Those that failed, in order; the one that succeeded is `node` and `connect_s`."""
    side: str = ""
    """Which side ended it, where that is known."""
    detail: str = ""
    """For a person: `connection refused`, `not a PROXY header: 'GET'`."""
    revision: str = ""
    tls_version: str = ""
    """`TLSv1.3` when terminated here; `passthrough`; empty for a plain client."""
    tls_cipher: str = ""
    datagrams_up: int = 0
    """Of a UDP session: handed to the upstream's socket."""
    datagrams_down: int = 0
    datagrams_dropped: int = 0
    """Both ways, after the session was opened."""
    status: int = 0
    """Of a plugin that refused the client; 0: what the reason stands for."""
