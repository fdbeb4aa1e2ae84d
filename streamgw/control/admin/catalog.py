"""What may be written: the schemas of objects, and the plugins with theirs.

Source:
  APISIX `apisix/admin/schema.lua`, `plugins.lua`. There is one subsystem here: what says nothing means `stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus

import trio
from starlette.requests import Request
from starlette.responses import Response

from streamgw.config.apisix import first_fault, forbidden_times
from streamgw.config.documents import id_of
from streamgw.config.json_schema import OBJECTS, of_object, of_plugin, schema_of
from streamgw.config.plugins import AnyPlugin, PluginSet
from streamgw.config.schema import COLLECTIONS, HTTP_COLLECTIONS
from streamgw.control.admin.replies import PlainTextError, RequestError, bad, json_body, json_reply, not_found


class Catalog:
    """Answers requests for `schema` and `plugins`."""

    def __init__(self, plugins: Callable[[], PluginSet]) -> None:
        self._plugins = plugins

    async def schema(self, request: Request, path: str) -> Response:
        """`schema/{name}`, `schema/plugins/{name}`, `schema/validate/{resource}`.

        Raises:
          RequestError: there is none, or the object is refused.
        """
        first, _, rest = path.partition("/")
        if first == "validate" and rest and request.method == "POST":
            return await _validate(request, rest, self._plugins())
        if request.method != "GET":
            raise not_found()
        if first == "plugins" and rest:
            return self._one_plugin(request, rest)
        if rest or first not in OBJECTS:
            raise bad(f"not found schema: {path}")
        return json_reply(of_object(first, self._plugins()))

    async def plugins(self, request: Request, path: str) -> Response:
        """`plugins/list`, `plugins/{name}`, `plugins?all=true`, `plugins/reload`.

        Raises:
          RequestError: there is none.
        """
        if path == "reload":
            if request.method != "PUT":
                said = f"please use PUT method to reload the plugins, {request.method} method is not allowed."
                raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, said)
            # Which plugins there are is read from conf/config.yaml whenever that changes.
            return Response("done\n", media_type="text/plain")
        if request.method != "GET":
            raise not_found()
        if path == "list":
            return self._names(request)
        if path:
            return self._one_plugin(request, path)
        if request.query_params.get("all") != "true":
            raise not_found()
        if _known_subsystem(request) != "stream":
            return json_reply({})
        return json_reply({plugin.name: _shown(plugin) for plugin in self._enabled()})

    def _names(self, request: Request) -> Response:
        match _subsystem(request):
            case "stream":
                return json_reply([plugin.name for plugin in self._enabled()])
            case "http":
                return json_reply([])
            case _:
                raise PlainTextError(HTTPStatus.BAD_REQUEST, "invalid subsystem passed")

    def _one_plugin(self, request: Request, name: str) -> Response:
        subsystem = _known_subsystem(request)
        plugin = self._plugins().installed.get(name) if subsystem == "stream" else None
        if plugin is None:
            raise RequestError(HTTPStatus.NOT_FOUND, f"plugin not found in subsystem {subsystem}")
        if request.query_params.get("schema_type") == "metadata":
            return json_reply(_metadata_schema(plugin))
        return json_reply(of_plugin(plugin))

    def _enabled(self) -> list[AnyPlugin]:
        """Highest priority first."""
        plugins = self._plugins()
        enabled = (
            plugin
            for plugin in plugins.installed.values()
            if plugins.enabled is None or plugin.name in plugins.enabled
        )
        return sorted(enabled, key=lambda plugin: (-plugin.priority, plugin.name))


def _subsystem(request: Request) -> str:
    return request.query_params.get("subsystem", "stream")


def _known_subsystem(request: Request) -> str:
    subsystem = _subsystem(request)
    if subsystem not in {"stream", "http"}:
        raise bad(f"unsupported subsystem: {subsystem}")
    return subsystem


def _shown(plugin: AnyPlugin) -> Mapping[str, object]:
    return {
        "name": plugin.name,
        "priority": plugin.priority,
        "version": plugin.version,
        "schema": of_plugin(plugin),
        "metadata_schema": _metadata_schema(plugin),
    }


def _metadata_schema(plugin: AnyPlugin) -> Mapping[str, object]:
    return schema_of(plugin.metadata) if plugin.metadata is not None else {"type": "object", "properties": {}}


def _has_metadata(plugins: PluginSet, name: str) -> bool:
    """An object without an id is for no plugin in particular: there is nothing to look at then but what all have."""
    plugin = plugins.installed.get(name)
    return not name or (plugin is not None and plugin.metadata is not None)


async def _validate(request: Request, name: str, plugins: PluginSet) -> Response:
    """Whether an object alone is right. Nothing is written, and nothing else is looked at."""
    collection = OBJECTS.get(name, name)
    if collection in HTTP_COLLECTIONS or collection not in COLLECTIONS:
        raise RequestError(HTTPStatus.NOT_FOUND, f"Unsupported resource type: {name}")
    body = await json_body(request)
    if not isinstance(body, Mapping):
        raise bad("invalid request body: an object is needed")
    if collection == "plugin_metadata" and not _has_metadata(plugins, id_of(body.get("id"))):
        raise bad("invalid plugin name")
    fault = await trio.to_thread.run_sync(partial(first_fault, collection, body, plugins=plugins))
    said = forbidden_times(body) or (fault.words if fault is not None else "")
    if said:
        raise bad(said)
    return Response(status_code=HTTPStatus.OK, media_type="application/json")
