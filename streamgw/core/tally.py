"""Counts of how sessions went, for the metrics: plain integers, put into words when somebody asks.

Counting costs about a microsecond per session. Memory is bounded: nodes come and go (a name with ever new addresses), so
what was seen longest ago is added up without its node, at a limit.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import attrs

from streamgw.core.access_log import status_of
from streamgw.core.model import Address, Outcome

MAX_CELLS = 4096
"""Of (listener, reason, status, node). Four time series each, at most."""
CONNECT_BOUNDS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
)
DURATION_BOUNDS_S = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)


@attrs.define
class Cell:
    """Sessions that ended in one way."""

    listener: str
    """`Listener.name`."""
    reason: str
    status: int
    """As in the access log."""
    node: Address | None
    """None: it got to none, or which one is forgotten."""
    sessions: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seen: int = 0
    """The number of the latest session among all."""

    def take_in(self, other: Cell) -> None:
        """Add up both here."""
        self.sessions += other.sessions
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down
        self.seen = max(self.seen, other.seen)


class Histogram:
    """How often a value was at most so much."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Between the bound before and this one; the last is beyond all."""
        self.sum = 0.0

    def count(self, value: float) -> None:
        """One more."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """How sessions went, since the process started."""

    def __init__(self, *, max_cells: int = MAX_CELLS) -> None:
        self._max_cells = max_cells
        self._cells: dict[tuple[str, str, int, Address | None], Cell] = {}
        self._number = 0
        self.connect = Histogram(CONNECT_BOUNDS_S)
        """From the first SYN to the node that answered."""
        self.duration = Histogram(DURATION_BOUNDS_S)

    def count(self, outcome: Outcome) -> None:
        """One session ended."""
        self._number += 1
        listener, status = outcome.facts.listener, status_of(outcome)
        key = (listener, outcome.reason, status, outcome.node)
        cell = self._cells.get(key)
        if cell is None:
            if len(self._cells) >= self._max_cells:
                self._forget()
            new = Cell(listener, str(outcome.reason), status, outcome.node)
            cell = self._cells.setdefault(key, new)  # forgetting may have made this very one
        cell.sessions += 1
        cell.bytes_up += outcome.bytes_up
        cell.bytes_down += outcome.bytes_down
        cell.seen = self._number
        self.duration.count(outcome.duration_s)
        if outcome.connect_s is not None:
            self.connect.count(outcome.connect_s)

    def cells(self) -> tuple[Cell, ...]:
        """As of now: what is counted later does not show in them, and neither does `seen`."""
        return tuple(
            [
                Cell(
                    each.listener,
                    each.reason,
                    each.status,
                    each.node,
                    each.sessions,
                    each.bytes_up,
                    each.bytes_down,
                )
                for each in self._cells.values()
            ]
        )

    def _forget(self) -> None:
        """Let go of the nodes of the older half; their counts stay, under no node."""
        with_node = sorted((cell.seen, key) for key, cell in self._cells.items() if key[3] is not None)
        for _, key in with_node[: len(with_node) // 2 + 1]:
            cell = self._cells.pop(key)
            nobody = self._cells.setdefault((*key[:3], None), Cell(*key[:3], None))
            nobody.take_in(cell)
