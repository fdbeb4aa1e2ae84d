"""The life of a TCP or TLS session, read top to bottom: accept, preread, match, handshake, connect, relay, close.

The hooks of the route's plugins run after the match: those that need only addresses and names before the handshake, the
others after it.

A session is one child task of its listener's nursery, and that task is its state machine. `run` is the boundary: a
`SessionError` is an outcome, any other exception is a bug of ours that costs this session and no other. Whatever
happens, both sockets are closed, the registry forgets the session, and one outcome is told.

docs/life-of-a-connection.md describes this file; change both together.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal

import attrs
import trio

from streamgw.core.errors import (
    Answered,
    Fault,
    Killed,
    NoRoute,
    NoUpstream,
    Reason,
    Rejected,
    SessionError,
    TLSFailed,
)
from streamgw.core.hooks import Look
from streamgw.core.model import (
    Address,
    ClientCertificate,
    Facts,
    Listener,
    Network,
    Outcome,
    Route,
    Upstream,
)
from streamgw.core.networks import is_in_any
from streamgw.core.preread import parse_hello, parse_preface
from streamgw.core.snapshot import Snapshot
from streamgw.core.wire.proxy_protocol import SIGNATURE_V1, SIGNATURE_V2, build_v1, build_v2
from streamgw.core.wire.tls import UNRECOGNIZED_NAME, ClientHello, may_become_client_hello
from streamgw.dataplane.dialer import Dialer, Introduction, Trail
from streamgw.dataplane.hooks import Backgrounds, HookRun, guarded, tell_bugs
from streamgw.dataplane.preread import Bounds, look
from streamgw.dataplane.pump import End, Ending, Limits, Meter, Pump

_MORE_THAN_A_PEEK_SHOWS = 1 << 20
"""To be woken by nothing that the client says."""

Phase = Literal["accept", "preread", "match", "plugins", "handshake", "connect", "relay"]

_FAULTS = {
    Reason.CLOSED: Fault.NONE,
    Reason.IDLE_TIMEOUT: Fault.NONE,
    Reason.MAX_DURATION: Fault.NONE,
    Reason.DRAIN: Fault.NONE,
    Reason.KILLED: Fault.NONE,
    Reason.NODE_DOWN: Fault.UPSTREAM,
    Reason.REJECTED: Fault.CLIENT,
    Reason.EXHAUSTED: Fault.GATEWAY,
    Reason.BUG: Fault.GATEWAY,
}

_DRAINED = Ending(Reason.DRAIN)
_CUT = frozenset({Reason.BUG, Reason.EXHAUSTED, Reason.DRAIN})
"""What must not look complete to the client."""


@attrs.frozen
class Refusal(Ending):
    """How a session ended that came to no relay."""

    fault: Fault = Fault.NONE
    status: int = 0
    reset: bool = False


@attrs.frozen
class Policy:
    """The limits that every session obeys. Replaced as a whole when conf/config.yaml changes; live sessions keep theirs."""

    trusted_proxies: tuple[Network, ...] = ()
    """Peers whose PROXY header names the client; the header of anybody else is read and thrown away."""
    preread_timeout_s: float = 3.0
    preread_limit_bytes: int = 32_768
    handshake_timeout_s: float = 10.0
    max_handshakes: float = 256
    """Clients that may owe us their ClientHello or their part of the handshake at a time. One more cuts off the one that
    has been owing longest: a flood of slow ones starves nobody who is quick."""
    max_duration_s: float = math.inf
    max_sessions: float = 10_000
    """Of the whole process. At the limit accepting pauses: the kernel's backlog is the queue."""
    max_sessions_per_listener: float = math.inf
    """`Listener.max_sessions` goes first."""


@attrs.define(eq=False, weakref_slot=False)
class Session:
    """The one live record of a connection. Only its own task writes it; `status` reads it."""

    number: int
    """In the order of accept."""
    id: str
    listener: Listener
    end: End
    facts: Facts
    peer: Address
    snapshot: Snapshot
    policy: Policy
    started_at: float
    """trio.current_time()."""
    started_unix_s: float
    phase: Phase = "accept"
    route: Route | None = None
    upstream: Upstream | None = None
    meter: Meter = attrs.Factory(Meter)
    trail: Trail = attrs.Factory(Trail)
    made_room: bool = False
    """Its client owed us TLS bytes for so long that it was cut off for another's sake."""
    tls_version: str = ""
    tls_cipher: str = ""
    hooks: HookRun | None = None
    """None: the route has no plugins, or there is none yet."""


