"""Upstreams have a past: the balancer's position, what their nodes are doing, and the addresses behind their names survive
a reload.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Protocol

import attrs
import trio

from streamgw.core.balancer import Balancer, build_balancer
from streamgw.core.discovery import Discovered, fit_ring
from streamgw.core.errors import ConnectFailed, NoNode
from streamgw.core.load import Lease, UpstreamLoad
from streamgw.core.model import Address, Facts, Node, Pacing, Upstream
from streamgw.core.variables import compile_template
from streamgw.dataplane.waiting import WaitingLine

_ADDRESS: Callable[[Node], Address] = operator.attrgetter("address")
_MAX_INLINE_WEIGHT = 16
"""A ring of 2,560 points is made in a millisecond; a bigger one in a thread, so that nobody else waits for it."""


class Names(Protocol):
    """What the pool asks of DNS (`discovery.Naming`)."""

    def sync(self, names: Collection[str], services: Collection[str]) -> None:
        """Keep exactly these names and services fresh from now on."""

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known now, without waiting; empty when nothing is."""

    def nodes(self, service_name: str) -> tuple[Discovered, ...]:
        """What is known now of a service, without waiting; empty when nothing is."""

    def trouble(self, service_name: str) -> str:
        """Why the latest lookup of a service failed; empty: it did not."""

    async def first(self, name: str) -> None:
        """Wait until the first lookup of a name or a service has ended, well or not."""


@attrs.frozen
class _Entry:
    """One upstream that is in use: the nodes behind its names, and whose turn it is."""

    upstream: Upstream
    balancer: Balancer
    load: UpstreamLoad


