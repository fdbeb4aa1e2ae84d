"""What the nodes of one upstream are doing: how many sessions, how quick, up or down, since when.

Mutable, and without a clock of its own: whoever looks gets `now` from the callable that it was made with. It outlives
reloads, so that an edit neither forgets the sessions that a node has nor the answers that it owed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import attrs

from streamgw.core.model import Address, Node

DECAY_S = 10.0
"""A time counts 1/e after this long. nginx's ingress and APISIX have the same."""
FAILURE_S = 1.0
"""What a failed connect counts as: a node that refuses at once is not a quick one."""
MAX_FIRST_BYTE_S = FAILURE_S
"""What an answer counts as, at most: one that takes longer says more of the question (a long poll) than of the node."""
SLOW_START_FLOOR = 0.1
"""The share of its weight that a node begins with."""


@attrs.define(eq=False)
class Average:
    """Of times, exponentially weighted: the longer ago the latest was, the more the next one counts."""

    seconds: float = 0.0
    at: float = -math.inf
    """When the latest was added. Before everything: none was, and the first will be the average."""

    def add(self, seconds: float, now: float) -> None:
        """One more."""
        kept = _kept(now - self.at)
        self.seconds = self.seconds * kept + seconds * (1 - kept)
        self.at = now


@attrs.define(eq=False)
class NodeLoad:
    """One node of one upstream."""

    active: int = 0
    """Sessions that are connecting or relaying."""
    up_since: float = -math.inf
    """When it came up or was added, on the clock of the caller. Before everything, for the nodes of the first day."""
    connects: Average = attrs.Factory(Average)
    first_bytes: Average = attrs.Factory(Average)
    heard_at: float = -math.inf
    """When a session last went there, or learnt how quick it is."""
    answered: int = 0
    """Connects that succeeded."""
    failed: int = 0
    last_error: str = ""
    """For a person: `connection refused`."""


