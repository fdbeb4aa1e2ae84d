"""What the HTTP side asks of the gateway, however many processes serve it, and the values it is told.

The handlers below `control/admin` know this protocol and nothing of workers; `process/fleet.py` has its implementation.
Everything here is plain data: `attrs.asdict` of a row is its JSON form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import attrs

from streamgw.config.documents import Document
from streamgw.core.model import Awaited, Facts

EVENT_KINDS = ("session_opened", "session_closed", "health", "reload")


@attrs.frozen
class SessionRow:
    """One live session, as `GET /v1/sessions` shows it. Times in seconds, sizes in bytes."""

    id: str
    transport: str
    listener: str
    client: str
    """`10.1.2.3:50123`: after the PROXY header."""
    peer: str
    """Who really connected."""
    server: str
    server_name: str
    phase: str
    route: str
    """Id; empty before the match."""
    upstream: str
    node: str
    started_at: float
    """Unix time."""
    age_s: float
    bytes_up: int
    bytes_down: int
    tls: str = ""
    revision: str = ""
    worker: int = 0


@attrs.frozen
class SessionFilter:
    """Which sessions are wanted. Empty fields ask for nothing; the others are ANDed."""

    listener: str = ""
    route: str = ""
    upstream: str = ""
    node: str = ""
    client: str = ""
    """An address without port, or CIDR."""
    transport: str = ""
    limit: int = 1000


@attrs.frozen
class Event:
    """One thing that happened. `data` is flat plain data; its keys are part of the interface (docs/admin-api.md)."""

    kind: str
    """One of EVENT_KINDS."""
    at: float
    """Unix time."""
    data: Mapping[str, object]


@attrs.frozen
class Ended:
    """Sessions that ended in one way, since the start."""

    listener: str
    reason: str
    status: int
    """As in the access log."""
    node: str
    """Empty: it got to none."""
    sessions: int
    bytes_up: int
    bytes_down: int


@attrs.frozen
class Spread:
    """A histogram: `counts[n]` values were at most `bounds[n]`, and more than the bound before; the last is beyond all."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


@attrs.frozen
class ListenerFigures:
    """One listener, now and since the start."""

    name: str
    active: int
    bytes_up: int
    """Of its live sessions."""
    bytes_down: int
    accepted: int
    pauses: int
    """How often accepting stopped at a limit."""


@attrs.frozen
class CertificateFigures:
    """One served certificate."""

    id: str
    not_after: float
    """Unix time."""


@attrs.frozen
class NodeFigures:
    """One node of an upstream that has checks."""

    upstream: str
    """As the control API names it, without `/apisix/`."""
    host: str
    port: int
    is_up: bool
    probes: Mapping[str, int]
    """Ended since the upstream was loaded, by result."""


@attrs.frozen
class ServiceFigures:
    """One service that upstreams name."""

    name: str
    nodes: int
    is_failing: bool
    """Its latest lookup failed."""


@attrs.frozen
class ReloadFigures:
    """What became of one kind of configuration."""

    what: str
    """`routes` or `settings`."""
    applied: int
    """With the first one."""
    rejected: int
    is_rejected: bool
    """What is on disk now does not run."""
    applied_at: float
    """Unix time, the latest."""


@attrs.frozen
class Figures:
    """Everything that the metrics show, as plain numbers. Whoever formats it may do so in another thread."""

    revision: str
    objects: Mapping[str, int]
    """By collection."""
    reloads: Sequence[ReloadFigures]
    listeners: Sequence[ListenerFigures]
    ended: Sequence[Ended]
    connect: Spread
    duration: Spread
    connections: Mapping[str, int]
    """By route, of those with the plugin prometheus: its id, or its name."""
    drops: Mapping[tuple[str, str], int]
    """Datagrams that were not passed on, by listener and reason."""
    certificates: Sequence[CertificateFigures]
    bugs: int
    log_dropped: int
    access_log_dropped: int
    records_dropped: Mapping[str, int]
    """Of plugins that log, by collector."""
    event_clients: int
    events_lost: int
    refused: Mapping[str, int]
    """Requests that the Admin API did not let in, by reason."""
    nodes: Sequence[NodeFigures] = ()
    services: Sequence[ServiceFigures] = ()


class Subscription(Protocol):
    """One listener to the live feed. Bounded: who is slow loses events, and is told how many."""

    async def receive(self) -> Event:
        """The next event that passes the filter. A loss shows as an event of kind `lost` with `count`."""

    def close(self) -> None:
        """Hear no more."""


class Fleet(Protocol):
    """The gateway, seen from its HTTP side. Methods that are not async are called on the event loop and do not block; those
    that are may ask the workers, and leave out one that does not answer in time.
    """

    def ready(self) -> bool:
        """Whether a configuration is loaded and clients are accepted, in every worker."""

    async def status(self) -> Mapping[str, object]:
        """The body of `/streamgw/v1/status`: docs/status.md."""

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        """The live sessions that pass, oldest first, at most `limit`; and how many pass in all."""

    async def kill(self, session_id: str) -> bool:
        """End one session. False: there is none of that id."""

    async def listeners(self) -> Sequence[Mapping[str, object]]:
        """As in `status`."""

    def explain(self, facts: Facts) -> Mapping[str, object]:
        """Which route these facts lead to, which were considered and why not, which certificate is served."""

    async def figures(self) -> Figures:
        """What the metrics show. Lets others run while it counts."""

    def health(self) -> Sequence[Mapping[str, object]]:
        """The body of APISIX's `GET /v1/healthcheck`."""

    def discovery(self) -> Sequence[Mapping[str, object]]:
        """The services that upstreams name, and their nodes, as in `status`."""

    def documents(self) -> Sequence[Document]:
        """What runs, object by object; stream routes in the order in which they are asked."""

    def reload(self) -> None:
        """Look at conf/config.yaml and at routes.d again, now."""

    def poke(self) -> None:
        """Something was written through the store: run it, now."""

    async def wait_applied(self, awaited: Awaited, deadline: float) -> Sequence[int]:
        """Wait until every worker runs all of these objects.

        Returns:
          The workers that did not get there before `deadline` (trio.current_time()); empty: all did.
        """

    def subscribe(self, kinds: Collection[str], wanted: Mapping[str, str]) -> Subscription:
        """Hear what happens from now on: events of these kinds, which have these values where they have such a key."""
