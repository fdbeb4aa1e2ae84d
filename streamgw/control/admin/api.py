"""APISIX's Admin API: every path below `/apisix/admin`.

Source:
  APISIX `apisix/admin/init.lua`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Literal, NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from streamgw.config import openapi
from streamgw.config.plugins import NO_PLUGINS, PluginSet
from streamgw.config.schema import COLLECTIONS, HTTP_COLLECTIONS
from streamgw.config.store import Store
from streamgw.control.admin.catalog import Catalog
from streamgw.control.admin.changes import Changes, Check
from streamgw.control.admin.expiry import Janitor
from streamgw.control.admin.fleet import Fleet
from streamgw.control.admin.replies import RequestError, bad, json_body, json_reply, key_not_found, not_found
from streamgw.control.admin.resources import Call, Resources, check_ttl
from streamgw.control.admin.standalone import Standalone
from streamgw.control.admin.writer import Writer
from streamgw.core.model import Listener

_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH")


class AdminAPI:
    """The Admin API of one gateway, without authentication: that is asked before.

    Args:
      check: `Loader.check` of the loader that reloads: what was checked, it need not compile again.
      listeners: what the process listens on.
      wall_clock: Unix time.
      plugins: what there is to run on routes.
      version: shape of the answers (`deployment.admin.admin_api_version`).
    """

    def __init__(  # noqa: PLR0913  what a process has, each by its name
        self,
        store: Store,
        *,
        check: Check,
        fleet: Fleet,
        listeners: Callable[[], Sequence[Listener]],
        wall_clock: Callable[[], float],
        plugins: Callable[[], PluginSet] = lambda: NO_PLUGINS,
        version: Literal["v2", "v3"] = "v3",
    ) -> None:
        changes = Changes(store, check, listeners)
        writer = Writer(fleet)
        self._janitor = Janitor(changes, writer, wall_clock)
        self._resources = Resources(
            changes,
            writer,
            listeners,
            wall_clock,
            plugins=plugins,
            version=version,
            on_ttl=self._janitor.wake,
        )
        self._catalog = Catalog(plugins)
        self._plugins = plugins
        self._standalone = Standalone(changes, writer, wall_clock, plugins)

    def routes(self) -> list[BaseRoute]:
        """To be mounted behind whatever says who may."""
        return [
            Route("/apisix/admin", self._answer, methods=[*_METHODS]),
            Route("/apisix/admin/{path:path}", self._answer, methods=[*_METHODS]),
        ]

    async def run(self) -> NoReturn:
        """Delete what expires (`?ttl=`), until cancelled."""
        await self._janitor.run()

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._dispatch(request)
        except RequestError as error:
            return error.reply()

    async def _dispatch(self, request: Request) -> Response:
        name, _, rest = request.path_params.get("path", "").partition("/")
        if not name or (request.method == "HEAD" and name != "configs"):
            raise not_found()
        if "ttl" in request.query_params:
            check_ttl(request.query_params["ttl"])
        match name:
            case "schema":
                return await self._catalog.schema(request, rest)
            case "plugins":
                return await self._catalog.plugins(request, rest)
            case "configs":
                return await self._configs(request, rest)
            case "openapi.json" if request.method == "GET" and not rest:
                return json_reply(openapi.document(self._plugins()))
            case "secrets":
                return _secrets(request.method, rest)
            case _ if name in COLLECTIONS or name in HTTP_COLLECTIONS:
                return await self._resources.answer(request.method, await _call(request, name, rest))
            case _:
                raise RequestError(HTTPStatus.NOT_FOUND, f"Unsupported resource type: {name}")

    async def _configs(self, request: Request, rest: str) -> Response:
        match request.method, rest:
            case (("GET" | "HEAD" | "PUT"), ""):
                return await self._standalone.answer(request)
            case "POST", "validate":
                return await self._standalone.validate(request)
            case _:
                raise not_found()


async def _call(request: Request, collection: str, rest: str) -> Call:
    id_, _, sub_path = rest.partition("/")
    body = await json_body(request) if request.method in {"PUT", "POST", "PATCH"} else None
    return Call(
        collection=collection,
        id=id_,
        sub_path=sub_path,
        body=body,
        query=request.query_params,
        if_match=request.headers.get("if-match"),
        if_none_match=request.headers.get("if-none-match"),
    )


def _secrets(method: str, path: str) -> Response:
    """There are none: a secret is an environment variable, and needs no object."""
    if method == "GET" and not path:
        return json_reply({"list": [], "total": 0})
    if method == "GET":
        raise key_not_found()
    raise bad("secret managers are not available: use $env://NAME, or $file://PATH for certificates and keys")
