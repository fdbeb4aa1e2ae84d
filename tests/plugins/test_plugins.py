"""Which plugins there are."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace

from streamgw.core.hooks import Hooks, Plugin
from streamgw.plugins import BUILT_IN, GROUP, registry

DISTRIBUTION = SimpleNamespace(name="acme-streamgw", version="1.0")
THEIRS = Plugin(name="acme", priority=2000, options=SimpleNamespace, build=lambda _, __: Hooks())
THEIRS_TOO = Plugin(name="limit-conn", priority=1, options=SimpleNamespace, build=lambda _, __: Hooks())
NO_PLUGIN = "acme"


def entry(name: str, value: str) -> EntryPoint:
    found = EntryPoint(name, value, GROUP)
    vars(found)["dist"] = DISTRIBUTION
    return found


def test_the_built_in_ones_are_there_in_the_order_in_which_they_run() -> None:
    found = registry([])

    assert list(found.plugins) == list(BUILT_IN)
    assert list(BUILT_IN) == sorted(BUILT_IN, key=lambda name: -BUILT_IN[name].priority)
    assert {"ip-restriction", "limit-conn", "mqtt-proxy", "traffic-split", "prometheus", "syslog"} <= set(
        BUILT_IN
    )


def test_the_priorities_of_apisix_are_kept() -> None:
    theirs = {
        "ip-restriction": 3000,
        "limit-conn": 1003,
        "mqtt-proxy": 1000,
        "traffic-split": 966,
        "prometheus": 500,
        "http-logger": 410,
        "tcp-logger": 405,
        "syslog": 401,
        "udp-logger": 400,
        "file-logger": 399,
    }

    assert {name: BUILT_IN[name].priority for name in theirs} == theirs


def test_another_package_brings_its_own() -> None:
    found = registry([entry("acme", f"{__name__}:THEIRS")])

    assert found.plugins["acme"] is THEIRS
    assert found.origins == {"acme": "acme-streamgw 1.0"}
    assert list(found.plugins).index("acme") == list(found.plugins).index("ip-restriction") + 1
    assert found.troubles == ()


def test_what_brings_no_plugin_is_named_and_the_others_are_there() -> None:
    nowhere = EntryPoint("lost", "no.such.module:PLUGIN", GROUP)
    found = registry(
        [nowhere, entry("odd", f"{__name__}:NO_PLUGIN"), entry("double", f"{__name__}:THEIRS_TOO")]
    )

    assert found.plugins == dict(BUILT_IN)
    assert found.troubles == (
        "plugin lost (no.such.module:PLUGIN) cannot be loaded: ModuleNotFoundError(\"No module named 'no'\")",
        "plugin odd (acme-streamgw 1.0) is no streamgw.core.hooks.Plugin",
        "plugin limit-conn (acme-streamgw 1.0) has the name of one that is there already",
    )


def test_what_is_installed_is_found() -> None:
    assert set(BUILT_IN) <= set(registry().plugins)
