"""What the status endpoint and `streamgw status` show: what each worker says of itself, added up, as plain data."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import attrs
import trio

from streamgw import __version__
from streamgw.control.reloader import ReloadStatus
from streamgw.core.snapshot import Snapshot
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Session
from streamgw.process.central import Central
from streamgw.process.rows import service_row
from streamgw.process.worker import Worker

_WORST_FIRST = ("paused", "listening", "draining")
"""States of a listener: what all of its workers together are called."""


@attrs.frozen
class ListenerStatus:
    """One listener of one worker, or of all."""

    name: str
    state: str
    sessions: int
    accepted: int
    dropped: Mapping[str, int]
    """Over UDP, by reason."""


@attrs.frozen(kw_only=True)
class WorkerStatus:
    """What one worker says of itself. Also the sum of those that are gone."""

    revision: str = ""
    is_rejected: bool = False
    relay: str = ""
    uptime_s: float = 0.0
    active: int = 0
    active_udp: int = 0
    ended: int = 0
    by_reason: Mapping[str, int] = attrs.Factory(dict)
    bytes_up: int = 0
    """Of live sessions, and of those that have ended."""
    bytes_down: int = 0
    access_log_dropped: int = 0
    listeners: Sequence[ListenerStatus] = ()
    """The removed ones too, while they have sessions."""


@attrs.frozen
class WorkerRow:
    """One worker, as `status` shows it."""

    worker: int
    pid: int
    state: str
    """`starting`, `serving`, `draining`; `silent`: it has not answered."""
    revision: str
    """Of what it runs."""
    config: str
    """`applied` or `rejected`."""
    relay: str
    """`pump` or `sockmap`: what is in effect, whatever was asked for."""
    sessions: int
    uptime_s: float


def worker_status(worker: Worker) -> WorkerStatus:
    """A look at one worker. Costs nothing while nobody asks."""
    totals = worker.sessions.totals  # of both transports
    live: list[Session | UDPSession] = [*worker.sessions.live.values(), *worker.udp.live.values()]
    status = worker.reloader.status
    return WorkerStatus(
        revision=status.revision,
        is_rejected=status.state == "rejected",
        relay="pump" if worker.pump.kernel is None else "sockmap",
        uptime_s=round(trio.current_time() - worker.started_at, 3),
        active=len(live),
        active_udp=len(worker.udp.live),
        ended=totals.sessions,
        by_reason={str(reason): count for reason, count in totals.by_reason.items()},
        bytes_up=totals.bytes_up + sum(session.meter.bytes_up for session in live),
        bytes_down=totals.bytes_down + sum(session.meter.bytes_down for session in live),
        access_log_dropped=worker.access_log.dropped,
        listeners=_listeners(worker),
    )


def row_of(number: int, pid: int, state: str, said: WorkerStatus | None) -> WorkerRow:
    """A worker and what it said; None: nothing."""
    if said is None:
        return WorkerRow(number, pid, "silent", "", "", "", 0, 0.0)
    config = "rejected" if said.is_rejected else "applied"
    return WorkerRow(number, pid, state, said.revision, config, said.relay, said.active, said.uptime_s)


def add_up(parts: Sequence[WorkerStatus]) -> WorkerStatus:
    """What all of them have counted. What only one can be (a revision, a time) is nobody's."""
    by_reason = Counter[str]()
    for part in parts:
        by_reason.update(part.by_reason)
    return WorkerStatus(
        active=sum(part.active for part in parts),
        active_udp=sum(part.active_udp for part in parts),
        ended=sum(part.ended for part in parts),
        by_reason=by_reason,
        bytes_up=sum(part.bytes_up for part in parts),
        bytes_down=sum(part.bytes_down for part in parts),
        access_log_dropped=sum(part.access_log_dropped for part in parts),
        listeners=merged(part.listeners for part in parts),
    )


def left_behind(status: WorkerStatus, why: str) -> WorkerStatus:
    """What stays of a worker that is gone: its counts. Sessions that it had have ended with it, for that reason."""
    reasons = Counter(status.by_reason)
    if status.active:
        reasons[why] += status.active
    return WorkerStatus(
        ended=status.ended + status.active,
        by_reason=reasons,
        bytes_up=status.bytes_up,
        bytes_down=status.bytes_down,
        access_log_dropped=status.access_log_dropped,
        listeners=[attrs.evolve(each, sessions=0, state="") for each in status.listeners],
    )


