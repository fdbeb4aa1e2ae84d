"""Retry is the next candidate: walk the nodes until one answers, then relay.

Connect and relay are one call because they are one park of the session's task (performance of new connections): a node
that refuses shows as `ConnectFailed` out of `Pump.relay`, before a byte was read from the client, so the next node gets
the client's stream untouched. After a byte has moved nothing is ever retried.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

import attrs
import trio

from streamgw.core.errors import ConnectFailed, Killed, NoNode, Reason
from streamgw.core.load import Lease
from streamgw.core.model import Address, Attempt, Facts, Upstream, UpstreamTLS
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump import End, Ending, Limits, Meter, OnFirstByte, Pump

T = TypeVar("T")

DUMMY_SERVER_NAME = "apisix_backend"
"""Sent to an upstream that speaks TLS when neither it nor the client has a name (APISIX)."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
"""Between two rounds of a client that waits for a node. Each is twice the one before, up to this, and up to a half more or
less: many clients wait together."""
MAX_ATTEMPTS_KEPT = 32


@attrs.define(weakref_slot=False)
class Trail:
    """What the dialer does for one session; it survives a failure, so that the log can tell every attempt."""

    attempts: tuple[Attempt, ...] = ()
    node: Address | None = None
    """The node being dialled, or relayed to."""
    dialled_at: float = 0.0
    """trio.current_time() of the latest attempt."""
    lease: Lease | None = None
    """The place at the node, while the session has one."""
    search: Search | None = None
    """None once a node has answered."""

    def note(self, attempt: Attempt) -> None:
        """Keep the latest attempts that failed: a client that waits for a node may make many."""
        self.attempts = (*self.attempts[1 - MAX_ATTEMPTS_KEPT :], attempt)

    def leave_node(self) -> None:
        """Give up the place at the node, if there is one."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.close()

    @property
    def ongoing(self) -> Search:
        """The search, while no node has answered."""
        assert self.search is not None, "a node has answered"
        return self.search


@attrs.frozen
class Introduction:
    """Who the client is: what a node is chosen by, and told before the client's own bytes."""

    facts: Facts
    """Its server name is for an upstream that speaks TLS and has none of its own."""
    preface: bytes = b""
    """A PROXY header, or nothing. Goes before a TLS handshake (APISIX)."""


@attrs.define(eq=False)
class Search:
    """What is known only while a node is looked for. Forgotten when one has answered: a session may then idle for days."""

    upstream: Upstream
    introduction: Introduction
    candidates: Iterator[Address] | None
    """Those that this round may still try; None: the next round is to begin."""
    since: float
    """trio.current_time() when a node began to be looked for."""
    pause_s: float = FIRST_PAUSE_S
    """Before the next round."""
    began_at: float = 0.0
    """trio.current_time() of this round's first attempt."""
    failure: ConnectFailed | None = None
    """How this round's latest attempt ended."""
    securing: End | None = None
    """The upstream's end, from its connect until it has shaken hands."""
    waiting: trio.CancelScope | None = None
    """Around whatever is waited for beside the nodes themselves: their names, room, another round."""
    is_killed: bool = False

    def is_too_late(self, now: float) -> bool:
        """Whether this round must not begin another attempt."""
        return self.failure is not None and 0 < self.upstream.retry_timeout_s <= now - self.began_at

    def kill(self) -> None:
        """Its client's end was closed: look no further. Whoever waits in a line leaves it."""
        self.is_killed = True
        if self.waiting is not None:
            self.waiting.cancel()

    async def wait(self, what: Awaitable[T]) -> T:
        """Wait for something that does not end because the client's end is closed.

        Raises:
          Killed: somebody has called `kill`, now or before.
        """
        with trio.CancelScope() as self.waiting:
            if self.is_killed:
                self.waiting.cancel()
            found = await what
            if not self.is_killed:
                return found
        raise Killed(f"ended before the relay: {Reason.KILLED}")

    def take_failure(self) -> ConnectFailed:
        """The failure, to be raised: nobody else may hold on to it then, since it holds on to whoever it passed through."""
        failure, self.failure = self.failure, None
        assert failure is not None, "an attempt failed"
        return failure


