"""One worker: the data plane and the reloader, wired together.

```
Worker.run
├─ access log, shipper            end last: whatever ends before them has its lines and records written
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

It ends from the bottom to the top, drained or cancelled: what is above hears of the end when all below it has ended.
"""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import NoReturn, Protocol

import attrs
import structlog
import trio

from streamgw.config.compile import FileTree
from streamgw.config.identity import read_client_certificate
from streamgw.config.settings import ResolverSettings, Settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.health import Change
from streamgw.core.hooks import Ledger, LocalLedger, PluginServices
from streamgw.core.model import Listener, Upstream
from streamgw.core.snapshot import Snapshot
from streamgw.dataplane.dialer import Dialer
from streamgw.dataplane.discovery import Discovery, Naming, ServiceLookup
from streamgw.dataplane.hooks import Backgrounds
from streamgw.dataplane.listener import Listeners
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump.bpf import Maps, Unavailable
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.pump.sockmap_trial import open_maps
from streamgw.dataplane.resolver import DNSLookup, Resolver
from streamgw.dataplane.session import Sessions
from streamgw.dataplane.udp import UDPSessions
from streamgw.process.handed import SocketSet
from streamgw.process.limits import part_of_nodes, policy, udp_limits
from streamgw.process.plugins import plugin_set
from streamgw.process.prober import Checker, Prober
from streamgw.process.reports import Reports
from streamgw.process.routes import Routes
from streamgw.process.shipper import Shipper
from streamgw.process.sockets import BindError

GC_THRESHOLD = 50_000
"""Container objects that may be allocated before the youngest generation is collected."""


class Health(Protocol):
    """Keeps the pool's idea of which nodes are up: the prober, or what stands for it where it runs in another process."""

    checkers: dict[str, Checker]

    def sync(self, upstreams: Mapping[str, Upstream], *, is_on: bool = True) -> None:
        """See `Prober.sync`."""

    def on_names_changed(self, name: str) -> None:
        """See `Prober.on_names_changed`."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Ends only by cancellation."""


class MakeHealth(Protocol):
    """As the constructor of `Prober`."""

    def __call__(
        self,
        pool: UpstreamPool,
        *,
        rng: random.Random,
        on_change: Callable[[Upstream, Change], None],
        on_bug: Callable[[Exception], None],
    ) -> Health:
        """Made once, before anything runs."""


@attrs.frozen(kw_only=True)
class Surroundings:
    """What a worker has from its gateway. The defaults are those of a gateway with one worker."""

    number: int = 0
    """Its slot."""
    ledger: Ledger = attrs.Factory(LocalLedger)
    make_health: MakeHealth = Prober
    first: FileTree | None = None
    """What it runs until routes.d has no problem. None: it has none now."""
    is_one_of_several: bool = False


