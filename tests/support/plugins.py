"""Plugins without a gateway: options in, decisions out."""

from __future__ import annotations

from typing import Any, NoReturn

import attrs
import pytest
import trio

from streamgw.config.apisix import refusal
from streamgw.config.plugins import PluginSet
from streamgw.config.strict import Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.batch import Collector
from streamgw.core.errors import Rejected
from streamgw.core.hooks import Decision, Hooks, Plugin, PluginContext, PluginServices
from streamgw.core.model import Facts
from tests.support.scenes import facts, outcome

CLIENT = facts("192.0.2.9")
KNOWN = {"route_id": "r1", "route_name": "db", "service_id": "", "service_name": "", "hostname": "gw"}


@attrs.define
class Shelf:
    """A shipping that keeps what it was given."""

    shipped: list[tuple[Collector, bytes]] = attrs.Factory(list)

    def ship(self, collector: Collector, record: bytes) -> None:
        self.shipped.append((collector, record))


async def break_when_cancelled(*_: object) -> NoReturn:
    """What a plugin may wait for: a task of its own has something to put away at the end, and cannot."""

    async def put_away() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("no space left")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_away)
        await trio.sleep_forever()
    raise AssertionError("only cancellation ends this")


def context(
    plugin: Plugin[Any], services: PluginServices | None = None, known: dict[str, str] | None = None
) -> PluginContext:
    return PluginContext(
        known=KNOWN if known is None else known,
        key=f"stream_routes/r1/plugins/{plugin.name}",
        metadata=None if plugin.metadata is None else structure({}, plugin.metadata),
        services=services or PluginServices(),
    )


def built(plugin: Plugin[Any], services: PluginServices | None = None, **options: object) -> Hooks:
    """The hooks of a route `r1`."""
    return plugin.build(structure(options, plugin.options), context(plugin, services))


def decide(hooks: Hooks, told: Facts = CLIENT, now: float = 0.0) -> Decision:
    """What the hooks make of one client: of their one phase that decides."""
    (hook,) = (each for each in (hooks.on_accept, hooks.on_preread) if each is not None)
    decision: Decision = hook(told, now)
    return decision


def is_let_in(hooks: Hooks, told: Facts = CLIENT, now: float = 0.0) -> bool:
    try:
        decide(hooks, told, now)
    except Rejected:
        return False
    return True


def close(hooks: Hooks, told: Facts = CLIENT) -> None:
    assert hooks.on_close is not None
    hooks.on_close(told, outcome(told))


def refusals(plugin: Plugin[Any], **options: object) -> list[str]:
    """What is wrong with these options, in our words."""
    with pytest.raises(Wrong) as wrong:
        structure(options, plugin.options)
    return [f"{pointer_of(fault.path)}: {fault.message}".removeprefix(": ") for fault in wrong.value.faults]


def warnings(plugin: Plugin[Any], **options: object) -> list[str]:
    """What has no effect."""
    made = structure(options, plugin.options)
    found = made.warnings() if hasattr(made, "warnings") else ()
    return [f"{pointer_of(fault.path)}: {fault.message}" for fault in found]


def said_by_api(plugin: Plugin[Any], **options: object) -> str | None:
    """`error_msg` of a PUT of a route with these options, without what every plugin's has in front."""
    said = refusal(
        "stream_routes", {"plugins": {plugin.name: options}}, plugins=PluginSet({plugin.name: plugin})
    )
    prefix = f"failed to check the configuration of stream plugin [{plugin.name}]: "
    assert said is None or said.startswith(prefix)
    return None if said is None else said.removeprefix(prefix)
