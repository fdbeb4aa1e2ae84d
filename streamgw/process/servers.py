"""The HTTP servers of a gateway: status, control API, metrics, Admin API. What answers there is put together in `apps`.

```
nursery
├─ status        answers as soon as the first configuration is loaded
├─ control       no key; only local names
├─ metrics
└─ admin         the key first, then APISIX's API, the control API and the live feed, and the page
   └─ janitor    deletes objects whose time is over
```
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from socket import socket  # noqa: TID251  the name of a type
from typing import TYPE_CHECKING, TypeAlias

import attrs
import structlog
import trio

from streamgw.config.endpoints import AdminTLS, Endpoint
from streamgw.config.settings import Settings
from streamgw.control.admin.fleet import Fleet
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import Address
from streamgw.process.central import Central
from streamgw.process.sockets import listen_for_http

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from streamgw.process.apps import Apps

_Build: TypeAlias = "Callable[[Apps], ASGIApp]"


@attrs.frozen
class _Door:
    """A socket, and what will answer there."""

    sock: socket
    build: _Build
    tls: ssl.SSLContext | None


class Servers:
    """Everything that speaks HTTP in one gateway.

    Args:
      config: conf/config.yaml, as the user named it.
      settings: of the start: where they listen does not change.
      handed: listening sockets by address, of the gateway that this one takes over from.

    Resource handling:
      Owns its sockets from `prepare` until `close`.
    """

    def __init__(
        self,
        config: Path,
        settings: Settings,
        central: Central,
        make_fleet: Callable[[], Fleet],
        handed: Mapping[str, socket] | None = None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._central = central
        self._make_fleet = make_fleet
        self.missed: list[Problem] = []
        """Servers whose default address was taken."""
        self.sockets: dict[str, socket] = {}
        """By address, as configured."""
        self._handed = dict(handed or {})
        self._doors: list[_Door] = []
        self._stop = trio.Event()
        self._log = structlog.get_logger()

    async def start(self, nursery: trio.Nursery) -> None:
        """Answer requests. Raises what `prepare` does, if that was not done before."""
        if not self._doors:
            self.prepare()
        if not self._doors:
            return
        # What speaks HTTP is two hundred modules. Clients of the data plane, who are served by now, wait for none of them.
        make = await trio.to_thread.run_sync(_import_apps)
        apps = make(self._settings, self._central, self._make_fleet())
        for door in self._doors:
            await nursery.start(
                partial(apps.serve, door.build(apps), door.sock, tls=door.tls, stop=self._stop)
            )
        nursery.start_soon(apps.run, self._stop)

    def stop(self) -> None:
        """Somebody else answers from now on: requests under way are finished, further ones are his."""
        self._stop.set()

    def close(self) -> None:
        """Close every socket."""
        for sock in (*self.sockets.values(), *self._handed.values()):
            sock.close()
        self.sockets.clear()
        self._handed.clear()

    def prepare(self) -> None:
        """Do everything that can fail. Nothing is answered yet; requests wait.

        Raises:
          ConfigError: an address that conf/config.yaml names cannot be had, or a certificate is not good.
        """
        settings = self._settings
        if settings.status is not None:
            self._open("apisix.status", settings.status, lambda apps: apps.status())
        if settings.control is not None:
            self._open_endpoint("apisix.control", settings.control, lambda apps: apps.control())
        if (metrics := settings.metrics) is not None:
            pointer = "plugin_attr.prometheus.export_addr"
            self._open_endpoint(pointer, metrics.endpoint, lambda apps: apps.metrics(metrics))
        if (admin := settings.admin) is not None:
            tls = None if admin.tls is None else self._tls_context(admin.tls)
            pointer = "deployment.admin.admin_listen"
            self._open(pointer, admin.listen, lambda apps: apps.admin(admin), tls)

    def _open_endpoint(self, pointer: str, endpoint: Endpoint, build: _Build) -> None:
        try:
            self._open(pointer, endpoint.listen, build)
        except ConfigError as error:
            if endpoint.is_named:
                raise
            # Nobody asked for it: a second gateway on a machine, or another program on this port, is no reason to stay down.
            self.missed += error.problems
            for problem in error.problems:
                self._log.warning("settings_warning", problem=str(problem))

    def _open(self, pointer: str, address: Address, build: _Build, tls: ssl.SSLContext | None = None) -> None:
        try:
            sock = self._handed.pop(str(address), None) or listen_for_http(address)
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise self._problem(pointer, f"cannot listen on {address}: {reason}") from error
        self.sockets[str(address)] = sock
        self._doors.append(_Door(sock, build, tls))

    def _problem(self, pointer: str, message: str) -> ConfigError:
        return ConfigError((Problem(str(self._config), 0, 0, pointer, message),))

    def _tls_context(self, files: AdminTLS) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # A password that is wrong, rather than a question on the terminal.
            context.load_cert_chain(files.certificate, files.key, password="")
            if files.client_ca:
                context.load_verify_locations(files.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise self._problem("deployment.admin.admin_api_mtls", f"not good: {error}") from None
        return context


def _import_apps() -> type[Apps]:
    import streamgw.process.fleet  # noqa: F401, PLC0415  for `crew.OneWorker.fleet`, which runs in the event loop
    from streamgw.process.apps import Apps  # noqa: PLC0415  see `Servers.start`

    return Apps
