"""What the HTTP side shows of sessions and reloads: rows of a table, and events of the live feed."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from streamgw.control.admin.fleet import SessionRow
from streamgw.control.reloader import ReloadStatus
from streamgw.core.discovery import Discovered
from streamgw.core.health import Change
from streamgw.core.model import Outcome, Upstream
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.refresher import Standing
from streamgw.dataplane.session import Session
from streamgw.process.prober import Checker

MAX_PROBLEMS = 20
"""Of one reload that an event tells; `status` shows all."""


def session_row(session: Session | UDPSession, now: float, worker: int = 0) -> SessionRow:
    """A live session; `now` is trio.current_time()."""
    facts, route, upstream, meter = session.facts, session.route, session.upstream, session.meter
    node = session.trail.node
    return SessionRow(
        id=session.id,
        transport=facts.transport,
        listener=facts.listener,
        client=str(facts.client),
        peer=str(session.peer if isinstance(session, Session) else facts.client),
        server=str(facts.server),
        server_name=facts.server_name or "",
        phase=session.phase if meter.connected_at is None else "relay",
        route=route.id if route else "",
        upstream=upstream.key if upstream else "",
        node=str(node) if node else "",
        started_at=session.started_unix_s,
        age_s=round(now - session.started_at, 3),
        bytes_up=meter.bytes_up,
        bytes_down=meter.bytes_down,
        tls=session.tls_version if isinstance(session, Session) else "",
        revision=session.snapshot.revision,
        worker=worker,
    )


def closed_event(outcome: Outcome) -> Mapping[str, object]:
    """A session that has ended: the keys of its row, and how it went."""
    facts = outcome.facts
    row = SessionRow(
        id=outcome.session_id,
        transport=facts.transport,
        listener=facts.listener,
        client=str(facts.client),
        peer=str(outcome.peer),
        server=str(facts.server),
        server_name=facts.server_name or "",
        phase=outcome.phase,
        route=outcome.route_id,
        upstream=outcome.upstream,
        node=str(outcome.node) if outcome.node else "",
        started_at=outcome.started_at,
        age_s=round(outcome.duration_s, 3),
        bytes_up=outcome.bytes_up,
        bytes_down=outcome.bytes_down,
        tls=outcome.tls_version,
        revision=outcome.revision,
    )
    return attrs.asdict(row, recurse=False) | {
        "reason": str(outcome.reason),
        "fault": str(outcome.fault),
        "side": outcome.side,
        "detail": outcome.detail,
        "duration_s": outcome.duration_s,
        "connect_s": outcome.connect_s,
    }


def reload_event(what: str, status: ReloadStatus, routes: int) -> Mapping[str, object]:
    """What became of changed `routes` or `settings`; `routes` is how many run now."""
    return {
        "what": what,
        "state": status.state,
        "revision": status.revision,
        "routes": routes,
        "warnings": len(status.warnings),
        "problems": [str(problem) for problem in status.problems[:MAX_PROBLEMS]],
        "duration_s": status.duration_s,
    }


def health_event(upstream: Upstream, change: Change) -> Mapping[str, object]:
    """A node is in another state."""
    return {
        "upstream": upstream.key,
        "node": str(change.node),
        "status": str(change.now),
        "before": str(change.before),
        "is_up": change.is_up,
        "why": change.why,
    }


def health_row(checker: Checker) -> Mapping[str, object]:
    """An upstream with checks: an element of `GET /v1/healthcheck`.

    Source:
      APISIX `apisix/control/v1.lua` (get_health_checkers) for the keys; ours are `upstream`, `is_up`, `is_ejected`, `why`.
    """
    active = checker.checks.active
    return {
        "name": f"/apisix/{checker.upstream.key.removesuffix('/upstream')}",
        "type": "tcp" if active is None else active.probe.kind,
        "upstream": checker.upstream.key,
        "nodes": [
            {
                "ip": node.host,
                "port": node.port,
                "hostname": checker.names[node],
                "status": str(health.status),
                "counter": {
                    "success": health.probes.successes + health.sessions.successes,
                    "tcp_failure": health.probes.tcp_failures + health.sessions.tcp_failures,
                    "http_failure": health.probes.http_failures,
                    "timeout_failure": health.probes.timeouts + health.sessions.timeouts,
                },
                "is_up": health.is_up,
                "is_ejected": health.is_ejected,
                "why": "" if health.is_up else health.why,
            }
            for node, health in checker.health.nodes.items()
        ],
    }


def service_row(standing: Standing[Discovered]) -> Mapping[str, object]:
    """A service that upstreams name, and its nodes: in `status`, and in the dump of the control API.

    Source:
      APISIX `apisix/discovery/consul/init.lua` (dump_data) for the keys of a node; ours is `name`.
    """
    return {
        "service_name": standing.name,
        "nodes": [
            {
                "host": found.node.host,
                "port": found.node.port,
                "weight": found.node.weight,
                "priority": found.node.priority,
                "name": found.name,
            }
            for found in standing.found
        ],
        "trouble": standing.trouble,
    }
