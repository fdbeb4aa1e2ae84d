"""What arrives at one UDP listener: the datagrams that the pump does not send on by itself, and those that find no session."""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs
import trio

from streamgw.core.errors import Fault, Reason, Side
from streamgw.core.load import Lease
from streamgw.core.model import Facts, Listener, Outcome, Route, Upstream
from streamgw.core.snapshot import Snapshot
from streamgw.core.udp_sessions import Drop, Entry, ListenerSessions, Table
from streamgw.dataplane.dialer import Trail
from streamgw.dataplane.hooks import HookRun
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.datagram import TRANSIENT_ERRNOS, ClientSide, Datagrams, Origin, UpstreamSide
from streamgw.dataplane.pump.end import words_for
from streamgw.dataplane.session import Phase

TELL_EVERY_S = 1.0
"""How often a listener's dropped datagrams are told of."""

_GATEWAYS_FAULT = frozenset({Reason.BUG, Reason.EXHAUSTED})
_TOLD_BY_OUTCOME = frozenset(
    {Drop.QUEUE_FULL, Drop.UNOPENED, Drop.AMPLIFICATION, Drop.SEND_FAILED, Drop.BANDWIDTH}
)
_FAULT_OF_SIDE: Mapping[Side | None, Fault] = {
    None: Fault.NONE,
    "client": Fault.CLIENT,
    "upstream": Fault.UPSTREAM,
}


@attrs.define(eq=False, kw_only=True)
class UDPSession(Entry):
    """The one live record of a UDP session. `status` reads it like a `session.Session`."""

    id: str
    listener: Listener
    reception: Reception
    origin: Origin
    facts: Facts
    snapshot: Snapshot
    route: Route
    upstream: Upstream | None
    """None: a plugin may yet choose one."""
    started_at: float
    """trio.current_time()."""
    started_unix_s: float
    phase: Phase = "match"
    trail: Trail = attrs.Factory(Trail)
    hooks: HookRun | None = None
    """None: the route has no plugins."""
    is_last_resort: bool = False
    """Its node had refused this client before, and so had all others."""
    lease: Lease | None = None
    connected_at: float | None = None
    """When the upstream's socket was there."""
    preface: bytes = b""
    """A PROXY header that stands before the next datagram."""
    repeats_preface: bool = False
    """And before each of those that follow."""
    upstream_side: UpstreamSide | None = None
    failure: Exception | None = None
    """Why it could not be opened, for its task."""
    opening: trio.CancelScope | None = None
    """While its task looks for a node."""
    task: trio.lowlevel.Task | None = None
    """While it is parked."""
    ended_at: float = 0.0
    """trio.current_time(). Its task may hear of it a moment later."""

    @property
    def meter(self) -> UDPSession:
        """What it has moved so far: it counts itself."""
        return self


def outcome_of(session: UDPSession, fault: Fault | None, status: int) -> Outcome:
    """How an ended session went. No fault: the reason says whose it is. The status is a plugin's, or 0."""
    assert session.reason is not None, "it has ended"
    if fault is None:
        fault = Fault.GATEWAY if session.reason in _GATEWAYS_FAULT else _FAULT_OF_SIDE[session.side]
    trail, route = session.trail, session.route
    answered = session.answers > 0
    return Outcome(
        session_id=session.id,
        facts=session.facts,
        peer=session.origin.client,
        reason=session.reason,
        fault=fault,
        phase=session.phase if session.reason is not Reason.CONNECT_FAILED or answered else "connect",
        started_at=session.started_unix_s,
        duration_s=session.ended_at - session.started_at,
        connect_s=None if session.connected_at is None else session.connected_at - trail.dialled_at,
        bytes_up=session.bytes_up,
        bytes_down=session.bytes_down,
        route_id=route.id,
        route_name=route.name,
        service_id=route.service_id,
        service_name=route.service_name,
        upstream=session.upstream.key if session.upstream is not None else "",
        node=trail.node,
        attempts=tuple(trail.attempts),
        side=session.side or "",
        detail=session.detail,
        revision=session.snapshot.revision,
        status=status,
        datagrams_up=session.datagrams_up,
        datagrams_down=session.datagrams_down,
        datagrams_dropped=session.lost + session.withheld,
    )


class Owner(Protocol):
    """Whose receptions they are (`udp.UDPSessions`). Nothing here may block or raise."""

    table: Table
    datagrams: Datagrams
    on_drops: Callable[[str, Mapping[Drop, int]], None]
    on_trouble: Callable[[str], None]

    def begin(self, reception: Reception, origin: Origin, size: int, now: float) -> UDPSession | Drop:
        """Hold a place for a client's session, and start its task."""

    def refuse(self, session: UDPSession, error: OSError) -> None:
        """The session's node does not take datagrams."""

    def answered(self, session: UDPSession, now: float) -> None:
        """The first answer came."""

    def give_up(self, reception: Reception) -> None:
        """End every session of a reception, at once."""

    def watch(self) -> None:
        """Something is there that has to be looked at as time goes by."""


