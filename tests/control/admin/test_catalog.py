"""Schemas and plugins, as clients ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import pytest

from streamgw.config.plugins import PluginSet
from streamgw.config.rules import integer
from streamgw.core.hooks import Hooks, Plugin
from tests.support.admin_desk import ROUTE, Desk


@attrs.frozen(kw_only=True)
class Limit:
    """So many."""

    most: int
    """How many."""


@attrs.frozen(kw_only=True)
class Shared:
    level: Annotated[int, integer(0)] = 0


def plugin(name: str, priority: int, metadata: type[object] | None = None) -> Plugin[Limit]:
    return Plugin(
        name=name,
        priority=priority,
        options=Limit,
        build=lambda options, context: Hooks(),
        metadata=metadata,
        version="1.2",
    )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    installed = [plugin("low", 1), plugin("high", 1000, Shared), plugin("off", 5000), plugin("also", 1)]
    desk.plugins = PluginSet(
        installed={each.name: each for each in installed}, enabled=frozenset({"low", "high", "also"})
    )
    return desk


async def test_every_object_has_a_schema(desk: Desk) -> None:
    for name in ("stream_route", "upstream", "service", "ssl"):
        schema = await desk.get(f"schema/{name}")
        assert (schema["type"], "id" in schema["properties"]) == ("object", True)


@pytest.mark.parametrize("name", ["route", "stream_routes", "x", "stream_route/x", ""])
async def test_what_has_no_schema_is_said(name: str, desk: Desk) -> None:
    answer = await desk.ask("GET", f"schema/{name}")

    assert (answer.status_code, answer.json()) == (400, {"error_msg": f"not found schema: {name}"})


async def test_a_schema_is_only_read(desk: Desk) -> None:
    assert (await desk.ask("PUT", "schema/stream_route", {})).json() == {"error_msg": "not found"}
    assert (await desk.ask("POST", "schema/validate", {})).json() == {"error_msg": "not found"}


@pytest.mark.parametrize("name", ["stream_routes", "stream_route"])
async def test_an_object_can_be_checked_without_writing(name: str, desk: Desk) -> None:
    good = await desk.ask("POST", f"schema/validate/{name}", ROUTE)
    bad = await desk.ask("POST", f"schema/validate/{name}", {"server_port": 0})
    timed = await desk.ask("POST", f"schema/validate/{name}", {"create_time": 1})

    assert (good.status_code, good.content) == (200, b"")
    assert (bad.status_code, bad.json()) == (
        400,
        {"error_msg": 'property "server_port" validation failed: expected 0 to be at least 1'},
    )
    assert timed.json() == {"error_msg": "the property is forbidden:  create_time"}
    assert desk.files() == {}


@pytest.mark.parametrize(
    ("kind", "sent", "said"),
    [
        ("stream_routes", {"plugins": {"low": {"most": 1}}}, ""),
        ("stream_routes", {"plugins": {"low": {"most": "$env://MOST"}}}, ""),
        ("stream_routes", {"plugins": {"nope": {}}}, "unknown plugin [nope]"),
        ("services", {"plugins": {"off": {"most": 1}}}, "unknown plugin [off]"),
        (
            "stream_routes",
            {"plugins": {"low": {}}},
            'failed to check the configuration of stream plugin [low]: property "most" is required',
        ),
        ("plugin_metadata", {"id": "high", "level": 1}, ""),
        ("plugin_metadata", {"name": "of nobody"}, ""),
        (
            "plugin_metadata",
            {"id": "high", "level": "x"},
            'property "level" validation failed: wrong type: expected integer, got string',
        ),
        ("plugin_metadata", {"id": "low"}, "invalid plugin name"),
        ("plugin_metadata", {"id": "nope"}, "invalid plugin name"),
    ],
)
async def test_plugins_are_checked_too(kind: str, sent: dict[str, object], said: str, desk: Desk) -> None:
    answer = await desk.ask("POST", f"schema/validate/{kind}", sent)

    assert answer.status_code == (400 if said else 200)
    assert not said or answer.json() == {"error_msg": said}


@pytest.mark.parametrize("name", ["routes", "x"])
async def test_what_is_not_here_cannot_be_checked(name: str, desk: Desk) -> None:
    answer = await desk.ask("POST", f"schema/validate/{name}", {})

    assert (answer.status_code, answer.json()) == (404, {"error_msg": f"Unsupported resource type: {name}"})


async def test_only_objects_can_be_checked(desk: Desk) -> None:
    assert (await desk.ask("POST", "schema/validate/stream_routes", [])).status_code == 400


async def test_plugins_are_listed_by_priority(desk: Desk) -> None:
    for query in ("", "?subsystem=stream"):
        assert await desk.get(f"plugins/list{query}") == ["high", "also", "low"]
    assert await desk.get("plugins/list?subsystem=http") == []
    wrong = await desk.ask("GET", "plugins/list?subsystem=x")
    assert (wrong.status_code, wrong.text) == (400, "invalid subsystem passed")
    desk.plugins = attrs.evolve(desk.plugins, enabled=None)
    assert (await desk.get("plugins/list"))[0] == "off"


async def test_all_plugins_come_with_their_schemas(desk: Desk) -> None:
    every = await desk.get("plugins?all=true&subsystem=stream")

    assert list(every) == ["high", "also", "low"]
    assert (every["high"]["priority"], every["high"]["version"]) == (1000, "1.2")
    assert every["high"]["schema"]["properties"]["most"]["type"] == "integer"
    assert "level" in every["high"]["metadata_schema"]["properties"]
    assert await desk.get("plugins?all=true&subsystem=http") == {}
    assert (await desk.ask("GET", "plugins")).status_code == 404


@pytest.mark.parametrize("path", ["plugins/high", "plugins/off", "schema/plugins/high"])
async def test_a_plugin_has_a_schema(path: str, desk: Desk) -> None:
    schema = await desk.get(f"{path}?subsystem=stream")

    assert "most" in schema["properties"]
    assert "_meta" in schema["properties"]


@pytest.mark.parametrize(("query", "fields"), [("high", {"level"}), ("low", set())], ids=["some", "none"])
async def test_a_plugin_may_have_metadata(query: str, fields: set[str], desk: Desk) -> None:
    assert set((await desk.get(f"schema/plugins/{query}?schema_type=metadata"))["properties"]) == fields


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("plugins/nope", 404, "plugin not found in subsystem stream"),
        ("plugins/high?subsystem=http", 404, "plugin not found in subsystem http"),
        ("plugins/high?subsystem=x", 400, "unsupported subsystem: x"),
        ("plugins?all=true&subsystem=x", 400, "unsupported subsystem: x"),
    ],
)
async def test_a_plugin_that_is_not_here_is_said(path: str, status: int, said: str, desk: Desk) -> None:
    answer = await desk.ask("GET", path)

    assert (answer.status_code, answer.json()) == (status, {"error_msg": said})


async def test_plugins_are_reloaded_by_put(desk: Desk) -> None:
    done = await desk.ask("PUT", "plugins/reload")
    assert (done.status_code, done.text) == (200, "done\n")

    answer = await desk.ask("GET", "plugins/reload")
    assert (answer.status_code, answer.json()) == (
        405,
        {"error_msg": "please use PUT method to reload the plugins, GET method is not allowed."},
    )
    assert (await desk.ask("DELETE", "plugins/high")).json() == {"error_msg": "not found"}
