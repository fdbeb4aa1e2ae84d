"""The table of UDP sessions: whose a datagram is, who may begin one, who has to go for another, and when one is over.

A pure machine: no socket, no clock, no task. Every method that needs the time is given `now`, in seconds that never go
back; what ends a session is told to `on_end`. `dataplane/udp.py` is the shell that owns sockets and tasks, and a seeded
simulation (tests/core/sim) drives this module through histories that no network test would hit upon.

Theory of operation. An `Entry` is one session. It is *held by key* (the client's address, and the local one where the
listener has several) until it is *detached*, and counts against three limits until it has ended. It is *fresh* until
it is *assured*: the client has sent again after an answer had come, so its address is not forged and somebody is served.

A datagram of an assured session without special rules costs a dict look-up and three additions, done by the pump in
place (`Entry.send`, `Entry.plain`); everything else comes here.

Longer than other files by its invariants, which belong beside what they are about.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator

import attrs

from streamgw.core.bucket import Gate
from streamgw.core.errors import Reason, Side
from streamgw.core.udp_room import Client, Scope

MAX_QUEUED_BYTES = 16 * 1024 * 1024
"""Held for all sessions that are being opened. `UDPLimits.queue_datagrams` alone would allow a MiB for each of them."""
MAX_RESTING_CLIENTS = 65_536
"""Clients without a session whose rate is remembered. Beyond it the longest without one is forgotten: it may begin
sessions as if it were new."""
SLICE = 512
"""Sessions looked at by `sweep` before others get a turn."""


class Drop(enum.StrEnum):
    """Why a datagram was not passed on. Closed list (docs/life-of-a-udp-session.md)."""

    NO_ROUTE = "no_route"
    NO_UPSTREAM = "no_upstream"
    """The route that matched names no upstream."""
    SESSION_LIMIT = "session_limit"
    """It would have begun a session, the process has as many as it may, and none can go."""
    LISTENER_LIMIT = "listener_limit"
    CLIENT_LIMIT = "client_limit"
    CLIENT_RATE = "client_rate"
    """The client begins sessions too fast."""
    EXHAUSTED = "exhausted"
    """It would have begun a session, and the gateway is out of descriptors."""
    REFUSED = "refused"
    """It would have begun a session, and that of a moment ago came to nothing: a plugin or every node refused the client."""
    LISTENER_GONE = "listener_gone"
    """It would have begun a session on a listener that was removed, or while the gateway drains."""
    QUEUE_FULL = "queue_full"
    """Too many came while the upstream's socket was being opened."""
    UNOPENED = "unopened"
    """Held for a session that could not be opened."""
    AMPLIFICATION = "amplification"
    """An answer that would have been too much for a client that may not have asked."""
    SEND_FAILED = "send_failed"
    """The kernel took it not: no room, or too long."""
    BANDWIDTH = "bandwidth"
    """It came faster than a plugin lets datagrams of its session, or of its key, pass."""


@attrs.frozen
class UDPLimits:
    """How many sessions there may be. Replaced as a whole; live sessions beyond a lower limit stay."""

    max_sessions: float = 10_000
    """Of the whole process."""
    max_sessions_per_listener: float = math.inf
    """`ListenerSessions.max_sessions` goes first."""
    max_sessions_per_client: float = 4096
    """Of one client address, whatever its ports and the listeners it talks to."""
    session_rate_per_client: float = 0.0
    """New sessions per second; as many, and at least one, may come at once. 0: no limit."""
    queue_datagrams: int = 64
    """Held per session while its upstream's socket is being opened. Two turns of the pump, so that a client that begins
    with a burst loses nothing."""


class ListenerSessions:
    """The sessions of one listener.

    Args:
      max_sessions: the listener's own limit; 0: `UDPLimits.max_sessions_per_listener`.
    """

    def __init__(self, max_sessions: int = 0) -> None:
        self.max_sessions = max_sessions
        self.by_key: dict[Hashable, Entry] = {}
        """Those that take new datagrams of their client."""
        self.drops: Counter[Drop] = Counter()
        self.scope: Scope[Entry] = Scope()


