from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config import rules
from streamgw.config.strict import Wrong
from streamgw.core.model import PortRange


def refusal(rule: Callable[[object], object], value: object) -> str:
    with pytest.raises(Wrong) as caught:
        rule(value)
    return "; ".join(fault.message for fault in caught.value.faults)


@pytest.mark.parametrize("value", ["80", 80.0, True, None, 0, 65536, [80]])
def test_only_an_integer_within_bounds_is_one(value: object) -> None:
    assert refusal(rules.integer(1, 65535), value).startswith("expected an integer 1–65535, got ")


def test_an_integer_may_be_bound_on_one_side_only() -> None:
    assert rules.integer(0)(10**12) == 10**12
    assert refusal(rules.integer(0), -1) == "expected an integer ≥ 0, got -1"


@pytest.mark.parametrize("value", ["1", True, None, -0.1, float("inf"), float("nan"), 1e12])
def test_a_number_is_finite_and_not_below_its_bound(value: object) -> None:
    assert refusal(rules.number(0), value).startswith("expected a number ≥ 0, got ")


def test_a_number_may_have_to_be_above_its_bound() -> None:
    assert rules.number(0)(0) == 0.0
    assert isinstance(rules.number(0)(0), float)
    assert rules.number(0, exclusive=True)(0.1) == 0.1
    assert refusal(rules.number(0, exclusive=True), 0) == "expected a number > 0, got 0"


def test_text_has_a_length() -> None:
    assert rules.text(1, 3)("abc") == "abc"
    assert refusal(rules.text(1, 3), "") == "expected 1 to 3 characters, got 0"
    assert refusal(rules.text(1, 3), "abcd") == "expected 1 to 3 characters, got 4"
    assert refusal(rules.text(1), "") == "expected at least 1 characters, got 0"
    assert refusal(rules.text(), 1) == "expected text, got 1"


def test_a_secret_is_never_shown() -> None:
    assert rules.secret(1, 64)("hush") == "hush"
    assert refusal(rules.secret(64, 65), "hush") == "expected 64 to 65 characters, got 4"
    assert refusal(rules.secret(64), "hush") == "expected at least 64 characters, got 4"
    assert refusal(rules.secret(64), 12345) == "expected text"


@pytest.mark.parametrize(
    ("value", "identifier"), [(1, "1"), ("1", "1"), ("a-b_c.D", "a-b_c.D"), ("x" * 64, "x" * 64)]
)
def test_an_id_is_text_or_digits(value: object, identifier: str) -> None:
    assert rules.identifier(value) == identifier


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "", "a b", "a/b", "é", "x" * 65, "a\n"])
def test_what_is_no_id(value: object) -> None:
    assert "expected 1 to 64 of a-z A-Z 0-9 - _ ." in refusal(rules.identifier, value)


def test_a_mapping_is_a_mapping() -> None:
    assert rules.mapping({"a": 1}) == {"a": 1}
    assert refusal(rules.mapping, "hush") == "expected a mapping, got text"


def test_labels_are_short_texts_without_spaces() -> None:
    assert rules.labels({"env": "prod", "v": "1"}) == {"env": "prod", "v": "1"}
    assert rules.labels({"a": "x\x1e\xa0y"}) == {"a": "x\x1e\xa0y"}
    with pytest.raises(Wrong) as caught:
        rules.labels({"a": 1, "b": "x y", "c": "", "d": "x" * 257, "e": "ok"})
    assert [fault.path for fault in caught.value.faults] == [("a",), ("b",), ("c",), ("d",)]


@pytest.mark.parametrize(
    ("written", "network"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::1", "::1/128"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::/0", "::/0"),
    ],
)
def test_networks_are_folded_as_clients_are(written: str, network: str) -> None:
    assert rules.network(written) == ipaddress.ip_network(network)


@pytest.mark.parametrize(
    "value", [":/8", "10.0.0", "10.0.0.0/33", "fe80::1%eth0", "host", 10, None, "10.0.0.256", "[::1]"]
)
def test_what_is_no_network(value: object) -> None:
    assert refusal(rules.network, value).startswith("expected an IP address or CIDR, got ")


@pytest.mark.parametrize(
    ("value", "first", "last"), [(80, 80, 80), ("80-90", 80, 90), ("80-80", 80, 80), ("1-65535", 1, 65535)]
)
def test_ports_are_a_number_or_a_range(value: object, first: int, last: int) -> None:
    assert rules.port_range(value) == PortRange(first, last)


@pytest.mark.parametrize(
    "value", [0, 65536, True, "80", "90-80", "0-80", "80-65536", "80 - 90", "-", 80.0, None]
)
def test_what_is_no_port_range(value: object) -> None:
    assert refusal(rules.port_range, value).startswith(
        "expected a port 1–65535 or a range like 9100-9200, got "
    )


