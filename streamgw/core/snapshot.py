"""One configuration, whole and immutable. A session pins the one it was accepted under."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from streamgw.core.hooks import Hooks
from streamgw.core.model import Certificate, Key, Revision, Upstream
from streamgw.core.router import Router
from streamgw.core.sni import SNIIndex


@attrs.frozen
class Snapshot:
    """What the data plane runs on. A reload builds a new one; nothing in it ever changes.

    The old one lives as long as a session that was accepted under it: the garbage collector is our RCU.
    """

    revision: Revision
    """Digest of every document: equal revisions behave equally."""
    router: Router
    upstreams: Mapping[str, Upstream]
    """`Upstream.key` → every upstream that a route can reach: what the pool keeps, resolves and balances."""
    certificates: SNIIndex[Certificate]
    """By server name, one label per wildcard. The first candidate is the one that is served."""
    sources: Mapping[Key, str]
    """(collection, id) → digest of that object as written: what `route add --wait` waits for."""
    backgrounds: tuple[Hooks, ...] = ()
    """Those hooks of routes that want a task beside the sessions."""
    names: frozenset[str] = frozenset()
    """Every node name that has to be looked up. Gathered with the snapshot, off the event loop: asking 10,000 upstreams
    at the swap stalled every session for 50 to 150 ms."""
    services: frozenset[str] = frozenset()
    """Every `Upstream.service_name`. Gathered likewise."""
