"""Nodes that DNS names: what SRV records and addresses say, as nodes with weight and priority.

Source:
  RFC 2782 (SRV); APISIX `apisix/discovery/dns/init.lua` and `apisix/core/dns/client.lua` for what of it becomes which part
  of a node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final, Literal, TypeAlias

import attrs

from streamgw.core.model import Node

RecordKind: TypeAlias = Literal["last", "SRV", "A", "AAAA", "CNAME"]
ORDER: Final[tuple[RecordKind, ...]] = ("last", "SRV", "A", "AAAA", "CNAME")
"""What APISIX asks for, and in which order, unless it is told otherwise."""
MAX_TOTAL_WEIGHT = 1 << 24
"""Of one priority. Beyond, weights are made smaller together, which is exact to one in 16 million."""
MAX_RING_WEIGHT = 1024
"""Of a hash ring of such nodes. A quarter of what a file may ask for: it is made again whenever DNS says so."""


@attrs.frozen(order=True)
class ServiceRecord:
    """One SRV record. In the order in which records are kept when there are too many."""

    priority: int
    """The lowest is tried first."""
    target: str
    """Lower case, no trailing dot. Empty: the service is decidedly not available here (RFC 2782)."""
    port: int
    """0: none."""
    weight: int


@attrs.frozen
class Discovered:
    """A node, and the name whose address it is."""

    node: Node
    name: str

    def __str__(self) -> str:
        return str(self.node.address)


def split_service_name(service_name: str) -> tuple[str, int]:
    """`db.example:3306` into its parts; port 0: it has none."""
    host, colon, port = service_name.rpartition(":")
    return (host, int(port)) if colon else (service_name, 0)


def nodes_at(name: str, addresses: Iterable[str], port: int) -> tuple[Discovered, ...]:
    """Nodes of a name without SRV records: one for each address, all alike."""
    return tuple(Discovered(Node(address, port), name) for address in addresses)


def nodes_of(records: Sequence[tuple[ServiceRecord, Sequence[str]]], port: int = 0) -> tuple[Discovered, ...]:
    """Nodes of SRV records.

    The lowest priority is tried first, so its nodes have the highest: it is stored negated. The weight of a record is
    divided among the addresses of its target; 0 counts as 1. What is written twice is one node: in its best priority, with
    all the weight it has there.

    Args:
      records: each with the addresses of its target.
      port: in place of the records' own; 0: their own. A record without either is left out.

    Returns:
      In a fixed order: the same records in another order are the same nodes.
    """
    shares: dict[tuple[str, int], tuple[int, Fraction, str]] = {}
    for record, addresses in sorted(records, key=lambda pair: pair[0]):
        place_port = port or record.port
        if not place_port:
            continue
        for address in addresses:
            place = (address, place_port)
            priority, share, name = shares.get(place, (record.priority, Fraction(), record.target))
            if priority == record.priority:
                shares[place] = (priority, share + Fraction(max(record.weight, 1), len(addresses)), name)
    groups: dict[int, list[tuple[str, int]]] = {}
    for place, (priority, _, _) in sorted(shares.items()):
        groups.setdefault(priority, []).append(place)
    return tuple(
        Discovered(Node(*place, weight=weight, priority=-priority), shares[place][2])
        for priority, places in sorted(groups.items())
        for place, weight in zip(places, _whole([shares[place][1] for place in places]), strict=True)
    )


def fit_ring(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The same nodes with weights that a hash ring has room for: nobody looked at them before they came."""
    total = sum(node.weight for node in nodes)
    if total <= MAX_RING_WEIGHT:
        return tuple(nodes)
    return tuple(attrs.evolve(node, weight=max(1, node.weight * MAX_RING_WEIGHT // total)) for node in nodes)


def _whole(shares: Sequence[Fraction]) -> list[int]:
    """The smallest integers in these proportions."""
    common = math.lcm(*(share.denominator for share in shares))
    weights = [int(share * common) for share in shares]
    divisor = math.gcd(*weights)
    weights = [weight // divisor for weight in weights]
    total = sum(weights)
    if total > MAX_TOTAL_WEIGHT:
        weights = [max(1, weight * MAX_TOTAL_WEIGHT // total) for weight in weights]
    return weights
