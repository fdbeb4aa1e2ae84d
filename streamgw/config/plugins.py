"""`plugins` of a route or service: which plugin, with which options, and what `_meta` says about it.

Whether there is such a plugin, and what its options mean, is not known here: what is installed and switched on may change
while a file stays as it is. `config/hooks.py` looks at that.

Source:
  APISIX `apisix/plugin.lua` (`check_schema`, `_meta`), `apisix/schema_def.lua` (`plugin_injected_schema`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeAlias

import attrs

from streamgw.config.rules import integer, mapping
from streamgw.config.strict import Fault, Rule, Stated, Wrong, shown, structure
from streamgw.core.errors import Problem
from streamgw.core.expression import Expression, ExpressionError, parse_expression
from streamgw.core.hooks import Plugin, PluginServices

AnyPlugin: TypeAlias = Plugin[Any]
"""The options of one plugin are no other's business."""


@attrs.frozen
class PluginSet:
    """What there is to run on routes."""

    installed: Mapping[str, AnyPlugin] = attrs.field(factory=dict)
    enabled: frozenset[str] | None = None
    """`stream_plugins`; None: every one that is installed."""
    services: PluginServices = attrs.field(factory=PluginServices)
    warnings: tuple[Problem, ...] = ()
    """About the plugins themselves: an installed one that cannot be loaded, a name in `stream_plugins` that none has."""
    idle: Mapping[str, str] = attrs.field(factory=dict)
    """Why a plugin does nothing under these settings, by its name: a warning wherever it is used."""

    def find(self, name: str) -> AnyPlugin:
        """The plugin of this name.

        Raises:
          Wrong: there is none, or it is switched off.
        """
        plugin = self.installed.get(name)
        words = f"unknown plugin [{name}]"
        if plugin is None:
            raise Wrong(Fault((), words, at_key=True, apisix=words, is_final=True))
        if self.enabled is not None and name not in self.enabled:
            message = f"{words}: it is not in stream_plugins"
            raise Wrong(Fault((), message, at_key=True, apisix=words, is_final=True))
        return plugin


NO_PLUGINS = PluginSet()


def expression(what: str) -> Stated[Expression]:
    """A condition on variables (`core.expression`).

    Args:
      what: the name of the field, for APISIX's words.
    """

    def rule(value: object) -> Expression:
        try:
            return parse_expression(value)
        except ExpressionError as error:
            words = f"failed to validate the '{what}' expression: {error}"
            raise Wrong(Fault((), words, apisix=words, is_final=True)) from None

    return Stated(
        rule, {"type": "array", "description": "Conditions on variables, as lua-resty-expr has them."}
    )


def _lua(value: object) -> NoReturn:
    del value
    raise Wrong("this gateway runs no Lua")


@attrs.frozen(kw_only=True)
class MetaSpec:
    """`_meta`: what is said about a plugin and not to it."""

    disable: bool = False
    priority: Annotated[int, integer(-(2**31), 2**31 - 1)] | None = None
    filter: Annotated[Expression, expression("filter")] | None = None
    error_response: Annotated[object, Stated(lambda value: value, {})] | None = None
    pre_function: (
        Annotated[NoReturn, Stated(_lua, {"not": {}, "description": "Lua is not run."}, {"type": "string"})]
        | None
    ) = None


@attrs.frozen
class PluginUse:
    """One plugin, as written at a route or service."""

    name: str
    options: Mapping[str, object] = attrs.field(repr=False)
    """Without `_meta`; nobody has looked at them."""
    meta: MetaSpec = MetaSpec()
    meta_text: str = ""
    """What `_meta` says, as JSON: equal texts mean the same."""


def _plugins(value: object) -> tuple[PluginUse, ...]:
    uses: list[PluginUse] = []
    faults: list[Fault] = []
    for name, options in mapping(value).items():
        try:
            uses.append(_plugin(name, options))
        except Wrong as wrong:
            faults += (fault.under((name,)) for fault in wrong.faults)
    if faults:
        raise Wrong(*faults)
    return tuple(uses)


def uses_in(value: object) -> tuple[PluginUse, ...]:
    """Those of `plugins` whose options can be looked at, of an object that is refused for something else, or for others."""
    if not isinstance(value, Mapping):
        return ()
    return tuple(_use(name, options) for name, options in value.items() if isinstance(options, Mapping))


def _use(name: str, options: Mapping[str, object]) -> PluginUse:
    try:
        return _plugin(name, options)
    except Wrong:
        meta = options.get("_meta")
        is_off = isinstance(meta, Mapping) and meta.get("disable") is True
        rest = {key: option for key, option in options.items() if key != "_meta"}
        return PluginUse(name, rest, MetaSpec(disable=is_off))


def _plugin(name: str, options: object) -> PluginUse:
    if not isinstance(options, Mapping):
        message = f"expected a mapping with the options of the plugin, got {shown(options)}"
        words = f"invalid plugin conf {json.dumps(options)} for plugin [{name}]"
        raise Wrong(Fault((), message, apisix=words, is_final=True))
    meta = options.get("_meta", {})
    try:
        spec = structure(meta, MetaSpec)
    except Wrong as wrong:
        raise Wrong(*(fault.under(("_meta",)) for fault in wrong.faults)) from None
    rest = {key: option for key, option in options.items() if key != "_meta"}
    return PluginUse(name, rest, spec, json.dumps(meta, sort_keys=True))


_META_SCHEMA = {
    "type": "object",
    "properties": {
        "disable": {"type": "boolean"},
        "priority": {"type": "integer"},
        "filter": {"type": "array"},
        "error_response": {},
    },
    "additionalProperties": False,
}
_PLUGINS_SCHEMA = {
    "type": "object",
    "additionalProperties": {"type": "object", "properties": {"_meta": _META_SCHEMA}},
}

_rule: Rule[tuple[PluginUse, ...]] = Stated(_plugins, _PLUGINS_SCHEMA, {"type": "object"})
Plugins: TypeAlias = Annotated[tuple[PluginUse, ...], _rule]
