"""The small HTTP servers beside the data plane: Admin API, control API, metrics. What conf/config.yaml says of them.

Source:
  APISIX `conf/config.yaml.example` (`deployment.admin`, `apisix.control`, `plugin_attr.prometheus`), `apisix/cli/ops.lua`
  (what it takes to start: a token unless only the loopback may ask).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Final, Literal

import attrs

from streamgw.config.rules import Count, HostName, Net, Port, PositiveSeconds, integer, mapping, secret, text
from streamgw.config.strict import Fault, Wrong, shown, structure
from streamgw.config.yaml_reader import Path
from streamgw.core.model import Address, Network

Role = Literal["admin", "viewer"]
Text = Annotated[str, text(1)]

ADMIN: Final[Path] = ("deployment", "admin")
METRICS: Final[Path] = ("plugin_attr", "prometheus")
LOOPBACK: Final[tuple[Network, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


def ip(value: object) -> str:
    """An address, IPv6 also in brackets."""
    try:
        if type(value) is str:
            return str(ipaddress.ip_address(value.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    raise Wrong(f"expected an IP address, got {shown(value)}")


def _uri(value: object) -> str:
    if type(value) is str and value.startswith("/") and not set(value) & set("?#{} "):
        return value
    raise Wrong(f"expected a path like /metrics, got {shown(value)}")


def _metric_prefix(value: object) -> str:
    if type(value) is str and (not value or (value.isascii() and value.isidentifier())):
        return value
    raise Wrong(f"expected the beginning of a metric name, like apisix_, got {shown(value)}")


@attrs.frozen(kw_only=True)
class ListenSpec:
    """Where one of them listens: `apisix.control`, `deployment.admin.admin_listen`, `plugin_attr.prometheus.export_addr`."""

    ip: Annotated[str, ip] | None = None
    port: Port | None = None

    def address(self, default: Address) -> Address:
        """With what is not said filled in."""
        return Address(self.ip or default.host, self.port or default.port)


@attrs.frozen(kw_only=True)
class AdminKeySpec:
    """`deployment.admin.admin_key[]`."""

    name: str
    key: Annotated[str, secret()] = attrs.field(repr=False)
    role: Role


@attrs.frozen(kw_only=True)
class AdminMTLSSpec:
    """`deployment.admin.admin_api_mtls`: paths of PEM files."""

    admin_ssl_cert: str = ""
    admin_ssl_cert_key: str = ""
    admin_ssl_ca_cert: str = ""


@attrs.frozen(kw_only=True)
class AdminSpec:
    """`deployment.admin`."""

    admin_key_required: bool = True
    admin_key: tuple[AdminKeySpec, ...] = ()
    allow_admin: tuple[Net, ...] | None = None
    admin_listen: ListenSpec = ListenSpec()
    https_admin: bool = False
    admin_api_mtls: AdminMTLSSpec = AdminMTLSSpec()
    enable_admin_cors: bool = True
    enable_admin_ui: bool = True
    admin_api_version: Literal["v2", "v3"] = "v3"

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        mtls = self.admin_api_mtls
        if self.https_admin and not (mtls.admin_ssl_cert and mtls.admin_ssl_cert_key):
            message = "missing ssl cert for https admin: admin_ssl_cert and admin_ssl_cert_key are needed"
            yield Fault(("https_admin",), message)
        written = [key.key for key in self.admin_key if key.key]
        if len(written) != len(set(written)):
            yield Fault(("admin_key",), "two of them have the same key")


@attrs.frozen(kw_only=True)
class PrometheusSpec:
    """`plugin_attr.prometheus`."""

    enable_export_server: bool = True
    export_uri: Annotated[str, _uri] = "/apisix/prometheus/metrics"
    export_addr: ListenSpec = ListenSpec()
    metric_prefix: Annotated[str, _metric_prefix] = "apisix_"
    refresh_interval: PositiveSeconds = 15.0
    """Means nothing here: what is scraped is as of now."""
    metrics: Annotated[Mapping[str, object], mapping] | None = None
    """Of HTTP."""


@attrs.frozen(kw_only=True)
class PluginAttrSpec:
    """`plugin_attr`: of all the plugins there, only prometheus has something to say to us."""

    prometheus: PrometheusSpec = attrs.field(factory=PrometheusSpec)


def plugin_attr(value: object) -> PluginAttrSpec:
    """The section, without what other plugins say there."""
    written = mapping({} if value is None else value)
    return structure({name: written[name] for name in ("prometheus",) if name in written}, PluginAttrSpec)


@attrs.frozen(kw_only=True)
class HTTPLimits:
    """What the HTTP side may use, and what it says of itself: `streamgw.admin`."""

    server_header: Text | None = None
    """Of the Admin API. None: `streamgw/` and the version. For clients that look for `APISIX/3.x.y`."""
    ui_dir: Text | None = None
    """A build of the APISIX dashboard to serve under /ui/ instead of our own page."""
    hosts: tuple[HostName, ...] = ()
    """Names by which a browser may reach what asks for no key, besides addresses and localhost."""
    body_limit_bytes: Annotated[int, integer(1024, 1 << 26)] = 1_572_864
    request_timeout_s: PositiveSeconds = 30.0
    """For a request's body, and for each piece of the answer that the client does not take."""
    max_connections: Annotated[int, integer(1)] = 512
    """Of each server. One more, and the one that has been idle longest is closed."""
    max_requests: Annotated[int, integer(1)] = 64
    """Under way at the same time, of each server; more wait."""
    max_event_clients: Count = 32
    """Of the live feed."""