def merged(parts: Iterable[Sequence[ListenerStatus]]) -> list[ListenerStatus]:
    """The listeners of all workers, each once."""
    found: dict[str, ListenerStatus] = {}
    for listeners in parts:
        for each in listeners:
            known = found.get(each.name)
            found[each.name] = each if known is None else _together(known, each)
    return [*found.values()]


def body(
    central: Central,
    settings: ReloadStatus,
    *,
    is_ready: bool,
    workers: Sequence[WorkerRow],
    total: WorkerStatus,
) -> Mapping[str, object]:
    """The body of `/streamgw/v1/status`. Keys are part of the interface: docs/status.md."""
    snapshot = central.reloader.current
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(trio.current_time() - central.started_at, 3),
        "ready": is_ready,
        "draining": central.draining,
        "workers": [attrs.asdict(row) for row in workers],
        "config": _reload(central.reloader.status),
        "settings": _reload(settings),
        "listeners": shown(total.listeners),
        "sessions": {
            "active": total.active,
            "active_udp": total.active_udp,
            "total": total.ended + total.active,
            "by_reason": dict(sorted(total.by_reason.items())),
            "bytes_up": total.bytes_up,
            "bytes_down": total.bytes_down,
        },
        "access_log": {"dropped": total.access_log_dropped},
        "objects": _objects(snapshot),
        "certificates": _certificates(snapshot),
        "discovery": [service_row(each) for each in central.resolver.discovery.standings()],
    }


def shown(listeners: Sequence[ListenerStatus]) -> list[Mapping[str, object]]:
    """Without those that only workers had which are gone."""
    return [
        {
            "name": each.name,
            "state": each.state,
            "sessions": each.sessions,
            "accepted": each.accepted,
            "dropped": {reason: count for reason, count in sorted(each.dropped.items()) if count},
        }
        for each in listeners
        if each.state
    ]


def _together(one: ListenerStatus, other: ListenerStatus) -> ListenerStatus:
    states = {one.state, other.state}
    return ListenerStatus(
        one.name,
        next((state for state in _WORST_FIRST if state in states), ""),
        one.sessions + other.sessions,
        one.accepted + other.accepted,
        Counter(one.dropped) + Counter(other.dropped),
    )


def _listeners(worker: Worker) -> list[ListenerStatus]:
    sessions = worker.sessions.live_by_listener + worker.udp.live_by_listener
    dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for reception in worker.udp.receptions:
        counts = dropped[reception.listener.name]
        counts.update({str(drop): count for drop, count in reception.sessions.drops.items()})
        # By the kernel, before anybody could look: no reason of the table's.
        counts["receive_buffer"] += reception.clients.overflowed
    accepted = worker.sessions.totals.accepted
    return [
        ListenerStatus(name, state, sessions[name], accepted[name], dict(dropped[name]))
        for name, state in worker.listeners.states().items()
    ]


def _certificates(snapshot: Snapshot) -> list[dict[str, object]]:
    # An object stands in the index once for each of its names.
    served = {each.id: each for each in snapshot.certificates.values()}
    return [
        {
            "id": each.id,
            "names": list(each.names),
            "issuer": each.issuer,
            "not_after": datetime.fromtimestamp(each.not_after_s, UTC).isoformat(),
            "requires_client_certificate": each.requires_client_certificate,
            "file": each.source.file,
            "line": each.source.line,
        }
        for each in sorted(served.values(), key=lambda each: each.not_after_s)
    ]


def _objects(snapshot: Snapshot) -> dict[str, dict[str, str]]:
    objects: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for (collection, id_), digest in snapshot.sources.items():
        objects[collection][id_] = digest
    return objects


def _reload(status: ReloadStatus) -> dict[str, object]:
    shown = attrs.asdict(status)
    shown["applied_at"] = status.applied_at.isoformat(timespec="milliseconds") if status.applied_at else None
    shown["problems"] = [problem.as_data() for problem in status.problems]
    shown["warnings"] = [problem.as_data() for problem in status.warnings]
    return shown
