"""UDP sessions: the shell around `core.udp_sessions`, which knows whose a datagram is and when a session is over.

```
Listeners ─ one task per listener
└─ session task                   UDPSessions.run: pick a node, open a socket, hand on what is queued, park, tell one outcome
```

The pump reads the sockets. A datagram of a session in full flow never comes here. One that begins a session is matched
at once and queued; the session's task does what may take time. One for which no session is to be had is dropped, counted
by reason, and told of at most once a second.

docs/life-of-a-udp-session.md describes this file; change both together.
"""

from __future__ import annotations

import itertools
import math
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn

import attrs
import trio

from streamgw.core.errors import NoUpstream, Reason, SessionError
from streamgw.core.model import Address, Facts, Listener, Node, Outcome, Upstream
from streamgw.core.snapshot import Snapshot
from streamgw.core.udp_sessions import Drop, Entry, Table, UDPLimits
from streamgw.dataplane.hooks import Backgrounds, HookRun, guarded, shows_datagram, tell_bugs
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.datagram import Datagrams, Origin
from streamgw.dataplane.reception import Reception, UDPSession, outcome_of
from streamgw.dataplane.session import Refusal, Totals, refusal
from streamgw.dataplane.udp_dialer import UDPDialer

_ANY = "*"

_CUT = Ending(Reason.DRAIN)

TICK_S = 0.25
"""How often sessions are looked at: what a timeout may be late by."""


