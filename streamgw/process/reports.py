"""What a process tells of its sessions: the access log, the application log, the live feed, the counts behind the metrics."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Mapping

import attrs
import structlog
import trio

from streamgw.config.settings import AccessLogSettings
from streamgw.control.admin.feed import Hub
from streamgw.control.reloader import ReloadStatus
from streamgw.core.access_log import compile_format
from streamgw.core.errors import Fault
from streamgw.core.health import Change
from streamgw.core.model import Outcome, Upstream
from streamgw.core.tally import Tally
from streamgw.core.udp_sessions import Drop
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Session
from streamgw.process.log import AccessLog
from streamgw.process.rows import closed_event, health_event, reload_event, session_row

_LEVELS: Mapping[str, str] = {
    Fault.CLIENT: "info",
    Fault.UPSTREAM: "warning",
    Fault.OPERATOR: "error",
    Fault.GATEWAY: "error",
}


class Reports:
    """Told by the data plane, on its way. Nothing here waits.

    Args:
      is_shared: other processes write to the same access log.

    Resource handling:
      Somebody else runs `access_log`.
    """

    def __init__(self, access_log: AccessLogSettings, *, is_shared: bool = False) -> None:
        self.hub = Hub(time.time)  # noqa: TID251  events are for people
        self.tally = Tally()
        self.access_log = AccessLog(access_log.path, is_shared=is_shared)
        self.bugs = 0
        """Since the start."""
        self._format = _formatter(access_log)
        self._log = structlog.get_logger()

    def follow(self, access_log: AccessLogSettings) -> None:
        """Lines look as these settings say, and go where they say, from now on."""
        self._format = _formatter(access_log)
        self.access_log.move(access_log.path)

    def opened(self, session: Session | UDPSession) -> None:
        """The upstream of a session is known."""
        if "session_opened" in self.hub.wanted:
            self.hub.publish(
                "session_opened", attrs.asdict(session_row(session, trio.current_time()), recurse=False)
            )

    def ended(self, outcome: Outcome) -> None:
        """A session is over."""
        self.tally.count(outcome)
        if "session_closed" in self.hub.wanted:
            self.hub.publish("session_closed", closed_event(outcome))
        if self._format is not None:
            self.access_log.write(self._format(outcome))
        if outcome.fault != Fault.NONE:
            getattr(self._log, _LEVELS[outcome.fault])(
                "session_failed",
                session=outcome.session_id,
                reason=str(outcome.reason),
                client=str(outcome.facts.client),
                listener=outcome.facts.listener,
                route=outcome.route_id,
                detail=outcome.detail,
            )

    def health(self, upstream: Upstream, change: Change) -> None:
        """A node's state is another."""
        if "health" in self.hub.wanted:
            self.hub.publish("health", health_event(upstream, change))

    def reload(self, what: str, status: ReloadStatus, routes: int) -> None:
        """What became of a configuration (`routes` or `settings`), and how many routes run."""
        if "reload" in self.hub.wanted:
            self.hub.publish("reload", reload_event(what, status, routes))

    def drops(self, listener: str, drops: Mapping[Drop, int]) -> None:
        """Datagrams found no session."""
        counts = {str(drop): count for drop, count in drops.items()}
        self._log.warning("datagrams_dropped", listener=listener, **counts)

    def trouble(self, event: str) -> Callable[[str], None]:
        """Who tells of descriptors that are used up, and there again."""
        return lambda trouble: self._log.error(event, trouble=trouble)

    def session_bug(self, session: Session | UDPSession, error: Exception) -> None:
        """One session met a bug, and is over."""
        self.bugs += 1
        self._log.error("bug", session=session.id, phase=session.phase, traceback=_traceback(error))

    def bug(self, phase: str) -> Callable[[Exception], None]:
        """Who tells of bugs outside the sessions: `relay`, `background`."""

        def on_bug(error: Exception) -> None:
            self.bugs += 1
            self._log.error("bug", phase=phase, traceback=_traceback(error))

        return on_bug


def _formatter(access_log: AccessLogSettings) -> Callable[[Outcome], str] | None:
    if not access_log.enabled:
        return None
    return compile_format(access_log.format, access_log.escape, hostname=socket.gethostname())


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
