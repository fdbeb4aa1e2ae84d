"""The Admin API described for machines: OpenAPI 3.1, from the schemas that decide what is accepted.

What an object may be is stated once, in the classes that read files; the paths, statuses and shapes of answers are stated
here, and tests ask a running API whether it keeps to them.

Source:
  OpenAPI 3.1.1; APISIX's Admin API for what is described (`docs/admin-api.md`).
"""

from __future__ import annotations

from typing import Final

from streamgw import __version__
from streamgw.config.json_schema import OBJECTS
from streamgw.config.openapi_parts import (
    Json,
    answer,
    bad_list,
    body_of,
    components,
    gone,
    json_answer,
    operation,
    parameter,
    path_parameter,
    plain_answer,
    query,
    read_refusals,
    ref,
    refusal,
    write_refusals,
)
from streamgw.config.plugins import NO_PLUGINS, PluginSet
from streamgw.config.schema import COLLECTIONS, HTTP_COLLECTIONS
from streamgw.config.wording import Schema

BASE: Final = "/apisix/admin"
_TITLES: Final = {name: name.replace("_", " ") for name in OBJECTS}


def document(plugins: PluginSet = NO_PLUGINS) -> Schema:
    """The whole description. A new one at each call.

    Args:
      plugins: what there is to run: their options are described, others are not accepted.
    """
    paths: Json = {
        BASE: {
            "head": operation(
                "Whether it is there, and which version", {"200": answer("It is.")}, security=[]
            )
        },
        f"{BASE}/openapi.json": {
            "get": operation("This description", {"200": json_answer("It.", {"type": "object"})})
        },
    }
    for name, collection in OBJECTS.items():
        paths |= _collection(name, collection)
    for collection in HTTP_COLLECTIONS:
        paths |= _http_collection(collection)
    paths |= _plugin_paths() | _schema_paths() | _secret_paths() | _config_paths()
    _allow_for_broken_paths(paths)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "streamgw Admin API",
            "version": __version__,
            "description": "APISIX's Admin API for layer 4. Every write is a file of routes.d.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"header": []}, {"query": []}, {"cookie": []}],
        "paths": paths,
        "components": components(plugins),
    }


def _allow_for_broken_paths(paths: Json) -> None:
    """A name with a slash or a line break in it makes another path, or none."""
    for path, item in paths.items():
        for method, described in item.items():
            if "{" in path and method != "parameters":
                described["responses"] = {"404": refusal("No such path."), **described["responses"]}


# Objects


def _collection(name: str, collection: str) -> Json:
    title = _TITLES[name]
    body = body_of(ref(f"new_{name}"))
    one = json_answer(f"The {title}.", ref("shown"), headers={"ETag": ref("etag", "headers")})
    written = {
        "202": json_answer("Written, and not live in every process yet.", ref("lagging")),
        **write_refusals(),
    }
    is_metadata = name == "plugin_metadata"
    conditions = [parameter("if_match"), parameter("if_none_match")]
    many: Json = {
        "get": operation(
            f"List {title}s",
            {"200": json_answer("A list.", ref("list")), "400": bad_list(), **read_refusals()},
            parameters=[parameter(each) for each in ("page", "page_size", "name", "label", "filter")],
        ),
        "put": operation(
            f"Write a {title} whose id is in the body",
            {"200": one, "201": one, **written},
            parameters=[parameter("ttl"), *conditions],
            body=body_of({"allOf": [ref(f"new_{name}"), {"required": ["id"]}]}),
        ),
        "post": _not_for_metadata("POST")
        if is_metadata
        else operation(
            f"Add a {title} under a new id",
            {"201": one, **written},
            parameters=[parameter("ttl")],
            body=body_of({"allOf": [ref(f"new_{name}"), {"not": {"required": ["id"]}}]}),
        ),
    }
    patch = operation(
        f"Change parts of a {title}: objects are merged, null deletes, the rest replaces",
        {"200": one, **written, "404": gone()},
        parameters=[parameter("ttl"), *conditions],
        body=body_of({"type": "object"}),
    )
    single: Json = {
        "parameters": [path_parameter("id", ref("id"))],
        "get": operation(f"Show a {title}", {"200": one, "404": gone(), **read_refusals()}),
        "put": operation(
            f"Write a {title}: a new one, or in place of the one that is there",
            {"200": one, "201": one, **written},
            parameters=[parameter("ttl"), *conditions],
            body=body,
        ),
        "patch": _not_for_metadata("PATCH") if is_metadata else patch,
        "delete": operation(
            f"Delete a {title} that nothing refers to",
            {"200": json_answer("Deleted.", ref("deleted")), **written, "404": gone()},
            parameters=[parameter("force"), conditions[0]],
        ),
    }
    paths = {f"{BASE}/{collection}": many, f"{BASE}/{collection}/{{id}}": single}
    if not is_metadata:
        paths[f"{BASE}/{collection}/{{id}}/{{path}}"] = {
            "parameters": [path_parameter("id", ref("id")), path_parameter("path", {"type": "string"})],
            "patch": operation(
                f"Replace one part of a {title}; the path may have several steps",
                {"200": one, **written, "404": gone()},
                parameters=[parameter("ttl"), *conditions],
                body=body_of({}),
            ),
        }
    return paths


