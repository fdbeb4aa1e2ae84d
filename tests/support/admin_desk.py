"""The Admin API over a directory of its own, without a port and without a gateway: requests in, files and answers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import httpx
from starlette.applications import Starlette

from streamgw.config.compile import Loader
from streamgw.config.plugins import NO_PLUGINS
from streamgw.config.store import Store
from streamgw.control.admin.api import AdminAPI
from streamgw.core.model import Listener
from tests.support.fake_fleet import FakeFleet

NOW = 1_700_000_000.0
LISTENERS = (Listener("tcp", "0.0.0.0", 9100), Listener("tcp", "0.0.0.0", 9101, tls=True))
ROUTE: Mapping[str, Any] = {"upstream": {"nodes": {"127.0.0.1:1995": 1}, "type": "roundrobin"}}
UPSTREAM: Mapping[str, Any] = {"nodes": {"127.0.0.1:1995": 1}, "type": "roundrobin"}


@attrs.define
class Clock:
    """Unix time, as the test says."""

    now: float = NOW
    reads: Callable[[], float] | None = None
    """Instead of `now`: for a test in which time passes."""

    def __call__(self) -> float:
        return self.now if self.reads is None else self.reads()


class Desk:
    """A client, and what is behind it. Every answer came through the whole application."""

    def __init__(
        self,
        routes: Path,
        *,
        listeners: Sequence[Listener] = LISTENERS,
        version: Literal["v2", "v3"] = "v3",
    ) -> None:
        self.routes = routes
        self.store = Store(routes)
        self.clock = Clock()
        self.listeners = listeners
        self.plugins = NO_PLUGINS
        self.loader = Loader(self.store, environ={}, plugins=lambda: self.plugins)
        self.fleet = FakeFleet(lambda: self.loader.load(self.listeners).snapshot.sources)
        self.api = AdminAPI(
            self.store,
            check=self.loader.check,
            fleet=self.fleet,
            listeners=lambda: self.listeners,
            wall_clock=self.clock,
            plugins=lambda: self.plugins,
            version=version,
        )
        app = Starlette(routes=self.api.routes())
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test/apisix/admin/"
        )

    async def ask(self, method: str, path: str, body: object = None, **more: Any) -> httpx.Response:
        """One request. A `body` of bytes is sent as it is, everything else as JSON."""
        if isinstance(body, bytes):
            more["content"] = body
        elif body is not None:
            more["json"] = body
        return await self._client.request(method, path, **more)

    async def put(self, path: str, body: object, **more: Any) -> httpx.Response:
        return await self.ask("PUT", path, body, **more)

    async def get(self, path: str, **more: Any) -> Any:
        return (await self.ask("GET", path, **more)).json()

    def files(self) -> dict[str, str]:
        """Every file that counts, by its path."""
        return {file.path: file.text.decode() for file in Store(self.routes).read().files}

    def write(self, name: str, text: str) -> None:
        """As an editor would."""
        path = self.routes / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