@attrs.define(eq=False)
class Entry:
    """One session, as far as the table goes. Written by the table, and by the pump on its fast path."""

    key: Hashable
    client: str
    """Host of the client: whose limit it counts against."""
    home: ListenerSessions
    idle_s: float = math.inf
    ends_at: float = math.inf
    responses: int | None = None
    requests: int = 0
    amplification: float = 0.0
    up: Gate | None = None
    """What datagrams of the client have to pass. Set before it is opened."""
    down: Gate | None = None

    active_at: float = 0.0
    """When the last datagram came, from either side."""
    asked: int = 0
    """Datagrams of the client, taken into the queue or handed to the upstream's socket."""
    answers: int = 0
    """Datagrams of the upstream, passed on or withheld."""
    bytes_up: int = 0
    bytes_down: int = 0
    lost: int = 0
    """Datagrams of the client that were dropped."""
    withheld: int = 0
    """Answers that were not passed on."""

    send: Callable[[memoryview], int] | None = None
    """The pump may hand a datagram of the client to this at once: nothing has to be thought about but the counters."""
    plain: bool = False
    """The pump may pass an answer on at once, likewise."""
    sender: Callable[[memoryview], int] | None = None
    """What `send` is whenever it is not None: send(2) of the upstream's socket."""
    send_parts: Callable[[tuple[memoryview], list[tuple[int, int, bytes]]], int] | None = None
    """sendmsg(2) of the upstream's socket, once there is one."""
    queue: list[bytes] | None = attrs.Factory(list)
    """What came before the upstream's socket was there; None once it is."""

    assured: bool = False
    detached: bool = False
    """No longer held by key: the client's next datagram is another session's."""
    stale: bool = False
    """Its node is gone: to be detached by the client's next datagram."""
    reason: Reason | None = None
    """Why it ended; None: it lives."""
    side: Side | None = None
    detail: str = ""
    scopes: tuple[Scope[Entry], ...] = ()

    @property
    def datagrams_up(self) -> int:
        """Handed to the upstream's socket."""
        return self.asked - len(self.queue or ())

    @property
    def datagrams_down(self) -> int:
        """Handed to the listener's socket."""
        return self.answers - self.withheld

    @property
    def is_done(self) -> bool:
        """It has had every answer that its rule asks for, and (nginx) as many datagrams of the client as it waits for."""
        return (
            self.responses is not None
            and self.queue is None
            and self.asked + self.lost > 0
            and self.answers >= self.asked * self.responses
            and (self.detached or not self.requests)
        )


