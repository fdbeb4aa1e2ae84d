"""Which route a client gets, and why: an index that answers in microseconds, and a plain scan that explains.

Rules, as APISIX has them:

* The order of the routes is given (priority, then file, then position); the first that matches wins.
* Fields of one route are ANDed, the entries of one field are ORed, an absent field is any.
* With a server name, the routes that ask for one are tried before all others: by the exact name, then by each wildcard,
  longest first. Under one pattern the given order counts; if none of its routes fits, the next pattern gets its turn.
* A route with server names never matches a client that sent none; a route with ALPN only one that offers one of these.
* A network matches only its own family, `0.0.0.0/0` no IPv6 client. A peer on a Unix socket is in no network.

Theory of operation. Every route is a set of boxes (port block × server network × remote network), and every side of a
box is a prefix: a port range falls into at most 30 aligned blocks. Boxes with the same three prefix lengths have the
same *shape*. Per shape there is one dictionary from the masked values to the first route, so a client costs one lookup
per shape (tuple space search; Srinivasan, Suri, Varghese, SIGCOMM 1999), however many routes there are. Shapes are tried
in the order of their first route, which lets most lookups stop early. Server name and ALPN are part of the key: a client
is looked up once without ALPN and once for each protocol it offers that some route asks for.

Rejected: a list per port (remote networks would still be a scan), and a trie per field (intersecting three sets of
candidates costs more than the few lookups that real configurations need).

More than 400 lines, because index, scan and the search for hidden routes must agree on how a match is read: they share
the helpers at the end, and each is tested against another.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

import attrs

from streamgw.core.model import Facts, Match, Network, PortRange, PrereadPlan, Route
from streamgw.core.networks import is_in_any, parse_host
from streamgw.core.sni import SNIIndex, matches_name

_NEVER = sys.maxsize
"""The rank of no route: comes after every other."""
_MAX_BOXES = 1024
"""A route with more boxes than this is not multiplied out but asked by itself, so that memory stays linear."""
_MAX_LISTED = 4
"""Entries of one field that a message spells out."""


@attrs.frozen
class Verdict:
    """What became of one candidate."""

    route: Route
    wins: bool
    why: str
    """`wins`, or what stands in the way, for a person."""


@attrs.frozen
class Explanation:
    """The decision for one client."""

    winner: Route | None
    verdicts: tuple[Verdict, ...]
    """Every route once: those that are asked, in the order asked, then those that the server name rules out."""


class Router:
    """Chooses among routes that are already in their final order. Immutable.

    Args:
      before: the router that this one replaces: what it knows of matches that are the very same is taken over.
    """

    def __init__(self, routes: Sequence[Route], before: Router | None = None) -> None:
        self.routes = tuple(routes)
        matches = tuple(route.match for route in self.routes)
        known = before._tables if before is not None else None  # noqa: SLF001  of the same class
        # Most edits change where clients are led to, not which ones: then nothing of this is another. Tuples compare
        # identities first.
        tables = known if known is not None and known.matches == matches else _Tables(matches, known)
        self._tables: _Tables = tables
        self._plain, self._named = tables.plain, tables.named
        self._patterns, self._protocols = tables.patterns, tables.protocols

    def plan(self, facts: Facts) -> PrereadPlan:  # noqa: ARG002  # what MQTT will be decided by
        """What a client is to be asked for on account of these routes. Nothing, so far.

        Whether a ClientHello is read is the listener's to say (`Listener.tls`), not the routes': a TLS client speaks
        first, so waiting for it costs nothing, and its name chooses the certificate too. On a plain listener no hello is
        looked for, and so routes with server names or ALPN match nobody there.
        """
        return PrereadPlan.NONE

    def match(self, facts: Facts) -> Route | None:
        """The route this client gets. Costs one dictionary lookup per shape of route, never one per route."""
        rank = _NEVER
        if facts.server_name is not None:
            for pattern in self._patterns.candidates(facts.server_name):
                rank = self._first(self._named, pattern, facts)
                if rank != _NEVER:
                    return self.routes[rank]
        rank = self._first(self._plain, "", facts)
        return None if rank == _NEVER else self.routes[rank]

    def _first(self, index: _Index, pattern: str, facts: Facts) -> int:
        rank = index.first(pattern, facts)
        if facts.alpn and self._protocols:
            # Only what some route asks for: a client may offer thousands.
            for protocol in self._protocols.intersection(facts.alpn):
                rank = min(rank, index.first(_key(pattern, protocol), facts))
        return rank

    def explain(self, facts: Facts) -> Explanation:
        """The same decision by asking every route, and what each said.

        The index is held to this answer by a property test; both read a route's fields by the same rules.
        """
        winner: Route | None = None
        verdicts: list[Verdict] = []
        for route in self._in_order_tried(facts):
            why = why_not(route, facts)
            if why is None and winner is None:
                winner = route
                verdicts.append(Verdict(route, wins=True, why="wins"))
                continue
            if why is None:
                assert winner is not None
                why = f"would match, but {winner.source} (route {winner.id}) comes first"
            verdicts.append(Verdict(route, wins=False, why=why))
        return Explanation(winner, tuple(verdicts))

    def shadowed(self) -> tuple[tuple[Route, Route], ...]:
        """Routes that can never win, each with the earlier route that hides it.

        Every one reported is dead; not every dead one is reported: what only several earlier routes together cover
        (two halves of a network) is not looked for, nor all that may hide a route of very long lists. Where different
        routes hide different parts of one, the one that hides most is named.
        """
        return tuple((self.routes[rank], self.routes[hider]) for rank, hider in self._tables.hidden)

    def _in_order_tried(self, facts: Facts) -> Iterator[Route]:
        """Every route once, in the order that `match` stands for."""
        by_pattern: dict[str, list[int]] = {}
        for rank, route in enumerate(self.routes):
            for pattern in route.match.server_names:
                by_pattern.setdefault(pattern, []).append(rank)
        candidates = () if facts.server_name is None else self._patterns.candidates(facts.server_name)
        by_name = dict.fromkeys(rank for pattern in candidates for rank in by_pattern[pattern])
        plain = (rank for rank, route in enumerate(self.routes) if not route.match.server_names)
        order = dict.fromkeys(itertools.chain(by_name, plain, range(len(self.routes))))
        return (self.routes[rank] for rank in order)


def why_not(route: Route, facts: Facts) -> str | None:
    """Why this client is not one of this route's, whatever the other routes say. None: it is."""
    match = route.match
    name = facts.server_name
    if match.server_names and (name is None or not any(matches_name(p, name) for p in match.server_names)):
        return f"has sni {_listed(match.server_names)}; the client sent {'none' if name is None else name}"
    reasons = []
    port = facts.server.port
    if match.server_ports and not any(ports.first <= port <= ports.last for ports in match.server_ports):
        reasons.append(f"server_port {port} is not {_listed(map(_range_text, match.server_ports))}")
    for field, host, networks in (
        ("server_addr", facts.server.host, match.server_addrs),
        ("remote_addr", facts.client.host, match.remote_addrs),
    ):
        if networks and not is_in_any(host, networks):
            reasons.append(f"{field} {host} is not {_networks_text(networks)}")
    if match.alpn and set(match.alpn).isdisjoint(facts.alpn):
        reasons.append(f"alpn {_listed(facts.alpn) or 'none'} is not {_listed(match.alpn)}")
    return "; ".join(reasons) or None


