"""Which node first, and which then: one instance per upstream, of the type that its `type` names.

A retry is the next candidate of the same order, so no node is tried twice in one session.

Every type obeys the same three rules, which stand in `_ByPriority`: a node of weight 0 is never picked; one that is not up
is left out; a lower priority is entered when all of the higher ones were tried. What differs is the order within one
priority.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from streamgw.core.model import Facts, Node, Upstream
from streamgw.core.ring import Ring

_MAX_WARM_UP = 128
"""Picks thrown away for a random start; bounds what a reload of many weighted upstreams costs."""


class Load(Protocol):
    """What a balancer asks about the nodes of its upstream (`load.UpstreamLoad`)."""

    @property
    def is_steady(self) -> bool:
        """Every node is up and has its whole weight: nobody need ask about each."""

    def is_up(self, node: Node) -> bool:
        """Whether it may be picked."""

    def share(self, node: Node) -> float:
        """Of its weight: above 0, at most 1; less than 1 while it starts slowly."""

    def active(self, node: Node) -> int:
        """Its sessions."""

    def latency_s(self, node: Node) -> float:
        """How long it takes to connect to it and to get its first byte, of late; 0 for one that was never asked."""


class Balancer(Protocol):
    """Gives each session its order of nodes."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, as it was given."""

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        """Every node that may be dialled, once, in the order to try. Empty when there is none.

        The first is the pick for this session: calling this moves the position of round robin. A lower priority is
        looked at only when the iterator gets there.
        """


RandRange: TypeAlias = Callable[[int], int]
"""`random.Random.randrange`: a number from 0 to below its argument. Core has no randomness of its own."""
HashKey: TypeAlias = Callable[[Facts], str]


def build_balancer(
    upstream: Upstream, nodes: Sequence[Node], *, randrange: RandRange, hashed_by: HashKey, start: int
) -> Balancer:
    """The balancer that `upstream.type` names.

    Args:
      upstream: its type counts.
      nodes: those of the upstream, with its names replaced by their addresses.
      randrange: for ewma, which compares two at random.
      hashed_by: for chash, the text that a client is hashed by.
      start: any number ≥ 0: how far into its cycle round robin begins, so that many gateways do not all begin with one
        node.
    """
    kinds: dict[str, Callable[[Sequence[Node]], _Group]] = {
        "roundrobin": lambda group: _round_robin(group, start),
        "chash": lambda group: _Hashed(group, hashed_by),
        "least_conn": _LeastConn,
        "ewma": lambda group: _Quickest(group, randrange),
    }
    return _ByPriority(nodes, kinds[upstream.type])


class _Group(Protocol):
    """The usable nodes of one priority."""

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        """This session's pick, then the others; those that are not up are left out."""


class _ByPriority:
    """The higher priorities first. Mutable as its groups are."""

    def __init__(self, nodes: Sequence[Node], make: Callable[[Sequence[Node]], _Group]) -> None:
        self.nodes = tuple(nodes)
        groups: dict[int, list[Node]] = {}
        for node in self.nodes:
            if node.weight > 0:
                groups.setdefault(node.priority, []).append(node)
        self._groups = tuple(make(groups[priority]) for priority in sorted(groups, reverse=True))

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        if not self._groups:
            return iter(())
        first = self._groups[0].order(facts, load)
        return first if len(self._groups) == 1 else self._then_lower_groups(first, facts, load)

    def _then_lower_groups(self, first: Iterator[Node], facts: Facts, load: Load) -> Iterator[Node]:
        yield from first
        for group in self._groups[1:]:
            yield from group.order(facts, load)


