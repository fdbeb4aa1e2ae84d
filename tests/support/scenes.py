"""Small builders, so that a test says only what it is about."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import attrs

from streamgw.core.discovery import Discovered
from streamgw.core.model import (
    Address,
    Certificate,
    Facts,
    Listener,
    Match,
    Node,
    Outcome,
    PortRange,
    Revision,
    Route,
    Source,
    Upstream,
)
from streamgw.core.router import Router
from streamgw.core.snapshot import Snapshot
from streamgw.core.sni import SNIIndex
from streamgw.dataplane.pool import UpstreamPool


def upstream(*nodes: str, key: str = "upstreams/1", **settings: object) -> Upstream:
    """`upstream("10.0.0.5:3306", "db.example:3306=2")`: host:port, weight after `=`."""
    return Upstream(key=key, nodes=tuple(map(node, nodes)), **settings)


def node(text: str) -> Node:
    """`127.0.0.1:1995`, `[::1]:1995=3`."""
    place, _, weight = text.partition("=")
    host, _, port = place.rpartition(":")
    return Node(host.strip("[]"), int(port), weight=int(weight or 1))


def route(
    id_: str = "1",
    to: Upstream | None = None,
    *,
    port: int | None = None,
    remote: str = "",
    server: str = "",
    names: tuple[str, ...] = (),
    alpn: tuple[str, ...] = (),
    **settings: object,
) -> Route:
    match = Match(
        remote_addrs=(ipaddress.ip_network(remote),) if remote else (),
        server_addrs=(ipaddress.ip_network(server),) if server else (),
        server_ports=(PortRange(port, port),) if port else (),
        server_names=names,
        alpn=alpn,
    )
    return Route(id=id_, match=match, upstream=to, source=Source("routes.d/test.yaml", 1), **settings)


def snapshot(*routes: Route, certificates: Sequence[Certificate] = (), revision: str = "r1") -> Snapshot:
    return Snapshot(
        revision=Revision(revision),
        router=Router(routes),
        upstreams={each.upstream.key: each.upstream for each in routes if each.upstream is not None},
        certificates=SNIIndex(((name, each) for each in certificates for name in each.names), one_label=True),
        sources={("stream_routes", each.id): each.id for each in routes},
    )


def listener(port: int = 9100, **settings: object) -> Listener:
    return Listener("tcp", "127.0.0.1", port, **settings)


def facts(client: str = "192.0.2.9", port: int = 9100) -> Facts:
    return Facts("tcp", f"tcp 127.0.0.1:{port}", Address(client, 40000), Address("127.0.0.1", port))


def outcome(of: Facts, **settings: object) -> Outcome:
    """Of a session that ended well after a second."""
    told: dict[str, object] = {
        "session_id": "t-1",
        "peer": of.client,
        "reason": "closed",
        "fault": "none",
        "phase": "relay",
        "started_at": 1_700_000_000.0,
        "duration_s": 1.0,
        "connect_s": 0.1,
        "bytes_up": 10,
        "bytes_down": 20,
    }
    return Outcome(facts=of, **told | settings)


@attrs.define
class FakeNames:
    """A resolver whose answers are a table; a name that is not in it is still being looked up."""

    table: dict[str, tuple[str, ...]] = attrs.Factory(dict)
    wanted: set[str] = attrs.Factory(set)
    later: Mapping[str, tuple[str, ...]] = attrs.Factory(dict)
    """What `first` brings."""
    services: dict[str, tuple[Discovered, ...]] = attrs.Factory(dict)
    wanted_services: set[str] = attrs.Factory(set)
    later_services: Mapping[str, tuple[Discovered, ...]] = attrs.Factory(dict)
    troubles: Mapping[str, str] = attrs.Factory(dict)

    def sync(self, names: Collection[str], services: Collection[str]) -> None:
        self.wanted, self.wanted_services = set(names), set(services)

    def addresses(self, name: str) -> tuple[str, ...]:
        return self.table.get(name, ())

    def nodes(self, service_name: str) -> tuple[Discovered, ...]:
        return self.services.get(service_name, ())

    def trouble(self, service_name: str) -> str:
        return self.troubles.get(service_name, "")

    async def first(self, name: str) -> None:
        if name in self.wanted_services:
            self.services[name] = self.later_services.get(name, ())
        else:
            self.table[name] = self.later.get(name, ())


def certificate(*names: str, mtls: bool = False) -> Certificate:
    """Its context is a word: a fake pump does not look inside."""
    context = cast("ssl.SSLContext", f"context of {names[0]}")
    return Certificate(
        id=names[0],
        source=Source("routes.d/ssls/test.yaml", 1),
        names=names,
        context=context,
        requires_client_certificate=mtls,
        not_after_s=0.0,
        issuer="",
        fingerprint="",
        signs_quickly=not mtls,
    )


def sync(pool: UpstreamPool, *upstreams: Upstream) -> None:
    """As a reload does it."""
    nodes = [node for each in upstreams for node in each.nodes]
    pool.sync(
        {each.key: each for each in upstreams},
        {node.host for node in nodes if node.is_looked_up},
        {each.service_name for each in upstreams if each.service_name},
    )
