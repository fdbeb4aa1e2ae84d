"""What APISIX's JSON Schema library says of a value, word for word: for clients that know APISIX's messages.

It decides nothing. A rule of ours has refused the value already; here its schema is walked once more, in the order in
which APISIX's library walks it, to find the words. The first complaint is the only one.

Source:
  api7/jsonschema 0.9.9 (texts, order of keywords: type, properties, items, text, numbers, enum, anyOf, oneOf, not, if);
  APISIX's tests (`t/admin`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

Schema: TypeAlias = Mapping[str, Any]
"""A JSON Schema. Its keywords have values of every kind."""

MAX_SHOWN: Final = 60
"""Characters of a value that a message shows. Longer texts are mostly certificates and keys at the wrong place."""


def complaint(schema: Schema | type, value: object) -> str:
    """The first thing wrong with a value; empty if the schema accepts it.

    A class may stand in the place of a schema (`json_schema.schema_of`): it has spoken for itself when it was filled.
    """
    if isinstance(schema, type):
        return ""
    return next((said for keyword in _KEYWORDS for said in keyword(schema, value)), "")


def nested(path: tuple[str | int, ...], said: str) -> str:
    """A complaint about something inside, as it reads from outside."""
    for step in reversed(path):
        if isinstance(step, int):
            said = f"failed to validate item {step + 1}: {said}"
        else:
            said = f'property "{step}" validation failed: {said}'
    return said


def wrong_type(expected: str, value: object) -> str:
    """Not the kind of value that it should be."""
    return f"wrong type: expected {expected}, got {_lua_type(value)}"


def shortened(text: str) -> str:
    """A value for a message. A PEM text at the wrong place is not shown at all: it may be a key."""
    if "-----BEGIN" in text:
        return "a PEM text"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _lua_type(value: object) -> str:
    match value:
        case None:
            return "userdata"  # what stands for null there
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case _:
            return "table"


def _is(kind: str, value: object) -> bool:
    match kind:
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case "integer":
            return _is("number", value) and float(str(value)).is_integer()
        case _:
            return _lua_type(value) == kind


def _type(schema: Schema, value: object) -> Iterator[str]:
    kind = schema.get("type")
    if kind is not None and not _is(kind, value):
        yield wrong_type(kind, value)


def _object(schema: Schema, value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _properties(schema, value)
        yield from _others(schema, value)


def _properties(schema: Schema, value: Mapping[str, object]) -> Iterator[str]:
    properties: Schema = schema.get("properties", {})
    required = schema.get("required", ())
    for name, inner in properties.items():
        if name in value:
            if said := complaint(inner, value[name]):
                yield nested((name,), said)
        elif name in required:
            yield f'property "{name}" is required'
    yield from (f'property "{name}" is required' for name in required if name not in value)


def _others(schema: Schema, value: Mapping[str, object]) -> Iterator[str]:
    for name, item in value.items():
        matched = name in schema.get("properties", {})
        for pattern, inner in schema.get("patternProperties", {}).items():
            if re.search(pattern, name):
                matched = True
                if said := complaint(inner, item):
                    yield f'failed to validate {name} (matching "{pattern}"): {said}'
        if not matched and schema.get("additionalProperties") is False:
            yield f"additional properties forbidden, found {name}"


def _array(schema: Schema, value: object) -> Iterator[str]:
    if not isinstance(value, list):
        return
    if len(value) < schema.get("minItems", 0):
        yield f"expect array to have at least {schema['minItems']} items"
    if len(value) > schema.get("maxItems", len(value)):
        yield f"expect array to have at most {schema['maxItems']} items"
    for position, item in enumerate(value):
        if "items" in schema and (said := complaint(schema["items"], item)):
            yield nested((position,), said)
    if schema.get("uniqueItems"):
        for position, item in enumerate(value):
            if (first := value.index(item)) < position:
                yield f"expected unique items but items {first + 1} and {position + 1} are equal"


def _text(schema: Schema, value: object) -> Iterator[str]:
    if not isinstance(value, str):
        return
    if len(value) < schema.get("minLength", 0):
        yield f"string too short, expected at least {schema['minLength']}, got {len(value)}"
    if len(value) > schema.get("maxLength", len(value)):
        yield f"string too long, expected at most {schema['maxLength']}, got {len(value)}"
    pattern = schema.get("pattern")
    if pattern is not None and not re.search(pattern, value, re.ASCII):
        yield f"failed to match pattern {_quoted(pattern)} with {_quoted(shortened(value))}"


def _number(schema: Schema, value: object) -> Iterator[str]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    for keyword, bound in schema.items():
        match keyword:
            case "minimum" if value < bound:
                yield f"expected {value:.14g} to be at least {bound:.14g}"
            case "maximum" if value > bound:
                yield f"expected {value:.14g} to be at most {bound:.14g}"
            case "exclusiveMinimum" if value <= bound:
                yield f"expected {value:.14g} to be greater than {bound:.14g}"
            case "exclusiveMaximum" if value >= bound:
                yield f"expected {value:.14g} to be smaller than {bound:.14g}"


def _enum(schema: Schema, value: object) -> Iterator[str]:
    if "enum" in schema and not any(value == choice and _same(value, choice) for choice in schema["enum"]):
        yield "matches none of the enum values"


def _any_of(schema: Schema, value: object) -> Iterator[str]:
    choices = schema.get("anyOf", ())
    if choices and all(complaint(choice, value) for choice in choices):
        yield "object matches none of the required"


def _one_of(schema: Schema, value: object) -> Iterator[str]:
    choices = schema.get("oneOf", ())
    fitting = [number for number, choice in enumerate(choices, start=1) if not complaint(choice, value)]
    if len(fitting) > 1:
        yield f"value should match only one schema, but matches both schemas {fitting[0]} and {fitting[1]}"
    if choices and not fitting:
        yield "value should match only one schema, but matches none"


def _quoted(text: str) -> str:
    """Lua's `%q`: backslashes and quotes are escaped, in patterns too."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\\n") + '"'


def _same(one: object, other: object) -> bool:
    return _lua_type(one) == _lua_type(other)


_Keyword: TypeAlias = Callable[[Schema, object], Iterator[str]]
_KEYWORDS: Final[tuple[_Keyword, ...]] = (_type, _object, _array, _text, _number, _enum, _any_of, _one_of)
