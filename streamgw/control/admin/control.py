"""The status pages, and the control API: what runs, who is connected, what would become of a client.

The handlers of the control API stand twice: below `/v1` on their own server, for whoever is on this machine, and below
`/streamgw/v1` on the Admin API's, for whoever has a key.

Source:
  APISIX `apisix/control/router.lua`, `apisix/control/v1.lua`: paths and shapes of `/v1/healthcheck`, `/v1/schema` and the
  dumps.
"""

from __future__ import annotations

import gc
import html
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, Protocol, cast

import attrs
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from streamgw.config import discovery
from streamgw.config.hidden import without_secrets
from streamgw.control.admin.app import JSONResponse, build_app
from streamgw.control.admin.fleet import Fleet, SessionFilter, SessionRow
from streamgw.control.explain import facts_of, fold, likely_transport
from streamgw.core.model import Listener, Transport

MAX_ROWS: Final = 10_000
"""Sessions in one answer."""
DUMPS: Final[Mapping[str, str]] = {
    "services": "service",
    "upstreams": "upstream",
    "stream_routes": "stream_route",
    "routes": "route",
    "plugin_metadatas": "plugin_metadata",
}
"""What is dumped, and the word for one of them. Ours: stream_routes. There are no routes: those are HTTP's."""
_CHECKED: Final = frozenset({"routes", "services", "upstreams", "stream_routes"})
"""What may have health checks."""


class Gateway(Protocol):
    """What the status pages ask of the gateway."""

    def ready(self) -> bool:
        """Whether a configuration is loaded and clients are accepted. Must not block."""

    async def status(self) -> Mapping[str, object]:
        """The body of `/streamgw/v1/status`: mappings, sequences, strings, numbers, and datetimes with a time zone."""


def build_status_app(gateway: Gateway) -> Starlette:
    """The pages of `apisix.status`, and ours.

    * `GET /status`: 200 `{"status": "ok"}` as long as the process answers at all (a liveness probe).
    * `GET /status/ready`: the same, or 503 with `error` while no client would be served (a readiness probe).
    * `GET /streamgw/v1/status`: everything that `streamgw status` shows.

    Source:
      APISIX: `apisix.status` (default 127.0.0.1:7085), conf/config.yaml.example; the bodies of its two pages.
    """

    async def alive(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        if gateway.ready():
            return JSONResponse({"status": "ok"})
        error = "no client is accepted: the gateway is starting or draining"
        return JSONResponse({"status": "error", "error": error}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def status(_request: Request) -> Response:
        return JSONResponse(await gateway.status())

    return build_app(
        [Route("/status", alive), Route("/status/ready", ready), Route("/streamgw/v1/status", status)],
    )


def build_control_routes(
    prefix: str,
    fleet: Fleet,
    *,
    listeners: Callable[[], Sequence[Listener]],
    schemas: Callable[[], Mapping[str, object]],
) -> list[BaseRoute]:
    """Every path of the control API, below `/v1` or `/streamgw/v1`.

    `listeners` is what clients can connect to; `schemas` is what `GET schema` says.
    """
    control = _Control(fleet, listeners, schemas)
    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "/status", control.status),
        ("GET", "/listeners", control.listeners),
        ("GET", "/sessions", control.sessions),
        ("DELETE", "/sessions/{id}", control.kill),
        ("GET", "/explain", control.explain),
        ("POST", "/reload", control.reload),
        ("GET", "/healthcheck", control.health),
        ("GET", "/healthcheck/{kind}", control.health_of),
        ("GET", "/healthcheck/{kind}/{id}", control.health_of),
        ("GET", "/schema", control.schema),
        ("POST", "/gc", control.collect_garbage),
        ("PUT", "/plugins/reload", control.reload_plugins),
        ("GET", "/discovery/{kind}/dump", control.discovery),
    ]
    for collection, word in DUMPS.items():
        routes += [
            ("GET", f"/{collection}", control.dump(collection)),
            ("GET", f"/{word}/{{id}}", control.dump_one(collection, word)),
        ]
    return [Route(prefix + path, handler, methods=[method]) for method, path, handler in routes]


