from __future__ import annotations

from typing import Any

import pytest

from streamgw.config.wording import complaint, nested, shortened, wrong_type

EVEN_MORE = {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 5}

CASES: list[tuple[dict[str, Any], object, str]] = [
    ({"type": "string"}, 1, "wrong type: expected string, got number"),
    ({"type": "string"}, None, "wrong type: expected string, got userdata"),
    ({"type": "string"}, [], "wrong type: expected string, got table"),
    ({"type": "object"}, "x", "wrong type: expected object, got string"),
    ({"type": "object"}, [], "wrong type: expected object, got table"),
    ({"type": "array"}, {}, "wrong type: expected array, got table"),
    ({"type": "integer"}, 1.5, "wrong type: expected integer, got number"),
    ({"type": "integer"}, True, "wrong type: expected integer, got boolean"),
    ({"type": "boolean"}, 1, "wrong type: expected boolean, got number"),
    ({"minimum": 1}, 0, "expected 0 to be at least 1"),
    ({"maximum": 65535}, 70000, "expected 70000 to be at most 65535"),
    ({"minimum": 0}, -0.5, "expected -0.5 to be at least 0"),
    (EVEN_MORE, 1, "expected 1 to be greater than 1"),
    (EVEN_MORE, 5, "expected 5 to be smaller than 5"),
    ({"minLength": 2}, "x", "string too short, expected at least 2, got 1"),
    ({"maxLength": 2}, "xyz", "string too long, expected at most 2, got 3"),
    ({"pattern": r"^\S+$"}, "a b", r'failed to match pattern "^\\S+$" with "a b"'),
    ({"pattern": "^a$"}, 'b"\n', 'failed to match pattern "^a$" with "b\\"\\\n"'),
    ({"enum": ["a", 1]}, "b", "matches none of the enum values"),
    ({"enum": [1]}, True, "matches none of the enum values"),
    ({"enum": []}, "b", "matches none of the enum values"),
    ({"anyOf": [{"type": "string"}, {"minimum": 1}]}, 0, "object matches none of the required"),
    ({"oneOf": [{"type": "string"}, {"minimum": 1}]}, 0, "value should match only one schema, but matches none"),
    ({"oneOf": [{"type": "string"}, {"minimum": 1}, {"minimum": 0}]}, 1, "value should match only one schema, but matches both schemas 2 and 3"),
    ({"minItems": 1}, [], "expect array to have at least 1 items"),
    ({"maxItems": 1}, [1, 2], "expect array to have at most 1 items"),
    ({"items": {"minimum": 1}}, [1, 0], "failed to validate item 2: expected 0 to be at least 1"),
    ({"uniqueItems": True}, ["a", "b", "a"], "expected unique items but items 1 and 3 are equal"),
    ({"required": ["a"]}, {}, 'property "a" is required'),
    ({"properties": {"a": {}}, "required": ["a"]}, {"b": 1}, 'property "a" is required'),
    ({"properties": {"a": {"type": "string"}}}, {"a": 1}, 'property "a" validation failed: wrong type: expected string, got number'),
    ({"properties": {"a": {}}, "additionalProperties": False}, {"a": 1, "b": 2}, "additional properties forbidden, found b"),
    ({"patternProperties": {".*": {"minLength": 1}}}, {"a": ""}, 'failed to validate a (matching ".*"): string too short, expected at least 1, got 0'),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value", "said"), CASES)
def test_each_keyword_has_its_words(schema: dict[str, Any], value: object, said: str) -> None:
    assert complaint(schema, value) == said


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, None),
        ({"type": "integer"}, 2.0),
        ({"minItems": 1}, ["a"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, 0.5),
        (EVEN_MORE, 2),
        ({"minimum": 1, "minLength": 9, "required": ["a"], "minItems": 1}, True),
        ({"type": "string", "minLength": 1, "maxLength": 1, "pattern": "a"}, "a"),
        ({"enum": ["a", 1]}, 1),
        ({"anyOf": [{"type": "string"}, {"minimum": 1}]}, 1),
        ({"oneOf": [{"type": "string"}, {"minimum": 1}]}, 1),
        ({"minItems": 1, "maxItems": 2, "uniqueItems": True, "items": {"type": "string"}}, ["a", "b"]),
        (
            {"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": False},
            {"xy": 1},
        ),
        ({"patternProperties": {"^x": {"type": "string"}}}, {"y": 1}),
    ],
)
def test_what_fits_has_none(schema: dict[str, Any], value: object) -> None:
    assert complaint(schema, value) == ""


def test_a_class_in_the_place_of_a_schema_has_spoken_already() -> None:
    assert complaint({"anyOf": [{"type": "integer"}, str]}, {}) == ""


def test_what_comes_first_in_apisix_is_said() -> None:
    schema = {
        "type": "object",
        "properties": {"b": {"type": "string"}, "a": {"type": "string"}},
        "additionalProperties": False,
        "anyOf": [{"required": ["c"]}],
    }

    assert complaint(schema, {"x": 1, "a": 1, "b": 1}).startswith('property "b" validation failed')
    assert complaint(schema, {"x": 1}) == "additional properties forbidden, found x"
    assert complaint(schema, {}) == "object matches none of the required"


def test_a_complaint_is_seen_from_outside() -> None:
    assert nested((), "no") == "no"
    assert nested(("snis", 0), wrong_type("string", 1)) == (
        'property "snis" validation failed: failed to validate item 1: wrong type: expected string, got number'
    )


def test_a_message_shows_no_long_text_and_no_key() -> None:
    assert shortened("x" * 60) == "x" * 60
    assert shortened("x" * 61) == "x" * 60 + "…"
    assert shortened("-----BEGIN PRIVATE KEY-----\nhush") == "a PEM text"
