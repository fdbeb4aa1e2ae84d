"""What a gateway has once when its workers are processes of their own, in the supervisor: routes, names, health, the live feed.

```
Office.run
├─ resolver     for the nodes that are probed
├─ reloader     what runs, for explaining, checking and writing; each worker has its own
└─ prober       one child per node that is checked

Office.attend, once for each worker
├─ health       tells it which nodes are down
├─ events       tells it what is listened to
└─ books        asks it what it has counted, now and then
```
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast

import structlog
import trio

from streamgw.config.settings import Settings
from streamgw.control.admin.feed import LOST
from streamgw.control.reloader import ReloadStatus
from streamgw.core.hooks import PluginServices
from streamgw.core.snapshot import Snapshot
from streamgw.dataplane.pool import UpstreamPool
from streamgw.process.books import Books
from streamgw.process.central import Listening
from streamgw.process.figures import Share
from streamgw.process.health import NodeStates
from streamgw.process.members import Silent, There, share_of, status_of
from streamgw.process.plugins import plugin_set
from streamgw.process.prober import Prober
from streamgw.process.reports import Reports
from streamgw.process.routes import Routes
from streamgw.process.stderr import STDERR
from streamgw.process.worker import build_resolver

FORWARDED = frozenset({"session_opened", "session_closed"})
"""Kinds of events that happen in workers. The others happen here."""
BOOKS_S = 1.0
"""Between two looks at what a worker has counted: of one that is killed no more than that is forgotten."""
CATCH_UP_S = 5.0
"""A worker that has loaded, and runs something else than the gateway by then, begins nevertheless."""
RETRY_S = 1.0
"""After a question that was not answered."""


class Office:
    """See the module. Implements `central.Central`.

    Args:
      routes: the directory.
      sockets: what clients can connect to.
    """

    def __init__(self, settings: Settings, routes: Path, sockets: Listening) -> None:
        self.settings = settings
        self.sockets = sockets
        self.started_at = 0.0
        self.draining = False
        """Set by whoever drains the workers."""
        self._log = structlog.get_logger()
        self.reports = Reports(settings.access_log)
        self.hub = self.reports.hub
        self.services = PluginServices(hostname=socket.gethostname())
        self.refused: Counter[str] = Counter()
        self.members: list[There] = []
        """The workers that live now; `attend` has them come and go."""
        self.books = Books(lambda: Share(bugs=self.reports.bugs, log_dropped=STDERR.dropped))
        self.states = NodeStates()
        self._has_loaded = trio.Event()
        self.resolver = build_resolver(
            settings.resolver, self._on_names_changed, on_bug=self.reports.bug("background")
        )
        rng = random.Random()  # noqa: S311  for the jitter of probes
        self._pool = UpstreamPool(self.resolver, rng=rng)
        self.prober = Prober(
            self._pool, rng=rng, on_change=self.reports.health, on_bug=self.reports.bug("background")
        )
        self.states.follow(self.prober)
        self.followed = followed = Routes(
            routes,
            settings.reload,
            tls=lambda: self.settings.tls,
            plugins=lambda: plugin_set(self.settings, self.services),
            listeners=lambda: self.settings.listeners,
            on_swap=self._on_swap,
            on_told=lambda status: self.publish_reload("routes", status),
        )
        self.store, self.loader, self.reloader = followed.store, followed.loader, followed.reloader

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Load, probe, follow routes.d.

        Raises:
          ConfigError, StoreError: the first load failed.
        """
        self.started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.resolver.run)
            await nursery.start(self.reloader.run)
            self._has_loaded.set()
            await nursery.start(self.prober.run)
            task_status.started()
        raise AssertionError("none of them ends")

    def apply(self, settings: Settings) -> None:
        """Follow a changed conf/config.yaml, as far as it concerns what is here."""
        self.settings = settings
        self.prober.sync(self.reloader.current.upstreams, is_on=settings.checks_health)
        self.reloader.poke()

    def publish_reload(self, what: str, status: ReloadStatus) -> None:
        """Tell the live feed what became of a configuration (`routes` or `settings`)."""
        self.reports.reload(what, status, len(self.reloader.current.router.routes))

    async def attend(
        self, member: There, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Have a worker belong to the gateway, from when it has loaded until this is cancelled. Has started when it knows which
        nodes are down, and runs what the gateway runs.

        Cancellation:
          It is forgotten; what it has counted is not.
        """
        self.members.append(member)
        self.books.open(member)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.states.keep_telling, member.mark)
                nursery.start_soon(self._keep_listening, member)
                nursery.start_soon(self._keep_books, member)
                await self._catch_up(member)
                task_status.started()
        finally:
            self.members.remove(member)
            self.books.close(member)

    async def _catch_up(self, member: There) -> None:
        """What was written after it had loaded, and before it was a member, nobody has told it."""
        await self._has_loaded.wait()
        revision = self.reloader.current.revision
        with contextlib.suppress(Silent):
            if not await member.catch_up(revision, CATCH_UP_S):
                self._log.warning("worker_lags", worker=member.number, pid=member.pid, behind=revision)

    async def answer(self, member: There, what: str, arguments: Mapping[str, object]) -> object:
        """What a worker asks: `results` of its sessions, `farewell`."""
        match what:
            case "results":
                self.states.heard(cast("Sequence[Sequence[object]]", arguments["results"]))
            case "farewell":
                share, said = arguments["share"], arguments["status"]
                self.books.note(
                    member,
                    share=share_of(cast("Mapping[str, object]", share)),
                    said=status_of(cast("Mapping[str, object]", said)),
                    is_final=True,
                )
            case _:
                raise AssertionError(f"nobody asks {what}")
        await trio.lowlevel.checkpoint()
        return {}

    def heard(self, what: str, data: Mapping[str, object]) -> None:
        """News of a worker: `events`."""
        assert what == "events", "nothing else is told"
        for kind, at, about in cast("Sequence[tuple[str, float, Mapping[str, object]]]", data["events"]):
            if kind == LOST:
                self.hub.lose(cast("int", about["count"]))
            else:
                self.hub.publish(kind, about, at)

    async def _keep_listening(self, member: There) -> NoReturn:
        """What somebody listens to here, the worker tells; nothing else."""
        told = frozenset[str]()
        while True:
            wanted = self.hub.wanted
            if wanted & FORWARDED == told:
                await self.hub.wait_wanted(wanted)
                continue
            try:
                await member.listen(sorted(wanted & FORWARDED))
                told = wanted & FORWARDED
            except Silent:
                await trio.sleep(RETRY_S)

    async def _keep_books(self, member: There) -> NoReturn:
        while True:
            with contextlib.suppress(Silent):
                self.books.note(member, share=await member.share(), said=await member.status())
            await trio.sleep(BOOKS_S)

    def _on_swap(self, snapshot: Snapshot) -> None:
        self._pool.sync(snapshot.upstreams, snapshot.names, snapshot.services)
        self.prober.sync(snapshot.upstreams, is_on=self.settings.checks_health)

    def _on_names_changed(self, name: str) -> None:
        self._pool.on_names_changed(name)
        self.prober.on_names_changed(name)
