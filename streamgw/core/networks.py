"""Addresses as numbers, and sets of networks that answer as fast with ten thousand entries as with ten."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from streamgw.core.model import UNIX_HOST, Network


@functools.lru_cache(maxsize=4096)
def parse_host(host: str) -> tuple[int, int]:
    """(4 or 6, the address as a number) of a literal; (0, 0) of a Unix peer, which no network holds.

    Cached, because one gateway has few addresses of its own; by hand for IPv4, because a client is often a new one and
    `ipaddress` takes three times as long.
    """
    if host == UNIX_HOST:
        return 0, 0
    if ":" in host:
        return 6, int(ipaddress.IPv6Address(host))
    return 4, int.from_bytes(bytes(map(int, host.split("."))), "big")


def is_in_any(host: str, networks: Iterable[Network]) -> bool:
    """Whether a literal, as sockets give it, is in one of these few. A Unix peer is in none."""
    family, number = parse_host(host)
    return any(
        network.version == family and number & int(network.netmask) == int(network.network_address)
        for network in networks
    )


class NetworkSet:
    """Networks of both families. A question costs one look-up for each prefix length there is."""

    def __init__(self, networks: Iterable[Network]) -> None:
        found: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            key = network.version, int(network.netmask)
            found.setdefault(key, set()).add(int(network.network_address))
        self._by_family = {
            version: tuple((mask, frozenset(found[of, mask])) for of, mask in found if of == version)
            for version in (4, 6)
        }

    def __contains__(self, host: str) -> bool:
        """Whether a literal, as sockets give it, is in one of these. A Unix peer is in none."""
        return self.holds(*parse_host(host))

    def holds(self, version: int, number: int) -> bool:
        """The same of an address as a number."""
        return any(number & mask in values for mask, values in self._by_family.get(version, ()))
