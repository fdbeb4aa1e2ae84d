from __future__ import annotations

import attrs
import jsonschema
import pytest

from streamgw.config import openapi_parts as parts
from streamgw.config.json_schema import OBJECTS
from streamgw.config.openapi_parts import components, json_answer, operation, query, ref
from streamgw.config.plugins import NO_PLUGINS, PluginSet
from streamgw.core.hooks import Hooks, Plugin


@attrs.frozen
class Options:
    """Of a plugin."""

    greeting: str


GREETER = Plugin(name="greeter", priority=1, options=Options, build=lambda _options, _context: Hooks())


@pytest.mark.parametrize("name", components(NO_PLUGINS)["schemas"])
def test_every_component_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(components(NO_PLUGINS)["schemas"][name])


@pytest.mark.parametrize("name", OBJECTS)
def test_a_new_object_has_no_times(name: str) -> None:
    properties = components(NO_PLUGINS)["schemas"][f"new_{name}"]["properties"]

    assert not properties.keys() & {"create_time", "update_time"}
    assert not properties.get("upstream", {}).get("properties", {}).keys() & {"create_time", "update_time"}
    assert "id" in properties


def test_plugins_are_described_where_they_are_installed() -> None:
    schemas = components(PluginSet({"greeter": GREETER}))["schemas"]
    route = jsonschema.Draft202012Validator(schemas["new_stream_route"])

    assert route.is_valid({"plugins": {"greeter": {"greeting": "hi"}}})
    assert not route.is_valid({"plugins": {"greeter": {"greeting": 1}}})
    assert not route.is_valid({"plugins": {"stranger": {}}})


def test_a_set_has_known_collections_and_what_apisix_shows_in_it() -> None:
    configs = jsonschema.Draft202012Validator(components(NO_PLUGINS)["schemas"]["configs"])

    assert configs.is_valid({"stream_routes": [], "X-Digest": "a", "X-Last-Modified": 1})
    assert not configs.is_valid({"stream_route": []})


def test_what_the_door_answers_is_added_to_every_operation_behind_it() -> None:
    behind = operation(
        "Look", {"200": json_answer("It.", ref("shown"))}, parameters=[query("a", {})], body={}
    )
    before = operation("Look", {"200": json_answer("It.", {})}, security=[])

    assert behind["responses"].keys() == {"200", "401", "403", "408", "503"}
    assert behind["parameters"] == [{"name": "a", "in": "query", "required": False, "schema": {}}]
    assert behind["requestBody"] == {}
    assert before == {"summary": "Look", "responses": {"200": json_answer("It.", {})}, "security": []}


def test_what_is_said_in_plain_text_and_what_in_json() -> None:
    assert parts.answer("Fine.") == {"description": "Fine."}
    assert list(parts.plain_answer("Fine.")["content"]) == ["text/plain"]
    assert list(parts.bad_list()["content"]) == ["application/json", "text/plain"]
    assert parts.gone() == parts.refusal("There is none.")
    assert list(parts.read_refusals()) == ["409", "500"]
    assert list(parts.write_refusals()) == ["400", "409", "412", "500"]


def test_headers_are_named_where_there_are_some() -> None:
    assert json_answer("It.", {}, headers={"ETag": {}})["headers"] == {"ETag": {}}


def test_parameters_and_bodies_that_must_be_there_say_so() -> None:
    assert (
        parts.parameter("ttl")["$ref"].removeprefix("#/components/parameters/")
        in components(NO_PLUGINS)["parameters"]
    )
    assert parts.path_parameter("id", {})["required"]
    assert parts.body_of({"type": "object"}) == {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
