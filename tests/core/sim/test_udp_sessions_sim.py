"""The table of UDP sessions through random histories, with faults, against a model that keeps everything simple.

A history is a seed. Clients send, nodes answer and refuse, sockets fail, sessions are killed, listeners go, nodes are
taken out, limits change, time passes. After every step the invariants are checked, and what the model knows: which
datagram went where. A failing seed is printed; `STREAMGW_SEED=… pytest tests/core/sim` replays it, and
`make sim SEEDS=5000` runs so many.
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable

import attrs
import pytest

from streamgw.core import udp_room, udp_sessions
from streamgw.core.errors import Reason
from streamgw.core.udp_sessions import Drop, Entry, ListenerSessions, Table, UDPLimits

SEEDS = int(os.environ.get("STREAMGW_SEEDS", "2000"))
STEPS = 150
RULES: tuple[dict[str, object], ...] = (
    {},
    {"idle_s": 3.0},
    {"responses": 0},
    {"responses": 1},
    {"responses": 2, "idle_s": 2.0},
    {"requests": 1},
    {"requests": 3, "responses": 1},
    {"requests": 2, "responses": 0},
    {"amplification": 2.0},
    {"amplification": 0.5, "responses": 1, "idle_s": 5.0},
)


@attrs.define(eq=False)
class Socket:
    """An upstream's socket, seen from the node: what it got, and what it was told to do."""

    takes: bool = True
    got: list[bytes] = attrs.Factory(list)

    def send(self, payload: memoryview) -> int:
        if not self.takes:
            raise BlockingIOError
        self.got.append(bytes(payload))
        return len(payload)


@attrs.define(eq=False, slots=False)
class Session(Entry):
    """With what only the simulation knows."""

    socket: Socket = attrs.Factory(Socket)
    opened: bool = False
    sent: list[bytes] = attrs.Factory(list)
    """What its client gave it, in order; without what was lost."""
    answered: int = 0
    """Answers that came to the client."""
    refused: int = 0
    """Answers that were kept from him."""
    parted: bool = False
    """Its node is gone."""

    @property
    def has_had_all(self) -> bool:
        """What its rules say of an open session, in words of its own."""
        if self.responses is None or not self.opened:
            return False
        asked = len(self.socket.got)
        waits_for_more = self.requests and not self.detached
        return self.answered + self.refused >= asked * self.responses and not waits_for_more


