from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.model import Network
from streamgw.core.networks import NetworkSet, is_in_any, parse_host


def networks(*texts: str) -> NetworkSet:
    return NetworkSet(map(ipaddress.ip_network, texts))


@pytest.mark.parametrize(
    ("host", "found"),
    [("0.0.0.0", (4, 0)), ("192.0.2.1", (4, 0xC0000201)), ("::1", (6, 1)), ("unix:", (0, 0))],
)
def test_a_host_is_a_family_and_a_number(host: str, found: tuple[int, int]) -> None:
    assert parse_host(host) == found


def test_a_set_has_what_one_of_its_networks_has() -> None:
    found = networks("10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "::1")

    assert [host in found for host in ("10.9.9.9", "192.0.2.7", "2001:db8:1::", "::1")] == [True] * 4
    assert [host in found for host in ("11.0.0.0", "192.0.2.8", "2001:db9::", "::2", "unix:")] == [False] * 5


def test_everything_of_one_family_is_nothing_of_the_other() -> None:
    assert "192.0.2.1" in networks("0.0.0.0/0")
    assert "::1" not in networks("0.0.0.0/0")
    assert "192.0.2.1" not in networks("::/0")
    assert "192.0.2.1" not in networks()


addresses = st.ip_addresses(network="10.0.0.0/24") | st.ip_addresses(network="2001:db8::/120")


def network_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> Network:
    return ipaddress.ip_network((address, address.max_prefixlen - bits), strict=False)


@given(st.lists(st.builds(network_of, addresses, st.integers(0, 8)), max_size=10), addresses)
def test_the_answer_is_that_of_asking_each(entries: list[Network], address: ipaddress.IPv4Address) -> None:
    expected = any(address in entry for entry in entries)

    assert (str(address) in NetworkSet(entries)) == expected
    assert is_in_any(str(address), entries) == expected


def test_a_unix_peer_is_in_no_network() -> None:
    everything = [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]

    assert not is_in_any("unix:", everything)
    assert not is_in_any("192.0.2.1", ())
