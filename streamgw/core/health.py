"""Which nodes of an upstream are up: results of probes and of sessions go in, changes come out.

No clock and no sockets of its own: whoever reports, and whoever lets time pass (`tick`), gives `now`. It outlives
reloads: an edit of an upstream makes no sick node healthy.

Four states, as in APISIX. `healthy` and `mostly_healthy` (it failed of late, not often enough) are up,
`mostly_unhealthy` (it succeeded of late, not often enough) and `unhealthy` are down. A node begins healthy.

Probes and sessions are counted apart. If they shared counters, as in APISIX, an upstream whose sessions connect all the
time would never see that its status page has been answering 503.

Source:
  lua-resty-healthcheck `lib/resty/healthcheck.lua` (`incr_counter`), which APISIX uses.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterator, Mapping

import attrs

from streamgw.core.model import Address
from streamgw.core.probe import Checks, Finding, Result, Thresholds

MAX_COOL_DOWNS = 10
"""A node that fails again right after its cool-down waits twice as long; at most this many times as long."""


class Status(enum.StrEnum):
    """APISIX's words."""

    HEALTHY = "healthy"
    MOSTLY_HEALTHY = "mostly_healthy"
    MOSTLY_UNHEALTHY = "mostly_unhealthy"
    UNHEALTHY = "unhealthy"


_UP = frozenset({Status.HEALTHY, Status.MOSTLY_HEALTHY})


@attrs.define
class Counts:
    """Results in a row."""

    successes: int = 0
    tcp_failures: int = 0
    timeouts: int = 0
    http_failures: int = 0

    @property
    def failures(self) -> int:
        """Of any kind."""
        return self.tcp_failures + self.timeouts + self.http_failures


@attrs.define(eq=False)
class NodeHealth:
    """One node."""

    status: Status = Status.HEALTHY
    probes: Counts = attrs.Factory(Counts)
    sessions: Counts = attrs.Factory(Counts)
    why: str = ""
    """It failed, the last time."""
    tried_at: float = math.inf
    """When it is taken back without a probe."""
    relapses: int = 0
    """Cool-downs in a row that did not help."""
    failed_in_a_row: int = 0
    """Connects, while it was up."""
    ejected_until: float = -math.inf
    is_ejected: bool = False
    ejections: int = 0

    @property
    def is_up(self) -> bool:
        """Whether sessions go there."""
        return self.status in _UP and not self.is_ejected

    @property
    def is_spotless(self) -> bool:
        """A session that is connected to it changes nothing."""
        return self.status is Status.HEALTHY and not self.failed_in_a_row and not self.is_ejected


@attrs.frozen
class Change:
    """A node is in another state."""

    node: Address
    before: Status
    now: Status
    was_up: bool
    is_up: bool
    why: str
    """For a person: `connection refused`, `2 probes succeeded`."""


