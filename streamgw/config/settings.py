"""conf/config.yaml: the settings of the process. Names that APISIX has keep their name and place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Literal

import attrs

from streamgw.config.discovery import DiscoverySettings, build_discovery
from streamgw.config.documents import Locations, SourceFile
from streamgw.config.endpoints import (
    ADMIN,
    CONTROL,
    METRICS,
    AdminSettings,
    Endpoint,
    HTTPLimits,
    MetricsSettings,
    build_admin,
    build_control,
    build_metrics,
)
from streamgw.config.listen import (
    TCP_PATH,
    UDP_PATH,
    Defaults,
    build_listeners,
    exclude_each_other,
    socket_of,
)
from streamgw.config.settings_schema import (
    SECTIONS,
    WITHOUT_EFFECT,
    ConfigSpec,
    LimitSettings,
    LogSettings,
    ReloadSettings,
    StatusSpec,
)
from streamgw.config.source_text import read_text
from streamgw.config.strict import Fault, Wrong, shown, structure
from streamgw.config.tls import TLSSettings
from streamgw.config.yaml_reader import Path, read_yaml
from streamgw.core.access_log import compile_format
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import Address, Listener, Network

__all__ = [
    "AccessLogSettings",
    "AdminSettings",
    "Endpoint",
    "HTTPLimits",
    "LimitSettings",
    "LogSettings",
    "MetricsSettings",
    "ReloadSettings",
    "ResolverSettings",
    "Settings",
    "TLSSettings",
    "load_settings",
    "load_status_address",
]

_NGINX_STREAM: Path = ("nginx_config", "stream")
_STATUS: Path = ("apisix", "status")
_CONTROL: Path = ("apisix", "control")


@attrs.frozen
class AccessLogSettings:
    """One line per session: `nginx_config.stream.access_log*`, `streamgw.access_log`."""

    enabled: bool = True
    path: str = "-"
    """`-` is standard output."""
    format: str = "json"
    """`json`, `apisix`, or a format with nginx's `$variables`."""
    escape: Literal["default", "json", "none"] = "default"


@attrs.frozen
class ResolverSettings:
    """What is asked of DNS: `apisix.dns_resolver*`, `apisix.resolver_timeout`, `streamgw.resolver`, `discovery.dns`."""

    servers: tuple[Address, ...] = ()
    """Empty: /etc/resolv.conf."""
    ttl_override_s: float | None = None
    """`apisix.dns_resolver_valid`: used instead of the records' own time to live."""
    min_ttl_s: float = 1.0
    max_ttl_s: float = 300.0
    timeout_s: float = 5.0
    stale_s: float = 86_400.0
    """How long the last answer is used while the servers do not answer (RFC 8767)."""
    search: bool = True
    """`apisix.enable_resolv_search_opt`: short names go through the search domains."""
    max_records: int = 256
    """Of one name or service that are used."""
    discovery: DiscoverySettings = attrs.field(factory=DiscoverySettings)


_DEFAULT_STATUS = Address("127.0.0.1", 7085)


