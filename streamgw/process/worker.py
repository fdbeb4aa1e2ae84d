"""One worker: the data plane and the reloader, wired together.

```
Worker.run
├─ access log                     outermost: it outlives the last session
├─ tasks of plugins               as long as a route or a session has them
└─ nursery
   ├─ pump                        one task, one epoll
   ├─ resolver                    one child per name
   ├─ reloader                    watch → load → swap
   ├─ prober                      one child per node that is checked
   ├─ udp                         keeps time for UDP sessions
   └─ listeners                   its deadline is the drain deadline
      └─ one task per listener, one child task per session
```
"""

from __future__ import annotations

import math
import os
import random
import resource
import socket
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from pathlib import Path

import attrs
import structlog
import trio

from streamgw.config.compile import Loader
from streamgw.config.identity import read_client_certificate
from streamgw.config.settings import ReloadSettings, Settings
from streamgw.config.store import Store
from streamgw.control.admin.feed import Hub
from streamgw.control.reloader import Reloader, ReloadStatus
from streamgw.control.watch import Further, changes
from streamgw.core.access_log import compile_format
from streamgw.core.errors import Fault
from streamgw.core.health import Change
from streamgw.core.hooks import PluginServices
from streamgw.core.model import Listener, Outcome, Upstream
from streamgw.core.snapshot import Snapshot
from streamgw.core.tally import Tally
from streamgw.core.udp_sessions import Drop, UDPLimits
from streamgw.dataplane.dialer import Dialer
from streamgw.dataplane.hooks import Backgrounds
from streamgw.dataplane.listener import Listeners
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.resolver import DNSLookup, Resolver
from streamgw.dataplane.session import Policy, Session, Sessions
from streamgw.dataplane.udp import UDPSessions
from streamgw.process.log import AccessLog
from streamgw.process.plugins import plugin_set
from streamgw.process.prober import Prober
from streamgw.process.rows import closed_event, health_event, reload_event, session_row
from streamgw.process.shipper import Shipper
from streamgw.process.sockets import BindError, Sockets

_LEVELS: Mapping[str, str] = {
    Fault.CLIENT: "info",
    Fault.UPSTREAM: "warning",
    Fault.OPERATOR: "error",
    Fault.GATEWAY: "error",
}


