"""JSON Schemas of everything that can be written in a file: generated from the classes that read it.

For editors (`streamgw schema`), for clients of the Admin API (`GET /apisix/admin/schema/…`) and for its description
(`config/openapi.py`). A schema says what an object alone may be; what only a comparison shows (a range upside down, a key
that does not belong to its certificate, a reference to nothing) it cannot say.

Descriptions are docstrings: of a class, and below a field.

Source:
  JSON Schema, draft 2020-12.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

import attrs

from streamgw.config.plugins import AnyPlugin, MetaSpec, PluginSet
from streamgw.config.schema import COLLECTIONS, HTTP_COLLECTIONS, UNUSED_COLLECTIONS
from streamgw.config.settings_schema import SECTIONS, ConfigSpec
from streamgw.config.strict import Stated, choice_schema
from streamgw.config.wording import Schema

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
OBJECTS: Final[Mapping[str, str]] = {name.removesuffix("s"): name for name in COLLECTIONS}
"""What one object is called, and its collection: `stream_route`."""

_Kind: TypeAlias = Any
"""What stands behind the colon of a field. Python has no type for that yet."""
_Json: TypeAlias = dict[str, Any]
_Value: TypeAlias = Any
"""A schema or a part of one: mapping, list, text, number."""

_PLAIN: Mapping[_Kind, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
_VARIABLE = {
    "type": "string",
    "pattern": r"\$\{\{[^}]*\}\}",
    "description": "An environment variable: ${{NAME}} or ${{NAME:=default}}.",
}
_VARIABLE_REF = {"$ref": "#/$defs/variable"}
_SCALARS = ("string", "integer", "number", "boolean")


def of_object(name: str, plugins: PluginSet | None = None) -> Schema:
    """The schema of one object, whole in itself.

    Args:
      name: a key of `OBJECTS`.
      plugins: what there is to run; None: their options are anything.
    """
    return {"$schema": DIALECT, "title": name, **_of_object(name, plugins)}


def of_plugin(plugin: AnyPlugin) -> Schema:
    """The schema of a plugin's options, `_meta` among them."""
    options = schema_of(plugin.options)
    options["properties"]["_meta"] = schema_of(MetaSpec)
    return {"title": plugin.name, **options}


def of_file(plugins: PluginSet | None = None) -> Schema:
    """The schema of a file of routes.d, as an editor sees it: environment variables are not filled in yet.

    Args:
      plugins: see `of_object`.
    """
    lists: _Json = {
        collection: {
            "description": inspect.getdoc(COLLECTIONS[collection]),
            "type": ["array", "null"],
            "items": {"$ref": f"#/$defs/{name}"},
        }
        for name, collection in OBJECTS.items()
    }
    for name in HTTP_COLLECTIONS:
        lists[name] = {"description": "HTTP only: does nothing at layer 4."}
    for name in UNUSED_COLLECTIONS:
        lists[name] = {"description": "Does nothing."}
    versions = {f"{name}_conf_version": {"type": "integer"} for name in lists}
    return {
        "$schema": DIALECT,
        "title": "streamgw: a file of routes.d",
        "type": ["object", "null"],
        "properties": {**lists, **versions},
        "additionalProperties": False,
        "$defs": {
            **{name: _with_variables(_of_object(name, plugins)) for name in OBJECTS},
            "variable": _VARIABLE,
        },
    }


def of_config() -> Schema:
    """The schema of conf/config.yaml."""
    schema = schema_of(ConfigSpec)
    for path in SECTIONS:
        section = functools.reduce(lambda inner, name: inner["properties"][name], path, schema)
        section["type"] = ["object", "null"]
    return {
        "$schema": DIALECT,
        "title": "streamgw: conf/config.yaml",
        **_with_variables(schema),
        "type": ["object", "null"],
        "$defs": {"variable": _VARIABLE},
    }


def _of_object(name: str, plugins: PluginSet | None) -> _Json:
    schema = schema_of(COLLECTIONS[OBJECTS[name]])
    if plugins is not None and "plugins" in schema["properties"]:
        enabled = {
            plugin.name: of_plugin(plugin)
            for plugin in plugins.installed.values()
            if plugins.enabled is None or plugin.name in plugins.enabled
        }
        schema["properties"]["plugins"].update({"properties": enabled, "additionalProperties": False})
    return schema


def schema_of(kind: _Kind) -> _Json:
    """The schema of a class, or of whatever else stands behind the colon of a field. A new one at each call."""
    if attrs.has(kind):
        return _schema_of_class(kind)
    origin: object = get_origin(kind)
    inner = get_args(kind)
    if origin is Annotated:
        rule = next(part for part in kind.__metadata__ if callable(part))
        return _resolved(rule.schema) if isinstance(rule, Stated) else {}
    if origin is Literal:
        return dict(choice_schema(inner))
    if origin is tuple:
        return {"type": "array", "items": schema_of(inner[0])}
    if type(None) in inner:
        return schema_of(next(part for part in inner if part is not type(None)))
    return {"type": _PLAIN[kind]}


def _schema_of_class(kind: type[attrs.AttrsInstance]) -> _Json:
    hints = get_type_hints(kind, include_extras=True)
    descriptions = _descriptions(kind)
    properties: _Json = {}
    required: list[str] = []
    for field in attrs.fields(kind):
        made = properties[field.name] = schema_of(hints[field.name])
        if field.name in descriptions:
            made["description"] = descriptions[field.name]
        if field.default is attrs.NOTHING:
            required.append(field.name)
        elif type(field.default) in _PLAIN:
            made["default"] = field.default
    # Names of APISIX's that are accepted unread.
    properties.update({name: {} for name in getattr(kind, "also_known", ())})
    schema: _Json = {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": properties,
        "additionalProperties": getattr(kind, "is_open", False),
    }
    if required:
        schema["required"] = required
    return _merged(schema, _resolved(getattr(kind, "schema", {})))


def _merged(schema: _Json, further: _Json) -> _Json:
    """What a class says of its fields together, added to what they say themselves."""
    merged = {**schema, **{name: value for name, value in further.items() if name != "properties"}}
    for name, said in further.get("properties", {}).items():
        merged["properties"][name].update(said)
    return merged


def _resolved(schema: _Value) -> _Value:
    """A copy, with schemas in the place of classes."""
    if isinstance(schema, Mapping):
        return {name: _resolved(value) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_resolved(value) for value in schema]
    return schema_of(schema) if isinstance(schema, type) else schema


@functools.cache
def _descriptions(kind: type[attrs.AttrsInstance]) -> Mapping[str, str]:
    """The text below each field of a class. Python keeps it nowhere but in the source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef), "it is a class"
    return dict(_documented(tree))


def _documented(tree: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)


def _with_variables(schema: _Value) -> _Value:
    """The same schema for a text in which `${{NAME}}` may stand wherever one value is wanted."""
    if isinstance(schema, list):
        return [_with_variables(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    if _is_scalar(schema):
        about = {name: schema[name] for name in ("description", "default") if name in schema}
        return {
            **about,
            "anyOf": [{name: value for name, value in schema.items() if name not in about}, _VARIABLE_REF],
        }
    return {
        name: {key: _with_variables(inner) for key, inner in value.items()}
        if name in {"properties", "patternProperties"}
        else _with_variables(value)
        if name in {"items", "anyOf", "oneOf", "additionalProperties"}
        else value
        for name, value in schema.items()
    }


def _is_scalar(schema: _Json) -> bool:
    return schema.get("type") in _SCALARS or "enum" in schema or "const" in schema