class Reception:
    """One UDP listener: what the pump asks about its datagrams (`datagram.Keeper`)."""

    def __init__(self, owner: Owner, listener: Listener, sock: socket.socket, nursery: trio.Nursery) -> None:  # noqa: TID251  a type; the socket is made in process/sockets.py
        self.listener = listener
        self.name = listener.name
        """It is put together anew each time that it is asked for, and sessions ask often."""
        self.nursery = nursery
        """Of its sessions."""
        self.sessions = ListenerSessions(listener.max_sessions)
        self.table = owner.table
        self.is_retired = False
        self._owner = owner
        self._told: Counter[Drop] = Counter()
        self._told_at = -math.inf
        self.clients: ClientSide = owner.datagrams.listen(sock, self.sessions, self)

    def follow(self, listener: Listener) -> None:
        """Its settings have changed: they count for new sessions."""
        self.listener = listener
        self.sessions.max_sessions = listener.max_sessions

    def retire(self, *, reads: bool = True) -> None:
        """Begin no more sessions; serve those that are left. The socket's maker may close it afterwards.

        With `reads` False another process reads the socket from now on: here only answers go out.
        """
        self.is_retired = True
        if not len(self.sessions.scope):
            self.clients.close()
            return
        try:
            self.clients.keep(reads=reads)
        except OSError as error:
            self._owner.on_trouble(f"sessions of {self.name} are cut off: {words_for(error.errno or 0)}")
            self._owner.give_up(self)

    def close(self) -> None:
        """Its last session has ended, or nobody waits for it."""
        self.tell_of_drops(math.inf)
        self.clients.close()

    def is_in_the_way_of(self, listener: Listener) -> bool:
        """Whether the kernel would refuse to bind both."""
        mine = self.listener
        if listener.transport != "udp" or listener.port != mine.port:
            return False
        hosts = {mine.host, listener.host}
        if len(hosts) == 1 or "::" in hosts:
            return True
        return "0.0.0.0" in hosts and not any(":" in host for host in hosts)  # noqa: S104  compared with, not bound to

    # What the pump asks

    def take(self, entry: Entry, payload: memoryview, now: float) -> bool:
        """See `Keeper.take`."""
        assert isinstance(entry, UDPSession)
        if not self.table.accept(entry, len(payload), now):
            return False
        if entry.queue is not None:
            self.table.hold(entry, bytes(payload))
            return True
        self.forward(entry, payload)
        if entry.reason is not None:
            return False  # refused: this datagram is the next one, which goes to another node
        self.table.settle(entry)
        return True

    def begin(self, origin: Origin, payload: memoryview, now: float) -> None:
        """See `Keeper.begin`."""
        session = (
            Drop.LISTENER_GONE if self.is_retired else self._owner.begin(self, origin, len(payload), now)
        )
        self._owner.watch()
        if isinstance(session, Drop):
            self.sessions.drops[session] += 1
            return
        if not self.take(session, payload, now):
            self.table.drop(session, Drop.UNOPENED)

    def forward(self, session: UDPSession, payload: memoryview) -> None:
        """Hand an accepted datagram to the upstream's socket, behind a PROXY header where one is due.

        If that says that the node refuses, the session has ended, and the datagram is still in the caller's hands.
        """
        side = session.upstream_side
        assert side is not None, "it is open"
        if session.up is not None and not self.table.lets_pass(session, len(payload), trio.current_time()):
            return
        try:
            if session.preface:
                side.send_parts((session.preface, payload))
            else:
                side.send(payload)
        except OSError as error:
            self.unsent(session, len(payload), error)
            return
        if session.preface and not session.repeats_preface:
            session.preface = b""
            self.table.may_send(session, side.send)

    def unsent(self, entry: Entry, size: int, error: OSError) -> None:
        """See `Keeper.unsent`."""
        if error.errno in TRANSIENT_ERRNOS:
            self.table.lose(entry, size, Drop.SEND_FAILED)
        else:
            self.table.take_back(entry, size)
            self.failed(entry, error)

    def failed(self, entry: Entry, error: OSError) -> None:
        """See `Keeper.failed`."""
        assert isinstance(entry, UDPSession)
        self._owner.refuse(entry, error)

    def answered(self, entry: Entry, now: float) -> None:
        """See `Keeper.answered`."""
        assert isinstance(entry, UDPSession)
        self._owner.answered(entry, now)

    def broke(self, entry: Entry, error: Exception) -> None:
        """See `Keeper.broke`."""
        self.table.end(entry, Reason.BUG, detail=Ending.by_bug(error).detail)

    def stopped(self, entry: Entry) -> None:
        """See `Keeper.stopped`."""
        self.table.end(entry, Reason.DRAIN)

    # Dropped datagrams

    @property
    def untold(self) -> Counter[Drop]:
        """Datagrams that found no session, and of which nobody has been told."""
        return +Counter(
            {
                drop: count - self._told[drop]
                for drop, count in self.sessions.drops.items()
                if drop not in _TOLD_BY_OUTCOME
            }
        )

    def tell_of_drops(self, now: float) -> None:
        """Tell of them, unless somebody was told a moment ago."""
        untold = self.untold
        if untold and now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._told += untold
            self._owner.on_drops(self.name, untold)
