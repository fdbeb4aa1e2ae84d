"""Which node first, and which then: weighted round robin, one instance per upstream.

A retry is the next candidate of the same order, so no node is tried twice in one session.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from streamgw.core.model import Node

_MAX_WARM_UP = 128
"""Picks thrown away for a random start; bounds what a reload of many weighted upstreams costs."""


class RoundRobin:
    """Weighted interleaved round robin. Mutable: it remembers its position.

    Over each full cycle (as many picks as the weights add up to, after their common divisor is taken out) every node
    of the highest priority is first exactly as often as its weight says, spread as evenly as nginx's smooth algorithm
    does: 5:1:1 gives a a b a c a a. Equal weights cost O(1) per pick, others O(nodes).
    """

    def __init__(self, nodes: Sequence[Node], *, start: int = 0) -> None:
        """Args:
        start: any number ≥ 0: how far into its cycle to begin, so that many gateways do not all begin with one node.
        """
        self.nodes = tuple(nodes)
        groups: dict[int, list[Node]] = {}
        for node in self.nodes:
            if node.weight > 0:
                groups.setdefault(node.priority, []).append(node)
        self._groups = tuple(_group(groups[priority], start) for priority in sorted(groups, reverse=True))

    def order(self) -> Iterator[Node]:
        """Every node that may be dialled, once, in the order to try. Empty when all weights are 0.

        The first is the pick of this round: calling this moves the position. A lower priority group is entered, and its
        position moved, only when the iterator gets there.
        """
        if not self._groups:
            return iter(())
        first = self._groups[0].order()
        return first if len(self._groups) == 1 else self._then_lower_groups(first)

    def _then_lower_groups(self, first: Iterator[Node]) -> Iterator[Node]:
        yield from first
        for group in self._groups[1:]:
            yield from group.order()


class _Group(Protocol):
    """The usable nodes of one priority."""

    def order(self) -> Iterator[Node]:
        """This round's pick, then the others."""


def _group(nodes: Sequence[Node], start: int) -> _Group:
    divisor = functools.reduce(math.gcd, (node.weight for node in nodes))
    weights = [node.weight // divisor for node in nodes]
    # Coprime and equal means that all are 1.
    return _EvenGroup(nodes, start) if max(weights) == 1 else _WeightedGroup(nodes, weights, start)


class _EvenGroup:
    """Equal weights: a ring."""

    def __init__(self, nodes: Sequence[Node], start: int) -> None:
        self._nodes = tuple(nodes)
        self._next = start % len(nodes)

    def order(self) -> Iterator[Node]:
        at = self._next
        self._next = (at + 1) % len(self._nodes)
        return self._from(at)

    def _from(self, at: int) -> Iterator[Node]:
        yield from self._nodes[at:]
        yield from self._nodes[:at]


class _WeightedGroup:
    """Smooth weighted round robin: every node earns its weight, the richest is picked and pays for all.

    Source:
      nginx, `ngx_http_upstream_get_peer` (commit 52327e0627f4, 2012): the balances return to 0 after each cycle.
    """

    def __init__(self, nodes: Sequence[Node], weights: Sequence[int], start: int) -> None:
        self._nodes = tuple(nodes)
        self._weights = tuple(weights)
        self._cycle = sum(weights)
        self._balances = [0] * len(nodes)
        for _ in range(start % min(self._cycle, _MAX_WARM_UP)):
            self._pick()

    def order(self) -> Iterator[Node]:
        return self._from(self._pick())

    def _pick(self) -> int:
        balances = [balance + weight for balance, weight in zip(self._balances, self._weights, strict=True)]
        picked = balances.index(max(balances))
        balances[picked] -= self._cycle
        self._balances = balances
        return picked

    def _from(self, picked: int) -> Iterator[Node]:
        """The others follow as they would be picked next: by what they will then own."""
        yield self._nodes[picked]
        others = [at for at in range(len(self._nodes)) if at != picked]
        others.sort(key=lambda at: self._balances[at] + self._weights[at], reverse=True)
        yield from (self._nodes[at] for at in others)
