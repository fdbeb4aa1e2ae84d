"""Which plugins a gateway has: what is installed, what its settings switch on, what it gives to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from streamgw.config.plugins import PluginSet
from streamgw.config.settings import Settings
from streamgw.core.errors import Problem
from streamgw.core.hooks import PluginServices
from streamgw.plugins import Registry, registry

installed = functools.cache(registry)
"""Looked for once per process: a package that is installed meanwhile needs a restart."""


def plugin_set(
    settings: Settings, services: PluginServices | None = None, *, found: Registry | None = None
) -> PluginSet:
    """What routes may name.

    Args:
      settings: `stream_plugins`; without it every installed plugin may be used.
      services: of the running gateway; None: nothing will run.
      found: what is installed, for tests.
    """
    found = installed() if found is None else found
    enabled = settings.stream_plugins
    troubles = list(found.troubles)
    troubles += (
        f"stream_plugins: no plugin is called {name}" for name in enabled or () if name not in found.plugins
    )
    return PluginSet(
        installed=found.plugins,
        enabled=None if enabled is None else frozenset(enabled),
        services=services or _NO_SERVICES,
        warnings=tuple(Problem("the plugins", 0, 0, "", trouble) for trouble in troubles),
        idle=_NOTHING_IDLE if settings.metrics is not None else _NOT_EXPORTED,
    )


_NO_SERVICES = PluginServices()
_NOTHING_IDLE: Mapping[str, str] = {}
_NOT_EXPORTED = {
    "prometheus": (
        "L4 prometheus metric should be exposed via export server, "
        "and plugin_attr.prometheus.enable_export_server is false"
    )
}
"""In APISIX's words, with which it refuses to start."""