def _range_text(ports: PortRange) -> str:
    return str(ports.first) if ports.first == ports.last else f"{ports.first}-{ports.last}"


def _networks_text(networks: Sequence[Network]) -> str:
    """`10.0.0.1` for a single host, `in 10.0.0.0/8` otherwise."""
    return _listed(
        str(net.network_address) if net.prefixlen == net.max_prefixlen else f"in {net}" for net in networks
    )


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = len(texts) - _MAX_LISTED
    return " or ".join(texts[:_MAX_LISTED]) + (f" or one of {more} more" if more > 0 else "")


_Block: TypeAlias = tuple[int, int, int]
"""(family, mask, value): all numbers whose masked bits are the value. Family 4 or 6; 0 for ports, and for any address,
Unix sockets included."""
_Box: TypeAlias = Sequence[_Block]
"""Ports, server addresses, client addresses."""
_Sides: TypeAlias = Sequence[Sequence[_Block]]
"""The blocks of each of the three; a route is the product."""

_ALPN_MARK = "\0"
"""Between pattern and protocol; in no server name (config refuses it, and so does the parser of the ClientHello)."""
_ANY: _Block = (0, 0, 0)
_PORT_MASK = 0xFFFF
_HOST_MASKS = {0: 0, 4: (1 << 32) - 1, 6: (1 << 128) - 1}