@attrs.define
class UDPSessions:
    """Runs every UDP session of the process, and knows the live ones."""

    datagrams: Datagrams
    pool: UpstreamPool
    get_snapshot: Callable[[], Snapshot]
    on_outcome: Callable[[Outcome], None]
    """Told once for each session, after its socket is closed. Must not block; what it raises is for `on_bug`."""
    on_bug: Callable[[UDPSession, Exception], None]
    on_drops: Callable[[str, Mapping[Drop, int]], None]
    """Datagrams that found no session, since the last time: the listener's name, and how many by reason."""
    on_trouble: Callable[[str], None]
    """Told when the process has run out of descriptors, and when it has some again."""
    wall_clock: Callable[[], float]
    """Unix time, for the log only."""
    on_opened: Callable[[UDPSession], None] = lambda _: None
    """Told when the upstream of a session is known, before a node is picked. Must not block or raise."""
    backgrounds: Backgrounds = attrs.Factory(lambda: Backgrounds(lambda _: None))
    """The tasks beside the sessions that plugins want. Somebody else runs them."""
    id_prefix: str = ""
    max_duration_s: float = math.inf
    totals: Totals = attrs.Factory(Totals)
    live: dict[str, UDPSession] = attrs.Factory(dict)
    live_by_listener: Counter[str] = attrs.Factory(Counter)
    receptions: list[Reception] = attrs.Factory(list)
    """Every listener with a socket, those included that only serve the sessions they have left."""
    table: Table = attrs.field(init=False)
    dialer: UDPDialer = attrs.field(init=False)
    _numbers: itertools.count[int] = attrs.Factory(lambda: itertools.count(1))
    _something_to_watch: trio.Event = attrs.Factory(trio.Event)

    def __attrs_post_init__(self) -> None:
        self.table = Table(UDPLimits(), self._on_end)
        self.dialer = UDPDialer(self.datagrams, self.pool, self.table, self.on_trouble)

    async def sweep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep time for the sessions, and tell of dropped datagrams. Ends only by cancellation."""
        task_status.started()
        while True:
            if self.table.is_empty and not any(reception.untold for reception in self.receptions):
                self._something_to_watch = trio.Event()
                await self._something_to_watch.wait()
            await trio.sleep(TICK_S)
            for _ in self.table.sweep(trio.current_time):
                await trio.lowlevel.checkpoint()
            for reception in self.receptions:
                reception.tell_of_drops(trio.current_time())

    def obey(self, limits: UDPLimits, *, max_duration_s: float) -> None:
        """Follow changed settings: they count for new sessions."""
        self.table.limits = limits
        self.max_duration_s = max_duration_s

    def watch(self) -> None:
        """There is something for `sweep` to do."""
        self._something_to_watch.set()

    def kill(self, session_id: str) -> bool:
        """End one live session, with reason `killed`. False when there is none of that id."""
        session = self.live.get(session_id)
        if session is not None:
            self.table.end(session, Reason.KILLED)
        return session is not None

    def leave_node(self, upstream: str, node: Address) -> None:
        """End the sessions that an upstream (its key) has at a node, with reason `node_down`."""
        for session in tuple(self.live.values()):
            there = session.upstream
            if session.trail.node == node and there is not None and there.key == upstream:
                self.table.end(session, Reason.NODE_DOWN, "upstream")

    def sync(self, upstreams: Mapping[str, Upstream]) -> None:
        """Follow a new snapshot: who talks to a node that is no longer listed moves with his next datagram."""
        places: dict[str, frozenset[tuple[str, int]]] = {}
        for session in self.live.values():
            node, before = session.trail.node, session.upstream
            today = upstreams.get(before.key) if before is not None else None
            if node is None or before is None or today is None or today is before:
                continue
            if today.service_name and today.service_name == before.service_name:
                continue  # what DNS says by now does not matter, as behind a name
            if today.key not in places:
                places[today.key] = _places(today)
            if not places[today.key] & {(node.host, node.port), (_ANY, node.port)}:
                self.table.part_from_node(session)

    def make_way(self, listener: Listener) -> None:
        """Give up what removed listeners still hold of an address that is wanted again. Their sessions end: `moved`."""
        for reception in self.receptions:
            if reception.is_retired and reception.is_in_the_way_of(listener):
                self.give_up(reception)

    def give_up(self, reception: Reception) -> None:
        """See `Owner.give_up`."""
        for entry in tuple(reception.sessions.scope):
            self.table.end(entry, Reason.MOVED)
        reception.clients.close()

    # Listeners

    def receive(self, listener: Listener, sock: socket.socket, nursery: trio.Nursery) -> Reception:  # noqa: TID251  a type; the socket is made in process/sockets.py
        """Serve the clients of a bound socket, with sessions in this nursery."""
        reception = Reception(self, listener, sock, nursery)
        self.receptions.append(reception)
        return reception

    def release(self, reception: Reception) -> None:
        """The last session of a listener has ended, or nobody waits for it."""
        reception.close()
        self.receptions.remove(reception)

    # The life of a session

    def begin(self, reception: Reception, origin: Origin, size: int, now: float) -> UDPSession | Drop:
        """Match a client, hold a place for its session and start its task. Nothing is waited for."""
        if now < self.dialer.rests_until:
            return Drop.EXHAUSTED
        facts = Facts("udp", reception.name, origin.client, origin.server)
        snapshot = self.get_snapshot()
        route = snapshot.router.match(facts)
        if route is None:
            return Drop.NO_ROUTE
        host, upstream = origin.client.host, route.upstream
        if upstream is None and not route.hooks:
            return Drop.NO_UPSTREAM
        refusals = self.dialer.refusals
        if refusals.anybody_is_pausing and self.dialer.is_useless(origin.client, route, now):
            return Drop.REFUSED
        drop = self.table.admit(reception.sessions, host, size, now)
        if drop is not None:
            return drop
        rules = route.udp
        session = UDPSession(
            key=origin.key,
            client=host,
            home=reception.sessions,
            idle_s=math.inf if rules.idle_s is None else rules.idle_s,
            ends_at=now + self.max_duration_s,
            responses=rules.responses,
            requests=rules.requests,
            amplification=rules.amplification,
            id=f"{self.id_prefix}u{next(self._numbers):x}",
            listener=reception.listener,
            reception=reception,
            origin=origin,
            facts=facts,
            snapshot=snapshot,
            route=route,
            upstream=upstream,
            started_at=now,
            started_unix_s=self.wall_clock(),
        )
        self.table.add(session, now)
        self.live[session.id] = session
        self.live_by_listener[reception.name] += 1
        self.totals.accepted[reception.name] += 1
        reception.nursery.start_soon(self.run, session, name=session.id)
        if not self._open_at_once(session, now):
            self.datagrams.host.kick()
        return session

    async def run(self, session: UDPSession) -> None:
        """Live one session to its end: the boundary, beyond which no exception of a session gets.

        Cancellation:
          The socket is closed, the outcome says `drain`, Cancelled goes on.
        """
        ending = _CUT
        try:
            await self._live(session)
        except SessionError as error:
            ending = self._refuse(session, error)
        except Exception as error:  # noqa: BLE001  the boundary: a bug costs one session, not its neighbours
            ending = self._met_bug(session, error)
        finally:
            self._leave(session, ending)

    async def _live(self, session: UDPSession) -> None:
        """Returns when the session is over, which may be before its task has run for the first time."""
        if session.failure is not None:
            raise session.failure
        if session.queue is not None and session.reason is None:
            with trio.CancelScope() as session.opening:
                await self._prepare(session)
            session.opening = None
        if session.reason is None:

            def abort_fn(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
                session.task = None
                return trio.lowlevel.Abort.SUCCEEDED

            session.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort_fn)
        assert session.reason is not None, "only its end wakes it"

    async def _prepare(self, session: UDPSession) -> None:
        """Everything for which a session may have to wait."""
        if session.route.hooks:
            await self._ask_plugins(session)
        upstream = session.upstream
        if upstream is None:
            raise NoUpstream(f"route {session.route.id} ({session.route.source}) names no upstream")
        session.phase = "connect"
        self.on_opened(session)
        candidates = await self.pool.candidates(upstream, session.facts)
        self.dialer.open(session, upstream, candidates, trio.current_time())

    def _open_at_once(self, session: UDPSession, now: float) -> bool:
        """Open a session within the batch that began it, if it has to wait for nothing: most have not.

        Its task, which has not run yet, raises whatever this raises. Nobody waits for that: it runs when it may.

        Returns:
          False when its task has to open it.
        """
        upstream = session.upstream
        if upstream is None or session.route.hooks:
            return False
        candidates = self.pool.candidates_at_once(upstream, session.facts)
        if candidates is None:
            return False
        session.phase = "connect"
        try:
            self.on_opened(session)
            self.dialer.open(session, upstream, candidates, now)
        except Exception as error:  # noqa: BLE001  for the boundary in `run`
            session.failure = error
        return True

    async def _ask_plugins(self, session: UDPSession) -> None:
        """Let the plugins of the route refuse, delay or redirect the client, and add to its facts.

        Raises:
          Rejected, ParseError: a plugin says so.
        """
        session.phase = "plugins"
        session.hooks = hooks = HookRun(session.route.hooks, self.backgrounds)
        assert session.queue, "what began the session waits"
        first = session.queue[0]
        try:
            session.facts = await hooks.accept(session.facts)
            session.facts = await hooks.preread(session.facts, shows_datagram(first))
        except BaseExceptionGroup as group:
            raise tell_bugs(group, partial(self.on_bug, session)) from None
        session.up, session.down = hooks.gates()
        if hooks.upstream_key:
            session.upstream = session.snapshot.upstreams[hooks.upstream_key]

    def refuse(self, session: UDPSession, error: OSError) -> None:
        """See `Owner.refuse`."""
        self.dialer.refused(session, error)

    def answered(self, session: UDPSession, now: float) -> None:
        """See `Owner.answered`."""
        self.dialer.answered(session, now)

    def _on_end(self, entry: Entry) -> None:
        """The table has forgotten a session: let its task do so too. Its descriptor need not wait for that."""
        assert isinstance(entry, UDPSession)
        # What is closed has had its last datagram just now; no need to look at the clock.
        entry.ended_at = entry.active_at if entry.reason is Reason.CLOSED else trio.current_time()
        if entry.upstream_side is not None:
            entry.upstream_side.close()
        if entry.opening is not None:
            entry.opening.cancel()
        task, entry.task = entry.task, None
        if task is not None:
            # No kick: what is left to do, the log line, nobody waits for. Within `SERVE_EVERY_S` there are more of its kind.
            trio.lowlevel.reschedule(task)

    def _refuse(self, session: UDPSession, error: SessionError) -> Ending:
        """It ended before it began. Stands outside the `try` of `run`: it has its own."""
        try:
            self.dialer.came_to_nothing(session, error)
            return refusal(error)
        except Exception as bug:  # noqa: BLE001  the boundary, as in `run`
            return self._met_bug(session, bug)

    def _met_bug(self, session: UDPSession, error: Exception) -> Ending:
        guarded(partial(self.on_bug, session), self.dialer.came_to_nothing, session, error)
        self.on_bug(session, error)
        return Ending.by_bug(error)

    def _leave(self, session: UDPSession, ending: Ending) -> None:
        """Close what is open, forget the session, tell its outcome. What one of these raises keeps none of the others."""
        on_bug = partial(self.on_bug, session)
        # It may have ended before that was raised: then its reason says whose fault it is.
        fault = ending.fault if isinstance(ending, Refusal) and session.reason is None else None
        status = ending.status if isinstance(ending, Refusal) else 0
        guarded(on_bug, self.table.end, session, ending.reason, ending.side, ending.detail)
        guarded(on_bug, self._close, session)
        outcome = outcome_of(session, fault, status)
        del self.live[session.id]
        self.live_by_listener[session.reception.name] -= 1
        totals = self.totals
        totals.sessions += 1
        totals.bytes_up += session.bytes_up
        totals.bytes_down += session.bytes_down
        totals.by_reason[outcome.reason] += 1
        if session.hooks is not None:
            guarded(on_bug, session.hooks.close, outcome, on_bug)
        guarded(on_bug, self.on_outcome, outcome)

    def _close(self, session: UDPSession) -> None:
        """Give back the socket, and the place at the node."""
        if session.upstream_side is not None:
            session.upstream_side.close()
            session.upstream_side = None
        if session.lease is not None:
            session.lease.close()


def _places(upstream: Upstream) -> frozenset[tuple[str, int]]:
    """The host and port of each node. Behind a name there may be any address: those of a session's time, or of now."""
    return frozenset((_ANY if _is_name(node.host) else node.host, node.port) for node in upstream.nodes)


def _is_name(host: str) -> bool:
    return Node(host, 0).is_looked_up