class UpstreamPool:
    """Gives each session its candidates, in the order in which they shall be tried, and is told how that went.

    A name contributes one node per address, each with the weight and priority that the name has; a service the nodes that
    DNS says, with theirs.

    An upstream gets its entry when the first session asks for it: of 10,000 upstreams few are in use, and what a reload
    does here is done on the event loop.

    Args:
      part: how much of `max_conns` is this process's, if it is one of several. Not 0, unless there is no limit.
    """

    def __init__(
        self,
        names: Names,
        *,
        rng: random.Random,
        now: Callable[[], float] = trio.current_time,
        part: Callable[[int], int] = lambda limit: limit,
    ) -> None:
        self._names = names
        self._part = part
        self._rng = rng
        self._now = now
        self._upstreams: Mapping[str, Upstream] = {}
        self._entries: dict[str, _Entry] = {}
        self._loads: dict[str, UpstreamLoad] = {}
        self._lines: dict[str, WaitingLine] = {}
        """Of upstreams that ever let a client wait, or might have."""
        self._making: dict[str, trio.Event] = {}
        """Entries that take a thread to make."""
        self.on_answered: Callable[[str, Address], None] = lambda *_: None
        """Told of the connects of sessions to the nodes of an upstream (its key). Must neither block nor raise."""
        self.on_failed: Callable[[str, Address, ConnectFailed], None] = lambda *_: None

    def sync(
        self, upstreams: Mapping[str, Upstream], names: Collection[str], services: Collection[str] = ()
    ) -> None:
        """Follow a new snapshot. An upstream whose key and nodes did not change keeps its balancer's position; sessions are
        counted on, whatever changed.

        Args:
          upstreams: all, by key.
          names: all that their nodes need looked up (`Snapshot.names`).
          services: all whose nodes DNS says (`Snapshot.services`).
        """
        self._names.sync(names, services)
        self._upstreams = upstreams
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if key in upstreams and _balances_alike(entry.upstream, upstreams[key])
        }
        for key, entry in self._entries.items():
            entry.load.slow_start_s = upstreams[key].pacing.slow_start_s
        self._loads = {
            key: load for key, load in self._loads.items() if key in upstreams or load.has_sessions()
        }
        self._lines = {key: line for key, line in self._lines.items() if key in upstreams or line}
        self._wake()

    def on_names_changed(self, name: str) -> None:
        """A name has other addresses now, or a service other nodes: the upstreams that use it get them, with a new balancer."""
        changed = [key for key, entry in self._entries.items() if entry.upstream.is_from(name)]
        for key in changed:
            del self._entries[key]
        self._wake()

    async def candidates(
        self, upstream: Upstream, facts: Facts, *, since: float | None = None
    ) -> Iterator[Address]:
        """Addresses to dial for a client, best first, each once. Empty when there is none.

        Returns at once, except for a name that has never been looked up before, whose first answer it waits for; for a
        big ring of chash, which is made in a thread; and as far as `Upstream.pacing` tells clients to wait.

        With `max_conns` a node that is full is left out. Take the `lease` of an address before awaiting anything: until
        then its place may go to another client.

        Args:
          upstream: as the session's snapshot has it.
          facts: of the client.
          since: when the client began to look for a node; None: now.

        Raises:
          NoNode: waiting did not help, or too many wait already.
        """
        entry = await self._entry_of(upstream)
        if not entry.balancer.nodes:
            for node in upstream.nodes:
                if node.is_looked_up:
                    await self._names.first(node.host)
            if upstream.service_name:
                await self._names.first(upstream.service_name)
            entry = await self._entry_of(upstream)
        if upstream.pacing.max_conns or upstream.pacing.wait_for_node_s:
            return await self._paced(upstream, facts, self._now() if since is None else since)
        return _in_order(entry, facts)

    def candidates_at_once(self, upstream: Upstream, facts: Facts) -> Iterator[Address] | None:
        """What `candidates` would return without waiting for anything; None: it may have to wait."""
        entry = self._entries.get(upstream.key)
        pacing = upstream.pacing
        if entry is None or not entry.balancer.nodes or pacing.max_conns or pacing.wait_for_node_s:
            return None
        return _in_order(entry, facts) if _balances_alike(entry.upstream, upstream) else None

    async def pause(self, upstream: Upstream, seconds: float) -> None:
        """Wait about this long before all nodes are tried again; less if they change meanwhile.

        Raises:
          NoNode: too many wait already.
        """
        line = self._line_of(upstream.key)
        if len(line) >= self._today(upstream).pacing.queue_size:
            raise NoNode(f"every node of {upstream.key} refused, and {len(line)} clients wait already")
        await line.pause(seconds * self._rng.uniform(0.5, 1.5))

    def lease(self, upstream: Upstream, node: Address) -> Lease:
        """Count a session at a node until the lease is closed: from before the connect to the end of the relay."""
        return self.load(upstream.key).lease(node)

    def answered(self, upstream: Upstream, node: Address, connect_s: float) -> None:
        """A connect to a node succeeded (with TLS: and its handshake) after this long."""
        self.load(upstream.key).answered(node, connect_s)
        self.on_answered(upstream.key, node)

    def first_byte(self, upstream: Upstream, node: Address, after_s: float) -> None:
        """A session got the first byte of a node, so long after it could. Only `ewma` wants to know."""
        self.load(upstream.key).first_byte(node, after_s)

    def failed(self, upstream: Upstream, node: Address, error: ConnectFailed) -> None:
        """A connect to a node failed, or its handshake; or it refused a UDP session's datagrams."""
        self.load(upstream.key).failed(node, str(error))
        self.on_failed(upstream.key, node, error)

    def set_up(self, key: str, node: Address, is_up: bool) -> bool:
        """Mark a node of an upstream up or down, for the sessions to come. Returns whether that is news."""
        is_news = self.load(key).set_up(node, is_up)
        if is_news and key in self._lines:
            self._lines[key].on_change()
        return is_news

    def load(self, key: str) -> UpstreamLoad:
        """What the nodes of an upstream are doing. Kept while the upstream exists or has sessions."""
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = UpstreamLoad(self._now)
            if key in self._lines:
                load.on_room = self._lines[key].on_room
        return load

    def places(self, upstream: Upstream) -> Mapping[Address, str]:
        """Where its nodes are, as far as their names' addresses are known by now, and each one's host as it is written.
        Without those whose weight is 0: no session goes there. Of a service: the names that its records have.
        """
        if upstream.service_name:
            return {found.node.address: found.name for found in self._names.nodes(upstream.service_name)}
        return {
            Address(host, node.port): node.host
            for node in upstream.nodes
            if node.weight > 0
            for host in (self._names.addresses(node.host) if node.is_looked_up else (node.host,))
        }

    def why_empty(self, upstream: Upstream) -> str:
        """Why there is no candidate, for a person."""
        if not upstream.nodes and not upstream.service_name:
            return "it lists none"
        if self.load(upstream.key).is_all_down:
            return "every one is down"
        if upstream.service_name:
            why = self._names.trouble(upstream.service_name) or "it is not available there"
            return f"DNS says none for {upstream.service_name}: {why}"
        names = sorted({node.host for node in upstream.nodes if node.is_looked_up})
        return f"no address for {', '.join(names)}" if names else "every weight is 0"

    def _wake(self) -> None:
        for line in self._lines.values():
            line.on_change()

    async def _paced(self, upstream: Upstream, facts: Facts, began_at: float) -> Iterator[Address]:
        """Candidates with room, now or after waiting for them. A client that waits gets the nodes that there are then, and as
        many places at them, also those of a snapshot after its own: it may be waiting for just that edit.
        """
        pacing = upstream.pacing
        search = _Search(partial(self._today, upstream), self._entry_of, self._part, pacing, facts)
        found = await search.find()
        line = self._line_of(upstream.key)
        # Behind those who came earlier, if what they wait for is what this one would take.
        is_queued = line.is_standing and search.max_conns and pacing.queue_timeout_s
        if found is not None and not is_queued:
            return found
        if search.patience_s <= 0:
            if search.is_full:
                raise NoNode(self._why_none(upstream, search))
            return iter(())
        if len(line) >= self._today(upstream).pacing.queue_size:
            raise NoNode(f"{self._why_none(upstream, search)}, and {len(line)} clients wait already")
        found = await line.until(search.find, lambda: began_at + search.patience_s)
        if found is None:
            raise NoNode(f"{self._why_none(upstream, search)}, for {self._now() - began_at:.3g} s")
        return found

    def _why_none(self, upstream: Upstream, search: _Search) -> str:
        if search.is_full:
            return f"every node of {upstream.key} has its {search.max_conns} sessions"
        return f"upstream {upstream.key} has no node to dial: {self.why_empty(self._today(upstream))}"

    def _today(self, upstream: Upstream) -> Upstream:
        """It in the latest snapshot; as the session has it, if it is there no more."""
        return self._upstreams.get(upstream.key, upstream)

    async def _entry_of(self, upstream: Upstream) -> _Entry:
        """The upstream's entry, made if need be."""
        key = upstream.key
        while True:
            entry = self._entries.get(key)
            if entry is not None and _balances_alike(entry.upstream, upstream):
                return entry
            if key not in self._making:
                return await self._make_entry(upstream)
            await self._making[key].wait()

    async def _make_entry(self, upstream: Upstream) -> _Entry:
        key, nodes = upstream.key, self._nodes_of(upstream)
        build = partial(
            build_balancer,
            upstream,
            nodes,
            randrange=self._rng.randrange,
            hashed_by=_hashed_by(upstream),
            # A random start, as in APISIX: many gateways that reload together do not all dial the first node.
            start=self._rng.randrange(1 << 16),
        )
        if upstream.type == "chash" and sum(node.weight for node in nodes) > _MAX_INLINE_WEIGHT:
            made = self._making[key] = trio.Event()
            try:
                balancer = await trio.to_thread.run_sync(build)
            finally:
                del self._making[key]
                made.set()
        else:
            balancer = build()
        entry = _Entry(upstream, balancer, self.load(key))
        today = self._upstreams.get(key)
        # A session that pinned an older snapshot gets its own nodes, and leaves no trace: today's are others.
        if (
            nodes
            and today is not None
            and _balances_alike(today, upstream)
            and nodes == self._nodes_of(upstream)
        ):
            self._entries[key] = entry
            entry.load.slow_start_s = today.pacing.slow_start_s
            entry.load.keep(nodes)
        return entry

    def _nodes_of(self, upstream: Upstream) -> list[Node]:
        """Those that may be dialled, names replaced by their addresses."""
        if upstream.service_name:
            discovered = [found.node for found in self._names.nodes(upstream.service_name)]
            return list(fit_ring(discovered)) if upstream.type == "chash" else discovered
        nodes: list[Node] = []
        for node in upstream.nodes:
            if node.is_looked_up:
                nodes += [attrs.evolve(node, host=address) for address in self._names.addresses(node.host)]
            elif node.weight > 0:
                nodes.append(node)
        return nodes

    def _line_of(self, key: str) -> WaitingLine:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = WaitingLine()
            self.load(key).on_room = line.on_room
        return line


