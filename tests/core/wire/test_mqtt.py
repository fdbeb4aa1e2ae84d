from __future__ import annotations

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from fuzz.invariants import check_mqtt_connect
from streamgw.core.errors import ParseError
from streamgw.core.wire import NeedMore
from streamgw.core.wire.mqtt import Connect, parse_connect
from tests.support.mqtt import connect, text

SESSION_EXPIRES = bytes([0x11, 0, 0, 0, 60])

# Recorded from mosquitto_pub 2.0.11, `-i sensor-1 -V mqttv31`, `mqttv311`, `mqttv5` (which sends a receive maximum).
MOSQUITTO_31 = bytes.fromhex("1016 0006 4d5149736470 03 02 003c 0008 73656e736f722d31")
MOSQUITTO_311 = bytes.fromhex("1014 0004 4d515454 04 02 003c 0008 73656e736f722d31")
MOSQUITTO_5 = bytes.fromhex("1018 0004 4d515454 05 02 003c 03210014 0008 73656e736f722d31")


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (MOSQUITTO_311, Connect("MQTT", 4, "sensor-1")),
        (MOSQUITTO_5, Connect("MQTT", 5, "sensor-1")),
        (MOSQUITTO_31, Connect("MQIsdp", 3, "sensor-1")),
        (connect("", level=5, properties=SESSION_EXPIRES), Connect("MQTT", 5, "")),
        (connect("größe-✓"), Connect("MQTT", 4, "größe-✓")),
        (connect(level=0x84), Connect("MQTT", 0x84, "sensor-1")),
        (connect(name="MQTT", level=9), Connect("MQTT", 9, "")),
        (connect(after=text("user") + text("password")), Connect("MQTT", 4, "sensor-1")),
    ],
    ids=["3.1.1", "5.0", "3.1", "no-id", "unicode", "bridge", "unknown-level", "credentials"],
)
def test_a_client_says_what_it_speaks_and_who_it_is(packet: bytes, said: Connect) -> None:
    assert parse_connect(packet) == said


@pytest.mark.parametrize(
    "packet", [MOSQUITTO_311, MOSQUITTO_5, connect(level=5, properties=SESSION_EXPIRES * 40)]
)
def test_byte_by_byte_is_the_same_as_whole(packet: bytes) -> None:
    for length in range(len(packet)):
        found = parse_connect(packet[:length])
        assert isinstance(found, NeedMore)
        assert length < found.at_least <= len(packet)

    assert parse_connect(packet) == parse_connect(packet + b"more")


def test_what_stands_behind_the_identifier_is_not_waited_for() -> None:
    will = text("topic") + text("x" * 60_000)
    packet = connect(after=will)

    assert parse_connect(packet[: len(packet) - len(will)]) == Connect("MQTT", 4, "sensor-1")


def test_feeding_slowly_takes_few_tries() -> None:
    packet, tries, length = connect(level=5, properties=SESSION_EXPIRES * 40), 0, 0

    while isinstance(found := parse_connect(packet[:length]), NeedMore):
        length, tries = found.at_least, tries + 1

    assert tries <= 12


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "not an MQTT CONNECT: 'G'"),
        (b"\x11" + connect()[1:], "not an MQTT CONNECT"),
        (b"\x10\xff\xff\xff\xff\x01", "a length of more than four bytes|more than four bytes"),
        (b"\x10\x02\x00\x04MQTT", "shorter than what is in it"),
        (b"\x10\x20\xff\xff", "a protocol name of 65535 bytes"),
        (b"\x10\x14\x00\x04MQ\x00T\x04", "protocol name is no UTF-8 text"),
        (b"\x10\x14\x00\x04MQ\xffT\x04", "protocol name is no UTF-8 text"),
        (connect().replace(b"sensor-1", b"sensor\xff1"), "client identifier is no UTF-8 text"),
    ],
)
def test_what_can_become_no_connect_is_refused(packet: bytes, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        parse_connect(packet)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda data: MOSQUITTO_5[:14] + data))
@example(b"\x10\x80")
def test_whatever_comes_the_answer_holds(data: bytes) -> None:
    event(check_mqtt_connect(data))


@given(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=40),
    st.sampled_from([3, 4, 5]),
    st.integers(0, 200),
    st.binary(max_size=20),
)
def test_a_packet_cut_anywhere_with_garbage_behind_it_still_holds(
    client_id: str, level: int, cut: int, garbage: bytes
) -> None:
    packet = connect(client_id, level=level)

    event(check_mqtt_connect(packet[:cut] + garbage))
    assert parse_connect(packet + garbage) == Connect("MQTT", level, client_id)
