"""What the HTTP side asks of the gateway, however many processes serve it, and the values it is told.

The handlers below `control/admin` know this protocol and nothing of workers; `process/fleet.py` has its implementation.
Everything here is plain data: `attrs.asdict` of a row is its JSON form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from streamgw.core.model import Facts, Key

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


class Subscription(Protocol):
    """One listener to the live feed. Bounded: who is slow loses events, and is told how many."""

    async def receive(self) -> Event:
        """The next event that passes the filter. A loss shows as an event of kind `lost` with `count`."""

    def close(self) -> None:
        """Hear no more."""


class Fleet(Protocol):
    """The gateway, seen from its HTTP side. Methods that are not async are called on the event loop and do not block."""

    def ready(self) -> bool:
        """Whether a configuration is loaded and clients are accepted, in every worker."""

    def status(self) -> Mapping[str, object]:
        """The body of `/streamgw/v1/status`: docs/status.md."""

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        """The live sessions that pass, oldest first, at most `limit`; and how many pass in all."""

    async def kill(self, session_id: str) -> bool:
        """End one session. False: there is none of that id."""

    def listeners(self) -> Sequence[Mapping[str, object]]:
        """As in `status`."""

    def explain(self, facts: Facts) -> Mapping[str, object]:
        """Which route these facts lead to, which were considered and why not, which certificate is served."""

    def health(self) -> Sequence[Mapping[str, object]]:
        """The body of APISIX's `GET /v1/healthcheck`."""

    def poke(self) -> None:
        """Look at routes.d again, now."""

    async def wait_applied(self, key: Key, digest: str | None, deadline: float) -> Sequence[int]:
        """Wait until every worker runs the object with that digest (None: without that object).

        Returns:
          The workers that did not get there before `deadline` (trio.current_time()); empty: all did.
        """

    def subscribe(self, kinds: Sequence[str]) -> Subscription:
        """Hear what happens from now on."""