class Worker:
    """Everything that serves clients, in one process.

    Args:
      routes: the directory.

    Resource handling:
      `sockets` belongs to the caller, who closes it after `run` has returned.
    """

    def __init__(
        self, settings: Settings, routes: Path, sockets: SocketSet, surroundings: Surroundings | None = None
    ) -> None:
        surroundings = surroundings or Surroundings()
        self.settings = settings
        self.sockets = sockets
        self.number = surroundings.number
        self.started_at = 0.0
        """trio.current_time() when `run` began."""
        self.draining = False
        self.ended = trio.Event()
        """`run` has returned."""
        self.reports = reports = Reports(settings.access_log, is_shared=surroundings.is_one_of_several)
        self.hub, self.tally, self.access_log = reports.hub, reports.tally, reports.access_log
        self.shipper = Shipper(lambda: self.settings.tls.trusted_certificate)
        self.services = PluginServices(
            hostname=socket.gethostname(), shipping=self.shipper, ledger=surroundings.ledger
        )
        self.refused: Counter[str] = Counter()
        """Requests that the Admin API did not let in, by reason."""
        self.pump = SocketPump(
            on_trouble=reports.trouble("accepting"), on_bug=reports.bug("relay"), maps=kernel_maps(settings)
        )
        self.resolver = build_resolver(
            settings.resolver, self._on_names_changed, on_bug=reports.bug("background")
        )
        rng = random.Random()  # noqa: S311  where a balancer starts is no secret
        self.pool = UpstreamPool(self.resolver, rng=rng, part=part_of_nodes(settings, self.number))
        self.prober = surroundings.make_health(
            self.pool, rng=rng, on_change=self._on_health, on_bug=reports.bug("background")
        )
        followed = Routes(
            routes,
            settings.reload,
            tls=lambda: self.settings.tls,
            plugins=lambda: plugin_set(self.settings, self.services),
            listeners=lambda: self.settings.listeners,
            on_swap=self._on_swap,
            on_told=lambda status: self.publish_reload("routes", status),
            first=surroundings.first,
        )
        self.store, self.loader, self.reloader = followed.store, followed.loader, followed.reloader
        self.backgrounds = Backgrounds(reports.bug("background"))
        id_prefix = f"{rng.randrange(1 << 24):06x}-"
        self.sessions = self._tcp(id_prefix)
        self.udp = self._udp(id_prefix)
        self.listeners = Listeners(self.pump, self.sessions, self.udp)

    def _tcp(self, id_prefix: str) -> Sessions:
        reports = self.reports
        return Sessions(
            pump=self.pump,
            dialer=Dialer(self.pump, self.pool),
            get_snapshot=lambda: self.reloader.current,
            on_outcome=reports.ended,
            on_opened=reports.opened,
            on_bug=reports.session_bug,
            wall_clock=time.time,  # noqa: TID251  for the log only
            read_certificate=read_client_certificate,
            id_prefix=id_prefix,
            policy=policy(self.settings),
            backgrounds=self.backgrounds,
        )

    def _udp(self, id_prefix: str) -> UDPSessions:
        reports = self.reports
        udp = UDPSessions(
            datagrams=self.pump.datagrams,
            pool=self.pool,
            get_snapshot=lambda: self.reloader.current,
            on_outcome=reports.ended,
            on_opened=reports.opened,
            on_bug=reports.session_bug,
            on_drops=reports.drops,
            on_trouble=reports.trouble("udp"),
            wall_clock=time.time,  # noqa: TID251  as above
            id_prefix=id_prefix,
            totals=self.sessions.totals,
            backgrounds=self.backgrounds,
        )
        udp.obey(udp_limits(self.settings), max_duration_s=self.sessions.policy.max_duration_s)
        return udp

    @property
    def bugs(self) -> int:
        """Since the start."""
        return self.reports.bugs

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
          Sessions are cut (reason `drain`) and reset; their log lines are still written, and their records sent, each within
          the patience of who does it.
        """
        self.started_at = trio.current_time()
        try:
            async with (
                _outlasting(self.access_log.run, self.shipper.run),
                _outlasting(self.backgrounds.run),
                trio.open_nursery() as nursery,
            ):
                await nursery.start(self.pump.run)
                await nursery.start(self.resolver.run)
                await nursery.start(self.reloader.run)
                await nursery.start(self.prober.run)
                await nursery.start(self.udp.sweep)
                await nursery.start(self._serve, nursery.cancel_scope)
                task_status.started()
        finally:
            self.ended.set()

    def apply(self, settings: Settings) -> None:
        """Follow a changed conf/config.yaml: sockets first, all or nothing, then everything else that can change live.

        Raises:
          BindError: an address cannot be had; everything is as it was, but for what that says is lost.
        """
        self.listeners.make_way(settings.listeners)
        try:
            finish = self.sockets.replace(settings.listeners, let_go=self.let_go)
        except BindError:
            self.listen()
            raise
        self.settings = settings
        self.sessions.policy = policy(settings)
        self.udp.obey(udp_limits(settings), max_duration_s=self.sessions.policy.max_duration_s)
        self.reports.follow(settings.access_log)
        self.prober.sync(self.reloader.current.upstreams, is_on=settings.checks_health)
        self.listen()
        finish()
        self.reloader.poke()

    def listen(self) -> None:
        """Accept from exactly the sockets that are bound. For the first time when there is a snapshot."""
        self.listeners.sync(self.sockets.bound())

    def drain(self, deadline: float, *, is_succeeded: bool = False) -> None:
        """Accept no more; `run` returns when the last session has ended, at the latest at `deadline`.

        The listening sockets are closed at once: a client that comes now is refused, and can go elsewhere, rather than
        wait in the backlog of a gateway that will never look. (A service manager keeps its own copy open.) With
        `is_succeeded` another process has copies and goes on: nobody is refused.
        """
        self.draining = True
        self.listeners.drain(deadline, is_succeeded=is_succeeded)
        self.sockets.close_all()

    async def _serve(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self.listeners.run(task_status=task_status)
        scope.cancel()

    def let_go(self, gone: Collection[Listener]) -> None:
        """Touch these sockets no more: they are about to be closed."""
        self.listeners.sync(
            {listener: sock for listener, sock in self.sockets.bound().items() if listener not in gone}
        )
        self.listeners.make_way(gone)

    def _on_swap(self, snapshot: Snapshot) -> None:
        self.pool.sync(snapshot.upstreams, snapshot.names, snapshot.services)
        self.prober.sync(snapshot.upstreams, is_on=self.settings.checks_health)
        self.backgrounds.sync(snapshot.backgrounds)
        self.udp.sync(snapshot.upstreams)

    def _on_names_changed(self, name: str) -> None:
        self.pool.on_names_changed(name)
        self.prober.on_names_changed(name)

    def _on_health(self, upstream: Upstream, change: Change) -> None:
        self.reports.health(upstream, change)
        is_down = change.was_up and not change.is_up
        if is_down and upstream.checks is not None and upstream.checks.ends_sessions:
            self.sessions.leave_node(upstream.key, change.node)
            self.udp.leave_node(upstream.key, change.node)

    def publish_reload(self, what: str, status: ReloadStatus) -> None:
        """Tell the live feed what became of a configuration (`routes` or `settings`)."""
        self.reports.reload(what, status, len(self.reloader.current.router.routes))


@contextlib.asynccontextmanager
async def _outlasting(*services: Callable[..., Awaitable[NoReturn]]) -> AsyncGenerator[None]:
    """Run these while the block runs. They hear of a cancellation, whoever's it is, when the block has ended.

    Each has a bound for its own end; only a task of a plugin that shields itself has none but that plugin's.
    """
    scope = trio.CancelScope(shield=True)
    are_started = trio.Event()

    async def run_them() -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for service in services:
                    await nursery.start(service)
                are_started.set()

    async with trio.open_nursery() as nursery:
        # Not `start`: cancelled meanwhile, it would wait for the end of a task that hears of it from nobody.
        nursery.start_soon(run_them)
        try:
            await are_started.wait()
            yield
        finally:
            scope.cancel()


def settle() -> None:
    """Have the garbage collector leave alone what is loaded by now. Once that is everything.

    What is loaded stays. A full collection that had to look at it took 10 to 26 ms, at any odd moment. And sessions come and go
    by reference counting alone: looking for their cycles after every 700 allocations (CPython's default) finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    gc.enable()  # the command line has had it pause meanwhile


def build_resolver(
    settings: ResolverSettings, on_change: Callable[[str], None], *, on_bug: Callable[[Exception], None]
) -> Naming:
    """As the settings say. `on_change` is told of names, and of services."""
    discovery = settings.discovery
    names = DNSLookup(
        servers=settings.servers,
        timeout_s=settings.timeout_s,
        search=settings.search,
        ttl_override_s=settings.ttl_override_s,
        max_records=settings.max_records,
    )
    services = DNSLookup(
        servers=() if discovery.resolv_conf is not None else discovery.servers or settings.servers,
        timeout_s=settings.timeout_s,
        search=settings.search,
        ttl_override_s=settings.ttl_override_s,
        max_records=settings.max_records,
        resolv_conf=discovery.resolv_conf,
    )
    bounds = {"min_ttl_s": settings.min_ttl_s, "max_ttl_s": settings.max_ttl_s}
    lookup = ServiceLookup(services, order=discovery.order, stale_s=settings.stale_s)
    return Naming(
        Resolver(names, **bounds, stale_s=settings.stale_s, on_change=on_change),
        Discovery(lookup, **bounds, on_change=on_change),
        on_bug=on_bug,
    )


def kernel_maps(settings: Settings) -> Maps | None:
    """What lets the kernel pass small messages on, if that is wanted and possible. If it is not, the pump does as always.

    Somebody who wanted it be faster does not want it down: that it is not so is said, and is no reason not to start.
    """
    if settings.relay != "sockmap":
        return None
    log = structlog.get_logger()
    try:
        maps = open_maps()
    except Unavailable as error:
        log.warning("sockmap_unavailable", reason=str(error), relay="pump")
        return None
    log.info("sockmap_ready")
    return maps
