"""Every variable of a client, and templates of them."""

from __future__ import annotations

import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.model import Address, ClientCertificate, Facts
from streamgw.core.variables import NAMES, UnknownVariable, compile_template, lookup

PLAIN = Facts("tcp", "tcp *:9100", Address("192.0.2.9", 40_000), Address("127.0.0.1", 9100))
RICH = attrs.evolve(
    PLAIN,
    transport="udp",
    client=Address("2001:db8::9", 1),
    peer=Address("10.0.0.1", 2),
    server_name="db.example",
    client_certificate=ClientCertificate("CN=alice", ("DNS:a.example", "IP:10.0.0.1"), "ab12", "0c"),
    mqtt_client_id="sensor-7",
)


def value(name: str, facts: Facts) -> str | None:
    variable = lookup(name)
    assert variable is not None
    return variable(facts)


@pytest.mark.parametrize(
    ("name", "plain", "rich"),
    [
        ("remote_addr", "192.0.2.9", "2001:db8::9"),
        ("remote_port", "40000", "1"),
        ("server_addr", "127.0.0.1", "127.0.0.1"),
        ("server_port", "9100", "9100"),
        ("protocol", "TCP", "UDP"),
        ("realip_remote_addr", "192.0.2.9", "10.0.0.1"),
        ("realip_remote_port", "40000", "2"),
        ("proxy_protocol_addr", None, "2001:db8::9"),
        ("proxy_protocol_port", None, "1"),
        ("ssl_server_name", None, "db.example"),
        ("ssl_client_s_dn", None, "CN=alice"),
        ("ssl_client_serial", None, "0C"),
        ("mqtt_client_id", None, "sensor-7"),
        ("listener", "tcp *:9100", "tcp *:9100"),
        ("client_fingerprint", None, "ab12"),
        ("client_sans", None, "DNS:a.example,IP:10.0.0.1"),
    ],
)
def test_what_a_variable_says(name: str, plain: str | None, rich: str | None) -> None:
    assert value(name, PLAIN) == plain
    assert value(name, RICH) == rich
    assert name in NAMES


def test_an_mqtt_client_without_a_name_has_no_value() -> None:
    assert value("mqtt_client_id", attrs.evolve(PLAIN, mqtt_client_id="")) is None


@pytest.mark.parametrize("name", ["uri", "route_id", "status", "", "$remote_addr"])
def test_what_is_no_variable_before_the_relay_is_not_found(name: str) -> None:
    assert lookup(name) is None


def test_what_is_known_otherwise_can_be_told() -> None:
    known = {"route_id": "7", "service_id": ""}
    route_id, service_id = lookup("route_id", known), lookup("service_id", known)

    assert route_id is not None
    assert route_id(PLAIN) == "7"
    assert service_id is not None
    assert service_id(PLAIN) is None
    assert lookup("remote_addr", known) is lookup("remote_addr")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$remote_addr", "192.0.2.9"),
        ("$remote_addr$server_port", "192.0.2.99100"),
        ("${remote_addr}:${ server_port }", "192.0.2.9:9100"),
        ("$remote_addr-x", "192.0.2.9-x"),
        (r"a\$b $server_port", "a$b 9100"),
        ("$server_port$", "9100$"),
        ("${server_port", None),
        ("no variable", None),
        ("", None),
        ("x $mqtt_client_id", None),
        ("$mqtt_client_id/$server_port", "/9100"),
        ("${mqtt_client_id ?? nobody}", "nobody"),
        ("${mqtt_client_id??}", ""),
        ("${server_port ?? nobody}", "9100"),
        ("$route_id", "7"),
    ],
)
def test_a_template_is_filled_in(text: str, expected: str | None) -> None:
    template = compile_template(text, {"route_id": "7"})

    assert template(PLAIN) == expected
    assert template.text == text


def test_a_template_names_its_variables() -> None:
    assert compile_template("$remote_addr ${protocol}").names == ("remote_addr", "protocol")


def test_an_unknown_variable_is_refused_by_name() -> None:
    with pytest.raises(UnknownVariable, match=r"^unknown variable \$uri$") as caught:
        compile_template("$remote_addr$uri")

    assert caught.value.name == "uri"


@given(st.text())
def test_any_text_is_a_template_or_names_what_is_unknown(text: str) -> None:
    named = re.findall(r"\w+", text, re.ASCII)
    try:
        template = compile_template(text)
    except UnknownVariable as error:
        unknown = error.name
    else:
        assert template(RICH) is None or template.names
        return

    assert unknown in named
    assert lookup(unknown) is None
