"""Upstreams have a past: the balancer's position and the addresses behind their names survive a reload."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import attrs

from streamgw.core.balancer import RoundRobin
from streamgw.core.model import Address, Node, Upstream


class Names(Protocol):
    """What the pool asks of a resolver (`resolver.Resolver`)."""

    def sync(self, names: Collection[str]) -> None:
        """Keep exactly these names fresh from now on."""

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known now, without waiting; empty when nothing is."""

    async def first(self, name: str) -> None:
        """Wait until the first lookup of a name has ended, well or not."""


@attrs.frozen
class _Entry:
    """One upstream that is in use: the nodes behind its names, and whose turn it is."""

    upstream: Upstream
    balancer: RoundRobin


class UpstreamPool:
    """Gives each session its candidates, in the order in which they shall be tried.

    A name contributes one node per address, each with the weight and priority that the name has. Names of nodes with
    weight 0 are not resolved: a drained node may have lost its DNS record.
    """

    def __init__(self, names: Names, *, rng: random.Random) -> None:
        self._names = names
        self._rng = rng
        self._entries: dict[str, _Entry] = {}

    def sync(self, upstreams: Mapping[str, Upstream]) -> None:
        """Follow a new snapshot. An upstream whose key and nodes did not change keeps its balancer's position."""
        self._names.sync(
            {node.host for upstream in upstreams.values() for node in upstream.nodes if _is_looked_up(node)}
        )
        kept = {}
        for key, upstream in upstreams.items():
            nodes = self._resolved(upstream)
            entry = self._entries.get(key)
            if entry is not None and entry.balancer.nodes == nodes:
                kept[key] = _Entry(upstream, entry.balancer)
            else:
                kept[key] = _Entry(upstream, self._balancer(nodes))
        self._entries = kept

    def on_names_changed(self, name: str) -> None:
        """A name has other addresses now: the upstreams that use it get them, with a new balancer."""
        for key, entry in self._entries.items():
            if any(node.host == name for node in entry.upstream.nodes):
                self._entries[key] = _Entry(entry.upstream, self._balancer(self._resolved(entry.upstream)))

    async def candidates(self, upstream: Upstream) -> Iterator[Address]:
        """Addresses to dial, best first, each once. Empty when there is none.

        Returns at once except for a name that has never been looked up before: then it waits for that first answer.
        """
        balancer = self._balancer_of(upstream)
        if not balancer.nodes:
            for node in upstream.nodes:
                if _is_looked_up(node):
                    await self._names.first(node.host)
            balancer = self._balancer_of(upstream)
        return (Address(node.host, node.port) for node in balancer.order())

    def why_empty(self, upstream: Upstream) -> str:
        """Why there is no candidate, for a person."""
        if not upstream.nodes:
            return "it lists none"
        names = sorted({node.host for node in upstream.nodes if _is_looked_up(node)})
        return f"no address for {', '.join(names)}" if names else "every weight is 0"

    def _balancer_of(self, upstream: Upstream) -> RoundRobin:
        entry = self._entries.get(upstream.key)
        if entry is not None and entry.balancer.nodes and entry.upstream.nodes == upstream.nodes:
            return entry.balancer
        # The session pinned a snapshot that has been replaced since: its own nodes count, not today's.
        return self._balancer(self._resolved(upstream))

    def _resolved(self, upstream: Upstream) -> tuple[Node, ...]:
        nodes = []
        for node in upstream.nodes:
            if _is_looked_up(node):
                nodes += [attrs.evolve(node, host=address) for address in self._names.addresses(node.host)]
            elif node.weight > 0:
                nodes.append(node)
        return tuple(nodes)

    def _balancer(self, nodes: tuple[Node, ...]) -> RoundRobin:
        # A random start, as in APISIX: many gateways that reload together do not all dial the first node.
        return RoundRobin(nodes, start=self._rng.randrange(1 << 16))


def _is_looked_up(node: Node) -> bool:
    return node.weight > 0 and not _is_literal(node.host)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