class _Control:
    """The handlers."""

    def __init__(
        self,
        fleet: Fleet,
        listeners: Callable[[], Sequence[Listener]],
        schemas: Callable[[], Mapping[str, object]],
    ) -> None:
        self._fleet = fleet
        self._listeners = listeners
        self._schemas = schemas

    async def status(self, _request: Request) -> Response:
        return JSONResponse(await self._fleet.status())

    async def listeners(self, _request: Request) -> Response:
        return JSONResponse({"listeners": await self._fleet.listeners()})

    async def sessions(self, request: Request) -> Response:
        rows, total = await self._fleet.sessions(_filter_of(request.query_params))
        # 10,000 rows take a tenth of a second and more: not on the event loop.
        return await trio.to_thread.run_sync(_show_sessions, rows, total)

    async def kill(self, request: Request) -> Response:
        id_ = request.path_params["id"]
        if not await self._fleet.kill(id_):
            return _not_found(f"no session {id_}")
        return JSONResponse({"killed": id_})

    async def explain(self, request: Request) -> Response:
        """What `streamgw explain --json` prints, of the configuration that runs."""
        query, everybody = request.query_params, self._listeners()
        port = _number(query, "server_port", 1, 65535) if query.get("server_port") else None
        transport = _transport(query) or likely_transport(everybody, port)
        server_addr = _address(query, "server_addr") if query.get("server_addr") else None
        client = _address(query, "remote_addr") if query.get("remote_addr") else "127.0.0.1"
        there = [each for each in everybody if each.transport == transport]
        try:
            _, facts = facts_of(transport, there, client=client, server_addr=server_addr, server_port=port)
        except LookupError:
            raise _bad("server_port is needed: there is not exactly one") from None
        alpn = tuple(name for name in query.get("alpn", "").split(",") if name)
        name = query.get("sni", "").lower().removesuffix(".") or None
        return JSONResponse(self._fleet.explain(attrs.evolve(facts, server_name=name, alpn=alpn)))

    async def reload(self, _request: Request) -> Response:
        self._fleet.reload()
        return JSONResponse({"status": "ok"}, HTTPStatus.ACCEPTED)

    async def health(self, request: Request) -> Response:
        checkers = self._fleet.health()
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_health_page(checkers))
        # An empty table of Lua is an object.
        return JSONResponse(checkers or {})

    async def health_of(self, request: Request) -> Response:
        kind, id_ = request.path_params["kind"], request.path_params.get("id", "")
        if kind not in _CHECKED:
            raise _bad(f"invalid src type {kind}")
        if not id_:
            return _not_found(f"missing src id for src type {kind}")
        if not any(document.key == (kind, id_) for document in self._fleet.documents()):
            return _not_found(f"{kind}[{id_}] not found")
        found = [each for each in self._fleet.health() if _is_of(str(each["name"]), f"/apisix/{kind}/{id_}")]
        if not found:
            return _not_found(f"no checker for {kind}[{id_}]")
        return JSONResponse(found[0] if len(found) == 1 else found)

    async def schema(self, _request: Request) -> Response:
        # The first time a quarter of a second.
        return JSONResponse(await trio.to_thread.run_sync(self._schemas))

    async def collect_garbage(self, _request: Request) -> Response:
        gc.collect()
        return Response()

    async def reload_plugins(self, _request: Request) -> Response:
        self._fleet.reload()
        return PlainTextResponse("done")

    async def discovery(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind != discovery.TYPE:
            return _not_found(f"no discovery of type {kind}")
        services = {
            str(each["service_name"]): {"nodes": each["nodes"], "trouble": each["trouble"]}
            for each in self._fleet.discovery()
        }
        return JSONResponse({"services": services})

    def dump(self, collection: str) -> Callable[[Request], Awaitable[Response]]:
        """Every object of a collection, as it runs; stream routes in the order in which they are asked."""

        async def dump(_request: Request) -> Response:
            return JSONResponse(self._objects(collection))

        return dump

    def dump_one(self, collection: str, word: str) -> Callable[[Request], Awaitable[Response]]:
        """One of them."""

        async def dump_one(request: Request) -> Response:
            id_ = request.path_params["id"]
            for shown in self._objects(collection, id_):
                return JSONResponse(shown)
            return _not_found(f"{word}[{id_}] not found")

        return dump_one

    def _objects(self, collection: str, id_: str | None = None) -> list[Mapping[str, object]]:
        stored = "plugin_metadata" if collection == "plugin_metadatas" else collection
        found = [
            document
            for document in self._fleet.documents()
            if document.key[0] == stored and id_ in {None, document.key[1]}
        ]
        values = [{**without_secrets(stored, each.data), "id": each.key[1]} for each in found]
        if stored == "plugin_metadata":
            return [*values]
        return [
            {
                "key": f"/apisix/{stored}/{each.key[1]}",
                "value": value,
                "createdIndex": _index(value.get("create_time")),
                "modifiedIndex": _index(value.get("update_time")),
                "file": each.source.file,
                "line": each.source.line,
            }
            for each, value in zip(found, values, strict=True)
        ]


def _show_sessions(rows: Sequence[SessionRow], total: int) -> Response:
    return JSONResponse({"sessions": [attrs.asdict(row, recurse=False) for row in rows], "total": total})


def _index(time: object) -> int:
    """What APISIX has from etcd; here a time in milliseconds, or 1 for what was written by hand."""
    return time * 1000 if type(time) is int else 1


def _filter_of(query: Mapping[str, str]) -> SessionFilter:
    """The query as a filter.

    Raises:
      HTTPException: 400, it makes no sense.
    """
    names = {field.name for field in attrs.fields(SessionFilter)}
    if unknown := sorted(query.keys() - names - {"api_key"}):
        raise _bad(f"unknown parameter {unknown[0]!r}")
    _transport(query)
    if query.get("client"):
        try:
            ipaddress.ip_network(query["client"], strict=False)
        except ValueError:
            raise _bad("client is an address or CIDR") from None
    texts = {name: query[name] for name in names - {"limit"} if name in query}
    limit = _number(query, "limit", 0, MAX_ROWS) if query.get("limit") else SessionFilter().limit
    return SessionFilter(**texts, limit=limit)


def _number(query: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = query[name]
    if not (text.isascii() and text.isdecimal() and least <= int(text[:9]) <= most):
        what = "port" if name == "server_port" else "number"
        raise _bad(f"{name} is a {what}, {least} to {most}")
    return int(text)


def _transport(query: Mapping[str, str]) -> Transport | None:
    text = query.get("transport") or None
    if text not in {"tcp", "udp", None}:
        raise _bad("transport is tcp or udp")
    return cast("Transport | None", text)


def _address(query: Mapping[str, str], name: str) -> str:
    try:
        return fold(query[name])
    except ValueError:
        raise _bad(f"{name} is an address") from None


def _bad(why: str) -> HTTPException:
    return HTTPException(HTTPStatus.BAD_REQUEST, why)


def _not_found(why: str) -> Response:
    return JSONResponse({"error_msg": why}, HTTPStatus.NOT_FOUND)


def _is_of(checker: str, name: str) -> bool:
    """Its own, or of an upstream that a plugin of it describes."""
    return checker == name or checker.startswith(f"{name}/")


def _health_page(checkers: Sequence[Mapping[str, object]]) -> str:
    rows = [
        [checker.get("name"), checker.get("type"), f"{node.get('ip')}:{node.get('port')}", node.get("status")]
        for checker in checkers
        for node in cast("Sequence[Mapping[str, object]]", checker.get("nodes", ()))
    ]
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    table = "".join(f"<tr>{row}</tr>" for row in cells)
    head = "".join(f"<th>{name}</th>" for name in ("Upstream", "Check type", "Host", "Status"))
    return f"<!doctype html><title>Health checks</title><table border=1><tr>{head}</tr>{table}</table>\n"
