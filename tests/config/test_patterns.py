from __future__ import annotations

import contextlib
import ipaddress
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamgw.config import patterns
from streamgw.config.patterns import whole

ADDRESS_LIKE = st.from_regex(
    r"[0-9a-fA-F]{0,3}(?:[:.]{1,2}[0-9a-fA-F]{0,4}){0,9}(?:/[0-9]{0,3})?", fullmatch=True
)


def is_one(kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], text: str) -> bool:
    with contextlib.suppress(ValueError):
        kind(text)
        return True
    return False


@given(ADDRESS_LIKE | st.ip_addresses(v=4).map(str))
@example("255.255.255.255")
@example("01.1.1.1")
@example("256.1.1.1")
@example("1.1.1")
def test_an_ipv4_address_is_what_python_thinks(text: str) -> None:
    assert bool(re.search(whole(patterns.IPV4), text)) == is_one(ipaddress.IPv4Address, text)


@given(
    ADDRESS_LIKE | st.ip_addresses(v=6).map(str) | st.ip_addresses(v=6).map(lambda address: address.exploded)
)
@example("::")
@example("1::")
@example("1:2:3:4:5:6:7::")
@example("::2:3:4:5:6:7:8")
@example("1:2:3:4:5:6:7:8::")
@example("1::2::3")
@example("::ffff:1.2.3.4")
@example("1:2:3:4:5:6:1.2.3.4")
@example("1:2:3:4:5:6:7:1.2.3.4")
@example("::1.2.3.400")
@example("12345::")
def test_an_ipv6_address_is_what_python_thinks(text: str) -> None:
    assert bool(re.search(whole(patterns.IPV6), text)) == is_one(ipaddress.IPv6Address, text)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "10.0.0.0/8", "1.2.3.4/32", "::/0", "fd00::/8", "::1/128"])
def test_what_is_a_network(text: str) -> None:
    assert re.search(whole(patterns.NETWORK), text)
    ipaddress.ip_network(text, strict=False)


@pytest.mark.parametrize(
    "text", ["1.2.3.4/33", "1.2.3.4/08", "1.2.3.4/", "::/129", "10.0.0.0/255.0.0.0", "::1%lo"]
)
def test_what_is_none(text: str) -> None:
    assert not re.search(whole(patterns.NETWORK), text)


@given(st.integers(-10, 70_000) | st.integers(65_530, 65_540))
def test_a_port_is_a_number_up_to_65535(number: int) -> None:
    assert bool(re.search(whole(patterns.PORT), str(number))) == (1 <= number <= 65_535)


def test_a_port_may_have_zeros_in_front() -> None:
    assert re.search(whole(patterns.PORT), "00080")
    assert not re.search(whole(patterns.PORT), "000")


@pytest.mark.parametrize("text", ["db:1", "a.b-c_d.:80", "10.0.0.1:80", "[::1]:443", "1a:1", f"{'x' * 63}:1"])
def test_where_a_node_can_be(text: str) -> None:
    assert re.search(whole(patterns.HOST_PORT), text)


@pytest.mark.parametrize("text", ["db", ":1", "-a:1", "1.2.3:1", "1.2.3.400:1", "::1:1", "[1.2.3.4]:1", "a b:1", f"{'x' * 64}:1"])  # fmt: skip
def test_where_none_can_be(text: str) -> None:
    assert not re.search(whole(patterns.HOST_PORT), text)
