from __future__ import annotations

import pytest

from streamgw.config.settings import Settings
from streamgw.config.strict import Wrong
from streamgw.core.hooks import PluginServices
from streamgw.plugins import BUILT_IN, Registry
from streamgw.process.plugins import installed, plugin_set


def test_every_installed_plugin_may_be_used_unless_the_settings_list_some() -> None:
    every = plugin_set(Settings())
    some = plugin_set(Settings(stream_plugins=("limit-conn",)))

    assert all(every.find(name).name == name for name in BUILT_IN)
    assert some.find("limit-conn") is BUILT_IN["limit-conn"]
    with pytest.raises(Wrong):
        some.find("ip-restriction")


def test_a_name_that_no_plugin_has_is_a_warning() -> None:
    found = plugin_set(Settings(stream_plugins=("limit-conn", "log-rotate")))

    assert [str(warning) for warning in found.warnings] == [
        "the plugins: stream_plugins: no plugin is called log-rotate"
    ]


def test_what_could_not_be_loaded_is_a_warning() -> None:
    found = plugin_set(Settings(), found=Registry(dict(BUILT_IN), {}, ("plugin acme cannot be loaded",)))

    assert [warning.message for warning in found.warnings] == ["plugin acme cannot be loaded"]


def test_counting_for_metrics_that_nobody_can_ask_for_is_a_warning() -> None:
    assert not plugin_set(Settings()).idle
    assert (
        plugin_set(Settings(metrics=None))
        .idle["prometheus"]
        .startswith("L4 prometheus metric should be exposed via export server")
    )


def test_plugins_get_what_the_process_gives() -> None:
    services = PluginServices(hostname="gw")

    assert plugin_set(Settings(), services).services is services


def test_the_same_settings_are_the_same_plugins() -> None:
    """Or else every look at the directory would compile all of it again."""
    assert plugin_set(Settings()) == plugin_set(Settings())
    assert installed() is installed()
