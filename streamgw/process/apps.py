"""What the HTTP servers of a gateway answer with, put together.

Imported when the first server starts, and not before: with it come starlette, hypercorn and prometheus_client.
"""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from socket import socket  # noqa: TID251  the name of a type

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from streamgw import __version__
from streamgw.config.endpoints import AdminSettings, MetricsSettings
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
from streamgw.core.model import Address, Listener
from streamgw.process.central import Central
from streamgw.process.plugins import plugin_set

EVENTS_PATH = "/streamgw/v1/events"


class Apps:
    """One ASGI application for each server.

    Args:
      settings: of the start.
      central: what the Admin API edits, and what counts now.
      fleet: what there is to tell.
    """

    def __init__(self, settings: Settings, central: Central, fleet: Fleet) -> None:
        self._settings = settings
        self._central = central
        self._fleet = fleet
        self._admin = settings.admin
        self._api: AdminAPI | None = None

    async def serve(
        self,
        app: ASGIApp,
        sock: socket,
        *,
        tls: ssl.SSLContext | None,
        stop: trio.Event,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer with it until `stop`; requests under way are then finished."""
        http = self._settings.http
        bounds = Bounds(http.max_connections, http.request_timeout_s)
        await serve_admin(app, sock, bounds=bounds, tls=tls, stop=stop, task_status=task_status)

    async def run(self, stop: trio.Event) -> None:
        """The Admin API's janitor, if there is an Admin API, until `stop`."""
        if self._api is None:
            return
        async with trio.open_nursery() as beside:
            beside.start_soon(self._api.run)
            await stop.wait()
            beside.cancel_scope.cancel()

    def status(self) -> ASGIApp:
        """Answers as soon as the first configuration is loaded."""
        return self._limited(build_status_app(self._fleet))

    def metrics(self, settings: MetricsSettings) -> ASGIApp:
        """For Prometheus."""
        return self._limited(build_metrics_app(self._fleet, settings))

    def _limited(self, app: ASGIApp) -> ASGIApp:
        http = self._settings.http
        return Limits(app, RequestLimits(http.body_limit_bytes, http.request_timeout_s, http.max_requests))

    def _hosts(self) -> tuple[str, ...]:
        return self._central.settings.http.hosts

    def _bound(self) -> tuple[Listener, ...]:
        return tuple(self._central.sockets.bound())

    def control(self) -> ASGIApp:
        """No key; only local names."""
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

    def admin(self, admin: AdminSettings) -> ASGIApp:
        """The key first, then APISIX's API, the control API and the live feed, and the page."""
        api = self._api = self._admin_api()
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


async def _nothing(_request: Request) -> Response:
    """Clients look at the header `Server` of the answer."""
    return Response()
