from __future__ import annotations

import attrs
import pytest

from streamgw.core.errors import ParseError, Rejected
from streamgw.core.hooks import Hooks
from streamgw.core.model import Facts
from streamgw.core.wire import NeedMore
from streamgw.plugins.mqtt_proxy import PLUGIN
from tests.support.mqtt import connect
from tests.support.plugins import CLIENT, built, refusals, said_by_api


def look(hooks: Hooks, buffer: bytes) -> Facts | NeedMore:
    assert hooks.look is not None
    return hooks.look.parse(CLIENT, buffer)


@pytest.mark.parametrize("level", [4, 5])
def test_a_client_is_known_by_what_it_calls_itself(level: int) -> None:
    found = look(built(PLUGIN, protocol_level=level), connect("sensor-1", level=level))

    assert found == attrs.evolve(CLIENT, mqtt_client_id="sensor-1")


def test_a_client_that_leaves_its_name_to_the_server_has_none() -> None:
    assert look(built(PLUGIN, protocol_level=4), connect("")) == CLIENT


def test_half_a_packet_is_waited_for() -> None:
    assert isinstance(look(built(PLUGIN, protocol_level=4), connect()[:10]), NeedMore)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (connect(level=5), "speaks 'MQTT' level 5, not 'MQTT' level 4"),
        (connect(name="MQIsdp", level=3), "speaks 'MQIsdp' level 3, not 'MQTT' level 4"),
        (connect(name="a\nb"), r"speaks 'a\\nb' level 4"),
    ],
)
def test_another_version_is_refused(packet: bytes, why: str) -> None:
    with pytest.raises(Rejected, match=why) as refused:
        look(built(PLUGIN, protocol_level=4), packet)

    assert refused.value.status == 503


def test_the_oldest_version_has_another_name() -> None:
    hooks = built(PLUGIN, protocol_name="MQIsdp", protocol_level=3)

    assert look(hooks, connect(name="MQIsdp", level=3)) != CLIENT


def test_what_is_no_mqtt_is_refused_at_once() -> None:
    with pytest.raises(ParseError, match="not an MQTT CONNECT: 'G'"):
        look(built(PLUGIN, protocol_level=4), b"GET")


def test_what_it_may_not_be_told() -> None:
    assert refusals(PLUGIN) == ["protocol_level: is required"]
    assert said_by_api(PLUGIN) == 'property "protocol_level" is required'
    assert refusals(PLUGIN, protocol_level="4") == ["protocol_level: expected an integer 0–255, got '4'"]
    assert said_by_api(PLUGIN, protocol_level="4") == (
        'property "protocol_level" validation failed: wrong type: expected integer, got string'
    )
    assert refusals(PLUGIN, protocol_level=4, upstream={}) == ["upstream: unknown field 'upstream'"]
