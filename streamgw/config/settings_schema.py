"""conf/config.yaml, section by section: what APISIX's own file may say, and which of it means something here.

Names and places are APISIX's 3.x; ours stand under `streamgw:`. Settings of APISIX that have no meaning for this
gateway are listed in `WITHOUT_EFFECT`: accepted unread, and named in one warning. Everything else is unknown.

Longer than 400 lines, a quarter of them that list: it is one file that is described here.

Source:
  APISIX `conf/config.yaml.example`, `apisix/cli/config.lua`, `apisix/cli/schema.lua`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import attrs

from streamgw.config.contexts import DEFAULT_CIPHERS, VERSIONS, Version, set_ciphers
from streamgw.config.discovery import ELSEWHERE, DiscoverySpec, name_server
from streamgw.config.endpoints import AdminSpec, HTTPLimits, ListenSpec, PluginAttrSpec, Text, ip, plugin_attr
from streamgw.config.listen import TCPEntries, UDPEntries
from streamgw.config.rules import (
    Count,
    Duration,
    HostName,
    Net,
    Port,
    PositiveSeconds,
    Seconds,
    integer,
    text,
)
from streamgw.config.strict import Fault, Stated, Wrong, shown
from streamgw.config.wording import Schema
from streamgw.config.yaml_reader import Path
from streamgw.core.model import Address

SECTIONS: tuple[Path, ...] = (
    ("apisix",),
    ("apisix", "stream_proxy"),
    ("apisix", "proxy_protocol"),
    ("apisix", "ssl"),
    ("nginx_config",),
    ("nginx_config", "stream"),
    ("deployment",),
    ("deployment", "admin"),
    ("discovery",),
    ("discovery", "dns"),
    ("streamgw",),
    ("streamgw", "admin"),
    ("streamgw", "limits"),
    ("streamgw", "access_log"),
    ("streamgw", "log"),
    ("streamgw", "tls"),
    ("streamgw", "resolver"),
    ("streamgw", "reload"),
)
"""Mappings that may be empty in the file: `streamgw:` with every line below it commented out."""

WITHOUT_EFFECT: Mapping[Path, tuple[str, ...]] = {
    (): (
        "etcd",
        "ext-plugin",
        "graphql",
        "plugins",
        "wasm",
        "xrpc",
    ),
    ("apisix",): (
        "admin_api_mtls",
        "admin_key",
        "admin_listen",
        "allow_admin",
        "config_center",
        "data_encryption",
        "delete_uri_tail_slash",
        "disable_sync_configuration_during_start",
        "enable_admin_cors",
        "enable_debug",
        "enable_dev_mode",
        "enable_heartbeat",
        "enable_http2",
        "enable_reuseport",
        "enable_server_tokens",
        "events",
        "extra_lua_cpath",
        "extra_lua_path",
        "https_admin",
        "id",
        "lru",
        "lua_module_hook",
        "node_listen",
        "node_ssl_listen",
        "normalize_uri_like_servlet",
        "proxy_cache",
        "router",
        "show_upstream_status_in_response_header",
        "tracing",
        "trusted_addresses",
    ),
    ("apisix", "stream_proxy"): ("only",),
    ("apisix", "proxy_protocol"): ("listen_http_port", "listen_https_port"),
    ("apisix", "ssl"): (
        "enable_http2",
        "enable_http3",
        "key_encrypt_salt",
        "listen",
        "listen_port",
        "ssl_cert",
        "ssl_cert_key",
    ),
    ("nginx_config",): (
        "envs",
        "error_log",
        "error_log_level",
        "event",
        "http",
        "http_admin_configuration_snippet",
        "http_configuration_snippet",
        "http_end_configuration_snippet",
        "http_server_configuration_snippet",
        "http_server_location_configuration_snippet",
        "main_configuration_snippet",
        "max_pending_timers",
        "max_running_timers",
        "meta",
        "stream_configuration_snippet",
        "user",
        "worker_processes",
        "worker_rlimit_core",
        "worker_rlimit_nofile",
    ),
    ("nginx_config", "stream"): ("lua_shared_dict", "metrics_zone_size"),
    ("deployment",): ("certs", "etcd"),
    ("discovery",): ELSEWHERE,
}


MAX_WORKERS = 32
"""Twice as many processes run while they are replaced, and each holds every route."""


def _workers(value: object) -> int:
    """`auto`: as many as there are CPUs that this process may use."""
    if value == "auto":
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    if type(value) is not int or not 1 <= value <= MAX_WORKERS:
        raise Wrong(f"expected an integer 1–{MAX_WORKERS} or 'auto', got {shown(value)}")
    return value


_WORKERS_SCHEMA: Schema = {
    "anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}, {"const": "auto"}]
}

SHARED_LIMITS = (
    "max_sessions",
    "max_sessions_per_listener",
    "max_handshakes",
    "max_udp_sessions",
    "max_udp_sessions_per_listener",
    "max_udp_sessions_per_client",
)
"""How many of something the whole gateway may have. Each worker gets its part; 0 is no limit."""


@attrs.frozen(kw_only=True)
class StreamProxySpec:
    """`apisix.stream_proxy`."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[("apisix", "stream_proxy")]
    tcp: TCPEntries = ()
    udp: UDPEntries = ()