@attrs.frozen
class Settings:
    """Everything conf/config.yaml says, with defaults filled in."""

    listeners: tuple[Listener, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    """`nginx_config.stream.real_ip_from`: peers whose PROXY header is believed."""
    status: Address | None = _DEFAULT_STATUS
    """None: no status endpoint."""
    admin: AdminSettings | None = None
    """None: no Admin API."""
    control: Endpoint | None = CONTROL
    """None: no control API."""
    metrics: MetricsSettings | None = attrs.field(factory=MetricsSettings)
    """None: no metrics."""
    http: HTTPLimits = attrs.field(factory=HTTPLimits)
    """`streamgw.admin`: of all the HTTP servers."""
    drain_timeout_s: float = 240.0
    """`nginx_config.worker_shutdown_timeout`."""
    access_log: AccessLogSettings = attrs.field(factory=AccessLogSettings)
    log: LogSettings = attrs.field(factory=LogSettings)
    limits: LimitSettings = attrs.field(factory=LimitSettings)
    resolver: ResolverSettings = attrs.field(factory=ResolverSettings)
    reload: ReloadSettings = attrs.field(factory=ReloadSettings)
    tls: TLSSettings = attrs.field(factory=TLSSettings)
    """`apisix.ssl`, `streamgw.tls`."""
    stream_plugins: tuple[str, ...] | None = None
    """Plugins that routes may use; None: every one that is installed."""
    checks_health: bool = True
    """Not `apisix.disable_upstream_healthcheck`."""
    workers: int = 1
    """`streamgw.workers`."""
    has_cpu_affinity: bool = False
    """`nginx_config.enable_cpu_affinity`: each of several workers stays on one CPU."""
    relay: Literal["pump", "sockmap"] = "pump"
    """`streamgw.relay`."""
    warnings: tuple[Problem, ...] = ()


def load_settings(path: FilePath, *, environ: Mapping[str, str]) -> Settings:
    """Read and check the whole file. Blocks.

    Raises:
      ConfigError: with every problem of the file, or that it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError((Problem(str(path), 0, 0, "", f"cannot be read: {error.strerror}"),)) from None
    locations = Locations(SourceFile(str(path), raw, ""), environ)
    data = read_yaml(read_text(str(path), raw, environ)).data
    try:
        settings, warnings = _build({} if data is None else data)
    except Wrong as wrong:
        raise ConfigError(locations.problems(wrong.faults)) from None
    return attrs.evolve(settings, warnings=locations.problems(warnings))


def load_status_address(path: FilePath, *, environ: Mapping[str, str]) -> Address:
    """Where a gateway of this file answers, whatever else is wrong with the file: it may run what stood there before. Blocks."""
    status = StatusSpec()
    with contextlib.suppress(OSError, ConfigError, Wrong):
        data = read_yaml(read_text(str(path), path.read_bytes(), environ)).data
        written = _section(data, ("apisix", "status")) if isinstance(data, dict) else None
        status = structure(written or {}, StatusSpec)
    return Address(status.ip, status.port)


def _build(data: object) -> tuple[Settings, list[Fault]]:
    if not isinstance(data, dict):
        raise Wrong(f"expected a mapping of sections, got {shown(data)}")
    unused = tuple(_unused(data))
    spec = structure(_without(data, unused), ConfigSpec)
    access_log, faults, warnings = _access_log(spec)
    admin = None
    try:
        if spec.deployment.admin is not None and spec.apisix.enable_admin:
            admin = build_admin(spec.deployment.admin)
    except Wrong as wrong:
        faults += wrong.faults
    metrics = build_metrics(spec.plugin_attr.prometheus)
    ours = _ours(spec, admin, metrics)
    lists = spec.apisix.stream_proxy
    needed = {".".join(map(str, path)): each.listen for path, each in ours.items() if each.is_named}
    listeners = build_listeners(lists.tcp, _defaults(spec), lists.udp, ours=needed)
    faults += listeners.faults
    faults += _without_a_share(listeners.served, spec.streamgw.workers)
    faults += _beside_each_other(ours)
    if faults:
        raise Wrong(*faults)
    if unused:
        names = ", ".join(".".join(map(str, path)) for path in unused)
        warnings.append(Fault(unused[0], f"these settings do nothing here: {names}", at_key=True))
    warnings += _warnings(spec, listeners.served)
    status, control = ours.get(_STATUS), ours.get(_CONTROL)
    settings = Settings(
        listeners=listeners.served,
        trusted_proxies=spec.nginx_config.stream.real_ip_from,
        status=None if status is None else status.listen,
        admin=admin,
        control=control,
        metrics=metrics,
        http=spec.streamgw.admin,
        drain_timeout_s=spec.nginx_config.worker_shutdown_timeout,
        access_log=access_log,
        log=spec.streamgw.log,
        limits=spec.streamgw.limits,
        resolver=_resolver(spec),
        reload=spec.streamgw.reload,
        tls=_tls(spec),
        stream_plugins=spec.stream_plugins,
        checks_health=not spec.apisix.disable_upstream_healthcheck,
        workers=spec.streamgw.workers,
        has_cpu_affinity=spec.nginx_config.enable_cpu_affinity,
        relay=spec.streamgw.relay,
    )
    return settings, warnings


def _ours(
    spec: ConfigSpec, admin: AdminSettings | None, metrics: MetricsSettings | None
) -> dict[Path, Endpoint]:
    """Where HTTP servers of ours listen, in the order in which they are opened. A default address may be missed."""
    found: dict[Path, Endpoint] = {}
    status = spec.apisix.status
    if spec.streamgw.enable_status:
        found[_STATUS] = Endpoint(Address(status.ip, status.port), is_named=True)
    if spec.apisix.enable_control:
        found[_CONTROL] = build_control(spec.apisix.control)
    if metrics is not None:
        found[(*METRICS, "export_addr")] = metrics.endpoint
    if admin is not None:
        found[(*ADMIN, "admin_listen")] = Endpoint(admin.listen, is_named=True)
    return found


def _beside_each_other(ours: Mapping[Path, Endpoint]) -> Iterator[Fault]:
    opened: list[tuple[Path, Endpoint]] = []
    for path, endpoint in ours.items():
        here = socket_of(endpoint.listen)
        for other, earlier in opened:
            if endpoint.is_named and exclude_each_other(here, socket_of(earlier.listen)):
                name = ".".join(map(str, other))
                listens = "listens" if earlier.is_named else "listens by default"
                said = f"{endpoint.listen} cannot be bound beside {earlier.listen}, where {name} {listens}"
                yield Fault(path, said)
                break
        opened.append((path, endpoint))


def _without_a_share(listeners: tuple[Listener, ...], workers: int) -> list[Fault]:
    """Each worker has its part of a listener's limit."""
    return [
        Fault(
            TCP_PATH if listener.transport == "tcp" else UDP_PATH,
            f"{listener.name}: expected max_sessions to be at least 1 for each of the {workers} workers, "
            f"got {listener.max_sessions}",
        )
        for listener in listeners
        if 0 < listener.max_sessions < workers
    ]


def _unused(data: Mapping[str, object]) -> list[Path]:
    """Settings of APISIX that are written here and have no effect."""
    found: list[Path] = []
    for section, names in WITHOUT_EFFECT.items():
        written = _section(data, section)
        if written is not None:
            found += ((*section, name) for name in names if name in written)
    plugins = _section(data, METRICS[:1]) or {}
    found += ((*METRICS[:1], name) for name in plugins if name != METRICS[1])
    return found


def _section(data: Mapping[str, object], path: Path) -> Mapping[str, object] | None:
    for name in path:
        below = data.get(str(name))
        if not isinstance(below, dict):
            return None
        data = below
    return data


def _without(data: Mapping[str, object], paths: tuple[Path, ...], at: Path = ()) -> dict[str, object]:
    """A copy without these paths, and without sections that are empty."""
    kept: dict[str, object] = {}
    for name, value in data.items():
        path = (*at, name)
        if path in paths or (value is None and path in SECTIONS):
            continue
        kept[name] = _without(value, paths, path) if path in SECTIONS and isinstance(value, dict) else value
    return kept


def _defaults(spec: ConfigSpec) -> Defaults:
    proxy_protocol = spec.apisix.proxy_protocol
    return Defaults(
        is_ipv6_on=spec.apisix.enable_ipv6,
        proxy_protocol="required" if proxy_protocol.enable_tcp_pp else "off",
        proxy_protocol_to_upstream="v1" if proxy_protocol.enable_tcp_pp_to_upstream else "off",
        max_sessions=spec.streamgw.limits.max_sessions_per_listener,
        max_udp_sessions=spec.streamgw.limits.max_udp_sessions_per_listener,
        fallback_sni=spec.apisix.ssl.fallback_sni or "",
        is_tls_on=spec.apisix.ssl.enable,
    )


def _access_log(spec: ConfigSpec) -> tuple[AccessLogSettings, list[Fault], list[Fault]]:
    ours, nginx = spec.streamgw.access_log, spec.nginx_config.stream
    faults: list[Fault] = []
    warnings: list[Fault] = []
    if nginx.access_log_format is not None:
        path = (*_NGINX_STREAM, "access_log_format")
        try:
            compile_format(nginx.access_log_format, nginx.access_log_format_escape)
        except ValueError as error:
            faults.append(Fault(path, str(error)))
        if ours.format is not None:
            warnings.append(Fault(path, "does nothing: streamgw.access_log.format wins", at_key=True))
    if nginx.access_log is not None and ours.path is not None:
        path = (*_NGINX_STREAM, "access_log")
        warnings.append(Fault(path, "does nothing: streamgw.access_log.path wins", at_key=True))
    settings = AccessLogSettings(
        enabled=nginx.enable_access_log,
        path=ours.path or nginx.access_log or "-",
        format=ours.format or nginx.access_log_format or "json",
        escape=nginx.access_log_format_escape,
    )
    return settings, faults, warnings


def _tls(spec: ConfigSpec) -> TLSSettings:
    apisix = spec.apisix.ssl
    return TLSSettings(
        protocols=apisix.ssl_protocols,
        ciphers=apisix.ssl_ciphers,
        session_tickets=apisix.ssl_session_tickets,
        trusted_certificate=apisix.ssl_trusted_certificate,
        expiry_warning_days=spec.streamgw.tls.expiry_warning_days,
    )


def _resolver(spec: ConfigSpec) -> ResolverSettings:
    apisix, ours = spec.apisix, spec.streamgw.resolver
    return ResolverSettings(
        servers=apisix.dns_resolver,
        ttl_override_s=apisix.dns_resolver_valid,
        min_ttl_s=ours.min_ttl_s,
        max_ttl_s=ours.max_ttl_s,
        timeout_s=apisix.resolver_timeout,
        stale_s=ours.stale_s,
        search=apisix.enable_resolv_search_opt,
        max_records=ours.max_records,
        discovery=build_discovery(spec.discovery),
    )


def _warnings(spec: ConfigSpec, served: tuple[Listener, ...]) -> list[Fault]:
    found: list[Fault] = []
    if not served:
        found.append(Fault(TCP_PATH, "no listener: no client can connect"))
    if spec.apisix.proxy_mode == "http" and served:
        message = "APISIX would not listen on stream_proxy with proxy_mode 'http'; streamgw does"
        found.append(Fault(("apisix", "proxy_mode"), message))
    if spec.deployment.admin is not None and not spec.apisix.enable_admin:
        found.append(Fault(ADMIN, "does nothing: apisix.enable_admin is false", at_key=True))
    return found
