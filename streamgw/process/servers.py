"""The HTTP servers of a gateway, put together: status, control API, metrics, Admin API.

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
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from socket import socket  # noqa: TID251  the name of a type

import structlog
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from streamgw import __version__
from streamgw.config.endpoints import AdminSettings, AdminTLS, Endpoint
from streamgw.config.json_schema import OBJECTS, of_object, of_plugin
from streamgw.config.plugins import PluginSet
from streamgw.config.settings import Settings
from streamgw.control.admin.access import API_PATH, Access, Headers, Limits, LocalNames, RequestLimits
from streamgw.control.admin.api import AdminAPI
from streamgw.control.admin.app import build_app, serve_admin
from streamgw.control.admin.connections import Bounds
from streamgw.control.admin.control import build_control_routes, build_status_app
from streamgw.control.admin.events import EventServer
from streamgw.control.admin.fleet import Fleet
from streamgw.control.admin.metrics import build_metrics_app
from streamgw.control.admin.pages import build_page_routes
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import Address, Listener
from streamgw.process.central import Central
from streamgw.process.plugins import plugin_set
from streamgw.process.sockets import listen_for_http

EVENTS_PATH = "/streamgw/v1/events"


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
        fleet: Fleet,
        handed: Mapping[str, socket] | None = None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._central = central
        self._fleet = fleet
        self._admin = settings.admin
        self.missed: list[Problem] = []
        """Servers whose default address was taken."""
        self.sockets: dict[str, socket] = {}
        """By address, as configured."""
        self._handed = dict(handed or {})
        self._ready: list[Callable[[trio.Nursery], Awaitable[object]]] = []
        self._stop = trio.Event()
        self._log = structlog.get_logger()

    async def start(self, nursery: trio.Nursery) -> None:
        """Answer requests. Raises what `prepare` does, if that was not done before."""
        if not self._ready:
            self.prepare()
        for start in self._ready:
            await start(nursery)

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
            self._open("apisix.status", settings.status, self._limited(build_status_app(self._fleet)))
        if settings.control is not None:
            self._open_endpoint("apisix.control", settings.control, self._control_app())
        if settings.metrics is not None:
            app = self._limited(build_metrics_app(self._fleet, settings.metrics))
            self._open_endpoint("plugin_attr.prometheus.export_addr", settings.metrics.endpoint, app)
        if settings.admin is not None:
            api = self._admin_api()
            self._ready.append(partial(self._start_janitor, api))
            tls = None if settings.admin.tls is None else self._tls_context(settings.admin.tls)
            app = self._admin_app(api, settings.admin)
            self._open("deployment.admin.admin_listen", settings.admin.listen, app, tls)

    async def _start_janitor(self, api: AdminAPI, nursery: trio.Nursery) -> None:
        async def run() -> None:
            async with trio.open_nursery() as beside:
                beside.start_soon(api.run)
                await self._stop.wait()
                beside.cancel_scope.cancel()

        nursery.start_soon(run)

    def _open_endpoint(self, pointer: str, endpoint: Endpoint, app: ASGIApp) -> None:
        try:
            self._open(pointer, endpoint.listen, app)
        except ConfigError as error:
            if endpoint.is_named:
                raise
            # Nobody asked for it: a second gateway on a machine, or another program on this port, is no reason to stay down.
            self.missed += error.problems
            for problem in error.problems:
                self._log.warning("settings_warning", problem=str(problem))

    def _open(self, pointer: str, address: Address, app: ASGIApp, tls: ssl.SSLContext | None = None) -> None:
        http = self._settings.http
        bounds = Bounds(http.max_connections, http.request_timeout_s)
        try:
            sock = self._handed.pop(str(address), None) or listen_for_http(address)
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise self._problem(pointer, f"cannot listen on {address}: {reason}") from error
        self.sockets[str(address)] = sock
        serve = partial(serve_admin, app, sock, bounds=bounds, tls=tls, stop=self._stop)

        async def start(nursery: trio.Nursery) -> None:
            await nursery.start(serve)

        self._ready.append(start)

    def _problem(self, pointer: str, message: str) -> ConfigError:
        return ConfigError((Problem(str(self._config), 0, 0, pointer, message),))

    def _limited(self, app: ASGIApp) -> ASGIApp:
        http = self._settings.http
        return Limits(app, RequestLimits(http.body_limit_bytes, http.request_timeout_s, http.max_requests))

    def _hosts(self) -> tuple[str, ...]:
        return self._central.settings.http.hosts

    def _bound(self) -> tuple[Listener, ...]:
        return tuple(self._central.sockets.bound())

    def _control_app(self) -> ASGIApp:
        routes = build_control_routes("/v1", self._fleet, listeners=self._bound, schemas=self._schemas)
        return LocalNames(self._limited(build_app(routes, as_apisix=True)), self._hosts)

    def _admin_api(self) -> AdminAPI:
        central = self._central
        return AdminAPI(
            central.store,
            check=central.loader.check,
            fleet=self._fleet,
            listeners=lambda: central.settings.listeners,
            wall_clock=time.time,  # noqa: TID251  for create_time and update_time
            plugins=self._plugins,
            version=self._admin_settings().version,
        )

    def _admin_app(self, api: AdminAPI, admin: AdminSettings) -> ASGIApp:
        http = self._settings.http
        events = EventServer(self._fleet, max_clients=http.max_event_clients)
        routes = [
            Route(API_PATH, _nothing, methods=["HEAD"]),
            *api.routes(),
            *build_control_routes("/streamgw/v1", self._fleet, listeners=self._bound, schemas=self._schemas),
            *events.routes(EVENTS_PATH),
        ]
        if admin.has_ui:
            routes += build_page_routes(None if http.ui_dir is None else Path(http.ui_dir))
        app = self._limited(build_app(routes, as_apisix=True))
        access = Access(app, self._admin_settings, get_hosts=self._hosts, refused=self._central.refused)
        return Headers(access, [("Server", http.server_header or f"streamgw/{__version__}")])

    def _admin_settings(self) -> AdminSettings:
        """Those of now. While a changed file has no section any more, the last ones: the server is still there."""
        self._admin = self._central.settings.admin or self._admin
        assert self._admin is not None, "it is served"
        return self._admin

    def _plugins(self) -> PluginSet:
        return plugin_set(self._central.settings, self._central.services)

    def _schemas(self) -> dict[str, object]:
        plugins = self._plugins()
        return {
            "main": {name: of_object(name) for name in OBJECTS},
            "plugins": {},
            "stream_plugins": {
                plugin.name: {
                    "priority": plugin.priority,
                    "version": plugin.version,
                    "schema": of_plugin(plugin),
                }
                for plugin in plugins.installed.values()
                if plugins.enabled is None or plugin.name in plugins.enabled
            },
        }

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


async def _nothing(_request: Request) -> Response:
    """Clients look at the header `Server` of the answer."""
    return Response()