@attrs.frozen
class Dialer:
    """Joins a client with a node of an upstream."""

    pump: Pump
    pool: UpstreamPool
    now: Callable[[], float] = trio.current_time

    def join(
        self,
        client: End,
        upstream: Upstream,
        *,
        introduction: Introduction,
        trail: Trail,
        meter: Meter,
        limits: Limits,
    ) -> Awaitable[Ending]:
        """Try nodes until one answers; the result is there when the relay has ended. To be awaited at once.

        At most 1 + `retries` attempts (APISIX: by default every node once), none begun later than `retry_timeout` after
        the first. The same node is never dialled twice, except that an upstream with one node and explicit `retries`
        dials that one again (APISIX). With `wait_for_node` that is one round, and there are more of them, with a pause
        between, until that time is over.

        Raises:
          ConnectFailed: the last attempt's failure, when every allowed one failed; UpstreamTLSFailed if it failed in
            the handshake, NoPortLeft if there was no local port. The client's end is still open.
          Exhausted: a descriptor or memory is lacking; no other node is tried.
          NoNode: there was no candidate at all, or no place to wait for one.
          Killed: `Search.kill` was called, while nodes were waited for.

        Resource handling:
          The pump closes every upstream end that this opened, however it ends. The client's end is closed by the relay,
          or left to the caller if an error is raised.
        """
        candidates = self.pool.candidates_at_once(upstream, introduction.facts)
        if candidates is not None:
            candidates = _allowed(candidates, upstream)
        trail.search = Search(upstream, introduction, candidates, self.now())
        meter.on_connected = partial(self._on_connected, trail)
        return self._join(client, trail, meter, limits)

    async def _join(self, client: End, trail: Trail, meter: Meter, limits: Limits) -> Ending:
        """The one frame of the dialer that lives as long as the session: it holds nothing that only the search needs."""
        while True:
            await self._choose(trail)
            try:
                return await self.pump.relay(client, await self._dial(trail), meter, limits)
            except ConnectFailed as error:
                self._note_failure(trail, error)
            finally:
                trail.leave_node()

    async def _choose(self, trail: Trail) -> None:
        """Settle which node is next: of this round, or of another one after a pause.

        Raises:
          ConnectFailed, NoNode: there is none; see `join`.
          Killed: while it was waited for.
        """
        search = trail.ongoing
        upstream = search.upstream
        while True:
            if search.candidates is None:
                facts = search.introduction.facts
                candidates = await search.wait(self.pool.candidates(upstream, facts, since=search.since))
                search.candidates = _allowed(candidates, upstream)
            node, now = next(search.candidates, None), self.now()
            if node is not None and not search.is_too_late(now):
                trail.node, trail.dialled_at = node, now
                return
            search.candidates = None
            left_s = search.since + upstream.pacing.wait_for_node_s - now
            if search.failure is None:
                raise NoNode(f"upstream {upstream.key} has no node to dial: {self.pool.why_empty(upstream)}")
            if left_s <= 0:
                raise search.take_failure()
            search.failure = None
            await search.wait(self.pool.pause(upstream, min(search.pause_s, left_s)))
            search.pause_s = min(2 * search.pause_s, LONGEST_PAUSE_S)

    async def _dial(self, trail: Trail) -> End:
        """Take a place at the chosen node and begin to connect; shake hands too, if the upstream speaks TLS.

        Raises:
          ConnectFailed: the place is still taken.
        """
        search, node, dialled_at = trail.ongoing, trail.node, trail.dialled_at
        assert node is not None, "it was chosen"
        upstream, introduction = search.upstream, search.introduction
        if search.failure is None:
            search.began_at = dialled_at
        trail.lease = self.pool.lease(upstream, node)
        deadline = dialled_at + upstream.timeouts.connect_s
        end = self.pump.dial(node, preface=introduction.preface, deadline=deadline)
        if upstream.tls is not None:
            search.securing = end
            await self._secure(end, upstream.tls, introduction.facts.server_name or "", deadline)
            search.securing = None
        return end

    def _note_failure(self, trail: Trail, error: ConnectFailed) -> None:
        search, node = trail.ongoing, trail.node
        assert node is not None, "it was dialled"
        search.failure = error
        trail.note(Attempt(node, self.now() - trail.dialled_at, str(error)))
        self.pool.failed(search.upstream, node, error)

    def _on_connected(self, trail: Trail, connected_at: float) -> OnFirstByte | None:
        search, node = trail.ongoing, trail.node
        assert node is not None, "it has answered"
        trail.search = None
        upstream = search.upstream
        self.pool.answered(upstream, node, connected_at - trail.dialled_at)
        return partial(self.pool.first_byte, upstream, node) if upstream.type == "ewma" else None

    async def _secure(self, end: End, tls: UpstreamTLS, client_name: str, deadline: float) -> None:
        """Connect and shake hands with a node; both share the connect timeout. Closes the end unless it succeeds."""
        try:
            await self.pump.connected(end)
            await self.pump.handshake(
                end,
                tls.context,
                server_side=False,
                server_name=tls.server_name or client_name or DUMMY_SERVER_NAME,
                deadline=deadline,
            )
        except BaseException:
            self.pump.close(end, reset=True)
            raise


def _allowed(candidates: Iterator[Address], upstream: Upstream) -> Iterator[Address]:
    if upstream.retries is None:
        return candidates
    if upstream.service_name or len(upstream.nodes) == 1:
        nodes = tuple(candidates)
        if len(nodes) == 1:
            return itertools.repeat(nodes[0], 1 + upstream.retries)
        candidates = iter(nodes)
    return itertools.islice(candidates, 1 + upstream.retries)
