"""Upstreams have a past: the balancer's position and the addresses behind their names survive a reload."""

from __future__ import annotations

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

    A name contributes one node per address, each with the weight and priority that the name has.

    An upstream gets its entry when the first session asks for it: of 10,000 upstreams few are in use, and what a reload
    does here is done on the event loop.
    """

    def __init__(self, names: Names, *, rng: random.Random) -> None:
        self._names = names
        self._rng = rng
        self._upstreams: Mapping[str, Upstream] = {}
        self._entries: dict[str, _Entry] = {}

    def sync(self, upstreams: Mapping[str, Upstream], names: Collection[str]) -> None:
        """Follow a new snapshot. An upstream whose key and nodes did not change keeps its balancer's position.

        Args:
          upstreams: all, by key.
          names: all that their nodes need looked up (`Snapshot.names`).
        """
        self._names.sync(names)
        self._upstreams = upstreams
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if key in upstreams and _same_nodes(entry.upstream, upstreams[key])
        }

    def on_names_changed(self, name: str) -> None:
        """A name has other addresses now: the upstreams that use it get them, with a new balancer."""
        for key, entry in self._entries.items():
            if any(node.host == name for node in entry.upstream.nodes):
                self._entries[key] = self._entry(entry.upstream)

    async def candidates(self, upstream: Upstream) -> Iterator[Address]:
        """Addresses to dial, best first, each once. Empty when there is none.

        Returns at once except for a name that has never been looked up before: then it waits for that first answer.
        """
        balancer = self._balancer_of(upstream)
        if not balancer.nodes:
            for node in upstream.nodes:
                if node.is_looked_up:
                    await self._names.first(node.host)
            balancer = self._balancer_of(upstream)
        return (Address(node.host, node.port) for node in balancer.order())

    def why_empty(self, upstream: Upstream) -> str:
        """Why there is no candidate, for a person."""
        if not upstream.nodes:
            return "it lists none"
        names = sorted({node.host for node in upstream.nodes if node.is_looked_up})
        return f"no address for {', '.join(names)}" if names else "every weight is 0"

    def _balancer_of(self, upstream: Upstream) -> RoundRobin:
        entry = self._entries.get(upstream.key)
        if entry is None or not _same_nodes(entry.upstream, upstream):
            entry = self._entry(upstream)
            today = self._upstreams.get(upstream.key)
            # A session that pinned an older snapshot gets its own nodes, and leaves no trace: today's are others.
            if entry.balancer.nodes and today is not None and _same_nodes(today, upstream):
                self._entries[upstream.key] = entry
        return entry.balancer

    def _entry(self, upstream: Upstream) -> _Entry:
        nodes: list[Node] = []
        for node in upstream.nodes:
            if node.is_looked_up:
                nodes += [attrs.evolve(node, host=address) for address in self._names.addresses(node.host)]
            elif node.weight > 0:
                nodes.append(node)
        # A random start, as in APISIX: many gateways that reload together do not all dial the first node.
        return _Entry(upstream, RoundRobin(nodes, start=self._rng.randrange(1 << 16)))


def _same_nodes(one: Upstream, other: Upstream) -> bool:
    return one is other or one.nodes == other.nodes