def _round_robin(nodes: Sequence[Node], start: int) -> _Group:
    """Over each full cycle (as many picks as the weights add up to, after their common divisor is taken out) every node is
    first exactly as often as its weight says, spread as evenly as nginx's smooth algorithm does: 5:1:1 gives a a b a c a a.
    Equal weights cost O(1) per pick, others O(nodes).
    """
    divisor = functools.reduce(math.gcd, (node.weight for node in nodes))
    weights = [node.weight // divisor for node in nodes]
    smooth = _Smooth(nodes, weights, start)
    # Coprime and equal means that all are 1.
    return _Turns(nodes, smooth, start) if max(weights) == 1 else smooth


class _Turns:
    """Equal weights: each in its turn. A node that is not up is passed over, the others' turns stay as they are."""

    def __init__(self, nodes: Sequence[Node], unsteady: _Smooth, start: int) -> None:
        self._nodes = tuple(nodes)
        self._unsteady = unsteady
        self._next = start % len(nodes)

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        if not load.is_steady:
            return self._unsteady.order(facts, load)
        at = self._next
        self._next = (at + 1) % len(self._nodes)
        return self._from(at)

    def _from(self, at: int) -> Iterator[Node]:
        yield from self._nodes[at:]
        yield from self._nodes[:at]


class _Smooth:
    """Smooth weighted round robin: every node earns its weight, the richest is picked and pays for all.

    Who is not up earns nothing and keeps what it has; who starts slowly earns its share.

    Source:
      nginx, `ngx_http_upstream_get_peer` (commit 52327e0627f4, 2012): the balances return to 0 after each cycle.
    """

    def __init__(self, nodes: Sequence[Node], weights: Sequence[int], start: int) -> None:
        self._nodes = tuple(nodes)
        self._weights = tuple(weights)
        self._balances: list[float] = [0] * len(nodes)
        for _ in range(start % min(sum(weights), _MAX_WARM_UP)):
            self._pick(self._weights)

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        del facts
        earnings: Sequence[float] = self._weights
        if not load.is_steady:
            earnings = [
                weight * load.share(node) if load.is_up(node) else 0
                for node, weight in zip(self._nodes, self._weights, strict=True)
            ]
            if not any(earnings):
                return iter(())
        return self._from(self._pick(earnings), earnings)

    def _pick(self, earnings: Sequence[float]) -> int:
        balances = [balance + earned for balance, earned in zip(self._balances, earnings, strict=True)]
        picked = max((at for at, earned in enumerate(earnings) if earned), key=balances.__getitem__)
        balances[picked] -= sum(earnings)
        self._balances = balances
        return picked

    def _from(self, picked: int, earnings: Sequence[float]) -> Iterator[Node]:
        """The others follow as they would be picked next: by what they will then own."""
        yield self._nodes[picked]
        others = [at for at, earned in enumerate(earnings) if earned and at != picked]
        others.sort(key=lambda at: self._balances[at] + earnings[at], reverse=True)
        yield from (self._nodes[at] for at in others)


class _Hashed:
    """The same key, the same node; the next on the ring takes the share of one that is not there."""

    def __init__(self, nodes: Sequence[Node], key: HashKey) -> None:
        self._ring = Ring(nodes)
        self._key = key

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        nodes = self._ring.walk(self._key(facts))
        return nodes if load.is_steady else filter(load.is_up, nodes)


class _LeastConn:
    """The least (sessions + 1) / weight first, as APISIX counts it. Between equals each in its turn: the first of the list
    would get every session of a quiet gateway.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = tuple(nodes)
        self._next = 0

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        del facts
        at = self._next
        self._next = (at + 1) % len(self._nodes)
        nodes = _up(self._nodes[at:] + self._nodes[:at], load)
        nodes.sort(key=lambda node: (load.active(node) + 1) / _weight(node, load))
        return iter(nodes)


class _Quickest:
    """Two at random, the cheaper first; then the others, the cheapest first. The cost of a node is its latency
    times (sessions + 1), by its weight.

    Two only: if all went to the one best, it would be the worst a moment later.

    Source:
      Finagle's Peak EWMA, which APISIX and nginx's ingress took theirs from. They left out the sessions, which requests
      have few of at a time; at layer 4 a session that lasts for hours tells how quick its node is once.
    """

    def __init__(self, nodes: Sequence[Node], randrange: RandRange) -> None:
        self._nodes = tuple(nodes)
        self._randrange = randrange

    def order(self, facts: Facts, load: Load) -> Iterator[Node]:
        del facts
        nodes = _up(self._nodes, load)
        for at in range(min(2, len(nodes))):
            other = at + self._randrange(len(nodes) - at)
            nodes[at], nodes[other] = nodes[other], nodes[at]

        def cost(node: Node) -> float:
            return load.latency_s(node) * (load.active(node) + 1) / _weight(node, load)

        yield from sorted(nodes[:2], key=cost)
        yield from sorted(nodes[2:], key=cost)


def _up(nodes: Sequence[Node], load: Load) -> list[Node]:
    return list(nodes) if load.is_steady else [node for node in nodes if load.is_up(node)]


def _weight(node: Node, load: Load) -> float:
    return node.weight if load.is_steady else node.weight * load.share(node)