class Worker:
    """Everything that serves clients, in one process.

    Resource handling:
      `sockets` belongs to the caller, who closes it after `run` has returned.
    """

    def __init__(self, settings: Settings, routes: Path, sockets: Sockets) -> None:
        self.settings = settings
        self.sockets = sockets
        self.started_at = 0.0
        """trio.current_time() when `run` began."""
        self.draining = False
        self.ended = trio.Event()
        """`run` has returned."""
        self.hub = Hub(time.time)  # noqa: TID251  events are for people
        self.tally = Tally()
        self.shipper = Shipper(lambda: self.settings.tls.trusted_certificate)
        self.services = PluginServices(hostname=socket.gethostname(), shipping=self.shipper)
        self.refused: Counter[str] = Counter()
        """Requests that the Admin API did not let in, by reason."""
        self.bugs = 0
        """Since the start."""
        self._log = structlog.get_logger()
        self.pump = SocketPump(
            on_trouble=lambda trouble: self._log.error("accepting", trouble=trouble),
            on_bug=self._on_pump_bug,
        )
        resolver = settings.resolver
        self.resolver = Resolver(
            DNSLookup(
                servers=resolver.servers,
                timeout_s=resolver.timeout_s,
                search=resolver.search,
                ttl_override_s=resolver.ttl_override_s,
            ),
            min_ttl_s=resolver.min_ttl_s,
            max_ttl_s=resolver.max_ttl_s,
            stale_s=resolver.stale_s,
            on_change=self._on_names_changed,
        )
        rng = random.Random()  # noqa: S311  where a balancer starts is no secret
        self.pool = UpstreamPool(self.resolver, rng=rng)
        self.prober = Prober(self.pool, rng=rng, on_change=self._on_health, on_bug=self._on_background_bug)
        self.store = Store(routes)
        self.loader = Loader(
            self.store,
            environ=os.environ,
            tls=lambda: self.settings.tls,
            plugins=lambda: plugin_set(self.settings, self.services),
        )
        further = Further()
        self.reloader = Reloader(
            self.loader,
            lambda: self.settings.listeners,
            self._on_swap,
            watch=lambda: watch(routes, settings.reload, further, self.store.is_as_written),
            on_loaded=lambda: further.replace(self.loader.files),
            on_told=lambda status: self.publish_reload("routes", status),
        )
        self.backgrounds = Backgrounds(self._on_background_bug)
        id_prefix = f"{rng.randrange(1 << 24):06x}-"
        self.sessions = Sessions(
            pump=self.pump,
            dialer=Dialer(self.pump, self.pool),
            get_snapshot=lambda: self.reloader.current,
            on_outcome=self._on_outcome,
            on_bug=self._on_bug,
            wall_clock=time.time,  # noqa: TID251  for the log only
            read_certificate=read_client_certificate,
            id_prefix=id_prefix,
            policy=_policy(settings),
            backgrounds=self.backgrounds,
        )
        self.udp = UDPSessions(
            datagrams=self.pump.datagrams,
            pool=self.pool,
            get_snapshot=lambda: self.reloader.current,
            on_outcome=self._on_outcome,
            on_bug=self._on_bug,
            on_drops=self._on_drops,
            on_trouble=lambda trouble: self._log.error("udp", trouble=trouble),
            wall_clock=time.time,  # noqa: TID251  as above
            id_prefix=id_prefix,
            totals=self.sessions.totals,
            backgrounds=self.backgrounds,
        )
        self.sessions.on_opened = self.udp.on_opened = self._on_opened
        self.udp.obey(_udp_limits(settings), max_duration_s=self.sessions.policy.max_duration_s)
        self.listeners = Listeners(self.pump, self.sessions, self.udp)
        self.access_log = AccessLog(settings.access_log.path)
        self._format = self._formatter(settings)

    @property
    def live_sessions(self) -> int:
        """Over TCP and UDP."""
        return len(self.sessions.live) + len(self.udp.live)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `drain` has ended the last session.

        Raises:
          ConfigError: the first load of routes.d found problems.
          OSError: the access log cannot be opened.

        Cancellation:
          Sessions are cut (reason `drain`) and reset; their log lines are still written.
        """
        self.started_at = trio.current_time()
        try:
            async with trio.open_nursery() as outer:
                await outer.start(self.access_log.run)
                await outer.start(self.shipper.run)
                await outer.start(self.backgrounds.run)
                async with trio.open_nursery() as inner:
                    await inner.start(self.pump.run)
                    await inner.start(self.resolver.run)
                    await inner.start(self.reloader.run)
                    await inner.start(self.prober.run)
                    await inner.start(self.udp.sweep)
                    await inner.start(self._serve, inner.cancel_scope)
                    task_status.started()
                outer.cancel_scope.cancel()
        finally:
            self.ended.set()

    def apply(self, settings: Settings) -> None:
        """Follow a changed conf/config.yaml: sockets first, all or nothing, then everything else that can change live.

        Raises:
          BindError: an address cannot be had; everything is as it was.
        """
        self.listeners.make_way(settings.listeners)
        try:
            finish = self.sockets.replace(settings.listeners, let_go=self._let_go)
        except BindError:
            self.listen()
            raise
        self.settings = settings
        self.sessions.policy = _policy(settings)
        self.udp.obey(_udp_limits(settings), max_duration_s=self.sessions.policy.max_duration_s)
        self._format = self._formatter(settings)
        self.prober.sync(self.reloader.current.upstreams, is_on=settings.checks_health)
        self.listen()
        finish()
        self.reloader.poke()

    def listen(self) -> None:
        """Accept from exactly the sockets that are bound. For the first time when there is a snapshot."""
        self.listeners.sync(self.sockets.bound())

    def drain(self, deadline: float) -> None:
        """Accept no more; `run` returns when the last session has ended, at the latest at `deadline`.

        The listening sockets are closed at once: a client that comes now is refused, and can go elsewhere, rather than
        wait in the backlog of a gateway that will never look. (A service manager keeps its own copy open.)
        """
        self.draining = True
        self.listeners.drain(deadline)
        self.sockets.close_all()

    async def _serve(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self.listeners.run(task_status=task_status)
        scope.cancel()

    def _let_go(self, gone: Collection[Listener]) -> None:
        self.listeners.sync(
            {listener: sock for listener, sock in self.sockets.bound().items() if listener not in gone}
        )
        self.listeners.make_way(gone)

    def _on_swap(self, snapshot: Snapshot) -> None:
        self.pool.sync(snapshot.upstreams, snapshot.names)
        self.prober.sync(snapshot.upstreams, is_on=self.settings.checks_health)
        self.backgrounds.sync(snapshot.backgrounds)
        self.udp.sync(snapshot.upstreams)

    def _on_names_changed(self, name: str) -> None:
        self.pool.on_names_changed(name)
        self.prober.on_names_changed(name)

    def _on_health(self, upstream: Upstream, change: Change) -> None:
        if "health" in self.hub.wanted:
            self.hub.publish("health", health_event(upstream, change))
        is_down = change.was_up and not change.is_up
        if is_down and upstream.checks is not None and upstream.checks.ends_sessions:
            self.sessions.leave_node(upstream.key, change.node)
            self.udp.leave_node(upstream.key, change.node)

    def publish_reload(self, what: str, status: ReloadStatus) -> None:
        """Tell the live feed what became of a configuration (`routes` or `settings`)."""
        if "reload" in self.hub.wanted:
            self.hub.publish("reload", reload_event(what, status, len(self.reloader.current.router.routes)))

    def _on_opened(self, session: Session | UDPSession) -> None:
        if "session_opened" in self.hub.wanted:
            self.hub.publish(
                "session_opened", attrs.asdict(session_row(session, trio.current_time()), recurse=False)
            )

    def _on_outcome(self, outcome: Outcome) -> None:
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

    def _on_drops(self, listener: str, drops: Mapping[Drop, int]) -> None:
        counts = {str(drop): count for drop, count in drops.items()}
        self._log.warning("datagrams_dropped", listener=listener, **counts)

    def _on_pump_bug(self, error: Exception) -> None:
        self.bugs += 1
        self._log.error("bug", phase="relay", traceback=_traceback(error))

    def _on_bug(self, session: Session | UDPSession, error: Exception) -> None:
        self.bugs += 1
        self._log.error(
            "bug",
            session=session.id,
            phase=session.phase,
            traceback=_traceback(error),
        )

    def _on_background_bug(self, error: Exception) -> None:
        self.bugs += 1
        self._log.error("bug", phase="background", traceback=_traceback(error))

    def _formatter(self, settings: Settings) -> Callable[[Outcome], str] | None:
        access_log = settings.access_log
        if not access_log.enabled:
            return None
        return compile_format(access_log.format, access_log.escape, hostname=socket.gethostname())


def watch(
    path: Path,
    reload: ReloadSettings,
    further: Further | None = None,
    is_known: Callable[[str], bool] = lambda _: False,
) -> AsyncGenerator[None]:
    """Say "look again" for a file or a directory, and for whatever it refers to, as the settings tell."""
    return changes(
        path,
        settle_ms=reload.settle_ms,
        relook_s=reload.relook_s,
        force_polling=reload.force_polling,
        further=further,
        is_known=is_known,
    )


def _policy(settings: Settings) -> Policy:
    limits = settings.limits
    return Policy(
        trusted_proxies=settings.trusted_proxies,
        preread_timeout_s=limits.preread_timeout_s,
        preread_limit_bytes=limits.preread_limit_bytes,
        handshake_timeout_s=limits.handshake_timeout_s,
        max_handshakes=limits.max_handshakes or math.inf,
        max_duration_s=limits.max_session_duration_s or math.inf,
        max_sessions=limits.max_sessions or math.inf,
        max_sessions_per_listener=limits.max_sessions_per_listener or math.inf,
    )


def _udp_limits(settings: Settings) -> UDPLimits:
    limits = settings.limits
    # A datagram is all it takes to begin a session, and its sender's address may be forged. At a limit of sessions one makes
    # way; out of descriptors nobody does, and TCP, reloads and the Admin API stand still until sessions idle out.
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = math.inf if descriptors == resource.RLIM_INFINITY else descriptors // 2
    return UDPLimits(
        max_sessions=min(limits.max_udp_sessions or math.inf, room),
        max_sessions_per_listener=limits.max_udp_sessions_per_listener or math.inf,
        max_sessions_per_client=limits.max_udp_sessions_per_client or math.inf,
        session_rate_per_client=limits.udp_session_rate_per_client,
        queue_datagrams=limits.udp_queue_datagrams,
    )


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