@attrs.frozen
class AdminKey:
    """Who may use the Admin API, and what for."""

    name: str
    key: str = attrs.field(repr=False)
    """Empty: nobody has it."""
    role: Role = "admin"


@attrs.frozen
class AdminTLS:
    """HTTPS for the Admin API: paths of PEM files."""

    certificate: str
    key: str
    client_ca: str = ""
    """Not empty: clients have to show a certificate of this authority."""


_ADMIN: Final = Address("127.0.0.1", 9180)


@attrs.frozen
class AdminSettings:
    """The Admin API: `deployment.admin`."""

    listen: Address = _ADMIN
    keys: tuple[AdminKey, ...] = ()
    is_key_required: bool = True
    allowed: tuple[Network, ...] = LOOPBACK
    """Whose requests are looked at at all; empty: anybody's."""
    tls: AdminTLS | None = None
    has_cors: bool = True
    has_ui: bool = True
    version: Literal["v2", "v3"] = "v3"


@attrs.frozen
class Endpoint:
    """Where the control API or the metrics are served."""

    listen: Address
    is_named: bool = False
    """By conf/config.yaml: then an address that cannot be had stops the start. A default one is only missed."""


@attrs.frozen
class MetricsSettings:
    """`plugin_attr.prometheus`."""

    endpoint: Endpoint = Endpoint(Address("127.0.0.1", 9091))
    path: str = "/apisix/prometheus/metrics"
    prefix: str = "apisix_"


CONTROL: Final = Endpoint(Address("127.0.0.1", 9090))


def build_admin(spec: AdminSpec) -> AdminSettings:
    """What the section says.

    Raises:
      Wrong: the Admin API would be open to other machines, and ask nobody for a key.
    """
    mtls = spec.admin_api_mtls
    files = AdminTLS(mtls.admin_ssl_cert, mtls.admin_ssl_cert_key, mtls.admin_ssl_ca_cert)
    settings = AdminSettings(
        listen=spec.admin_listen.address(_ADMIN),
        keys=tuple(AdminKey(each.name, each.key, each.role) for each in spec.admin_key),
        is_key_required=spec.admin_key_required,
        allowed=LOOPBACK if spec.allow_admin is None else spec.allow_admin,
        tls=files if spec.https_admin else None,
        has_cors=spec.enable_admin_cors,
        has_ui=spec.enable_admin_ui,
        version=spec.admin_api_version,
    )
    if not settings.is_key_required and _is_open(settings):
        message = (
            "missing valid Admin API token: other machines may ask, and admin_key_required is false. Require a key, listen"
            " on the loopback, or allow_admin only that"
        )
        raise Wrong(Fault((*ADMIN, "admin_key_required"), message))
    return settings


def _is_open(settings: AdminSettings) -> bool:
    """Whether another machine gets an answer without having to prove anything."""
    if ipaddress.ip_address(settings.listen.host).is_loopback:
        return False
    if settings.tls is not None and settings.tls.client_ca:
        return False
    return not settings.allowed or not all(network.is_loopback for network in settings.allowed)


def build_control(spec: ListenSpec) -> Endpoint:
    """`apisix.control`."""
    return Endpoint(spec.address(CONTROL.listen), is_named=spec != ListenSpec())


def build_metrics(spec: PrometheusSpec) -> MetricsSettings | None:
    """None: switched off."""
    if not spec.enable_export_server:
        return None
    default = MetricsSettings().endpoint
    endpoint = Endpoint(spec.export_addr.address(default.listen), is_named=spec.export_addr != ListenSpec())
    return MetricsSettings(endpoint, spec.export_uri, spec.metric_prefix)