@attrs.frozen(kw_only=True)
class ProxyProtocolSpec:
    """`apisix.proxy_protocol`: the default of every TCP listener."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[("apisix", "proxy_protocol")]
    enable_tcp_pp: bool = False
    enable_tcp_pp_to_upstream: bool = False


@attrs.frozen(kw_only=True)
class StatusSpec:
    """`apisix.status`."""

    ip: Annotated[str, ip] = "127.0.0.1"
    port: Port = 7085


def _protocols(value: object) -> tuple[Version, ...]:
    """`TLSv1.2 TLSv1.3`, as nginx writes it."""
    written = value.split() if type(value) is str else []
    known = tuple(version for version in VERSIONS if version in written)
    if not known or len(known) != len(written):
        raise Wrong(
            f"expected versions out of {', '.join(VERSIONS)}, with a space between, got {shown(value)}"
        )
    if "TLSv1.2" not in known and len(known) > 1:
        raise Wrong(f"expected versions without a gap between them, got {shown(value)}")
    return known


_PROTOCOLS_SCHEMA: Schema = {
    "type": "string",
    "pattern": rf"^(?:{'|'.join(VERSIONS)})(?: +(?:{'|'.join(VERSIONS)}))*$",
    "description": "`TLSv1.2 TLSv1.3`.",
}


def _ciphers(value: object) -> str:
    ciphers = text(1)(value)
    set_ciphers(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ciphers, ())
    return ciphers


@attrs.frozen(kw_only=True)
class SSLDefaultsSpec:
    """`apisix.ssl`."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[("apisix", "ssl")]
    enable: bool = True
    ssl_protocols: Annotated[tuple[Version, ...], Stated(_protocols, _PROTOCOLS_SCHEMA)] = (
        "TLSv1.2",
        "TLSv1.3",
    )
    ssl_ciphers: Annotated[str, Stated(_ciphers, {"type": "string", "minLength": 1})] = DEFAULT_CIPHERS
    ssl_session_tickets: bool = True
    ssl_trusted_certificate: Text = "system"
    fallback_sni: HostName | None = None


@attrs.frozen(kw_only=True)
class ApisixSpec:
    """`apisix`."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[("apisix",)]
    proxy_mode: Literal["http", "stream", "http&stream"] | None = None
    stream_proxy: StreamProxySpec = StreamProxySpec()
    proxy_protocol: ProxyProtocolSpec = ProxyProtocolSpec()
    ssl: SSLDefaultsSpec = SSLDefaultsSpec()
    enable_ipv6: bool = True
    status: StatusSpec = StatusSpec()
    enable_admin: bool = True
    enable_control: bool = True
    control: ListenSpec = attrs.field(factory=ListenSpec)
    dns_resolver: tuple[Annotated[Address, name_server], ...] = ()
    dns_resolver_valid: PositiveSeconds | None = None
    resolver_timeout: PositiveSeconds = 5.0
    enable_resolv_search_opt: bool = True
    disable_upstream_healthcheck: bool = False


@attrs.frozen(kw_only=True)
class NginxStreamSpec:
    """`nginx_config.stream`."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[("nginx_config", "stream")]
    enable_access_log: bool = True
    access_log: Text | None = None
    access_log_format: Text | None = None
    access_log_format_escape: Literal["default", "json", "none"] = "default"
    real_ip_from: tuple[Net, ...] = ()


@attrs.frozen(kw_only=True)
class NginxSpec:
    """`nginx_config`."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[("nginx_config",)]
    stream: NginxStreamSpec = NginxStreamSpec()
    worker_shutdown_timeout: Duration = 240.0
    enable_cpu_affinity: bool = False


@attrs.frozen(kw_only=True)
class RoleSpec:
    """`deployment.role_*`: our routes come from files, whatever it says."""

    config_provider: Literal["etcd", "yaml", "json", "xds"] | None = None


@attrs.frozen(kw_only=True)
class DeploymentSpec:
    """`deployment`."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[("deployment",)]
    role: Literal["traditional", "control_plane", "data_plane", "standalone"] = "traditional"
    role_traditional: RoleSpec | None = None
    role_control_plane: RoleSpec | None = None
    role_data_plane: RoleSpec | None = None
    admin: AdminSpec | None = None


