"""What the description of the Admin API is put together from: its components, and the forms that recur.

Source:
  OpenAPI 3.1.1 § 4.8 (objects of the specification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from streamgw.config.json_schema import OBJECTS, of_object
from streamgw.config.plugins import PluginSet
from streamgw.config.schema import ALL_COLLECTIONS
from streamgw.config.wording import Schema

_ITEMS: Final[Schema] = {
    "anyOf": [
        {"type": "array", "items": {"type": "object"}},
        {"type": "object", "maxProperties": 0, "description": "What Lua makes of an empty list."},
        {"type": "null"},
    ]
}

Json: TypeAlias = dict[str, Any]
"""A part of the description, to be put into another."""

_SET_HERE: Final = ("create_time", "update_time")
"""Fields that are stored and shown, and accepted from nobody (PATCH excepted)."""


def components(plugins: PluginSet) -> Json:
    """Everything that paths refer to."""
    schemas: Json = {f"new_{name}": _accepted(name, plugins) for name in OBJECTS}
    index = {"type": "integer", "minimum": 0, "description": "Milliseconds."}
    value = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
    key = {"type": "string", "pattern": "^/apisix/"}
    pair = {"key": key, "value": value}
    schemas |= {
        "id": {"type": "string", "pattern": r"^[a-zA-Z0-9\-_.]{1,64}$"},
        "value": {
            **value,
            "description": "As it was sent, with its id and times. Private keys are not shown.",
        },
        "shown": {
            "type": "object",
            "required": ["key", "value"],
            "properties": {**pair, "createdIndex": index, "modifiedIndex": index},
        },
        "list": {
            "type": "object",
            "required": ["list", "total"],
            "properties": {
                "list": {"type": "array", "items": ref("shown")},
                "total": {"type": "integer", "minimum": 0, "description": "Without paging."},
            },
        },
        "deleted": {
            "type": "object",
            "required": ["deleted", "key"],
            "properties": {"deleted": {"type": "string"}, "key": key},
        },
        "lagging": {
            "type": "object",
            "required": ["lagging_workers"],
            "properties": {"lagging_workers": {"type": "array", "items": {}}},
        },
        "refusal": {
            "type": "object",
            "anyOf": [{"required": ["error_msg"]}, {"required": ["message"]}],
            "properties": {
                name: {"type": "string"} for name in ("error_msg", "message", "description", "req_body")
            },
        },
        "configs": {
            "type": "object",
            "description": "Each collection as a list of objects with ids, and its conf_version.",
            "properties": {
                **dict.fromkeys(ALL_COLLECTIONS, _ITEMS),
                **{f"{kind}_conf_version": {"type": "number"} for kind in ALL_COLLECTIONS},
                "X-Last-Modified": {"description": "Where APISIX shows it; not looked at."},
                "X-Digest": {"description": "Where APISIX shows it; not looked at."},
            },
            "additionalProperties": False,
        },
        "finding": {
            "type": "object",
            "required": ["resource_type", "error"],
            "properties": {
                "resource_type": {"type": "string"},
                "resource_id": {"type": "string"},
                "index": {"type": "integer", "minimum": 0},
                "error": {"type": "string"},
            },
        },
    }
    return {
        "schemas": schemas,
        "parameters": _PARAMETERS,
        "headers": {
            "etag": {"description": "The digest of the object, for If-Match.", "schema": {"type": "string"}},
            "digest": {"description": "Of what is there.", "schema": {"type": "string"}},
            "modified": {"description": "When it was written.", "schema": {"type": "string"}},
        },
        "securitySchemes": {
            "header": {"type": "apiKey", "in": "header", "name": "X-API-KEY"},
            "query": {"type": "apiKey", "in": "query", "name": "api_key"},
            "cookie": {"type": "apiKey", "in": "cookie", "name": "x_api_key"},
        },
    }


def _accepted(name: str, plugins: PluginSet) -> Json:
    """An object as a client may send it."""
    schema = dict(of_object(name, plugins))
    del schema["$schema"]
    _take_times(schema)
    return schema


def _take_times(schema: Json) -> None:
    for field in _SET_HERE:
        schema["properties"].pop(field, None)
    if "upstream" in schema["properties"]:
        _take_times(schema["properties"]["upstream"])


_PARAMETERS: Final[Mapping[str, Schema]] = {
    "page": {"name": "page", "in": "query", "schema": {"type": "integer"}, "description": "From 1."},
    "page_size": {
        "name": "page_size",
        "in": "query",
        "schema": {"type": "integer", "minimum": 10, "maximum": 500},
    },
    "name": {
        "name": "name",
        "in": "query",
        "schema": {"type": "string"},
        "description": "A regular expression.",
    },
    "label": {
        "name": "label",
        "in": "query",
        "schema": {"type": "string"},
        "description": "A label it must have.",
    },
    "filter": {
        "name": "filter",
        "in": "query",
        "schema": {"type": "string"},
        "description": "Fields and their values, as a query: `service_id=1`.",
    },
    "ttl": {
        "name": "ttl",
        "in": "query",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 315_360_000},
        "description": "Seconds after which the object is deleted.",
    },
    "force": {
        "name": "force",
        "in": "query",
        "schema": {"type": "string"},
        "description": "Accepted, whatever it says: what is in use is not deleted.",
    },
    "if_match": {
        "name": "If-Match",
        "in": "header",
        "schema": {"type": "string"},
        "description": "The ETag of the version that is meant; 412 if it is another one.",
    },
    "if_none_match": {
        "name": "If-None-Match",
        "in": "header",
        "schema": {"type": "string"},
        "description": "`*`: only if there is none yet.",
    },
    "digest": {
        "name": "X-Digest",
        "in": "header",
        "required": True,
        "schema": {"type": "string", "maxLength": 128, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    },
    "subsystem": {"name": "subsystem", "in": "query", "schema": {"enum": ["stream", "http"]}},
}


def ref(name: str, kind: str = "schemas") -> Json:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def parameter(name: str) -> Json:
    """A parameter of `_PARAMETERS`."""
    return ref(name, "parameters")


def path_parameter(name: str, schema: Schema) -> Json:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def query(name: str, schema: Schema, *, required: bool = False) -> Json:
    """A parameter that one operation has."""
    return {"name": name, "in": "query", "required": required, "schema": schema}


def body_of(schema: Schema) -> Json:
    """A JSON body that must be there."""
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def answer(description: str) -> Json:
    """An answer without a body to speak of."""
    return {"description": description}


def json_answer(description: str, schema: Schema, *, headers: Schema | None = None) -> Json:
    """An answer in JSON."""
    made: Json = {"description": description, "content": {"application/json": {"schema": schema}}}
    return made | ({"headers": headers} if headers else {})


def plain_answer(description: str) -> Json:
    """An answer in plain text."""
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def refusal(description: str) -> Json:
    """Why something is not done."""
    return json_answer(description, ref("refusal"))


def bad_list() -> Json:
    """400 for a list: in APISIX plain text if the size of the page is wrong."""
    refused = refusal("The page or the name makes no sense.")
    refused["content"] |= plain_answer("")["content"]
    return refused


def gone() -> Json:
    """404: there is no such object."""
    return refusal("There is none.")


def read_refusals() -> Json:
    """What every read of the directory may be refused with."""
    return {"409": refusal("A file cannot be read."), "500": refusal("The disk said no.")}


def write_refusals() -> Json:
    """What every write may be refused with."""
    return {
        "400": refusal("What is wrong with it, in APISIX's words."),
        "409": refusal(
            "Another file is broken, the directory cannot be written, or the id is taken. Nothing was written."
        ),
        "412": refusal("Not the version that If-Match names. Nothing was written."),
        "500": refusal("The disk said no."),
    }


def operation(
    summary: str,
    answers: Schema,
    *,
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    security: Sequence[Schema] | None = None,
) -> Json:
    """One method of one path.

    The answers go by status; those that the door may give to anybody are added, unless `security` is empty: then nobody is
    asked for a key.
    """
    made: Json = {"summary": summary, "responses": dict(answers)}
    if security is None:
        made["responses"] |= {
            "401": refusal("No key, a wrong one, or one that may only look."),
            "403": answer("Not from this address, or from a foreign web page."),
            "408": refusal("The request took too long."),
            "503": refusal("Too many requests at the same time."),
        }
    else:
        made["security"] = list(security)
    if parameters:
        made["parameters"] = list(parameters)
    if body is not None:
        made["requestBody"] = body
    return made
