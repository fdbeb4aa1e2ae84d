"""What `streamgw top` knows: polls and events in, rows and rates out. Nothing here draws, waits or asks.

Numbers come as the control API gives them: seconds and bytes. `now` is of one clock that only goes forward.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import attrs

CLOSES_KEPT: Final = 200
SESSIONS_KEPT: Final = 5000
"""Of those that the feed told of since the last poll, with those of the poll."""
NODES_KEPT: Final = 1000
_SMOOTHING: Final = 0.6
"""How much of a rate is the latest one: a figure that jumps cannot be read."""
_LEAST_S: Final = 0.5
"""Over less than this nothing is measured: one write would be a flood."""

_TEXTS: Final = ("client", "listener", "route", "node", "phase", "server_name", "tls")
_CLOSE_TEXTS: Final = ("client", "route", "node", "reason", "fault", "detail")

Row = Mapping[str, Any]
Sort = Literal["rate", "age", "up", "down", "client", "route", "node"]
SORTS: Final[tuple[Sort, ...]] = ("rate", "age", "up", "down", "client", "route", "node")


@attrs.frozen
class Measured:
    """How much had flowed by then, and how fast."""

    at: float
    bytes: int
    rate: float


@attrs.frozen
class Session:
    """One live session as it was when it was last heard of."""

    id: str
    client: str
    listener: str
    route: str
    node: str
    phase: str
    server_name: str
    tls: str
    bytes_up: int
    bytes_down: int
    began_at: float
    """On the clock of `now`."""
    measured: Measured

    @property
    def rate(self) -> float:
        """Bytes per second, both ways."""
        return self.measured.rate

    def age_s(self, now: float) -> float:
        """How long it has lived."""
        return max(0.0, now - self.began_at)


@attrs.frozen
class Close:
    """How one session ended."""

    at: float
    """Unix time."""
    client: str
    route: str
    node: str
    reason: str
    fault: str
    detail: str
    duration_s: float
    bytes_up: int
    bytes_down: int


@attrs.frozen
class Group:
    """The sessions of one route or node."""

    name: str
    sessions: int
    rate: float
    failures: int = 0
    """Sessions that ended here through an upstream's fault, as far as was heard."""


@attrs.frozen
class Pace:
    """What changed between the two latest polls, per second."""

    opened: float = 0.0
    bytes_up: float = 0.0
    bytes_down: float = 0.0


