"""Room for UDP sessions: who shares a limit, who gives way when it is met, who begins too many, who was refused where.

The parts of `udp_sessions.Table` that know nothing of datagrams. Pure, like the table: the time is an argument.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from streamgw.core.model import Address

EVICTABLE_AFTER_S = 10.0
"""An assured session gives way to a new one only when it has been idle for this long."""
REFUSED_FOR_S = 5.0
"""How long a client is kept from a node that refused its datagrams, while others exist."""
PAUSE_S = 1.0
"""How long a client begins no session at an upstream all of whose nodes refused it. A client that sends on and on would
make a session, and lines in two logs, of each datagram."""
MAX_REFUSALS = 4096


class Member(Protocol):
    """What a scope asks of a session."""

    active_at: float
    """Only ever grows."""
    assured: bool
    """Changed by `Scope.assure` only."""


M = TypeVar("M", bound=Member)
K = TypeVar("K")
_active_at = operator.attrgetter("active_at")


class Group(Generic[M]):
    """Sessions of one kind, and which of them has been silent longest: exact, and free for those that are not asked.

    The order is not kept up to date, which would cost every datagram: it is found when somebody has to go, for some at
    a time. A session that was active since is skipped. What remains is right, because activity only ever moves a session
    away from the front, and who comes later comes behind.
    """

    __slots__ = ("_oldest", "members")

    def __init__(self) -> None:
        self.members: dict[M, None] = {}
        self._oldest: list[tuple[float, weakref.ref[M]]] | None = None
        """The oldest last. Weak: it is looked at when a limit is met, and must not keep ended sessions until then."""

    def least_active(self) -> M | None:
        """Who has been silent longest; None: there is nobody."""
        if self._oldest is None:
            self._oldest = []
        oldest = self._oldest
        for _ in range(2):
            while oldest:
                active_at, reference = oldest[-1]
                entry = reference()
                if entry is not None and entry in self.members and entry.active_at == active_at:
                    return entry
                oldest.pop()
            # Nearly sorted already (the dict is in order of arrival), so about linear, and that for a sixteenth.
            some = sorted(self.members, key=_active_at)[: max(64, len(self.members) // 16)]
            oldest.extend((entry.active_at, weakref.ref(entry)) for entry in reversed(some))
        return None


class Scope(Generic[M]):
    """Sessions that share a limit."""

    __slots__ = ("assured", "fresh", "size")

    def __init__(self) -> None:
        self.fresh, self.assured = Group[M](), Group[M]()
        self.size = 0
        """How many there are: read for each session that begins, and cheaper than `len()`."""

    def __len__(self) -> int:
        return self.size

    def add(self, entry: M) -> None:
        """A session begins."""
        self.fresh.members[entry] = None
        self.size += 1

    def assure(self, entry: M) -> None:
        """A session is worth more from now on; `Member.assured` is about to say so."""
        del self.fresh.members[entry]
        self.assured.members[entry] = None

    def discard(self, entry: M) -> None:
        """A session has ended."""
        del (self.assured if entry.assured else self.fresh).members[entry]
        self.size -= 1

    def __iter__(self) -> Iterator[M]:
        yield from self.fresh.members
        yield from self.assured.members

    def victim(self, now: float) -> M | None:
        """Who gives way to a new session: the fresh one silent longest, or else an assured one that has been idle.

        A flood of senders that never answer evicts itself, and nobody who is served.
        """
        fresh = self.fresh.least_active()
        if fresh is not None:
            return fresh
        assured = self.assured.least_active()
        if assured is not None and now - assured.active_at >= EVICTABLE_AFTER_S:
            return assured
        return None


class Client(Generic[M]):
    """One client address: its sessions, and a token bucket for new ones."""

    __slots__ = ("counted_at", "scope", "tokens")

    def __init__(self) -> None:
        self.scope = Scope[M]()
        self.tokens = math.inf
        self.counted_at = 0.0

    def takes_token(self, rate: float, now: float) -> bool:
        """Count a new session, if `rate` a second allows for it."""
        self.tokens = min(max(1.0, rate), self.tokens + (now - self.counted_at) * rate)
        self.counted_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Refusals:
    """Which nodes refused whose datagrams a moment ago. Bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[str, Address], float] = OrderedDict()
        self._pausing: OrderedDict[tuple[str | Address, str], float] = OrderedDict()
        """By client and what is of no use to him: his host and an upstream's key, or his address and a route's id."""

    def __len__(self) -> int:
        return len(self._until)

    def add(self, client: str, node: Address, now: float) -> None:
        """A node refused a datagram of this client (its host)."""
        _remember(self._until, (client, node), now + REFUSED_FOR_S)

    def pause(self, client: str | Address, what: str, now: float) -> None:
        """Another session would end as this client's latest did, before it began.

        Args:
          client: his host, if it is for want of a node; else his address, which says more: a limit counts others, too.
          what: the key of the upstream that has no node for him; else the id of the route.
          now: as everywhere.
        """
        _remember(self._pausing, (client, what), now + PAUSE_S)

    def holds(self, client: str, node: Address, now: float) -> bool:
        """Whether this client had better go elsewhere."""
        return bool(self._until) and now < self._until.get((client, node), -math.inf)

    def is_pausing(self, client: str | Address, what: str, now: float) -> bool:
        """Whether a session is of no use to this client, for the moment."""
        return bool(self._pausing) and now < self._pausing.get((client, what), -math.inf)

    @property
    def anybody_is_pausing(self) -> bool:
        """Or was, a moment ago: else there is no need to ask about a client."""
        return bool(self._pausing)


def _remember(times: OrderedDict[K, float], key: K, until: float) -> None:
    times[key] = until
    times.move_to_end(key)
    if len(times) > MAX_REFUSALS:
        times.popitem(last=False)
