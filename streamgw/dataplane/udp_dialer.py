"""UDP sessions find their node: what `dialer` is for TCP, without anything to wait for.

connect(2) of a datagram socket sends nothing, so it fails only where no way leads. Whether a node is there shows later, if at
all: a refusal (ICMP) ends the session, counts as a failure of the node, and is remembered for this client for a moment.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import attrs
import trio

from streamgw.core.errors import ConnectFailed, Exhausted, NoNode
from streamgw.core.model import Address, Attempt, Route, Upstream
from streamgw.core.udp_room import Refusals
from streamgw.core.udp_sessions import Drop, Table
from streamgw.core.wire.proxy_protocol import build_v2
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump.datagram import Datagrams, UpstreamSide
from streamgw.dataplane.pump.end import words_for
from streamgw.dataplane.reception import UDPSession

REST_S = 0.1
"""How long no session is begun after the process ran out of descriptors."""


@attrs.define
class UDPDialer:
    """Gives each session a node, and a socket of its own that is connected to it."""

    datagrams: Datagrams
    pool: UpstreamPool
    table: Table
    on_trouble: Callable[[str], None]
    """Told when the process has run out of descriptors, and when it has some again."""
    refusals: Refusals = attrs.Factory(Refusals)
    rests_until: float = -math.inf
    """Before this no session shall begin (trio.current_time())."""
    _in_trouble: bool = False

    def open(
        self, session: UDPSession, upstream: Upstream, candidates: Iterator[Address], now: float
    ) -> None:
        """Find a node, open a socket to it, and hand on what is queued. At most 1 + `retries` of the candidates are tried.

        Raises:
          NoNode: there was no candidate.
          ConnectFailed: there is no way to any of those allowed.
          Exhausted: no descriptor, memory, port or room to watch left.

        Resource handling:
          The socket and the lease of the node's place are the session's, also when this raises.
        """
        trail = session.trail
        if len(self.refusals):
            candidates = self._unrefused_first(candidates, session, now)
        attempts = None if upstream.retries is None else 1 + upstream.retries
        failure: ConnectFailed | None = None
        for node in itertools.islice(candidates, attempts):
            trail.node, trail.dialled_at = node, now
            try:
                side = session.upstream_side = self.datagrams.connect(node)
                side.watch(session, session.reception.clients, session.origin, session.reception)
            except ConnectFailed as error:
                failure = error
                self._note_failure(session, upstream, error)
            except Exhausted as error:
                self._rest(error)
                raise
            else:
                session.is_last_resort = self.refusals.holds(session.client, node, now)
                session.lease = self.pool.lease(upstream, node)
                self._hand_on(session, upstream, side, now)
                return
        if failure is not None:
            raise failure
        raise NoNode(f"upstream {upstream.key} has no node to send to: {self.pool.why_empty(upstream)}")

    def _hand_on(self, session: UDPSession, upstream: Upstream, side: UpstreamSide, now: float) -> None:
        """The socket is there, and watched: send what is queued, and from now on what comes."""
        if self._in_trouble:
            self._in_trouble = False
            self.on_trouble("beginning UDP sessions again")
        if upstream.proxy_protocol == "v2":
            session.preface = build_v2(session.facts.client, session.facts.server, transport="udp")
            session.repeats_preface = upstream.proxy_protocol_on_each
        if session.route.udp.idle_s is None:
            session.idle_s = upstream.timeouts.idle_s
        session.phase = "relay"
        session.connected_at = now
        if session.queue:
            self._send_queued(session)
        if session.reason is None:
            self.table.opened(session, None if session.preface else side.send, now)

    def _send_queued(self, session: UDPSession) -> None:
        for payload in self.table.unqueue(session):
            session.reception.forward(session, memoryview(payload))
            if session.reason is not None:
                self.table.drop(session, Drop.UNOPENED)

    def _unrefused_first(
        self, candidates: Iterator[Address], session: UDPSession, now: float
    ) -> Iterator[Address]:
        """The same nodes; those that refused this client a moment ago come last."""
        later: list[Address] = []
        for node in candidates:
            if self.refusals.holds(session.client, node, now):
                later.append(node)
            else:
                yield node
        yield from later

    def refused(self, session: UDPSession, error: OSError) -> None:
        """The session's node does not take datagrams: an ICMP error came back, or there is no way to it any more."""
        node, upstream = session.trail.node, session.upstream
        assert node is not None, "it was sent to"
        assert upstream is not None, "likewise"
        failure = ConnectFailed(words_for(error.errno or 0))
        now = trio.current_time()
        self.refusals.add(session.client, node, now)
        if session.is_last_resort:
            self.refusals.pause(session.client, upstream.key, now)
        self._note_failure(session, upstream, failure)
        self.table.end(session, failure.reason, "upstream", str(failure))

    def came_to_nothing(self, session: UDPSession, error: Exception) -> None:
        """A session ended before it began, and so would the next: for a moment none begins.

        A client cannot know, and sends on. Each of its datagrams would cost a task, a warning and a line of the access log.
        """
        now = trio.current_time()
        if isinstance(error, NoNode | ConnectFailed) and session.upstream is not None:
            self.refusals.pause(session.client, session.upstream.key, now)
        elif not isinstance(error, Exhausted):
            self.refusals.pause(session.origin.client, session.route.id, now)

    def is_useless(self, client: Address, route: Route, now: float) -> bool:
        """Whether a session of this client came to nothing a moment ago."""
        refusals, upstream = self.refusals, route.upstream
        return refusals.is_pausing(client, route.id, now) or (
            upstream is not None and refusals.is_pausing(client.host, upstream.key, now)
        )

    def answered(self, session: UDPSession, now: float) -> None:
        """The node has answered for the first time: it is there."""
        node, upstream = session.trail.node, session.upstream
        assert node is not None, "it answers"
        assert upstream is not None, "likewise"
        self.pool.answered(upstream, node, 0.0)  # connect(2) asks nobody
        if upstream.type == "ewma":
            self.pool.first_byte(upstream, node, now - session.trail.dialled_at)

    def _note_failure(self, session: UDPSession, upstream: Upstream, error: ConnectFailed) -> None:
        trail = session.trail
        assert trail.node is not None, "it was tried"
        trail.note(Attempt(trail.node, trio.current_time() - trail.dialled_at, str(error)))
        self.pool.failed(upstream, trail.node, error)

    def _rest(self, error: Exhausted) -> None:
        self.rests_until = trio.current_time() + REST_S
        if not self._in_trouble:
            self._in_trouble = True
            self.on_trouble(f"no UDP session can begin: {error}")