@attrs.frozen(kw_only=True)
class AccessLogSpec:
    """`streamgw.access_log`: wins over `nginx_config.stream`."""

    format: Literal["json", "apisix"] | None = None
    path: Text | None = None


@attrs.frozen(kw_only=True)
class ResolverSpec:
    """`streamgw.resolver`."""

    min_ttl_s: Seconds = 1.0
    max_ttl_s: PositiveSeconds = 300.0
    stale_s: Seconds = 86_400.0
    max_records: Annotated[int, integer(1, 1024)] = 256

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.min_ttl_s > self.max_ttl_s:
            yield Fault(
                ("min_ttl_s",), f"expected at most max_ttl_s ({self.max_ttl_s:g}), got {self.min_ttl_s:g}"
            )


@attrs.frozen
class LogSettings:
    """The application log: `streamgw.log`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "console"


@attrs.frozen
class LimitSettings:
    """What one process and one session may use: `streamgw.limits`. 0 is no limit."""

    max_sessions: Count = 10_000
    max_sessions_per_listener: Count = 0
    max_session_duration_s: Seconds = 0.0
    preread_timeout_s: PositiveSeconds = 3.0
    preread_limit_bytes: Annotated[int, integer(536, 1 << 16)] = 32_768
    """At least 536, so that any PROXY header without extensions fits (v2 specification, § 2.2)."""
    handshake_timeout_s: PositiveSeconds = 10.0
    """Of one TLS handshake, with a client or with a node, from its first byte."""
    max_handshakes: Annotated[int, integer(1)] = 256
    """With clients, at the same time."""
    max_udp_sessions: Count = 10_000
    """Each holds a descriptor."""
    max_udp_sessions_per_listener: Count = 0
    """A listener's own `max_sessions` goes first."""
    max_udp_sessions_per_client: Count = 4096
    """Of one client address, whatever its ports."""
    udp_session_rate_per_client: Seconds = 0.0
    """New sessions per second of one client address; as many may come at once."""
    udp_queue_datagrams: Annotated[int, integer(1, 1024)] = 64
    """Held per session while its upstream socket is being opened."""


@attrs.frozen(kw_only=True)
class TLSSpec:
    """`streamgw.tls`."""

    expiry_warning_days: Count = 21


@attrs.frozen
class ReloadSettings:
    """How files are watched: `streamgw.reload`."""

    settle_ms: Annotated[int, integer(1, 10_000)] = 50
    """A burst of changes is over after this long without one."""
    relook_s: PositiveSeconds = 2.0
    """The directory is read again this often even without an event."""
    force_polling: bool = False
    """For file systems without inotify."""


@attrs.frozen(kw_only=True)
class StreamgwSpec:
    """`streamgw`."""

    workers: Annotated[int, Stated(_workers, _WORKERS_SCHEMA)] = 1
    relay: Literal["pump", "sockmap"] = "pump"
    """Who passes small messages on: the process, or with sockmap the kernel, where it can."""
    enable_status: bool = True
    admin: HTTPLimits = attrs.field(factory=HTTPLimits)
    limits: LimitSettings = LimitSettings()
    access_log: AccessLogSpec = AccessLogSpec()
    log: LogSettings = LogSettings()
    tls: TLSSpec = TLSSpec()
    resolver: ResolverSpec = ResolverSpec()
    reload: ReloadSettings = ReloadSettings()

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        for name in SHARED_LIMITS:
            limit = getattr(self.limits, name)
            if 0 < limit < self.workers:
                expected = f"at least 1 for each of the {self.workers} workers"
                yield Fault(("limits", name), f"expected {expected}, got {limit}")


@attrs.frozen(kw_only=True)
class ConfigSpec:
    """The whole file."""

    also_known: ClassVar[tuple[str, ...]] = WITHOUT_EFFECT[()]
    apisix: ApisixSpec = ApisixSpec()
    nginx_config: NginxSpec = NginxSpec()
    deployment: DeploymentSpec = DeploymentSpec()
    plugin_attr: Annotated[PluginAttrSpec, plugin_attr] = attrs.field(factory=PluginAttrSpec)
    stream_plugins: tuple[Text, ...] | None = None
    discovery: DiscoverySpec = attrs.field(factory=DiscoverySpec)
    streamgw: StreamgwSpec = StreamgwSpec()