class Lease:
    """One session's place at a node, from before the connect until its end. Counted while it is open.

    Resource handling:
      Whoever took it closes it, or uses it as a context. Closing twice is fine.
    """

    __slots__ = ("_load", "_node")

    def __init__(self, load: UpstreamLoad, node: NodeLoad) -> None:
        self._load = load
        self._node: NodeLoad | None = node
        node.active += 1

    def close(self) -> None:
        """The session has left the node."""
        node, self._node = self._node, None
        if node is not None:
            node.active -= 1
            self._load.on_room()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class UpstreamLoad:
    """The nodes of one upstream, by host and port. Implements `balancer.Load`.

    A node is known from when it is first looked at until it is gone from its upstream and its last session has ended.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._nodes: dict[tuple[str, int], NodeLoad] = {}
        self._places: frozenset[tuple[str, int]] = frozenset()
        """Of the upstream's nodes today."""
        self._down: set[tuple[str, int]] = set()
        self._all_down = False
        self._is_answering = False
        """The first byte of some node was ever seen."""
        self._warm_at: float | None = None
        """When the last slow start is over; None: none is on."""
        self._slow_start_s = 0.0
        self.fails_open = True
        """While every node is down, all are used: rather a check that lies than nobody served (APISIX)."""
        self.on_room: Callable[[], None] = _nobody_waits
        """Told after each session that left: room for another."""

    @property
    def is_all_down(self) -> bool:
        """No node is up, and that counts."""
        return self._all_down and not self.fails_open

    @property
    def slow_start_s(self) -> float:
        """How long a node that came up, or was added, takes to get its whole weight; those that are at it too."""
        return self._slow_start_s

    @slow_start_s.setter
    def slow_start_s(self, seconds: float) -> None:
        if seconds != self._slow_start_s:
            self._slow_start_s = seconds
            self._warm_at = max((each.up_since for each in self._nodes.values()), default=-math.inf) + seconds

    @property
    def is_steady(self) -> bool:
        """Every node is up and has its whole weight: the balancer need not ask about each."""
        if self._warm_at is not None and self._now() >= self._warm_at:
            self._warm_at = None
        return not self._down and self._warm_at is None

    def lease(self, node: Address) -> Lease:
        """Count a session at a node."""
        state = self._of(node)
        state.heard_at = self._now()
        return Lease(self, state)

    def is_up(self, node: Node) -> bool:
        """Whether it may be picked."""
        return (node.host, node.port) not in self._down or (self._all_down and self.fails_open)

    def active(self, node: Node | Address) -> int:
        """Its sessions."""
        return self._of(node).active

    def share(self, node: Node) -> float:
        """Of its weight: 1, or less while it starts slowly."""
        if self.slow_start_s <= 0:
            return 1.0
        age_s = self._now() - self._of(node).up_since
        return 1.0 if age_s >= self.slow_start_s else max(SLOW_START_FLOOR, age_s / self.slow_start_s)

    def latency_s(self, node: Node) -> float:
        """How long it takes, of late, to connect to it and to get its first byte. Sinks towards 0 while no session goes
        there, so that a node that was slow gets another chance.

        One that has sessions and never said a word, where others do, counts as if it had failed: it may hang, and would
        look like the quickest of all.
        """
        state = self._of(node)
        seconds = state.connects.seconds + state.first_bytes.seconds
        if self._is_answering and state.active and state.first_bytes.at == -math.inf:
            seconds += FAILURE_S
        return seconds * _kept(self._now() - state.heard_at)

    def answered(self, node: Address, connect_s: float) -> None:
        """A connect to it succeeded."""
        state = self._of(node)
        state.answered += 1
        state.heard_at = now = self._now()
        state.connects.add(connect_s, now)

    def first_byte(self, node: Address, after_s: float) -> None:
        """A session got its first byte, so long after it could."""
        state = self._of(node)
        self._is_answering = True
        state.heard_at = now = self._now()
        state.first_bytes.add(min(after_s, MAX_FIRST_BYTE_S), now)

    def failed(self, node: Address, error: str) -> None:
        """A connect to it failed."""
        state = self._of(node)
        state.failed += 1
        state.last_error = error
        state.heard_at = now = self._now()
        state.connects.add(FAILURE_S, now)

    def set_up(self, node: Address, is_up: bool) -> bool:
        """Mark a node up or down. Returns whether that is news."""
        place = (node.host, node.port)
        if is_up is (place not in self._down):
            return False
        if is_up:
            self._down.remove(place)
            self._came_up(self._of(node))
        else:
            self._down.add(place)
        self._look_at_down()
        return True

    def keep(self, nodes: Collection[Node]) -> None:
        """These are the upstream's nodes now. One that is new, and not of the first day, starts slowly; one that is gone
        is forgotten with its last session.
        """
        is_first_day, before = not self._places, self._places
        self._places = frozenset((node.host, node.port) for node in nodes)
        for place in [place for place, state in self._nodes.items() if not state.active]:
            if place not in self._places:
                del self._nodes[place]
        self._down &= self._places
        self._look_at_down()
        for node in nodes:
            if not is_first_day and (node.host, node.port) not in before:
                self._came_up(self._of(node))

    def has_sessions(self) -> bool:
        """Any node has."""
        return any(state.active for state in self._nodes.values())

    def _of(self, node: Node | Address) -> NodeLoad:
        place = (node.host, node.port)
        state = self._nodes.get(place)
        if state is None:
            state = self._nodes[place] = NodeLoad()
        return state

    def _look_at_down(self) -> None:
        self._all_down = bool(self._down) and self._down >= self._places

    def _came_up(self, state: NodeLoad) -> None:
        state.up_since = self._now()
        if self.slow_start_s > 0:
            self._warm_at = state.up_since + self.slow_start_s


def _kept(age_s: float) -> float:
    """What is left of a time's weight."""
    return math.exp(-max(0.0, age_s) / DECAY_S)


def _nobody_waits() -> None:
    pass
