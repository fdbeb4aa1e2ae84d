"""What a plugin may do to a session, and how a plugin is declared: records of callables over frozen facts.

A plugin is a function from options to `Hooks`. Hooks decide, the data plane acts: one that wants a session to wait returns
`Delay`, it does not sleep. No hook runs per chunk of payload, so that the kernel can move the bytes.

The phases of one session, each in descending priority:

* `on_accept`: the route is known, and with it the addresses and, of a TLS client, the server name. Before any handshake.
* `on_preread`: after the handshake, if TLS is terminated here: all facts are known but those that a plugin adds itself.
  A plugin that sets `look` is shown the client's first bytes before.
* `on_close`: the session has ended, in reverse order. For the hooks of which a phase has returned, as a context manager
  leaves what it entered, and for those that have no earlier phase.

Whatever a hook raises but `SessionError` is a bug of the plugin: it costs this session, and no other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Generic, Protocol, TypeAlias, TypeVar

import attrs

from streamgw.core.batch import Collector
from streamgw.core.bucket import Bucket
from streamgw.core.model import Facts, Outcome
from streamgw.core.wire import NeedMore

OptionsT = TypeVar("OptionsT")


@attrs.frozen
class Delay:
    """The session goes on after this long. A client that leaves meanwhile is noticed afterwards."""

    seconds: float


@attrs.frozen
class UseUpstream:
    """The session goes to another upstream than the route's. The decision of the last plugin counts."""

    key: str
    """`UpstreamUse.key` of one that the plugin has declared (`Plugin.upstreams`)."""


@attrs.frozen
class Shape:
    """The session's bytes pass no faster than each of these allows. Those of all plugins count. UDP: what is too fast is
    dropped.
    """

    up: tuple[Bucket, ...] = ()
    down: tuple[Bucket, ...] = ()


@attrs.frozen
class Cut:
    """The session is cut off, by RST to both sides, as soon as so many bytes have passed. None: never. The least of all
    plugins counts. Nothing over UDP.
    """

    up: int | None = None
    down: int | None = None


Decision: TypeAlias = Delay | UseUpstream | Shape | Cut | Facts | None
"""None: go on. Facts: go on, and this is what is known of the client from now on (`attrs.evolve` of what was given)."""

Decisions: TypeAlias = Decision | tuple[Decision, ...]
"""One, or several in their order."""

Hook: TypeAlias = Callable[[Facts, float], Decisions | Awaitable[Decisions]]
"""Gets the facts and now: monotonic seconds. To refuse the client it raises `core.errors.Rejected`; to answer it and be done,
`core.errors.Answered`."""


@attrs.frozen
class Look:
    """What a plugin wants to see of the client's first bytes. They stay where they are: nothing is consumed."""

    what: str
    """For messages: `an MQTT CONNECT`."""
    parse: Callable[[Facts, bytes], Facts | NeedMore]
    """Pure. Asked again with all bytes from the first one on whenever there are more; over UDP once, with the datagram.
    Raises ParseError if they cannot become what they should be, or Rejected. The client owes them: silence ends the
    session."""


@attrs.frozen(kw_only=True, eq=False)
class Hooks:
    """What one plugin does on one route, phase by phase. What is missing costs nothing.

    State (counters, a position) lives in the closures. A reload keeps the record as long as plugin, options and route stay
    what they are; sessions keep the record they began with.
    """

    plugin: str = ""
    """Name of the plugin, in messages. Set by whoever compiles the route."""
    on_accept: Hook | None = None
    look: Look | None = None
    on_preread: Hook | None = None
    on_close: Callable[[Facts, Outcome], None] | None = None
    """Gets the facts that its last phase was given, the final ones if it has no earlier phase. Plain, not async: a close
    can be neither delayed nor cancelled."""
    applies: Callable[[Facts], bool] | None = None
    """`_meta.filter`, asked once per session, before the first phase there is: where it says no, no phase runs."""
    background: Callable[[], Awaitable[None]] | None = None
    """Runs in a task of the data plane from the reload that brings these hooks until they are gone from the routes and the
    last session that has them has ended: what drains a queue. Cancelled then; whatever is left is its own to save."""


class Ledger(Protocol):
    """What is the whole gateway's business, however many processes it has: how many there are of a thing, and when the
    next may come.
    """

    def enter(self, scope: str, key: str) -> int:
        """Count one more, and say how many there are with it. May overestimate for a moment, never underestimate.

        Raises:
          Rejected: it cannot be counted, as there are too many keys. Nothing to take back.
        """

    def leave(self, scope: str, key: str) -> None:
        """Take back one `enter`."""

    def book(self, scope: str, key: str, now: float, *, interval_s: float, ahead_s: float) -> float | None:
        """Take the next free moment of a key; those of one key are `interval_s` apart.

        Args:
          scope: who counts: `limit-rate 7`.
          key: of whom.
          now: of the caller's clock. A ledger of several processes goes by a clock that all of them have.
          interval_s: from one moment to the next.
          ahead_s: how far in the future it may be.

        Returns:
          How many seconds away it is, 0: now. None: too far, and nothing was taken.
        """