@attrs.define
class Totals:
    """Counted since the process started."""

    sessions: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    by_reason: Counter[str] = attrs.Factory(Counter)
    accepted: Counter[str] = attrs.Factory(Counter)
    """By `Listener.name`."""


@attrs.define
class Sessions:
    """Runs every session of the process, and knows the live ones."""

    pump: Pump
    dialer: Dialer
    get_snapshot: Callable[[], Snapshot]
    on_outcome: Callable[[Outcome], None]
    """Told once for each session, after its sockets are closed. Must not block; what it raises is for `on_bug`."""
    on_bug: Callable[[Session, Exception], None]
    """An exception that nobody expected; the session has been ended. Must not raise: tests may, and end everything."""
    wall_clock: Callable[[], float]
    """Unix time, for the log only; everything else runs on trio's monotonic clock."""
    read_certificate: Callable[[bytes], ClientCertificate]
    """From the DER form of a client's certificate that the handshake has verified."""
    id_prefix: str = ""
    policy: Policy = attrs.Factory(Policy)
    live: dict[str, Session] = attrs.Factory(dict)
    live_by_listener: Counter[str] = attrs.Factory(Counter)
    totals: Totals = attrs.Factory(Totals)
    backgrounds: Backgrounds = attrs.Factory(lambda: Backgrounds(lambda _: None))
    """The tasks beside the sessions that plugins want. Somebody else runs them."""
    on_opened: Callable[[Session], None] = lambda _: None
    """Told when the route and the upstream of a session are known, before a node is dialled. Must not block or raise."""
    on_left: Callable[[], None] = lambda: None
    """Told after a session has left the registry: room for another. What it raises is for `on_bug`."""
    _owing: dict[int, Session] = attrs.Factory(dict)
    """By number: the sessions whose client owes us TLS bytes."""
    _delays: dict[int, trio.CancelScope] = attrs.Factory(dict)
    """By number: the sessions that let time pass, and would not notice that their client's end is closed."""
    _numbers: itertools.count[int] = attrs.Factory(lambda: itertools.count(1))

    def accept(self, listener: Listener, end: End, client: Address, server: Address) -> Session:
        """Register a connection that the pump has accepted. Whoever calls this then starts `run` in a nursery."""
        number = next(self._numbers)
        session = Session(
            number=number,
            id=f"{self.id_prefix}{number:x}",
            listener=listener,
            end=end,
            facts=Facts(listener.transport, listener.name, client, server),
            peer=client,
            snapshot=self.get_snapshot(),
            policy=self.policy,
            started_at=trio.current_time(),
            started_unix_s=self.wall_clock(),
        )
        self.live[session.id] = session
        self.live_by_listener[listener.name] += 1
        self.totals.accepted[listener.name] += 1
        return session

    async def run(self, session: Session) -> None:
        """Live one session to its end: the boundary, beyond which no exception of a session gets.

        Cancellation:
          Both sockets are reset, the outcome says `drain`, Cancelled goes on.
        """
        # An idle session is this frame (kept twice: Trio asks for the frame object), `Dialer._join` and Trio's own two.
        # A name or a deep expression more is memory per connection.
        ending = _DRAINED
        try:
            ending = await self._join(session, await self._find_upstream(session))
        except SessionError as error:
            ending = self._refuse(session, error)
        except Exception as error:  # noqa: BLE001  the boundary: a bug costs one session, not its neighbours
            ending = Ending.by_bug(error)
            self.on_bug(session, error)
        finally:
            self._leave(session, ending)

    def kill(self, session_id: str) -> bool:
        """End one live session by RST on both sides, with reason `killed`. False when there is none of that id."""
        session = self.live.get(session_id)
        if session is None:
            return False
        self.pump.abort(session.end, Reason.KILLED)
        # Its task may wait for something else than the client's end.
        search = session.trail.search
        if search is not None:
            search.kill()
            if search.securing is not None:
                self.pump.abort(search.securing, Reason.KILLED)
        if session.number in self._delays:
            self._delays[session.number].cancel()
        return True

    def leave_node(self, upstream: str, node: Address) -> None:
        """End the sessions that an upstream (its key) has at a node, with reason `node_down`."""
        for session in self.live.values():
            is_there = session.trail.node == node and session.meter.connected_at is not None
            if is_there and session.upstream is not None and session.upstream.key == upstream:
                self.pump.abort(session.end, Reason.NODE_DOWN)

    async def _find_upstream(self, session: Session) -> Upstream:
        """Everything before the connect; nothing of it is kept while the session is relayed."""
        listener = session.listener
        if listener.proxy_protocol != "off":
            session.phase = "preread"
            await self._read_proxy_header(session)
        hello = None
        if listener.tls != "off":
            session.phase = "preread"
            hello = await self._read_hello(session)

        session.phase = "match"
        route = session.route = session.snapshot.router.match(session.facts)
        if route is None:
            if hello is not None:
                self.pump.say_last(session.end, UNRECOGNIZED_NAME)
            raise NoRoute(f"no route matches {session.facts.client} on {session.facts.server}")
        if route.hooks:
            await self._ask_plugins(session, route, before_handshake=True)
        elif route.upstream is None:
            raise NoUpstream(f"route {route.id} ({route.source}) names no upstream")

        if hello is not None:
            if route.passes_through(listener):
                session.tls_version = "passthrough"
            else:
                session.phase = "handshake"
                await self._terminate(session, hello)
        if route.hooks:
            await self._ask_plugins(session, route, before_handshake=False)

        upstream = session.upstream = _upstream_of(session, route)
        session.phase = "connect"
        self.on_opened(session)
        return upstream

    def _join(self, session: Session, upstream: Upstream) -> Awaitable[Ending]:
        """Connect and relay. Not a coroutine itself: an idle session would keep its frame."""
        return self.dialer.join(
            session.end,
            upstream,
            introduction=Introduction(session.facts, _proxy_header(session, upstream)),
            trail=session.trail,
            meter=session.meter,
            limits=_limits_of(session, upstream),
        )

    async def _ask_plugins(self, session: Session, route: Route, *, before_handshake: bool) -> None:
        """Let the plugins of the route refuse, delay or redirect the client, and add to its facts."""
        session.phase = "plugins"
        if session.hooks is None:
            session.hooks = HookRun(
                route.hooks, self.backgrounds, wait=lambda seconds: self._wait(session, seconds)
            )
        try:
            if before_handshake:
                session.facts = await session.hooks.accept(session.facts)
            else:
                session.facts = await session.hooks.preread(
                    session.facts, lambda wanted, facts: self._show(session, wanted, facts)
                )
        except BaseExceptionGroup as group:
            raise tell_bugs(group, functools.partial(self.on_bug, session)) from None

    async def _show(self, session: Session, wanted: Look, facts: Facts) -> Facts:
        """What a plugin sees in the client's first bytes, which it owes: TLS has been taken off, if it is terminated here."""
        policy = session.policy
        deadline = trio.current_time() + policy.preread_timeout_s
        seen = await look(
            self.pump,
            session.end,
            lambda buffer: wanted.parse(facts, buffer),
            Bounds(deadline, policy.preread_limit_bytes, policy.preread_timeout_s),
            what=wanted.what,
            is_owed=lambda _: True,
        )
        assert seen is not None, "it is owed"
        return seen

    async def _wait(self, session: Session, seconds: float) -> None:
        """Let time pass because a plugin says so. A client that resets meanwhile is not kept; nor one that is killed."""
        deadline = trio.current_time() + seconds
        await self.pump.peek(session.end, _MORE_THAN_A_PEEK_SHOWS, deadline=deadline)
        # A FIN, or a full buffer, ends the look early. The client may still want its answer.
        delay = self._delays[session.number] = trio.CancelScope()
        try:
            with delay:
                await trio.sleep_until(deadline)
        finally:
            del self._delays[session.number]
        if delay.cancel_called:
            raise Killed(f"ended before the relay: {Reason.KILLED}")

    async def _read_proxy_header(self, session: Session) -> None:
        """Read and consume exactly the PROXY header, so that whoever is next finds an untouched stream."""
        mode = session.listener.proxy_protocol
        found = await look(
            self.pump,
            session.end,
            lambda buffer: parse_preface(buffer, mode),
            self._bounds(session),
            what="a PROXY header",
            is_owed=lambda buffer: mode == "required" or buffer.startswith((SIGNATURE_V1, SIGNATURE_V2)),
        )
        if found is None:
            return  # it said nothing yet, or less than the signature: a plain client
        self.pump.consume(session.end, found.consumed)
        named = found.header.client if found.header is not None else None
        if named is None:
            return
        if is_in_any(session.peer.host, session.policy.trusted_proxies):
            session.facts = attrs.evolve(session.facts, client=named, peer=session.peer)
        else:
            session.facts = attrs.evolve(session.facts, claimed=named)

    async def _read_hello(self, session: Session) -> ClientHello | None:
        """Look at the ClientHello and note what it says. None: a plain client of a listener that takes both."""
        mode = session.listener.tls
        self._owes(session)
        try:
            hello = await look(
                self.pump,
                session.end,
                lambda buffer: parse_hello(buffer, mode),
                self._bounds(session),
                what="a ClientHello",
                # A record that has begun is no plain client's: handing half a hello to a plain upstream helps nobody.
                is_owed=lambda buffer: (
                    mode == "required" or (len(buffer) > 1 and may_become_client_hello(buffer))
                ),
            )
        finally:
            self._owing.pop(session.number, None)
        if isinstance(hello, ClientHello):
            name = hello.server_name or session.listener.fallback_sni or None
            session.facts = attrs.evolve(session.facts, server_name=name, alpn=hello.alpn)
            return hello
        return None

    async def _terminate(self, session: Session, hello: ClientHello) -> None:
        """Shake hands under the certificate of the client's name; its own rule for client certificates applies.

        The context is chosen before OpenSSL sees a byte. Swapping it inside OpenSSL's own callback would not apply the
        new context's verify_mode: a client without a certificate would come in (verified on Python 3.11).
        """
        name = session.facts.server_name
        certificate = next(session.snapshot.certificates.candidates(name), None) if name else None
        if certificate is None:
            self.pump.say_last(session.end, UNRECOGNIZED_NAME)
            raise TLSFailed(f"no certificate for {name}" if name else "the client sent no server name")
        self._owes(session)
        try:
            info = await self.pump.handshake(
                session.end,
                certificate.context,
                server_side=True,
                deadline=trio.current_time() + session.policy.handshake_timeout_s,
                is_quick=certificate.signs_quickly and hello.is_quick,
            )
        finally:
            self._owing.pop(session.number, None)
        session.tls_version, session.tls_cipher = info.version, info.cipher
        if certificate.requires_client_certificate:
            assert info.peer_certificate, "OpenSSL lets nobody through without one"
            client_certificate = self.read_certificate(info.peer_certificate)
            session.facts = attrs.evolve(session.facts, client_certificate=client_certificate)

    def _owes(self, session: Session) -> None:
        """Note that the client owes us TLS bytes; see `Policy.max_handshakes`. Whoever calls this takes it back."""
        owing = self._owing
        owing[session.number] = session
        while len(owing) > session.policy.max_handshakes:
            # By number, not by who came here first: Trio runs what was accepted in one turn in any order.
            slowest = owing.pop(min(owing))
            slowest.made_room = True
            self.pump.abort(slowest.end, Reason.KILLED)

    def _bounds(self, session: Session) -> Bounds:
        policy = session.policy
        deadline = session.started_at + policy.preread_timeout_s
        return Bounds(deadline, policy.preread_limit_bytes, policy.preread_timeout_s)

    def _refuse(self, session: Session, raised: SessionError) -> Ending:
        """Say the last words that an error may have for the client. Stands outside the `try` of `run`: it has its own."""
        error = _why_made_room(session.policy) if session.made_room else raised
        try:
            if isinstance(error, Answered):
                self.pump.say_last(session.end, error.words)
            return refusal(error)
        except Exception as bug:  # noqa: BLE001  the boundary, as in `run`
            self.on_bug(session, bug)
            return Ending.by_bug(bug)

    def _leave(self, session: Session, ending: Ending) -> None:
        """Close what is open, forget the session, tell its outcome. What one of these raises keeps none of the others."""
        on_bug = functools.partial(self.on_bug, session)
        # A refused client (no route, no node) sees a plain close, as behind APISIX. A cut one must not look complete.
        reset = ending.reason in _CUT or (isinstance(ending, Refusal) and ending.reset)
        guarded(on_bug, self.pump.close, session.end, reset=reset)
        outcome = _outcome(session, ending)
        del self.live[session.id]
        self.live_by_listener[session.listener.name] -= 1
        meter, totals = session.meter, self.totals
        totals.sessions += 1
        totals.bytes_up += meter.bytes_up
        totals.bytes_down += meter.bytes_down
        totals.by_reason[outcome.reason] += 1
        guarded(on_bug, self.on_left)
        if session.hooks is not None:
            guarded(on_bug, session.hooks.close, outcome, on_bug)
        guarded(on_bug, self.on_outcome, outcome)


