"""Retry is the next candidate: walk the nodes until one answers, then relay.

Connect and relay are one call because they are one park of the session's task (performance of new connections): a node
that refuses shows as `ConnectFailed` out of `Pump.relay`, before a byte was read from the client, so the next node gets
the client's stream untouched. After a byte has moved nothing is ever retried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import trio

from streamgw.core.errors import ConnectFailed, NoNode
from streamgw.core.model import Address, Attempt, Facts, Upstream, UpstreamTLS
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump import End, Ending, Limits, Meter, Pump

DUMMY_SERVER_NAME = "apisix_backend"
"""Sent to an upstream that speaks TLS when neither it nor the client has a name (APISIX)."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
"""Between two rounds of a client that waits for a node. Each is twice the one before, up to this, and up to a half more or
less: many clients wait together."""
MAX_ATTEMPTS_KEPT = 32


@attrs.define
class Trail:
    """What the dialer did for one session; it survives a failure, so that the log can tell every attempt."""

    attempts: list[Attempt] = attrs.Factory(list)
    began_at: float = 0.0
    """trio.current_time() when a node began to be looked for."""
    node: Address | None = None
    """The node being dialled, or relayed to."""
    dialled_at: float = 0.0
    """trio.current_time() of the latest attempt."""

    def note(self, attempt: Attempt) -> None:
        """Keep the latest attempts that failed: a client that waits for a node may make many."""
        if len(self.attempts) >= MAX_ATTEMPTS_KEPT:
            del self.attempts[0]
        self.attempts.append(attempt)


@attrs.frozen
class Introduction:
    """Who the client is: what a node is chosen by, and told before the client's own bytes."""

    facts: Facts
    """Its server name is for an upstream that speaks TLS and has none of its own."""
    preface: bytes = b""
    """A PROXY header, or nothing. Goes before a TLS handshake (APISIX)."""


@attrs.frozen
class Dialer:
    """Joins a client with a node of an upstream."""

    pump: Pump
    pool: UpstreamPool
    now: Callable[[], float] = trio.current_time

    async def join(
        self,
        client: End,
        upstream: Upstream,
        *,
        introduction: Introduction,
        trail: Trail,
        meter: Meter,
        limits: Limits,
    ) -> Ending:
        """Try nodes until one answers; returns when the relay has ended.

        At most 1 + `retries` attempts (APISIX: by default every node once), none begun later than `retry_timeout` after
        the first. The same node is never dialled twice, except that an upstream with one node and explicit `retries`
        dials that one again (APISIX). With `wait_for_node` that is one round, and there are more of them, with a pause
        between, until that time is over.

        Raises:
          ConnectFailed: the last attempt's failure, when every allowed one failed; UpstreamTLSFailed if it failed in
            the handshake. The client's end is still open.
          NoNode: there was no candidate at all, or no place to wait for one.

        Resource handling:
          The pump closes every upstream end that this opened, however it ends. The client's end is closed by the relay,
          or left to the caller if an error is raised.
        """
        trail.began_at = self.now()
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._try_each(client, upstream, introduction, trail, meter, limits)
            except ConnectFailed:
                left_s = trail.began_at + upstream.pacing.wait_for_node_s - self.now()
                if left_s <= 0:
                    raise
            await self.pool.pause(upstream, min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _try_each(
        self,
        client: End,
        upstream: Upstream,
        introduction: Introduction,
        trail: Trail,
        meter: Meter,
        limits: Limits,
    ) -> Ending:
        """One round: each candidate once, as far as `retries` and `retry_timeout` go."""
        facts, began_at = introduction.facts, 0.0
        failure: ConnectFailed | None = None
        candidates = self.pool.candidates_at_once(upstream, facts)
        if candidates is None:
            candidates = await self.pool.candidates(upstream, facts, since=trail.began_at)
        for node in _allowed(candidates, upstream):
            dialled_at = self.now()
            if failure is None:
                began_at = dialled_at
            elif 0 < upstream.retry_timeout_s <= dialled_at - began_at:
                break
            trail.node, trail.dialled_at = node, dialled_at
            meter.on_connected = partial(self._on_connected, upstream, node, dialled_at)
            lease = self.pool.lease(upstream, node)
            try:
                deadline = dialled_at + upstream.timeouts.connect_s
                end = self.pump.dial(node, preface=introduction.preface, deadline=deadline)
                if upstream.tls is not None:
                    await self._secure(end, upstream.tls, facts.server_name or "", deadline)
                return await self.pump.relay(client, end, meter, limits)
            except ConnectFailed as error:
                failure = error
                trail.note(Attempt(node, self.now() - dialled_at, str(error)))
                self.pool.failed(upstream, node, error)
            finally:
                lease.close()
        if failure is not None:
            raise failure
        raise NoNode(f"upstream {upstream.key} has no node to dial: {self.pool.why_empty(upstream)}")

    def _on_connected(self, upstream: Upstream, node: Address, began_at: float, connected_at: float) -> None:
        self.pool.answered(upstream, node, connected_at - began_at)

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
