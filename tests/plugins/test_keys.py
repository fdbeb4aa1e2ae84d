from __future__ import annotations

import attrs
import pytest

from streamgw.core.hooks import Hooks
from streamgw.plugins.keys import compile_key, names_of
from tests.support.plugins import CLIENT, KNOWN

MQTT = attrs.evolve(CLIENT, mqtt_client_id="sensor-1")


@pytest.mark.parametrize(
    ("key", "key_type", "value"),
    [
        ("remote_addr", "var", "192.0.2.9"),
        ("server_port", "var", "9100"),
        ("route_name", "var", "db"),
        ("ssl_server_name", "var", "192.0.2.9"),
        ("arg_user", "var", "192.0.2.9"),
        ("$remote_addr $server_port", "var_combination", "192.0.2.9 9100"),
        ("$route_id:${ssl_server_name ?? none}", "var_combination", "r1:none"),
        ("$ssl_server_name:$server_port", "var_combination", ":9100"),
        ("$arg_user:$server_port", "var_combination", ":9100"),
        ("$ssl_server_name", "var_combination", "192.0.2.9"),
        ("everybody", "var_combination", "192.0.2.9"),
    ],
)
def test_a_key_tells_clients_apart(key: str, key_type: str, value: str) -> None:
    assert compile_key(key, key_type, KNOWN)(CLIENT) == value


def test_a_key_names_its_variables() -> None:
    assert names_of("$arg_user:$server_port", "var_combination") == {"arg_user", "server_port"}
    assert names_of("remote_addr", "var") == {"remote_addr"}


def decide(_: object, __: float) -> None: ...


def test_a_limit_decides_as_soon_as_its_key_is_known() -> None:
    early = compile_key("remote_addr", "var", KNOWN).hooks(decide)
    late = compile_key("$route_id $mqtt_client_id", "var_combination", KNOWN).hooks(decide)

    assert isinstance(early, Hooks)
    assert (early.on_accept, early.on_preread) == (decide, None)
    assert (late.on_accept, late.on_preread) == (None, decide)
    assert compile_key("mqtt_client_id", "var", KNOWN)(MQTT) == "sensor-1"
