"""Upstreams have a past: the balancer's position, what their nodes are doing, and the addresses behind their names survive
a reload.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

import attrs
import trio

from streamgw.core.balancer import Balancer, build_balancer
from streamgw.core.errors import ConnectFailed
from streamgw.core.load import Lease, UpstreamLoad
from streamgw.core.model import Address, Facts, Node, Upstream


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
    balancer: Balancer
    load: UpstreamLoad


class UpstreamPool:
    """Gives each session its candidates, in the order in which they shall be tried, and is told how that went.

    A name contributes one node per address, each with the weight and priority that the name has.

    An upstream gets its entry when the first session asks for it: of 10,000 upstreams few are in use, and what a reload
    does here is done on the event loop.
    """

    def __init__(
        self, names: Names, *, rng: random.Random, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._names = names
        self._rng = rng
        self._now = now
        self._upstreams: Mapping[str, Upstream] = {}
        self._entries: dict[str, _Entry] = {}
        self._loads: dict[str, UpstreamLoad] = {}

    def sync(self, upstreams: Mapping[str, Upstream], names: Collection[str]) -> None:
        """Follow a new snapshot. An upstream whose key and nodes did not change keeps its balancer's position; sessions are
        counted on, whatever changed.

        Args:
          upstreams: all, by key.
          names: all that their nodes need looked up (`Snapshot.names`).
        """
        self._names.sync(names)
        self._upstreams = upstreams
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if key in upstreams and _balances_alike(entry.upstream, upstreams[key])
        }
        self._loads = {
            key: load for key, load in self._loads.items() if key in upstreams or load.has_sessions()
        }

    def on_names_changed(self, name: str) -> None:
        """A name has other addresses now: the upstreams that use it get them, with a new balancer."""
        for key, entry in self._entries.items():
            if any(node.host == name for node in entry.upstream.nodes):
                self._entries[key] = self._entry(entry.upstream)

    async def candidates(self, upstream: Upstream, facts: Facts) -> Iterator[Address]:
        """Addresses to dial for a client, best first, each once. Empty when there is none.

        Returns at once except for a name that has never been looked up before: then it waits for that first answer.
        """
        entry = self._entry_of(upstream)
        if not entry.balancer.nodes:
            for node in upstream.nodes:
                if node.is_looked_up:
                    await self._names.first(node.host)
            entry = self._entry_of(upstream)
        return (Address(node.host, node.port) for node in entry.balancer.order(facts, entry.load))

    def lease(self, upstream: Upstream, node: Address) -> Lease:
        """Count a session at a node until the lease is closed: from before the connect to the end of the relay."""
        return self._load_of(upstream.key).lease(node)

    def answered(self, upstream: Upstream, node: Address, connect_s: float) -> None:
        """A connect to a node succeeded (with TLS: and its handshake) after this long."""
        self._load_of(upstream.key).answered(node, connect_s)

    def failed(self, upstream: Upstream, node: Address, error: ConnectFailed) -> None:
        """A connect to a node failed, or its handshake; or it refused a UDP session's datagrams."""
        self._load_of(upstream.key).failed(node, str(error))

    def why_empty(self, upstream: Upstream) -> str:
        """Why there is no candidate, for a person."""
        if not upstream.nodes:
            return "it lists none"
        names = sorted({node.host for node in upstream.nodes if node.is_looked_up})
        return f"no address for {', '.join(names)}" if names else "every weight is 0"

    def _entry_of(self, upstream: Upstream) -> _Entry:
        entry = self._entries.get(upstream.key)
        if entry is None or not _balances_alike(entry.upstream, upstream):
            entry = self._entry(upstream)
            today = self._upstreams.get(upstream.key)
            # A session that pinned an older snapshot gets its own nodes, and leaves no trace: today's are others.
            if entry.balancer.nodes and today is not None and _balances_alike(today, upstream):
                self._entries[upstream.key] = entry
                entry.load.keep(entry.balancer.nodes)
        return entry

    def _entry(self, upstream: Upstream) -> _Entry:
        nodes: list[Node] = []
        for node in upstream.nodes:
            if node.is_looked_up:
                nodes += [attrs.evolve(node, host=address) for address in self._names.addresses(node.host)]
            elif node.weight > 0:
                nodes.append(node)
        balancer = build_balancer(
            upstream,
            nodes,
            randrange=self._rng.randrange,
            key=lambda facts: facts.client.host,
            # A random start, as in APISIX: many gateways that reload together do not all dial the first node.
            start=self._rng.randrange(1 << 16),
        )
        return _Entry(upstream, balancer, self._load_of(upstream.key))

    def _load_of(self, key: str) -> UpstreamLoad:
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = UpstreamLoad(self._now)
        return load


def _balances_alike(one: Upstream, other: Upstream) -> bool:
    return one is other or (
        one.nodes == other.nodes and one.type == other.type and one.hash_key == other.hash_key
    )
