from __future__ import annotations

import pytest

from streamgw.core.hooks import PluginServices
from streamgw.plugins.prometheus import PLUGIN
from tests.support.plugins import built, close, context


@pytest.mark.parametrize(("prefer_name", "label"), [(False, "r1"), (True, "db")])
def test_sessions_are_counted_by_route(prefer_name: bool, label: str) -> None:
    services = PluginServices()
    hooks = built(PLUGIN, services, prefer_name=prefer_name)

    close(hooks)
    close(hooks)

    assert services.connections == {label: 2}


def test_a_route_without_a_name_is_counted_by_its_id() -> None:
    services = PluginServices()
    known = {"route_id": "r1", "route_name": ""}

    close(PLUGIN.build(PLUGIN.options(prefer_name=True), context(PLUGIN, services, known)))

    assert services.connections == {"r1": 1}
