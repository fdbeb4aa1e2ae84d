"""conf/config.yaml: the settings of the process. Names that APISIX has keep their name and place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from streamgw.core.errors import Problem
from streamgw.core.model import Address, Listener, Network


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
class LogSettings:
    """The application log: `streamgw.log`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "console"


@attrs.frozen
class LimitSettings:
    """What one process and one session may use: `streamgw.limits`. 0 is no limit."""

    max_sessions: int = 10_000
    max_sessions_per_listener: int = 0
    max_session_duration_s: float = 0.0
    preread_timeout_s: float = 3.0
    preread_limit_bytes: int = 16_384


@attrs.frozen
class ResolverSettings:
    """How node names become addresses: `apisix.dns_resolver*`, `apisix.resolver_timeout`, `streamgw.resolver`."""

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


@attrs.frozen
class ReloadSettings:
    """How files are watched: `streamgw.reload`."""

    settle_ms: int = 50
    """A burst of changes is over after this long without one."""
    relook_s: float = 2.0
    """The directory is read again this often even without an event."""
    force_polling: bool = False
    """For file systems without inotify."""


@attrs.frozen
class Settings:
    """Everything conf/config.yaml says, with defaults filled in."""

    listeners: tuple[Listener, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    """`nginx_config.stream.real_ip_from`: peers whose PROXY header is believed."""
    status: Address | None = Address("127.0.0.1", 7085)
    """None: no status endpoint."""
    drain_timeout_s: float = 240.0
    """`nginx_config.worker_shutdown_timeout`."""
    access_log: AccessLogSettings = AccessLogSettings()
    log: LogSettings = LogSettings()
    limits: LimitSettings = LimitSettings()
    resolver: ResolverSettings = ResolverSettings()
    reload: ReloadSettings = ReloadSettings()
    warnings: tuple[Problem, ...] = ()


def load_settings(path: Path, *, environ: Mapping[str, str]) -> Settings:
    """Read and check the whole file. Blocks.

    Raises:
      ConfigError: with every problem of the file, or that it is not there.
    """
    raise NotImplementedError
