"""The gateway as a process: settings, signals, the HTTP servers, and the worker in the same nursery.

```
trio.run
└─ nursery
   ├─ signals      TERM/INT → drain, again → end now · HUP → look again · USR1 → reopen the access log
   ├─ settings     watches conf/config.yaml; listeners open and close live
   ├─ servers      status, control API, metrics, Admin API: Starlette on Hypercorn
   └─ worker       everything that serves clients
```
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import attrs
import structlog
import trio

from streamgw.config.admin_keys import fill_in_keys
from streamgw.config.endpoints import AdminKey, AdminSettings
from streamgw.config.settings import Settings, load_settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import ConfigError, Problem, StoreError
from streamgw.process import systemd
from streamgw.process.fleet import LocalFleet
from streamgw.process.log import configure_logging
from streamgw.process.routes import watch
from streamgw.process.servers import Servers
from streamgw.process.sockets import BindError, Sockets
from streamgw.process.worker import Worker

EX_OK, EX_IOERR, EX_CONFIG = 0, 74, 78
"""Exit codes of sysexits.h."""

GC_THRESHOLD = 50_000
"""Container objects that may be allocated before the youngest generation is collected."""

NO_KEY = AdminKey("", "")

Extra = Callable[["Supervisor"], Awaitable[None]]
"""A task that runs beside the gateway and is cancelled with it: the demo's upstreams."""


def run_gateway(config: Path, routes: Path, *, beside: Extra | None = None) -> int:
    """Run until a signal ends it. Blocks; installs signal handlers; owns the process.

    Returns:
      0 after a drain; 78 when the configuration is wrong or a listener cannot be bound at the start (said on stderr);
      74 when a log file cannot be opened.
    """
    try:
        filled_in = fill_in_keys(config)
        settings = load_settings(config, environ=os.environ)
        configure_logging(settings.log)
        _check_keys(settings, config, filled_in)
        _raise_descriptor_limit(settings)
        trio.run(Supervisor(settings, config, routes).run, beside, strict_exception_groups=True)
    except* (ConfigError, BindError) as group:
        for error in _leaves(group):
            problems = error.problems if isinstance(error, ConfigError) else (error,)
            for problem in problems:
                print(problem, file=sys.stderr)  # noqa: T201  the program's last words
        print("streamgw: not started: the configuration is wrong", file=sys.stderr)  # noqa: T201  as above
        code = EX_CONFIG
    except* (StoreError, OSError) as group:
        for error in _leaves(group):
            print(f"streamgw: {error}", file=sys.stderr)  # noqa: T201  as above
        code = EX_IOERR
    else:
        code = EX_OK
    return code