@attrs.define
class _Search:
    """For candidates with room, asked until there are some."""

    today: Callable[[], Upstream]
    entry_of: Callable[[Upstream], Awaitable[_Entry]]
    part: Callable[[int], int]
    pacing: Pacing
    """The session's own, for how long it waits."""
    facts: Facts
    is_full: bool = False
    """There are nodes, and none had room."""

    async def find(self) -> Iterator[Address] | None:
        """Those with room, the first of them seen to have it; None if there is none."""
        entry = await self.entry_of(self.today())
        nodes, most = tuple(entry.balancer.order(self.facts, entry.load)), self.max_conns
        self.is_full = bool(nodes)
        free = (node for node in nodes if not 0 < most <= entry.load.active(node))
        first = next(free, None)
        return None if first is None else map(_ADDRESS, itertools.chain((first,), free))

    @property
    def max_conns(self) -> int:
        """This process's part of today's `Pacing.max_conns`."""
        return self.part(self.today().pacing.max_conns)

    @property
    def patience_s(self) -> float:
        """How long to go on."""
        return self.pacing.queue_timeout_s if self.is_full else self.pacing.wait_for_node_s


def _hashed_by(upstream: Upstream) -> Callable[[Facts], str]:
    template = compile_template(upstream.hash_key)

    def key(facts: Facts) -> str:
        return template(facts) or facts.client.host

    return key


def _in_order(entry: _Entry, facts: Facts) -> Iterator[Address]:
    return map(_ADDRESS, entry.balancer.order(facts, entry.load))


def _balances_alike(one: Upstream, other: Upstream) -> bool:
    return one is other or (
        one.nodes == other.nodes
        and one.service_name == other.service_name
        and one.type == other.type
        and one.hash_key == other.hash_key
    )