def refusal(error: SessionError) -> Refusal:
    """What an error that is expected makes of a session."""
    if isinstance(error, Rejected):
        return Refusal(error.reason, None, str(error), error.fault, error.status, error.reset)
    return Refusal(error.reason, None, str(error), error.fault)


def _limits_of(session: Session, upstream: Upstream) -> Limits:
    idle_s, hooks = upstream.timeouts.idle_s, session.hooks
    up, down = hooks.gates() if hooks is not None else (None, None)
    if up is None and down is None and session.policy.max_duration_s == math.inf:
        return _idle_limit(idle_s)
    return Limits(idle_s, session.started_at + session.policy.max_duration_s, up, down)


@functools.lru_cache(maxsize=64)
def _idle_limit(idle_s: float) -> Limits:
    """Nearly every session has no other: one object for all."""
    return Limits(idle_s)


def _outcome(session: Session, ending: Ending) -> Outcome:
    status = 0
    if isinstance(ending, Refusal):
        fault, status = ending.fault, ending.status
    else:
        fault = _FAULTS.get(ending.reason) or Fault(ending.side or Fault.NONE)
    meter, trail, route = session.meter, session.trail, session.route
    return Outcome(
        session_id=session.id,
        facts=session.facts,
        peer=session.peer,
        reason=ending.reason,
        fault=fault,
        phase=session.phase if meter.connected_at is None else "relay",
        started_at=session.started_unix_s,
        duration_s=trio.current_time() - session.started_at,
        connect_s=None if meter.connected_at is None else meter.connected_at - trail.dialled_at,
        bytes_up=meter.bytes_up,
        bytes_down=meter.bytes_down,
        route_id=route.id if route else "",
        route_name=route.name if route else "",
        service_id=route.service_id if route else "",
        service_name=route.service_name if route else "",
        upstream=session.upstream.key if session.upstream else "",
        node=trail.node,
        attempts=tuple(trail.attempts),
        side=ending.side or "",
        detail=ending.detail,
        revision=session.snapshot.revision,
        tls_version=session.tls_version,
        tls_cipher=session.tls_cipher,
        status=status,
    )


def _why_made_room(policy: Policy) -> TLSFailed:
    return TLSFailed(f"made room for others: {policy.max_handshakes:g} clients owed their bytes")


def _upstream_of(session: Session, route: Route) -> Upstream:
    """Where the session goes: what a plugin chose, else the route's own."""
    if session.hooks is not None and session.hooks.upstream_key:
        return session.snapshot.upstreams[session.hooks.upstream_key]
    if route.upstream is None:
        raise NoUpstream(f"route {route.id} ({route.source}) names no upstream")
    return route.upstream


def _proxy_header(session: Session, upstream: Upstream) -> bytes:
    """What the upstream is told about the client. An upstream's own setting goes before the listener's."""
    version = upstream.proxy_protocol or session.listener.proxy_protocol_to_upstream
    if version == "off":
        return b""
    build = build_v1 if version == "v1" else build_v2
    return build(session.facts.client, session.facts.server)
