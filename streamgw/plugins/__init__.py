"""The built-in plugins, and those that other packages bring along.

A plugin is a `core.hooks.Plugin`: a name, a class of options, and a function that makes hooks of them. Other packages name
theirs in the entry-point group `streamgw.plugins`; docs/plugins.md says how.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, TypeAlias

import attrs

from streamgw.core.hooks import Plugin
from streamgw.plugins import (
    echo,
    fault_injection,
    file_logger,
    http_logger,
    ip_restriction,
    limit_bandwidth,
    limit_conn,
    limit_rate,
    mqtt_proxy,
    prometheus,
    real_ip,
    syslog,
    tcp_logger,
    traffic_split,
    udp_logger,
)

GROUP: Final = "streamgw.plugins"

AnyPlugin: TypeAlias = Plugin[Any]
"""The options of one plugin are no other's business."""

_BUILT_IN: Final[tuple[AnyPlugin, ...]] = (
    real_ip.PLUGIN,
    fault_injection.PLUGIN,
    ip_restriction.PLUGIN,
    limit_rate.PLUGIN,
    limit_conn.PLUGIN,
    limit_bandwidth.PLUGIN,
    mqtt_proxy.PLUGIN,
    traffic_split.PLUGIN,
    prometheus.PLUGIN,
    echo.PLUGIN,
    http_logger.PLUGIN,
    tcp_logger.PLUGIN,
    syslog.PLUGIN,
    udp_logger.PLUGIN,
    file_logger.PLUGIN,
)
BUILT_IN: Final = {plugin.name: plugin for plugin in _BUILT_IN}
"""In the order in which they run."""


@attrs.frozen
class Registry:
    """What is installed."""

    plugins: dict[str, AnyPlugin]
    """By name, in the order in which they run."""
    origins: dict[str, str]
    """By name, of those that are not built in: the package and its version, `acme-streamgw 1.0`."""
    troubles: tuple[str, ...] = ()
    """Entry points that brought no plugin, and why. Routes that name such a plugin are refused; the others run."""


def registry(found: Iterable[EntryPoint] | None = None) -> Registry:
    """Every plugin there is. Imports the code of every package that brings one.

    Args:
      found: entry points; None: those of the group, of all installed packages.
    """
    plugins, origins, troubles = dict(BUILT_IN), {}, []
    for entry in entry_points(group=GROUP) if found is None else found:
        try:
            plugin = entry.load()
        except Exception as error:  # noqa: BLE001  somebody else's code: it must not keep the gateway from starting
            troubles.append(f"plugin {entry.name} ({_origin(entry)}) cannot be loaded: {error!r}")
            continue
        if not isinstance(plugin, Plugin):
            troubles.append(f"plugin {entry.name} ({_origin(entry)}) is no streamgw.core.hooks.Plugin")
        elif plugin.name in plugins:
            troubles.append(
                f"plugin {plugin.name} ({_origin(entry)}) has the name of one that is there already"
            )
        else:
            plugins[plugin.name] = plugin
            origins[plugin.name] = _origin(entry)
    in_order = sorted(plugins.values(), key=lambda plugin: (-plugin.priority, plugin.name))
    return Registry({plugin.name: plugin for plugin in in_order}, origins, tuple(troubles))


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