def _not_for_metadata(method: str) -> Json:
    answer = refusal(f"not supported `{method}` method for plugin_metadata")
    return operation("Not supported", {"405": answer, "400": refusal("The body is no JSON.")})


def _http_collection(collection: str) -> Json:
    return _empty_collection(collection, operation("HTTP only", {"400": refusal("It serves HTTP only.")}))


def _empty_collection(collection: str, refused: Json) -> Json:
    """One that is listed, and holds nothing."""
    return {
        f"{BASE}/{collection}": {
            "get": operation("An empty list", {"200": json_answer("A list.", ref("list"))}),
            "post": refused,
        },
        f"{BASE}/{collection}/{{id}}": {
            "parameters": [path_parameter("id", ref("id"))],
            "get": operation("There is none", {"404": gone()}),
            "put": refused,
            "patch": refused,
            "delete": refused,
        },
    }


# Everything else


def _plugin_paths() -> Json:
    subsystem = parameter("subsystem")
    schemas = {"type": "object", "additionalProperties": {"type": "object"}}
    names = {"type": "array", "items": {"type": "string"}}
    return {
        f"{BASE}/plugins": {
            "get": operation(
                "Every plugin with its schema",
                {
                    "200": json_answer("By name.", schemas),
                    "400": refusal("No such subsystem."),
                    "404": refusal("Without all=true."),
                },
                parameters=[query("all", {"const": "true"}, required=True), subsystem],
            )
        },
        f"{BASE}/plugins/list": {
            "get": operation(
                "The names of the plugins, the highest priority first",
                {"200": json_answer("Names.", names), "400": plain_answer("invalid subsystem passed")},
                parameters=[subsystem],
            )
        },
        f"{BASE}/plugins/reload": {
            "put": operation("Nothing to do: settings are watched", {"200": plain_answer("done")}),
        },
        f"{BASE}/plugins/{{name}}": {
            "parameters": [path_parameter("name", {"type": "string", "pattern": "^[a-z][a-z0-9-]*$"})],
            "get": operation(
                "The schema of a plugin",
                {
                    "200": json_answer("The schema.", {"type": "object"}),
                    "400": refusal("No such subsystem."),
                    "404": refusal("No such plugin."),
                },
                parameters=[subsystem, query("schema_type", {"enum": ["metadata"]})],
            ),
        },
    }


def _schema_paths() -> Json:
    name = {"enum": list(OBJECTS)}
    return {
        f"{BASE}/schema/{{name}}": {
            "parameters": [path_parameter("name", name)],
            "get": operation(
                "The schema of an object",
                {"200": json_answer("The schema.", {"type": "object"}), "400": refusal("There is none.")},
            ),
        },
        f"{BASE}/schema/plugins/{{name}}": {
            "parameters": [path_parameter("name", {"type": "string", "pattern": "^[a-z][a-z0-9-]*$"})],
            "get": operation(
                "The schema of a plugin",
                {
                    "200": json_answer("The schema.", {"type": "object"}),
                    "400": refusal("No such subsystem."),
                    "404": refusal("No such plugin."),
                },
                parameters=[parameter("subsystem")],
            ),
        },
        f"{BASE}/schema/validate/{{name}}": {
            "parameters": [path_parameter("name", {"enum": [*OBJECTS, *COLLECTIONS]})],
            "post": operation(
                "Whether an object alone is right; nothing is written",
                {
                    "200": answer("It is."),
                    "400": refusal("What is wrong with it."),
                    "404": refusal("No such kind of object."),
                },
                body=body_of({"type": "object"}),
            ),
        },
    }


def _secret_paths() -> Json:
    refused = refusal("Secrets are environment variables and files.")
    return _empty_collection("secrets", operation("Not available", {"400": refused}))


def _config_paths() -> Json:
    kinds = ("application/json", "application/yaml")
    body = {"required": True, "content": {kind: {"schema": ref("configs")} for kind in kinds}}
    digest = {"X-Digest": ref("digest", "headers"), "X-Last-Modified": ref("modified", "headers")}
    shown = {
        "description": "All objects.",
        "headers": digest,
        "content": {kind: {"schema": {"type": "object"}} for kind in kinds},
    }
    wrong = {
        "type": "object",
        "required": ["error_msg"],
        "properties": {
            "error_msg": {"type": "string"},
            "errors": {"type": "array", "items": ref("finding")},
        },
    }
    return {
        f"{BASE}/configs": {
            "get": operation("All objects at once", {"200": shown, **read_refusals()}),
            "head": operation(
                "When and what",
                {"200": {"description": "Known by its headers.", "headers": digest}, **read_refusals()},
            ),
            "put": operation(
                "Replace all objects that were written this way, in one file",
                {
                    "202": {"description": "Written.", "headers": digest},
                    "204": {"description": "The digest is that of what is there: nothing to do."},
                    **write_refusals(),
                },
                parameters=[parameter("digest")],
                body=body,
            ),
        },
        f"{BASE}/configs/validate": {
            "post": operation(
                "Whether all of them are right; nothing is written",
                {
                    "200": json_answer("They are.", {"type": "object"}),
                    "400": json_answer("What is wrong.", wrong),
                },
                body=body,
            )
        },
    }