class Table:
    """Every UDP session of a process.

    Args:
      on_end: told once of each entry that ends, after the table has forgotten it. Must not raise.
    """

    def __init__(self, limits: UDPLimits, on_end: Callable[[Entry], None]) -> None:
        self.limits = limits
        self.queued_bytes = 0
        self._on_end = on_end
        self._all: Scope[Entry] = Scope()
        self._clients: dict[str, Client[Entry]] = {}
        """Those with sessions."""
        self._resting: OrderedDict[str, Client[Entry]] = OrderedDict()
        """Those without, whose rate is remembered: whoever tried last is the last."""

    def __len__(self) -> int:
        return len(self._all)

    # Beginning

    def admit(self, listener: ListenerSessions, client: str, size: int, now: float) -> Drop | None:
        """Make room for a session that begins with this datagram, by evicting one if need be. None: `add` it."""
        limits = self.limits
        if self.queued_bytes + size > MAX_QUEUED_BYTES:
            return Drop.QUEUE_FULL
        if limits.session_rate_per_client and not self._takes_token(client, now):
            return Drop.CLIENT_RATE
        own = self._clients.get(client)
        if (
            own is not None
            and own.scope.size >= limits.max_sessions_per_client
            and not self._evict(own.scope, now)
        ):
            return Drop.CLIENT_LIMIT
        scope = listener.scope
        most = listener.max_sessions or limits.max_sessions_per_listener
        if scope.size >= most and not self._evict(scope, now):
            return Drop.LISTENER_LIMIT
        if self._all.size >= limits.max_sessions and not self._evict(self._all, now):
            return Drop.SESSION_LIMIT
        return None

    def add(self, entry: Entry, now: float) -> None:
        """Hold a new session by its key. Its first datagram has yet to be accepted."""
        assert entry.key not in entry.home.by_key, "one session by one key"
        client = self._clients.get(entry.client)
        if client is None:
            client = self._clients[entry.client] = self._rested(entry.client)
        entry.active_at = now
        entry.home.by_key[entry.key] = entry
        entry.scopes = (self._all, entry.home.scope, client.scope)
        for scope in entry.scopes:
            scope.add(entry)

    def opened(self, entry: Entry, sender: Callable[[memoryview], int] | None, now: float) -> None:
        """The upstream's socket is there, and nothing is queued any more.

        Without a sender every datagram has to be thought about: a PROXY header goes before it.
        """
        assert not entry.queue, "nothing overtakes the queue"
        assert not entry.answers, "nobody could answer, so nobody is assured: no fast path yet"
        entry.queue = None
        entry.active_at = now
        entry.sender = sender
        self.settle(entry)

    def may_send(self, entry: Entry, sender: Callable[[memoryview], int]) -> None:
        """Nothing stands before the client's datagrams any more: they may go straight to the socket."""
        entry.sender = sender
        self._refresh(entry)

    # Datagrams that need a thought

    def accept(self, entry: Entry, size: int, now: float) -> bool:
        """Count a datagram of the client. False: it is not this session's, begin another one."""
        if entry.stale:
            self._leave(entry)
            return False
        entry.active_at = now
        entry.asked += 1
        entry.bytes_up += size
        if not entry.assured and entry.answers > entry.withheld:
            self._assure(entry)
        if entry.requests and entry.asked >= entry.requests:
            self._detach(entry)
        return True

    def hold(self, entry: Entry, payload: bytes) -> bool:
        """Keep an accepted datagram until the upstream's socket is there. False: it was dropped."""
        queue = entry.queue
        assert queue is not None, "it is open"
        if len(queue) >= self.limits.queue_datagrams or self.queued_bytes + len(payload) > MAX_QUEUED_BYTES:
            self.lose(entry, len(payload), Drop.QUEUE_FULL)
            return False
        queue.append(payload)
        self.queued_bytes += len(payload)
        return True

    def unqueue(self, entry: Entry) -> Iterator[bytes]:
        """Take what is queued, first come first, until the session ends."""
        while entry.queue:
            payload = entry.queue.pop(0)
            self.queued_bytes -= len(payload)
            yield payload

    def take_back(self, entry: Entry, size: int) -> None:
        """An accepted datagram of the client could not be handed on: nobody will answer it."""
        entry.asked -= 1
        entry.bytes_up -= size

    def lose(self, entry: Entry, size: int, drop: Drop) -> None:
        """The same, and it goes nowhere else."""
        self.take_back(entry, size)
        self.drop(entry, drop)

    def drop(self, entry: Entry, drop: Drop) -> None:
        """Count a datagram of the client that goes nowhere."""
        entry.lost += 1
        entry.home.drops[drop] += 1

    def lets_pass(self, entry: Entry, size: int, now: float) -> bool:
        """Whether an accepted datagram of the client may go to the upstream now. False: it was dropped."""
        if entry.up is None or entry.up.lets_pass(size, now):
            return True
        self.lose(entry, size, Drop.BANDWIDTH)
        return False

    def answer(self, entry: Entry, size: int, now: float) -> bool:
        """Count a datagram of the upstream. False: the client must not get it."""
        entry.active_at = now
        entry.answers += 1
        entry.bytes_down += size
        if (
            entry.amplification
            and not entry.assured
            and entry.bytes_down > entry.amplification * entry.bytes_up
        ):
            self.withhold(entry, size, Drop.AMPLIFICATION)
            return False
        if entry.down is not None and not entry.down.lets_pass(size, now):
            self.withhold(entry, size, Drop.BANDWIDTH)
            return False
        if entry.responses is None:
            self._refresh(entry)
        return True

    def withhold(self, entry: Entry, size: int, drop: Drop) -> None:
        """A counted answer did not go to the client."""
        entry.bytes_down -= size
        entry.withheld += 1
        entry.home.drops[drop] += 1

    def settle(self, entry: Entry) -> None:
        """End a session that has nothing left to wait for."""
        if entry.responses is not None and entry.is_done:
            self.end(entry, Reason.MOVED if entry.stale and entry.detached else Reason.CLOSED)

    # Ending

    def part_from_node(self, entry: Entry) -> None:
        """Its node is gone: the client's next datagram begins another session."""
        if entry.reason is None:
            entry.stale = True
            self._refresh(entry)

    def end(self, entry: Entry, reason: Reason, side: Side | None = None, detail: str = "") -> None:
        """Forget a session. Does nothing to one that has ended."""
        if entry.reason is not None:
            return
        entry.reason, entry.side, entry.detail = reason, side, detail
        entry.send, entry.plain = None, False
        self._detach(entry)
        for scope in entry.scopes:
            scope.discard(entry)
        client = self._clients[entry.client]
        if not client.scope.size:
            del self._clients[entry.client]
            if self.limits.session_rate_per_client:
                self._rest(entry.client, client)
        if entry.queue:
            for payload in self.unqueue(entry):
                self.lose(entry, len(payload), Drop.UNOPENED)
        self._on_end(entry)

    def sweep(self, clock: Callable[[], float]) -> Iterator[None]:
        """Look at every session once, and end those that lasted or idled for too long. Yields after every `SLICE`."""
        entries = tuple(self._all)
        for start in range(0, len(entries), SLICE):
            now = clock()
            for entry in entries[start : start + SLICE]:
                if now >= entry.ends_at:
                    self.end(entry, Reason.MAX_DURATION)
                elif now - entry.active_at >= entry.idle_s:
                    self.end(entry, Reason.IDLE_TIMEOUT)
            yield
        self._forget_rested(clock())

    @property
    def is_empty(self) -> bool:
        """`sweep` has nothing to do."""
        return not (len(self._all) or self._resting)

    # Inside

    def _evict(self, scope: Scope[Entry], now: float) -> bool:
        """Make room in a scope that is full. False: nobody there has to give way."""
        victim = scope.victim(now)
        if victim is None:
            return False
        self.end(victim, Reason.EVICTED)
        return True

    def _assure(self, entry: Entry) -> None:
        for scope in entry.scopes:
            scope.assure(entry)
        entry.assured = True
        self._refresh(entry)

    def _leave(self, entry: Entry) -> None:
        """The client goes on in another session; this one stays while it is owed answers."""
        self._detach(entry)
        owed = entry.queue is not None or (entry.responses is not None and not entry.is_done)
        if not owed:
            self.end(entry, Reason.MOVED)

    def _detach(self, entry: Entry) -> None:
        if not entry.detached:
            entry.detached = True
            del entry.home.by_key[entry.key]

    def _refresh(self, entry: Entry) -> None:
        """Decide anew whether the pump may take its fast path, each way."""
        may_send = entry.assured and entry.up is None and not (entry.requests or entry.stale)
        entry.send = entry.sender if may_send else None
        entry.plain = (
            entry.answers > 0
            and entry.responses is None
            and entry.down is None
            and (entry.assured or not entry.amplification)
        )

    def _takes_token(self, host: str, now: float) -> bool:
        client = self._clients.get(host)
        if client is None:
            client = self._rested(host)
            self._rest(host, client)
        return client.takes_token(self.limits.session_rate_per_client, now)

    def _rested(self, host: str) -> Client[Entry]:
        return self._resting.pop(host) if host in self._resting else Client()

    def _rest(self, host: str, client: Client[Entry]) -> None:
        self._resting[host] = client
        if len(self._resting) > MAX_RESTING_CLIENTS:
            self._resting.popitem(last=False)

    def _forget_rested(self, now: float) -> None:
        """Clients that may begin as many sessions at once as a new one are new ones."""
        rate = self.limits.session_rate_per_client
        while self._resting:
            host, client = next(iter(self._resting.items()))
            if rate and now - client.counted_at < max(1.0, 1 / rate):
                return
            del self._resting[host]

    def check_invariants(self, listeners: Collection[ListenerSessions]) -> None:
        """Assert everything that must hold between two calls. For the simulation: it looks at every session.

        Args:
          listeners: all whose sessions are in this table.
        """
        scopes = [
            self._all,
            *(each.scope for each in listeners),
            *(each.scope for each in self._clients.values()),
        ]
        for scope in scopes:
            assert scope.size == len(scope.fresh.members) + len(scope.assured.members), (
                "who is there is counted"
            )
        members = [set(self._all.fresh.members), set(self._all.assured.members)]
        for entry in self._all:
            assert entry.reason is None, "who has ended is forgotten"
            assert entry in members[entry.assured], "fresh or assured, in the group of its kind"
            assert not entry.assured or entry.answers, "nobody is assured without an answer"
            held = entry.home.by_key.get(entry.key) is entry
            assert held is not entry.detached, "held by key until detached"
            assert entry.datagrams_up >= 0, "no more is queued than was asked"
            assert 0 <= entry.withheld <= entry.answers, "only answers are withheld"
            assert entry.send is None or entry.queue is None, "nothing overtakes the queue"
            assert entry.send is None or not (entry.stale or entry.detached), "who must be looked at is"
            assert entry.bytes_up >= 0 <= entry.bytes_down, "what is taken back was counted"
        assert sum(len(each.by_key) for each in listeners) == sum(
            not entry.detached for entry in self._all
        ), "who is held by key lives"
        for kind in ("fresh", "assured"):
            counted = Counter(entry for scope in scopes for entry in getattr(scope, kind).members)
            assert set(counted.values()) <= {3}, "in the process, in its listener, with its client"
        assert all(len(client.scope) for client in self._clients.values()), "who has no session rests"
        assert not self._clients.keys() & self._resting.keys(), "who rests has no session"
        assert len(self._resting) <= MAX_RESTING_CLIENTS, "what is remembered is bounded"
        queued = sum(len(payload) for entry in self._all for payload in entry.queue or ())
        assert self.queued_bytes == queued <= MAX_QUEUED_BYTES, "what is queued is counted and bounded"
