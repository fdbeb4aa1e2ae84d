"""What the status endpoint and `streamgw status` show: a look at the worker, as plain data."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import attrs
import trio

from streamgw import __version__
from streamgw.control.reloader import ReloadStatus
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Session
from streamgw.process.worker import Worker


class StatusBoard:
    """Answers the status pages (`control.admin.control.Gateway`). Reads only; costs nothing while nobody asks."""

    def __init__(self, worker: Worker, settings_status: Callable[[], ReloadStatus]) -> None:
        self._worker = worker
        self._settings_status = settings_status

    def ready(self) -> bool:
        """A configuration is loaded, and clients are accepted."""
        return not self._worker.draining

    def status(self) -> Mapping[str, object]:
        """The body of `/streamgw/v1/status`. Keys are part of the interface: docs/status.md."""
        worker = self._worker
        totals = worker.sessions.totals  # of both transports
        live: list[Session | UDPSession] = [*worker.sessions.live.values(), *worker.udp.live.values()]
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(trio.current_time() - worker.started_at, 3),
            "ready": self.ready(),
            "draining": worker.draining,
            "config": _reload(worker.reloader.status),
            "settings": _reload(self._settings_status()),
            "listeners": self.listeners(),
            "sessions": {
                "active": len(live),
                "active_udp": len(worker.udp.live),
                "total": totals.sessions + len(live),
                "by_reason": {str(reason): count for reason, count in sorted(totals.by_reason.items())},
                "bytes_up": totals.bytes_up + sum(session.meter.bytes_up for session in live),
                "bytes_down": totals.bytes_down + sum(session.meter.bytes_down for session in live),
            },
            "access_log": {"dropped": worker.access_log.dropped},
            "objects": self._objects(),
            "certificates": self._certificates(),
        }

    def listeners(self) -> list[dict[str, object]]:
        """Every listener, the removed ones too while they have sessions."""
        worker = self._worker
        sessions = worker.sessions.live_by_listener + worker.udp.live_by_listener
        dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for reception in worker.udp.receptions:
            dropped[reception.listener.name].update(reception.sessions.drops)
            # By the kernel, before anybody could look: no reason of the table's.
            dropped[reception.listener.name]["receive_buffer"] += reception.clients.overflowed
        return [
            {
                "name": name,
                "state": state,
                "sessions": sessions[name],
                "accepted": worker.sessions.totals.accepted[name],
                "dropped": {str(reason): count for reason, count in sorted(dropped[name].items()) if count},
            }
            for name, state in worker.listeners.states().items()
        ]

    def _certificates(self) -> list[dict[str, object]]:
        # An object stands in the index once for each of its names.
        served = {each.id: each for each in self._worker.reloader.current.certificates.values()}
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

    def _objects(self) -> dict[str, dict[str, str]]:
        objects: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for (collection, id_), digest in self._worker.reloader.current.sources.items():
            objects[collection][id_] = digest
        return objects


def _reload(status: ReloadStatus) -> dict[str, object]:
    shown = attrs.asdict(status)
    shown["applied_at"] = status.applied_at.isoformat(timespec="milliseconds") if status.applied_at else None
    shown["problems"] = [problem.as_data() for problem in status.problems]
    shown["warnings"] = [problem.as_data() for problem in status.warnings]
    return shown