class Model:
    """Everything shown, and nothing about how.

    * `total`: how many sessions pass the gateway's filter; `sessions` holds those that were in its answer.
    * `lost`: events that the gateway could not deliver in time.
    """

    def __init__(self) -> None:
        self.status: Row | None = None
        self.pace = Pace()
        self.sessions: dict[str, Session] = {}
        self.total = 0
        self.closes: deque[Close] = deque(maxlen=CLOSES_KEPT)
        self.closed = 0
        self.lost = 0
        self._status_at = 0.0
        self._route_failures: Counter[str] = Counter()
        self._node_failures: Counter[str] = Counter()
        self._ended_meanwhile: set[str] = set()

    # What comes in

    def take_status(self, status: Row, now: float) -> None:
        """An answer of `status`. After a restart of the gateway there is no pace, and no session of before."""
        before, seconds = self.status, now - self._status_at
        if before is not None and _is_another(before, status):
            self.sessions.clear()
            self.pace = Pace()
        elif before is not None and seconds > 0:
            totals, last = status["sessions"], before["sessions"]
            opened, up, down = (
                max(0.0, totals[name] - last[name]) / seconds for name in ("total", "bytes_up", "bytes_down")
            )
            self.pace = Pace(opened, up, down)
        self.status, self._status_at = status, now

    def begin_sessions(self) -> None:
        """Sessions are being asked for: who ends from here on does not come back with the answer."""
        self._ended_meanwhile.clear()

    def take_sessions(self, rows: Iterable[Row], total: int, now: float) -> None:
        """An answer of `sessions`: all that are known from now on."""
        known = self.sessions
        found = (_session(row, known.get(row["id"]), now) for row in rows)
        self.sessions = {each.id: each for each in found if each.id not in self._ended_meanwhile}
        self.total = max(total, len(self.sessions))

    def take_event(self, event: Row, now: float) -> None:
        """An event of the live feed. Kinds that are not known are passed over."""
        match event.get("kind"):
            case "session_opened":
                self._take_open(event, now)
            case "session_closed":
                self._take_close(event)
            case "lost":
                self.lost += int(event["count"])

    def _take_open(self, event: Row, now: float) -> None:
        if event["id"] in self.sessions:
            return
        self.total += 1
        if len(self.sessions) < SESSIONS_KEPT:
            self.sessions[event["id"]] = _session(event, None, now)

    def _take_close(self, event: Row) -> None:
        self._ended_meanwhile.add(event["id"])
        if self.sessions.pop(event["id"], None) is not None:
            self.total -= 1
        client, route, node, reason, fault, detail = (plain(event.get(name)) for name in _CLOSE_TEXTS)
        sizes = event.get("bytes_up", 0), event.get("bytes_down", 0)
        lasted_s = event.get("duration_s", 0.0)
        close = Close(event["at"], client, route, node, reason, fault, detail, lasted_s, *sizes)
        self.closed += 1
        self.closes.appendleft(close)
        if close.fault == "upstream":
            for failures, name in ((self._route_failures, close.route), (self._node_failures, close.node)):
                if name and (name in failures or len(failures) < NODES_KEPT):
                    failures[name] += 1

    # What is shown

    def listed(self, sort: Sort, *, now: float, words: str = "", backwards: bool = False) -> list[Session]:
        """Sessions that contain every word, sorted: figures from the largest, names from A. Equals stay in order."""
        wanted = words.lower().split()
        found = [each for each in self.sessions.values() if _has(each, wanted)]
        found.sort(key=lambda each: each.began_at)
        if sort in {"client", "route", "node"}:
            found.sort(key=lambda each: str(getattr(each, sort)), reverse=backwards)
        else:
            found.sort(key=lambda each: _figure(each, sort, now), reverse=not backwards)
        return found

    def routes(self) -> list[Group]:
        """The busiest first."""
        return _grouped(((each.route, each.rate) for each in self.sessions.values()), self._route_failures)

    def nodes(self) -> list[Group]:
        """The busiest first."""
        return _grouped(((each.node, each.rate) for each in self.sessions.values()), self._node_failures)

    def problems(self) -> Sequence[tuple[str, Sequence[Row]]]:
        """What is wrong with a change that was rejected: of which configuration, and each problem."""
        if self.status is None:
            return []
        named = (("routes", self.status["config"]), ("settings", self.status["settings"]))
        return [(name, reload["problems"]) for name, reload in named if reload["state"] == "rejected"]


def plain(text: object) -> str:
    """For a terminal: a client chooses its server name, and an escape sequence in it would be obeyed."""
    shown = "" if text is None else str(text)
    return shown if shown.isprintable() else "".join(each if each.isprintable() else "�" for each in shown)


def _is_another(before: Row, status: Row) -> bool:
    return bool(before["pid"] != status["pid"] or status["uptime_s"] < before["uptime_s"])


def _session(row: Row, known: Session | None, now: float) -> Session:
    measured = _measure(row["bytes_up"] + row["bytes_down"], known, now)
    return Session(
        id=row["id"],
        **{name: plain(row.get(name)) for name in _TEXTS},
        bytes_up=row["bytes_up"],
        bytes_down=row["bytes_down"],
        began_at=now - row["age_s"],
        measured=measured,
    )


def _measure(count: int, known: Session | None, now: float) -> Measured:
    if known is None:
        return Measured(now, count, 0.0)
    seconds = now - known.measured.at
    if seconds < _LEAST_S:
        return known.measured
    rate = _SMOOTHING * max(0, count - known.measured.bytes) / seconds + (1 - _SMOOTHING) * known.rate
    return Measured(now, count, rate if rate >= 1 else 0.0)


def _has(session: Session, words: Sequence[str]) -> bool:
    if not words:
        return True
    values = (
        session.client,
        session.listener,
        session.route,
        session.node,
        session.phase,
        session.server_name,
    )
    text = " ".join((*values, session.tls, session.id)).lower()
    return all(word in text for word in words)


def _figure(session: Session, sort: Sort, now: float) -> float:
    figures = {
        "rate": session.rate,
        "age": session.age_s(now),
        "up": session.bytes_up,
        "down": session.bytes_down,
    }
    return figures[sort]


def _grouped(pairs: Iterable[tuple[str, float]], failures: Mapping[str, int]) -> list[Group]:
    counts: Counter[str] = Counter()
    rates: Counter[str] = Counter()
    for name, rate in pairs:
        if name:
            counts[name] += 1
            rates[name] += int(rate)
    groups = [Group(name, counts[name], rates[name], failures.get(name, 0)) for name in {*counts, *failures}]
    return sorted(groups, key=lambda group: (-group.sessions, -group.failures, group.name))