class _Tables:
    """What a router knows of its routes' matches, by rank. Immutable but for what it finds out later.

    Args:
      before: of the router that is replaced: what it knows of a match that is the very same is taken over.
    """

    def __init__(self, matches: tuple[Match, ...], before: _Tables | None) -> None:
        self.matches = matches
        # By identity: the hash of a match takes longer than all of this. `before` keeps its matches alive.
        known = {} if before is None else dict(zip(map(id, before.matches), before.sides, strict=True))
        self.sides: tuple[_Sides, ...] = tuple(known.get(id(match)) or _sides(match) for match in matches)
        ranked = list(zip(itertools.count(), matches, self.sides, strict=False))
        self.plain: _Index = _Index(each for each in ranked if not each[1].server_names)
        self.named: _Index = _Index(each for each in ranked if each[1].server_names)
        patterns = {pattern for match in matches for pattern in match.server_names}
        self.patterns: SNIIndex[str] = SNIIndex((pattern, pattern) for pattern in patterns)
        self.protocols: frozenset[str] = frozenset(protocol for match in matches for protocol in match.alpn)

    @cached_property
    def hidden(self) -> tuple[tuple[int, int], ...]:
        """See `Router.shadowed`."""
        return tuple(
            (rank, hider)
            for rank, match in enumerate(self.matches)
            if (hider := self._hider(rank, match)) is not None
        )

    def _hider(self, rank: int, match: Match) -> int | None:
        index = self.named if match.server_names else self.plain
        # Only the same pattern can hide a named route: a longer one covers less, a shorter one is tried later.
        keys, sides = _keys(match), self.sides[rank]
        if _is_wide(sides):
            corner = next(itertools.product(*sides))
            found, *others = {index.first_covering(key, corner, below=rank) for key in keys}
            if others or found == _NEVER or not _FieldSets(self.sides[found]).cover(sides):
                return None
            return found
        if len(keys) == 1 and all(len(blocks) == 1 for blocks in sides):
            # Nearly every route: at each reload all of them are asked.
            (port,), (server,), (client,) = sides
            hider = index.first_covering(keys[0], (port, server, client), below=rank)
            return None if hider == _NEVER else hider
        hiders: Counter[int] = Counter()
        for key, box in itertools.product(keys, itertools.product(*sides)):
            hider = index.first_covering(key, box, below=rank)
            if hider == _NEVER:
                return None
            hiders[hider] += 1
        return min(hiders, key=lambda hider: (-hiders[hider], hider))


class _Index:
    """(key, port, server, client) → the first route of that key whose match covers them. Knows ranks, not routes.

    The key is the server-name pattern, `""` for routes without one, and one protocol of those that ask for ALPN (`_key`):
    part of the dictionary's key rather than a table of its own, because 100,000 names with one route each would be
    100,000 tables.
    """

    def __init__(self, entries: Iterable[tuple[int, Match, _Sides]]) -> None:
        shapes: dict[tuple[int, int, int, int, int], _Shape] = {}
        wide: list[tuple[int, frozenset[str], _FieldSets]] = []
        for rank, match, sides in entries:
            keys = _keys(match)
            if _is_wide(sides):
                wide.append((rank, frozenset(keys), _FieldSets(sides)))
                continue
            for box in itertools.product(*sides):
                (_, port_mask, port), (server_family, server_mask, server), (family, mask, client) = box
                signature = (port_mask, server_family, server_mask, family, mask)
                shape = shapes.get(signature)
                if shape is None:
                    shape = shapes[signature] = _Shape(*signature, lowest=rank)
                for key in keys:
                    # Ranks come in ascending order: whoever is there already is earlier.
                    shape.ranks.setdefault((key, port, server, client), rank)
        self._shapes = tuple(sorted(shapes.values(), key=lambda shape: shape.lowest))
        self._wide = tuple(wide)
        self._asks_server = bool(wide) or any(shape.server_family for shape in self._shapes)
        self._asks_client = bool(wide) or any(shape.client_family for shape in self._shapes)
        self._by_families = {
            (server, client): tuple(
                shape
                for shape in self._shapes
                if shape.server_family in (0, server) and shape.client_family in (0, client)
            )
            for server in (0, 4, 6)
            for client in (0, 4, 6)
        }

    def first(self, key: str, facts: Facts) -> int:
        """The lowest rank that matches, or _NEVER."""
        port = facts.server.port
        server_family, server = parse_host(facts.server.host) if self._asks_server else (0, 0)
        client_family, client = parse_host(facts.client.host) if self._asks_client else (0, 0)
        best = _NEVER
        for shape in self._by_families[server_family, client_family]:
            if shape.lowest >= best:
                break
            masked = key, port & shape.port_mask, server & shape.server_mask, client & shape.client_mask
            rank = shape.ranks.get(masked, _NEVER)
            if rank < best:  # noqa: PLR1730  # `min` is a call per shape, on the way of every connection
                best = rank
        if self._wide:
            box = (
                (0, _PORT_MASK, port),
                (server_family, _HOST_MASKS[server_family], server),
                (client_family, _HOST_MASKS[client_family], client),
            )
            return self._first_wide(key, box, best)
        return best

    def first_covering(self, key: str, box: _Box, *, below: int) -> int:
        """The lowest rank under `below` that matches everything of this key in the box, or _NEVER."""
        (_, port_mask, port), (server_family, server_mask, server), (client_family, client_mask, client) = box
        best = below
        pattern, mark, _ = key.partition(_ALPN_MARK)
        if mark:  # a route that asks for no protocol covers every one
            best = min(best, self.first_covering(pattern, box, below=below))
        for shape in self._shapes:
            if shape.lowest >= best:
                break
            if (
                shape.port_mask & ~port_mask
                or shape.server_mask & ~server_mask
                or shape.client_mask & ~client_mask
                or shape.server_family not in (0, server_family)
                or shape.client_family not in (0, client_family)
            ):
                continue
            masked = key, port & shape.port_mask, server & shape.server_mask, client & shape.client_mask
            best = min(best, shape.ranks.get(masked, _NEVER))
        best = self._first_wide(key, box, best)
        return best if best < below else _NEVER

    def _first_wide(self, key: str, box: _Box, below: int) -> int:
        for rank, keys, fields in self._wide:
            if rank >= below:
                break
            if key in keys and fields.cover([[block] for block in box]):
                return rank
        return below


