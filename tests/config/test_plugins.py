from __future__ import annotations

import pytest

from streamgw.config.plugins import MetaSpec, PluginSet, PluginUse, expression, uses_in
from streamgw.config.schema import StreamRouteSpec
from streamgw.config.strict import Fault, Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.hooks import Hooks, Plugin
from streamgw.core.variables import lookup
from tests.support.scenes import facts

ECHO = Plugin(name="echo", priority=1, options=str, build=lambda _, __: Hooks())


def uses(plugins: object) -> tuple[PluginUse, ...]:
    return structure({"plugins": plugins}, StreamRouteSpec).plugins


def faults(plugins: object) -> list[Fault]:
    with pytest.raises(Wrong) as wrong:
        uses(plugins)
    return list(wrong.value.faults)


def test_a_plugin_and_what_is_said_about_it_are_told_apart() -> None:
    (found,) = uses({"echo": {"a": 1, "_meta": {"disable": True, "priority": -5}}})

    assert (found.name, found.options) == ("echo", {"a": 1})
    assert found.meta == MetaSpec(disable=True, priority=-5)


def test_nothing_need_be_said_about_a_plugin() -> None:
    assert uses({"echo": {}}) == (PluginUse("echo", {}, MetaSpec(), "{}"),)
    assert uses({}) == ()


def test_what_is_said_in_another_order_is_the_same() -> None:
    one, other = ({"priority": 1, "disable": False}, {"disable": False, "priority": 1})

    assert uses({"echo": {"_meta": one}})[0].meta_text == uses({"echo": {"_meta": other}})[0].meta_text


def test_of_plugins_that_are_refused_every_one_with_options_can_be_looked_at() -> None:
    written = {
        "echo": {"a": 1, "_meta": {"disable": True}},
        "odd": {"a": 2, "_meta": {"priority": "high"}},
        "off": {"_meta": {"disable": True, "priority": "high"}},
        "even": {"_meta": 5},
        "none": 7,
    }

    found = uses_in(written)

    assert [(use.name, use.options, use.meta) for use in found] == [
        ("echo", {"a": 1}, MetaSpec(disable=True)),
        ("odd", {"a": 2}, MetaSpec()),
        ("off", {}, MetaSpec(disable=True)),
        ("even", {}, MetaSpec()),
    ]
    assert uses_in([]) == ()


def test_a_filter_is_a_condition() -> None:
    (found,) = uses({"echo": {"_meta": {"filter": [["remote_addr", "==", "192.0.2.9"]]}}})

    assert found.meta.filter is not None
    assert found.meta.filter.bind(lookup)(facts("192.0.2.9"))


@pytest.mark.parametrize(
    ("plugins", "place", "ours", "apisix"),
    [
        ([], "plugins", "expected a mapping, got a list", None),
        (
            {"echo": 7},
            "plugins.echo",
            "expected a mapping with the options of the plugin, got 7",
            "invalid plugin conf 7 for plugin [echo]",
        ),
        (
            {"echo": ["a"]},
            "plugins.echo",
            "expected a mapping with the options of the plugin, got a list",
            'invalid plugin conf ["a"] for plugin [echo]',
        ),
        ({"echo": {"_meta": 1}}, "plugins.echo._meta", "expected a mapping, got 1", None),
        (
            {"echo": {"_meta": {"disable": "yes"}}},
            "plugins.echo._meta.disable",
            "expected true or false, got 'yes'",
            None,
        ),
        (
            {"echo": {"_meta": {"filter": [["a", "=", 1]]}}},
            "plugins.echo._meta.filter",
            "failed to validate the 'filter' expression: invalid operator '='",
            "failed to validate the 'filter' expression: invalid operator '='",
        ),
        (
            {"echo": {"_meta": {"pre_function": "return function() end"}}},
            "plugins.echo._meta.pre_function",
            "this gateway runs no Lua",
            None,
        ),
        ({"echo": {"_meta": {"prio": 1}}}, "plugins.echo._meta.prio", "unknown field 'prio'", None),
    ],
)
def test_what_may_not_be_written(plugins: object, place: str, ours: str, apisix: str | None) -> None:
    (fault,) = faults(plugins)

    assert (pointer_of(fault.path), fault.message) == (place, ours)
    if apisix is not None:
        assert fault.error_msg == apisix


def test_every_plugin_is_looked_at() -> None:
    assert [pointer_of(fault.path) for fault in faults({"a": 1, "b": {}, "c": 2})] == [
        "plugins.a",
        "plugins.c",
    ]


def test_an_installed_plugin_is_found() -> None:
    assert PluginSet({"echo": ECHO}).find("echo") is ECHO
    assert PluginSet({"echo": ECHO}, enabled=frozenset({"echo"})).find("echo") is ECHO


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (PluginSet(), "unknown plugin [echo]"),
        (
            PluginSet({"echo": ECHO}, enabled=frozenset()),
            "unknown plugin [echo]: it is not in stream_plugins",
        ),
    ],
)
def test_one_that_is_not_there_or_switched_off_is_unknown(known: PluginSet, message: str) -> None:
    with pytest.raises(Wrong) as wrong:
        known.find("echo")

    (fault,) = wrong.value.faults
    assert (fault.message, fault.error_msg, fault.at_key) == (message, "unknown plugin [echo]", True)


def test_an_expression_names_the_field_it_stands_in() -> None:
    with pytest.raises(Wrong) as wrong:
        expression("vars")([["a"]])

    assert wrong.value.faults[0].message == "failed to validate the 'vars' expression: invalid expression"