class History:
    """One random history. The shell is in here too, as small as it can be."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.limits = self._some_limits()
        self.table = Table(self.limits, self._on_end)
        self.listeners = [ListenerSessions(rng.choice([0, 0, 3])) for _ in range(2)]
        self.rules = [rng.choice(RULES) for _ in self.listeners]
        self.live: list[Session] = []
        self.ended: list[Entry] = []
        self.numbers = 0
        self.dropped: defaultdict[ListenerSessions, Counter[Drop]] = defaultdict(Counter)
        """What the model saw being dropped."""
        self.drains = False
        self.limits_met = True
        """No limit was lowered since."""

    def _some_limits(self) -> UDPLimits:
        rng = self.rng
        return UDPLimits(
            max_sessions=rng.choice([1, 4, 10]),
            max_sessions_per_listener=rng.choice([1, 3, 100]),
            max_sessions_per_client=rng.choice([1, 3, 100]),
            session_rate_per_client=rng.choice([0.0, 0.0, 0.5, 5.0]),
            queue_datagrams=rng.choice([1, 3]),
        )

    def _on_end(self, entry: Entry) -> None:
        assert isinstance(entry, Session)
        assert entry not in self.ended, "an end is told once"
        self.ended.append(entry)
        self.live.remove(entry)
        assert entry.reason is not Reason.CLOSED or entry.has_had_all, "nobody is closed before time"
        assert entry.reason is not Reason.MOVED or entry.parted or self.drains
        if not entry.opened:
            self.dropped[entry.home] += Counter({Drop.UNOPENED: len(entry.sent)})

    def run(self) -> None:
        steps: tuple[tuple[Callable[[], None], int], ...] = (
            (self.client_sends, 40),
            (self.socket_opens, 20),
            (self.node_answers, 30),
            (self.time_passes, 20),
            (self.sweep, 5),
            (self.socket_fills, 3),
            (self.node_refuses, 2),
            (self.opening_fails, 2),
            (self.operator_kills, 1),
            (self.node_is_taken_out, 2),
            (self.limits_change, 1),
            (self.gateway_drains, 1),
        )
        functions, weights = zip(*steps, strict=True)
        for step in self.rng.choices(functions, weights, k=STEPS):
            step()
            self.check()
        for session in tuple(self.live):
            self.table.end(session, Reason.DRAIN)
        self.check()
        assert len(self.table) == 0

    def check(self) -> None:
        self.table.check_invariants(self.listeners)
        assert len(self.live) == len(self.table)
        if self.limits_met:
            assert len(self.live) <= self.limits.max_sessions
            per_client = Counter(session.client for session in self.live)
            assert all(count <= self.limits.max_sessions_per_client for count in per_client.values())
        for listener in self.listeners:
            assert listener.drops == self.dropped[listener], "every drop has its reason, and is counted once"
            own = listener.max_sessions or self.limits.max_sessions_per_listener
            assert not self.limits_met or sum(each.home is listener for each in self.live) <= own
        for session in self.live:
            assert session.datagrams_up == len(session.socket.got)
            assert session.bytes_up == sum(map(len, session.sent))
            assert session.datagrams_down == session.answered
            held = [*session.socket.got, *(session.queue or ())]
            assert held == session.sent, "complete and in order, in the socket or behind it in the queue"
            numbers = [int(payload.split()[0]) for payload in held]
            assert numbers == sorted(numbers), "first come, first served"
            assert not session.has_had_all, "who has had everything has ended"

    def one(self, *, opened: bool) -> Session | None:
        some = [session for session in self.live if session.opened is opened]
        return self.rng.choice(some) if some else None

    # What happens

    def client_sends(self) -> None:
        rng = self.rng
        listener = rng.choice(self.listeners)
        host = f"192.0.2.{rng.randrange(4)}"
        key = (host, rng.randrange(3))
        self.numbers += 1
        payload = b"%d from %s " % (self.numbers, repr(key).encode()) + bytes(rng.choice([0, 0, 100]))
        entry = listener.by_key.get(key)
        if entry is not None:
            assert isinstance(entry, Session)
            assert entry.key == key, "no datagram goes to another client's session"
            if self._to(entry, payload):
                return
        self._begin(listener, key, host, payload)

    def _to(self, session: Session, payload: bytes) -> bool:
        """As the pump and its keeper do it."""
        if session.send is not None:
            session.active_at = self.now
            session.asked += 1
            session.bytes_up += len(payload)
        elif not self.table.accept(session, len(payload), self.now):
            assert session.parted, "only a session whose node is gone leaves its client"
            return False
        assert not session.parted, "nothing more is sent to a node that is gone"
        if session.queue is not None:
            if self.table.hold(session, payload):
                session.sent.append(payload)
            else:
                self.dropped[session.home][Drop.QUEUE_FULL] += 1
            return True
        self._hand_over(session, payload)
        self.table.settle(session)
        return True

    def _hand_over(self, session: Session, payload: bytes) -> None:
        try:
            (session.send or session.socket.send)(memoryview(payload))
        except BlockingIOError:
            self.table.lose(session, len(payload), Drop.SEND_FAILED)
            self.dropped[session.home][Drop.SEND_FAILED] += 1
        else:
            session.sent.append(payload)

    def _begin(self, listener: ListenerSessions, key: tuple[str, int], host: str, payload: bytes) -> None:
        before, expected = len(self.ended), self._who_gives_way(listener, host)
        drop = self.table.admit(listener, host, len(payload), self.now)
        went = self.ended[before:]
        assert drop is not None or [each.active_at for each in went] == expected, (
            "nobody else goes, and nobody for nothing"
        )
        if drop is not None:
            self.dropped[listener][drop] += 1
            listener.drops[drop] += 1
            return
        rules = self.rules[self.listeners.index(listener)]
        session = Session(key=key, client=host, home=listener, ends_at=self.now + 60, **rules)
        self.live.append(session)
        self.table.add(session, self.now)
        if self.rng.random() < 0.5:  # at once, before the datagram that begins it
            session.opened = True
            self.table.opened(session, self.rng.choice([session.socket.send, None]), self.now)
        assert self._to(session, payload)

    def _who_gives_way(self, listener: ListenerSessions, host: str) -> list[float]:
        """When those were last active who have to go, by the rule, the slow way."""
        limits, left, gone = self.limits, list(self.live), []
        for limit, shares in (
            (limits.max_sessions_per_client, lambda each: each.client == host),
            (listener.max_sessions or limits.max_sessions_per_listener, lambda each: each.home is listener),
            (limits.max_sessions, lambda _: True),
        ):
            members = [each for each in left if shares(each)]
            if len(members) < limit:
                continue
            idle = [each for each in members if self.now - each.active_at >= udp_room.EVICTABLE_AFTER_S]
            candidates = [each for each in members if not each.assured] or idle
            if not candidates:
                break  # the new one is turned away
            victim = min(candidates, key=lambda each: each.active_at)
            left.remove(victim)
            gone.append(victim.active_at)
        return gone

    def socket_opens(self) -> None:
        session = self.one(opened=False)
        if session is None:
            return
        session.opened = True
        queued = list(session.queue or ())
        session.sent = []
        for payload in self.table.unqueue(session):
            self._hand_over(session, payload)
        assert len(session.sent) <= len(queued)
        self.table.opened(session, self.rng.choice([session.socket.send, None]), self.now)

    def node_answers(self) -> None:
        session = self.one(opened=True)
        if session is None:
            return
        size = self.rng.choice([0, 10, 300])
        if session.plain:
            session.active_at = self.now
            session.answers += 1
            session.bytes_down += size
            session.answered += 1
            return
        allowed = session.amplification * session.bytes_up
        owes = session.amplification and not session.assured
        if self.table.answer(session, size, self.now):
            session.answered += 1
            assert not owes or session.bytes_down <= allowed, "nobody gets more than he may"
        else:
            self.dropped[session.home][Drop.AMPLIFICATION] += 1
            session.refused += 1
        self.table.settle(session)

    def time_passes(self) -> None:
        self.now += self.rng.choice([0.0, 0.01, 0.5, 2.0, 11.0])

    def sweep(self) -> None:
        for _ in self.table.sweep(lambda: self.now):
            self.check()
        late = [
            each for each in self.live if self.now - each.active_at >= each.idle_s or self.now >= each.ends_at
        ]
        assert not late

    def socket_fills(self) -> None:
        session = self.one(opened=True)
        if session is not None:
            session.socket.takes = not session.socket.takes

    def node_refuses(self) -> None:
        session = self.one(opened=True)
        if session is not None:
            self.table.end(session, Reason.CONNECT_FAILED, "upstream", "connection refused")

    def opening_fails(self) -> None:
        session = self.one(opened=False)
        if session is not None:
            self.table.end(session, self.rng.choice([Reason.NO_NODE, Reason.EXHAUSTED]))

    def operator_kills(self) -> None:
        session = self.one(opened=True)
        if session is not None:
            self.table.end(session, Reason.KILLED)
            self.table.end(session, Reason.DRAIN)
            assert session.reason is Reason.KILLED

    def node_is_taken_out(self) -> None:
        for session in self.live:
            if session.opened and self.rng.random() < 0.5:
                session.parted = True
                self.table.part_from_node(session)

    def limits_change(self) -> None:
        self.limits = self.table.limits = self._some_limits()
        self.limits_met = False

    def gateway_drains(self) -> None:
        if self.rng.random() < 0.2:
            listener = self.rng.choice(self.listeners)
            self.drains = True
            for session in tuple(listener.scope):
                self.table.end(session, Reason.MOVED)
            self.drains = False


def play(seed: int) -> History:
    history = History(seed)
    try:
        history.run()
    except Exception as error:
        error.add_note(f"replay with STREAMGW_SEED={seed}")
        raise
    return history


@pytest.mark.parametrize("first", range(0, SEEDS, 500))
def test_no_history_breaks_the_table(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_sessions, "SLICE", 3)
    monkeypatch.setattr(udp_sessions, "MAX_RESTING_CLIENTS", 2)
    monkeypatch.setattr(udp_sessions, "MAX_QUEUED_BYTES", 500)
    replay = os.environ.get("STREAMGW_SEED")
    for seed in [int(replay)] if replay else range(first, min(first + 500, SEEDS)):
        play(seed)


def test_histories_get_everywhere() -> None:
    """A simulation that never meets a limit proves nothing about it."""
    histories = [play(seed) for seed in range(300)]
    reasons = {entry.reason for history in histories for entry in history.ended}
    drops = {drop for history in histories for counts in history.dropped.values() for drop in counts}

    assert reasons >= {
        *(Reason.CLOSED, Reason.IDLE_TIMEOUT, Reason.MAX_DURATION, Reason.EVICTED, Reason.MOVED),
        *(Reason.KILLED, Reason.CONNECT_FAILED, Reason.NO_NODE, Reason.EXHAUSTED, Reason.DRAIN),
    }
    assert drops >= {
        *(Drop.SESSION_LIMIT, Drop.LISTENER_LIMIT, Drop.CLIENT_LIMIT, Drop.CLIENT_RATE),
        *(Drop.QUEUE_FULL, Drop.UNOPENED, Drop.AMPLIFICATION, Drop.SEND_FAILED),
    }