MAX_BOOKED = 65_536
"""Keys whose next moment is remembered. Beyond that the one that was not heard of for longest is forgotten."""
ROUNDING_S = 1e-9
"""Exactly on time is not too early, whatever the clock's last bits say."""


class LocalLedger:
    """The ledger of a gateway with one process. Holds one entry for each key that is in use."""

    def __init__(self, *, max_booked: int = MAX_BOOKED) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._booked: OrderedDict[tuple[str, str], float] = OrderedDict()
        """When the next may come, the key heard of last at the end."""
        self._max_booked = max_booked

    def enter(self, scope: str, key: str) -> int:
        """See `Ledger.enter`."""
        count = self._counts[scope, key] = self._counts.get((scope, key), 0) + 1
        return count

    def leave(self, scope: str, key: str) -> None:
        """See `Ledger.leave`."""
        count = self._counts[scope, key] - 1
        if count:
            self._counts[scope, key] = count
        else:
            del self._counts[scope, key]

    def book(self, scope: str, key: str, now: float, *, interval_s: float, ahead_s: float) -> float | None:
        """See `Ledger.book`."""
        at = max(self._booked.get((scope, key), now), now)
        if at - now > ahead_s + ROUNDING_S:
            return None
        self._booked[scope, key] = at + interval_s
        self._booked.move_to_end((scope, key))
        if len(self._booked) > self._max_booked:
            self._booked.popitem(last=False)
        return at - now


class Shipping(Protocol):
    """Takes what plugins tell the outside world of sessions, and sends it."""

    def ship(self, collector: Collector, record: bytes) -> None:
        """Queue a record, without a newline. Never waits; one that has no room is dropped and counted."""


class NoShipping:
    """The shipping of a process that runs no sessions: there is nothing to tell."""

    def ship(self, collector: Collector, record: bytes) -> None:
        """See `Shipping.ship`."""


@attrs.frozen(kw_only=True, eq=False)
class PluginServices:
    """What the process gives to its plugins. Outlives every reload."""

    ledger: Ledger = attrs.Factory(LocalLedger)
    connections: MutableMapping[str, int] = attrs.Factory(dict)
    """Sessions that have ended, by route: what `apisix_stream_connection_total` shows."""
    hostname: str = ""
    shipping: Shipping = attrs.Factory(NoShipping)


@attrs.frozen(kw_only=True, eq=False)
class PluginContext:
    """Where a plugin is being built for."""

    known: Mapping[str, str]
    """`route_id`, `route_name`, `service_id`, `service_name`, `hostname`: variables that are the same for every client
    (`core.variables.lookup`). Empty: it has none."""
    key: str
    """Of the object whose options these are, a prefix for `UpstreamUse.key`: `stream_routes/1/plugins/traffic-split`."""
    metadata: object
    """What all uses of the plugin share (`plugin_metadata`): a value of `Plugin.metadata`, with its defaults if there is no
    such object; None: the plugin has no metadata."""
    services: PluginServices


@attrs.frozen
class UpstreamUse:
    """An upstream that a plugin's options name or describe. The compiler checks it and makes it ready for `UseUpstream`."""

    path: tuple[str | int, ...]
    """Where in the options it stands, for messages."""
    id: str = ""
    """Of an object of `upstreams`. Empty: it is described on the spot."""
    options: Mapping[str, object] | None = attrs.field(default=None, repr=False)
    """As written."""

    def key(self, owner: str) -> str:
        """What `UseUpstream` takes.

        Args:
          owner: `PluginContext.key`.
        """
        return f"upstreams/{self.id}" if self.id else "/".join((owner, *map(str, self.path)))


def _no_upstreams(_: object) -> Iterator[UpstreamUse]:
    return iter(())


@attrs.frozen(kw_only=True)
class Plugin(Generic[OptionsT]):
    """A plugin as the registry knows it."""

    name: str
    priority: int
    """Higher runs first. `_meta.priority` of a route goes before."""
    options: type[OptionsT]
    """An attrs class, its fields annotated with rules (`streamgw.plugins.options`), with `check` and `warnings` if needed."""
    build: Callable[[OptionsT, PluginContext], Hooks]
    """Called in a worker thread whenever a route needs hooks it did not have, and by checks that are never applied: it must
    start nothing and change nothing."""
    version: str = "0.1"
    metadata: type[object] | None = None
    """An attrs class for its object of `plugin_metadata`, every field with a default, and `warnings` if needed; None: none."""
    upstreams: Callable[[OptionsT], Iterator[UpstreamUse]] = _no_upstreams
    """Every upstream that `UseUpstream` may name."""