class UpstreamHealth:
    """The nodes of one upstream."""

    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self._nodes: dict[Address, NodeHealth] = {}

    @property
    def nodes(self) -> Mapping[Address, NodeHealth]:
        """All that are known, in the order of the upstream. To look at only."""
        return self._nodes

    @property
    def is_all_down(self) -> bool:
        """There are nodes, and none is up."""
        return bool(self._nodes) and not any(node.is_up for node in self._nodes.values())

    @property
    def due_at(self) -> float:
        """When `tick` has something to do; inf: nothing is waited for."""
        return min((_due_at(node) for node in self._nodes.values()), default=math.inf)

    def keep(self, places: Collection[Address]) -> None:
        """These are the nodes now. Those that stay keep their state, new ones are healthy."""
        self._nodes = {place: self._nodes.get(place) or NodeHealth() for place in places}

    def obey(self, checks: Checks, now: float) -> None:
        """Other checks from now on. What was counted stays; a node that nobody probes any more is given a time to return."""
        self.checks = checks
        for node in self._nodes.values():
            if checks.active is None and node.status not in _UP:
                node.tried_at = min(node.tried_at, now + checks.recover_after_s)

    def probed(self, place: Address, finding: Finding, now: float) -> Change | None:
        """A probe has ended. Returns what that changed; None also for a node that is gone."""
        active, node = self.checks.active, self._nodes.get(place)
        if active is None or node is None:
            return None
        before = _as_it_is(node)
        why = finding.why
        if finding.result is Result.SUCCESS:
            self._succeeded(node, node.probes, active.thresholds)
            why = _count_text(node.probes.successes, "probe")
        elif finding.result is not Result.NEITHER:
            self._failed(node, node.probes, active.thresholds, finding, now)
            if node.status not in _UP:  # that is why connects failed: nothing to hold against it later
                node.failed_in_a_row = 0
        return _change(place, node, before, why)

    def answered(self, place: Address) -> Change | None:
        """A session was connected."""
        node = self._nodes.get(place)
        if node is None:
            return None
        node.failed_in_a_row = 0
        if node.status is Status.HEALTHY:
            return None
        before = _as_it_is(node)
        # A connect says less than a probe: it brings no node back while there are probes.
        is_heard = node.status in _UP or self.checks.active is None
        if self.checks.passive is not None and is_heard:
            self._succeeded(node, node.sessions, self.checks.passive)
        return _change(place, node, before, _count_text(node.sessions.successes, "session"))

    def failed(self, place: Address, finding: Finding, now: float) -> Change | None:
        """A session could not be connected."""
        node = self._nodes.get(place)
        if node is None:
            return None
        before = _as_it_is(node)
        if self.checks.passive is not None:
            self._failed(node, node.sessions, self.checks.passive, finding, now)
        _, was_up = before
        if was_up:  # else this connect began before it was taken out, and says nothing new
            node.failed_in_a_row += 1
            self._eject_if_outlier(node, finding.why, now)
        return _change(place, node, before, node.why)

    def tick(self, now: float) -> Iterator[Change]:
        """Let time have its effect: cool-downs and ejections end."""
        for place, node in self._nodes.items():
            before = _as_it_is(node)
            if node.is_ejected and now >= node.ejected_until:
                node.is_ejected = False
                node.failed_in_a_row = 0
            if now >= node.tried_at:
                self._try_again(node)
            change = _change(place, node, before, "its time out is over")
            if change is not None:
                yield change

    def _succeeded(self, node: NodeHealth, counts: Counts, thresholds: Thresholds) -> None:
        if not thresholds.successes:
            return
        counts.tcp_failures = counts.timeouts = counts.http_failures = 0
        if node.status is Status.HEALTHY:
            return
        counts.successes += 1
        if counts.successes >= thresholds.successes:
            other = node.sessions if counts is node.probes else node.probes
            if node.status in _UP and other.failures:
                return
            node.status = Status.HEALTHY
            node.relapses = 0
            node.tried_at = math.inf
            other.successes = other.tcp_failures = other.timeouts = other.http_failures = 0
        elif node.status is Status.UNHEALTHY:
            node.status = Status.MOSTLY_UNHEALTHY

    def _failed(
        self, node: NodeHealth, counts: Counts, thresholds: Thresholds, finding: Finding, now: float
    ) -> None:
        name, limit = _counter(thresholds, finding.result)
        if not limit:
            return
        node.why = finding.why
        counts.successes = 0
        if node.status not in _UP:
            node.status = Status.UNHEALTHY
            return
        failures = getattr(counts, name) + 1
        setattr(counts, name, failures)
        if failures < limit:
            node.status = Status.MOSTLY_HEALTHY
            return
        node.status = Status.UNHEALTHY
        if self.checks.active is None:
            node.tried_at = now + self.checks.recover_after_s * min(2**node.relapses, MAX_COOL_DOWNS)
            node.relapses = min(node.relapses + 1, MAX_COOL_DOWNS)

    def _try_again(self, node: NodeHealth) -> None:
        """Up, and down again at the next failure."""
        node.tried_at = math.inf
        passive = self.checks.passive
        if passive is None or not passive.successes:
            node.status = Status.HEALTHY
            node.sessions = Counts()
            return
        node.status = Status.MOSTLY_HEALTHY
        node.sessions = Counts(
            tcp_failures=max(passive.tcp_failures - 1, 0), timeouts=max(passive.timeouts - 1, 0)
        )

    def _eject_if_outlier(self, node: NodeHealth, why: str, now: float) -> None:
        ejection = self.checks.ejection
        if ejection is None or node.failed_in_a_row < ejection.failures:
            return
        out = 1 + sum(each.is_ejected for each in self._nodes.values())
        if 100 * out > ejection.max_percent * len(self._nodes):
            return
        if now - node.ejected_until > ejection.max_time_s:
            node.ejections = 0
        node.ejections += 1
        node.is_ejected = True
        node.ejected_until = now + min(ejection.time_s * node.ejections, ejection.max_time_s)
        node.why = f"{node.failed_in_a_row} connects failed in a row: {why}"


def _as_it_is(node: NodeHealth) -> tuple[Status, bool]:
    return node.status, node.is_up


def _change(place: Address, node: NodeHealth, before: tuple[Status, bool], why: str) -> Change | None:
    """What is different now; None: nothing."""
    if before == _as_it_is(node):
        return None
    return Change(place, before[0], node.status, before[1], node.is_up, why)


def _due_at(node: NodeHealth) -> float:
    return min(node.tried_at, node.ejected_until if node.is_ejected else math.inf)


def _counter(thresholds: Thresholds, result: Result) -> tuple[str, int]:
    """Which counter a failure goes to, and how far that may get."""
    if result is Result.TIMEOUT:
        return "timeouts", thresholds.timeouts
    if result is Result.HTTP_FAILURE:
        return "http_failures", thresholds.http_failures
    return "tcp_failures", thresholds.tcp_failures


def _count_text(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'} succeeded"