class Supervisor:
    """Composes one gateway. `workers: 1` runs the worker's tree inside the supervisor's nursery: no child process."""

    def __init__(self, settings: Settings, config: Path, routes: Path) -> None:
        self.config = config
        self.sockets = Sockets(systemd.inherited_sockets())
        self.worker = Worker(settings, routes, self.sockets)
        self.settings_status = ReloadStatus(warnings=settings.warnings, applied_at=datetime.now(UTC))
        fleet = LocalFleet(
            self.worker,
            lambda: self.settings_status,
            look_at_settings=self._look_at_settings_soon,
        )
        self.servers = Servers(config, settings, self.worker, fleet)
        self._nursery: trio.Nursery | None = None
        self._reloading = trio.Lock()
        self._log = structlog.get_logger()

    async def run(self, beside: Extra | None = None) -> None:
        """Start everything, serve, and return when the drain is over.

        Raises:
          ConfigError, BindError, OSError: at the start only, before the first client was accepted.

        Cancellation:
          Sockets are closed, sessions reset; nothing is left.
        """
        settings = self.worker.settings
        try:
            self.sockets.replace(settings.listeners)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._watch_signals)
                await nursery.start(self.worker.run)
                self.worker.listen()
                await self.servers.start(nursery)
                self.settings_status = attrs.evolve(
                    self.settings_status, warnings=(*settings.warnings, *self.servers.missed)
                )
                await nursery.start(self._watch_settings)
                if beside is not None:
                    nursery.start_soon(beside, self)
                self._announce(settings)
                await self.worker.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.sockets.close_all()

    def _announce(self, settings: Settings) -> None:
        # What is loaded by now stays. A full collection that had to look at it took 10 to 26 ms, at any odd moment.
        # And sessions come and go by reference counting alone: looking for their cycles after every 700 allocations
        # (CPython's default) finds nothing.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        for warning in settings.warnings:
            self._log.warning("settings_warning", problem=str(warning))
        self._log.info(
            "ready",
            listeners=[listener.name for listener in self.sockets.bound()],
            revision=self.worker.reloader.current.revision,
            status=str(settings.status) if settings.status else "off",
            admin=str(settings.admin.listen) if settings.admin else "off",
        )
        systemd.notify("READY=1")

    async def _watch_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for number in signals:
                match number:
                    case signal.SIGHUP:
                        self.worker.reloader.poke()
                        await self._reload_settings()
                    case signal.SIGUSR1:
                        self.worker.access_log.reopen()
                    case _ if self.worker.draining:
                        self._log.warning("ending_now", live_sessions=self.worker.live_sessions)
                        self.worker.drain(trio.current_time())
                    case _:
                        self._drain(signal.Signals(number).name)

    def _drain(self, why: str) -> None:
        timeout_s = self.worker.settings.drain_timeout_s
        self._log.info("draining", signal=why, live_sessions=self.worker.live_sessions, deadline_s=timeout_s)
        systemd.notify("STOPPING=1")
        self.worker.drain(trio.current_time() + timeout_s)

    async def _watch_settings(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with contextlib.aclosing(watch(self.config, self.worker.settings.reload)) as looks:
            await anext(looks)
            await self._reload_settings()  # it may have changed between the start and the watcher
            task_status.started()
            async for _ in looks:
                await self._reload_settings()

    def _look_at_settings_soon(self) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._reload_settings)

    async def _reload_settings(self) -> None:
        """Read conf/config.yaml again; apply it whole, or keep what runs and say why.

        One at a time: of two that a signal and the watcher asked for, the one that read the older file must not be the
        one that applies last.
        """
        async with self._reloading:
            await self._look_at_settings()

    async def _look_at_settings(self) -> None:
        try:
            settings = await trio.to_thread.run_sync(_read, self.config)
            if settings == self.worker.settings or self.worker.draining:
                self._settle()
                return
            restart = _needs_restart(self.worker.settings, settings, str(self.config))
            self.worker.apply(settings)
        except ConfigError as error:
            self._reject(error.problems)
        except BindError as error:
            self._reject((Problem(str(self.config), 0, 0, "apisix.stream_proxy", str(error)),))
        else:
            configure_logging(settings.log)
            for problem in restart:
                self._log.warning("settings_warning", problem=str(problem))
            self.settings_status = attrs.evolve(
                self.settings_status,
                state="applied",
                problems=(),
                warnings=(*settings.warnings, *restart, *self.servers.missed),
                applied_at=datetime.now(UTC),
                reloads=self.settings_status.reloads + 1,
            )
            self._log.info("settings_applied", listeners=[listener.name for listener in self.sockets.bound()])
            self.worker.publish_reload("settings", self.settings_status)

    def _settle(self) -> None:
        """The file says again what is running: a rejected edit was taken back."""
        if self.settings_status.state == "rejected":
            self.settings_status = attrs.evolve(self.settings_status, state="applied", problems=())
            self._log.info("settings_applied", listeners=[listener.name for listener in self.sockets.bound()])
            self.worker.publish_reload("settings", self.settings_status)

    def _reject(self, problems: tuple[Problem, ...]) -> None:
        status = self.settings_status
        if status.state == "rejected" and status.problems == problems:
            return  # the same broken file, looked at again
        self.settings_status = attrs.evolve(
            status, state="rejected", problems=problems, rejected=status.rejected + 1
        )
        for problem in problems:
            self._log.error("settings_rejected", problem=str(problem))
        self.worker.publish_reload("settings", self.settings_status)


def _needs_restart(old: Settings, new: Settings, file: str) -> tuple[Problem, ...]:
    """What changed in the file and cannot change in a running process."""
    places = {
        "apisix.status": (old.status, new.status),
        "apisix.control": (old.control, new.control),
        "plugin_attr.prometheus": (old.metrics, new.metrics),
        "deployment.admin": (_fixed(old.admin), _fixed(new.admin)),
        "streamgw.admin": (attrs.evolve(old.http, hosts=()), attrs.evolve(new.http, hosts=())),
        "nginx_config.stream.access_log": (old.access_log.path, new.access_log.path),
        "streamgw.resolver": (old.resolver, new.resolver),
        "streamgw.reload": (old.reload, new.reload),
    }
    return tuple(
        Problem(file, 0, 0, pointer, "changed; takes effect at the next start")
        for pointer, (before, after) in places.items()
        if before != after
    )


def _fixed(admin: AdminSettings | None) -> AdminSettings | None:
    """What of the Admin API cannot change in a running process: who may use it can."""
    if admin is None:
        return None
    return attrs.evolve(admin, keys=(), is_key_required=True, allowed=(), has_cors=True)


def _read(config: Path) -> Settings:
    """The settings; an admin key that has become empty is filled in first. Blocks."""
    filled_in = fill_in_keys(config)
    settings = load_settings(config, environ=os.environ)
    _check_keys(settings, config, filled_in)
    return settings


def _check_keys(settings: Settings, config: Path, filled_in: int) -> None:
    if filled_in:
        structlog.get_logger().warning("admin_keys_made", file=str(config), keys=filled_in)
    admin = settings.admin
    if admin is not None and admin.is_key_required and not all(key.key for key in admin.keys or (NO_KEY,)):
        message = "missing valid Admin API token: there is no key, or an empty one"
        raise ConfigError((Problem(str(config), 0, 0, "deployment.admin.admin_key", message),))


def _raise_descriptor_limit(settings: Settings) -> None:
    """Use every descriptor that the system allows: the soft limit is often 1024, a session needs two, over UDP one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = 2 * settings.limits.max_sessions
    if any(listener.transport == "udp" for listener in settings.listeners):
        wanted += settings.limits.max_udp_sessions
    if hard != resource.RLIM_INFINITY and wanted > hard:
        structlog.get_logger().warning(
            "few_descriptors",
            limit=hard,
            wanted=wanted,
            hint="raise LimitNOFILE (ulimit -Hn) or lower streamgw.limits.max_sessions and max_udp_sessions",
        )


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