@attrs.define(eq=False)
class _Shape:
    """All boxes with the same three prefix lengths and families."""

    port_mask: int
    server_family: int
    server_mask: int
    client_family: int
    client_mask: int
    lowest: int
    """The first route that has a box of this shape."""
    ranks: dict[tuple[str, int, int, int], int] = attrs.Factory(dict)
    """(key, masked port, masked server, masked client) → the first route with that box."""


class _FieldSets:
    """One route as a set of blocks per field, asked one after the other: memory is the sum of its lists."""

    def __init__(self, sides: _Sides) -> None:
        self._sets = [_BlockSet(blocks) for blocks in sides]

    def cover(self, sides: _Sides) -> bool:
        return all(
            known.covers(block) for known, blocks in zip(self._sets, sides, strict=True) for block in blocks
        )


class _BlockSet:
    """Blocks by family and mask: a question costs one lookup per distinct mask."""

    def __init__(self, blocks: Iterable[_Block]) -> None:
        self._values: dict[tuple[int, int], set[int]] = {}
        for family, mask, value in blocks:
            self._values.setdefault((family, mask), set()).add(value)

    def covers(self, block: _Block) -> bool:
        family, mask, value = block
        return any(
            known_family in (0, family) and not known_mask & ~mask and value & known_mask in values
            for (known_family, known_mask), values in self._values.items()
        )


def _keys(match: Match) -> Sequence[str]:
    """Every key that this route answers to."""
    patterns = match.server_names or ("",)
    if not match.alpn:
        return patterns
    return [_key(pattern, protocol) for pattern in patterns for protocol in match.alpn]


def _key(pattern: str, protocol: str) -> str:
    return f"{pattern}{_ALPN_MARK}{protocol}"


def _is_wide(sides: _Sides) -> bool:
    return math.prod(map(len, sides)) > _MAX_BOXES


def _sides(match: Match) -> _Sides:
    return (
        _port_blocks(match.server_ports),
        _network_blocks(match.server_addrs),
        _network_blocks(match.remote_addrs),
    )


def _port_blocks(ranges: Sequence[PortRange]) -> Sequence[_Block]:
    """The largest aligned blocks that together are these ports: at most 30 for one range."""
    if not ranges:
        return (_ANY,)
    if len(ranges) == 1 and ranges[0].first == ranges[0].last:
        return ((0, _PORT_MASK, ranges[0].first),)
    blocks = []
    for first, last in _merged(ranges):
        start = first
        while start <= last:
            size = start & -start or 1 << 16
            while size > last - start + 1:
                size >>= 1
            blocks.append((0, _PORT_MASK & -size, start))
            start += size
    return blocks


def _merged(ranges: Sequence[PortRange]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted((ports.first, ports.last) for ports in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _network_blocks(networks: Sequence[Network]) -> Sequence[_Block]:
    if not networks:
        return (_ANY,)
    return [(net.version, int(net.netmask), int(net.network_address)) for net in networks]