@pytest.mark.parametrize(
    ("written", "host"),
    [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("[2001:DB8:0::1]", "2001:db8::1"), ("db.example", "db.example"),
     ("DB_1.Example.", "DB_1.Example."), ("x" * 63, "x" * 63)],
)  # fmt: skip
def test_hosts_are_addresses_or_names(written: str, host: str) -> None:
    assert rules.host(written) == host


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("::1", "IPv6 address must be enclosed with '[' and ']', got '::1'"),
        ("[::g]", "expected an IPv6 address in brackets, got '[::g]'"),
        ("1.2.3", "expected an IPv4 address, got '1.2.3'"),
        ("256.1.1.1", "expected an IPv4 address, got '256.1.1.1'"),
        ("", "expected an IP address or a DNS name, got ''"),
        ("a b", "expected an IP address or a DNS name, got 'a b'"),
        ("*.example", "expected an IP address or a DNS name, got '*.example'"),
        ("a..b", "expected an IP address or a DNS name, got 'a..b'"),
        ("x" * 64, "expected an IP address or a DNS name, got "),
        (".".join(["x" * 60] * 5), "expected an IP address or a DNS name, got "),
        ("-a", "expected an IP address or a DNS name, got '-a'"),
        ("münchen", "expected an IP address or a DNS name, got 'münchen'"),
    ],
)
def test_what_is_no_host(written: str, said: str) -> None:
    assert refusal(lambda value: rules.host(str(value)), written).startswith(said)


@pytest.mark.parametrize(
    ("written", "name"),
    [("*", "*"), ("A.Test.com", "a.test.com"), ("*.X", "*.x"), ("*x", "*x"), ("a.", "a"), (".", ".")],
)
def test_server_names_are_folded(written: str, name: str) -> None:
    assert rules.server_name(written) == name


@pytest.mark.parametrize("value", ["", "a b", "a*", "*.*", 1, None, "**"])
def test_what_is_no_server_name(value: object) -> None:
    assert refusal(rules.server_name, value).startswith("expected a server name like ")


def test_a_name_that_a_client_sends_has_no_wildcard() -> None:
    assert rules.host_name("A.Test.") == "a.test"
    assert refusal(rules.host_name, "*.test") == "expected a name without wildcard, got '*.test'"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("240s", 240),
        ("4m", 240),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("500ms", 0.5),
        ("0", 0),
        (5, 5),
        (0.5, 0.5),
        ("1M", 2_592_000),
        ("1d", 86_400),
    ],
)
def test_times_are_written_as_nginx_writes_them(written: object, seconds: float) -> None:
    assert rules.duration(written) == seconds


@pytest.mark.parametrize("value", ["", "5q", "s", "-5s", "1.5s", None, True, [1]])
def test_what_is_no_time(value: object) -> None:
    assert refusal(rules.duration, value).startswith("expected a time like 240s, 4m or 1h30m, got ")


@pytest.mark.parametrize("value", [-1, "9" * 20, "9" * 20 + "y"])
def test_a_time_has_bounds(value: object) -> None:
    assert refusal(rules.duration, value).startswith("expected a number ≥ 0, got ")


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (65536, 65536),
        ("65536", 65536),
        ("512k", 512 << 10),
        ("10m", 10 << 20),
        ("1g", 1 << 30),
        ("10 KiB", 10 << 10),
        ("3MiB", 3 << 20),
        ("2GiB", 2 << 30),
        ("10kB", 10_000),
        ("5MB", 5_000_000),
        ("1GB", 10**9),
    ],
)
def test_sizes_are_written_as_nginx_or_as_anybody_writes_them(written: object, count: int) -> None:
    assert rules.size(written) == count


@pytest.mark.parametrize(
    "value", ["", "5q", "k", "-5k", "1.5m", "0", 0, -1, 1.0, None, True, [1], "9" * 13, "999999g"]
)
def test_what_is_no_size(value: object) -> None:
    assert refusal(rules.size, value).startswith("expected a number of bytes like 65536, 512k or 10MiB, got ")


@pytest.mark.parametrize(
    "rule",
    [
        rules.identifier,
        rules.network,
        rules.port_range,
        rules.server_name,
        rules.duration,
        rules.host,
        rules.size,
    ],
)
@given(text=st.text())
def test_no_text_makes_a_rule_crash(rule: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(Wrong):
        rule(text)


def test_an_address_names_its_field_as_apisix_does() -> None:
    rule = rules.address_of("remote_addr")

    assert rule("10.0.0.1") == ipaddress.ip_network("10.0.0.1")
    with pytest.raises(Wrong) as caught:
        rule(":/8")
    (fault,) = caught.value.faults
    assert (fault.message, fault.error_msg) == (
        "expected an IP address or CIDR, got ':/8'",
        "invalid remote_addr: :/8",
    )


def test_a_rule_can_be_described() -> None:
    rule = rules.about(rules.integer(1), "How many.")

    assert rule(1) == 1
    assert rule.schema == {"type": "integer", "minimum": 1, "description": "How many."}


def test_a_list_has_a_schema() -> None:
    assert rules.at_least(1, {}) == {"type": "array", "items": {}, "minItems": 1}
    assert rules.at_least(0, {}, unique=True) == {
        "type": "array",
        "items": {},
        "minItems": 0,
        "uniqueItems": True,
    }
