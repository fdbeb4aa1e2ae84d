"""The gateway as a process: settings, signals, the HTTP servers, and the workers.

```
trio.run
└─ nursery
   ├─ predecessor  the gateway that this one takes over from, if there is one
   ├─ signals      TERM/INT → drain, again → end now · HUP → look again · USR1 → reopen the logs · USR2 → upgrade
   ├─ settings     watches conf/config.yaml; listeners open and close live
   ├─ servers      status, control API, metrics, Admin API: Starlette on Hypercorn
   ├─ successor    while there is one that has not taken over yet
   └─ workers      one, in this nursery, or processes of their own (`many.ManyWorkers`)
```

More than 400 lines, because start, signals, settings and upgrade wait for each other here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from streamgw.config.admin_keys import fill_in_keys
from streamgw.config.endpoints import AdminKey, AdminSettings
from streamgw.config.settings import Settings, load_settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import ConfigError, Problem, StoreError, StreamgwError
from streamgw.process import systemd
from streamgw.process.crew import Crew, OneWorker
from streamgw.process.log import configure_logging
from streamgw.process.routes import watch
from streamgw.process.servers import Servers
from streamgw.process.sockets import BindError, Sockets
from streamgw.process.stderr import take_over_stderr
from streamgw.process.takeover import (
    Handed,
    LastWords,
    Predecessor,
    Successor,
    UpgradeFailed,
    predecessor_fd,
)
from streamgw.process.worker import settle

if TYPE_CHECKING:
    from streamgw.process.many import ManyWorkers

EX_OK, EX_SOFTWARE, EX_IOERR, EX_CONFIG = 0, 70, 74, 78
"""Exit codes of sysexits.h."""

NEXT_START = "changed; takes effect at the next start, or `streamgw upgrade`"
NO_KEY = AdminKey("", "")

Extra = Callable[["Supervisor"], Awaitable[None]]
"""A task that runs beside the gateway and is cancelled with it: the demo's upstreams."""


def run_gateway(config: Path, routes: Path, *, beside: Extra | None = None) -> int:
    """Run until a signal ends it. Blocks; installs signal handlers; owns the process.

    Returns:
      0 after a drain; 78 when the configuration is wrong or a listener cannot be bound at the start (said on stderr);
      74 when a log file cannot be opened; 70 when workers die one after the other, or an upgrade broke off half-way.
    """
    take_over_stderr()
    fd = predecessor_fd()
    words = LastWords(fd)
    try:
        filled_in = fill_in_keys(config)
        settings = load_settings(config, environ=os.environ)
        configure_logging(settings.log)
        _check_keys(settings, config, filled_in)
        _raise_descriptor_limit(settings)
        trio.run(_run, settings, config, routes, Predecessor(fd), beside, strict_exception_groups=True)
    except* (ConfigError, BindError) as group:
        problems = [
            str(problem)
            for error in _leaves(group)
            for problem in (error.problems if isinstance(error, ConfigError) else (error,))
        ]
        # Each worker has found the same ones.
        _say(words, [*dict.fromkeys(problems), "streamgw: not started: the configuration is wrong"])
        code = EX_CONFIG
    except* (StoreError, OSError) as group:
        _say(words, [f"streamgw: {error}" for error in _leaves(group)])
        code = EX_IOERR
    except* StreamgwError as group:
        _say(words, [f"streamgw: {error}" for error in _leaves(group)])
        code = EX_SOFTWARE
    else:
        code = EX_OK
    finally:
        words.close()
    return code


async def _run(
    settings: Settings, config: Path, routes: Path, predecessor: Predecessor, beside: Extra | None
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(predecessor.run)
        supervisor = Supervisor(settings, config, routes, await predecessor.handed())
        await supervisor.run(beside, predecessor)
        nursery.cancel_scope.cancel()


class Supervisor:
    """Composes one gateway.

    Args:
      handed: by the gateway that this one takes over from.
    """

    def __init__(self, settings: Settings, config: Path, routes: Path, handed: Handed | None = None) -> None:
        handed = handed or Handed()
        self.config = config
        self.is_successor = bool(handed.listeners)
        """It took over from a gateway, which may still have sessions."""
        self.sockets = Sockets(systemd.inherited_sockets(), slots=settings.workers, handed=handed.listeners)
        make_crew = OneWorker if settings.workers == 1 else _import_many_workers()
        self.crew: Crew = make_crew(settings, routes, self.sockets)
        self.settings_status = ReloadStatus(warnings=settings.warnings, applied_at=datetime.now(UTC))
        make_fleet = partial(
            self.crew.fleet,
            settings_status=lambda: self.settings_status,
            look_at_settings=self._look_at_settings_soon,
        )
        self.servers = Servers(config, settings, self.crew.central, make_fleet, handed.http)
        self._nursery: trio.Nursery | None = None
        self._at_start = settings
        """What this process has for good is as it is here."""
        self._loading = trio.CancelScope()
        """Nobody is served before that is over: whoever wants an end need not wait for it."""
        self._is_ready = trio.Event()
        self._reloading = trio.Lock()
        self._upgrades = 0
        """Attempts."""
        self._upgrading: trio.CancelScope | None = None
        """While a new gateway may yet take over."""
        self._is_told_to_end = False
        self._log = structlog.get_logger()

    async def run(self, beside: Extra | None = None, predecessor: Predecessor | None = None) -> None:
        """Start everything, serve, and return when the drain is over, which may begin before all has started.

        Raises:
          ConfigError, BindError, OSError: at the start only, before the first client was accepted.
          StreamgwError: workers die one after the other; or an upgrade broke off half-way.

        Cancellation:
          Sockets are closed, sessions reset; nothing is left.
        """
        try:
            self.sockets.replace(self._at_start.listeners)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._watch_signals)
                with self._loading:
                    await nursery.start(self.crew.run)
                    self.servers.prepare()
                if not self.crew.draining:
                    await self._open(nursery, beside, predecessor)
                await self.crew.ended.wait()
                async with self._reloading:  # whoever has stepped back waits until its successor is ready
                    nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.sockets.close_all()
            self.servers.close()

    async def _open(
        self, nursery: trio.Nursery, beside: Extra | None, predecessor: Predecessor | None
    ) -> None:
        """Have everything that has loaded serve. Takes moments, and is not broken off: a predecessor relies on it."""
        if self.is_successor:
            settle()  # it takes moments, and clients have somebody else until then
        if predecessor is not None:
            await predecessor.loaded()
        await self.crew.listen()
        await self.servers.start(nursery)
        self.settings_status = attrs.evolve(
            self.settings_status, warnings=(*self._at_start.warnings, *self.servers.missed)
        )
        await nursery.start(self._watch_settings)
        if beside is not None:
            nursery.start_soon(beside, self)
        if predecessor is not None:
            await predecessor.ready()
        settle()
        if not self.crew.draining:
            self._announce(self._at_start)

    def _announce(self, settings: Settings) -> None:
        self.sockets.forget_unused()
        for warning in settings.warnings:
            self._log.warning("settings_warning", problem=str(warning))
        self._log.info(
            "ready",
            listeners=[listener.name for listener in self.sockets.listeners()],
            revision=self.crew.central.reloader.current.revision,
            workers=settings.workers,
            status=str(settings.status) if settings.status else "off",
            admin=str(settings.admin.listen) if settings.admin else "off",
        )
        systemd.notify("READY=1")
        self._is_ready.set()

    async def _watch_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for number in signals:
                match number:
                    case signal.SIGHUP:
                        self.crew.poke()
                        self._look_at_settings_soon()  # not awaited: during an upgrade that takes long
                    case signal.SIGUSR1:
                        self.crew.reopen_logs()
                    case signal.SIGUSR2:
                        self._upgrade_soon()
                    case _ if self._is_told_to_end:
                        self._log.warning("ending_now", live_sessions=self.crew.live_sessions)
                        self.crew.drain(trio.current_time())
                    case _:
                        self._drain(signal.Signals(number).name)

    def _drain(self, why: str) -> None:
        self._is_told_to_end = True
        if self.crew.draining:
            # For a successor, whom the same signal may have reached: what has begun goes on.
            self._log.info("draining", signal=why, live_sessions=self.crew.live_sessions)
            return
        timeout_s = self.crew.settings.drain_timeout_s
        self._log.info("draining", signal=why, live_sessions=self.crew.live_sessions, deadline_s=timeout_s)
        systemd.notify("STOPPING=1")
        if self._upgrading is not None:
            self._upgrading.cancel()  # whoever wants an end wants one of both
        self.crew.drain(trio.current_time() + timeout_s)
        self._loading.cancel()

    # Upgrade

    def _upgrade_soon(self) -> None:
        if self._nursery is None or self._upgrading is not None or self.crew.draining:
            self._log.warning("upgrade_not_begun", hint="one is under way, or the gateway ends")
            return
        if not self._is_ready.is_set():
            self._log.info("upgrade_postponed", hint="until the gateway is ready")
        self._upgrading = trio.CancelScope()
        self._nursery.start_soon(self._upgrade, self._upgrading)

    async def _upgrade(self, scope: trio.CancelScope) -> None:
        """Have a new process of the program as it is installed now take over.

        Raises:
          UpgradeFailed: half-way: nobody accepts clients any more.
        """
        with scope:
            # A predecessor, and the service manager, have to hear of this one first.
            await self._is_ready.wait()
            self._upgrades += 1
            self._log.info("upgrading", attempt=self._upgrades)
            await self._try_to_upgrade()
        self._upgrading = None

    async def _try_to_upgrade(self) -> None:
        # Nothing changes meanwhile: what is handed over is what the new gateway has to serve.
        async with self._reloading:
            handed = Handed(self.sockets.all(), self.servers.sockets)
            successor = Successor(handed, step_back=self._step_back, on_ready=_hand_over_to)
            try:
                await successor.run()
            except (StreamgwError, OSError) as error:
                self._log.error("upgrade_failed", attempt=self._upgrades, error=str(error))
                if isinstance(error, UpgradeFailed) and error.is_late:
                    raise
                self._warn_of(f"attempt {self._upgrades} failed: {error}")
            else:
                self._log.info("upgraded", live_sessions=self.crew.live_sessions)

    async def _step_back(self) -> None:
        """The new gateway has loaded everything, and is about to accept."""
        timeout_s = self.crew.settings.drain_timeout_s
        self._log.info(
            "draining", signal="upgrade", live_sessions=self.crew.live_sessions, deadline_s=timeout_s
        )
        self._upgrading = None
        self.sockets.are_handed_on = True
        self.servers.stop()
        await self.crew.step_back(trio.current_time() + timeout_s)

    def _warn_of(self, failure: str) -> None:
        place = "streamgw upgrade"
        warnings = tuple(each for each in self.settings_status.warnings if each.file != place)
        problem = Problem(place, 0, 0, "", failure)
        self.settings_status = attrs.evolve(self.settings_status, warnings=(*warnings, problem))

    # Settings

    async def _watch_settings(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with contextlib.aclosing(watch(self.config, self.crew.settings.reload)) as looks:
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
            runs = settings == self.crew.settings and not self.sockets.lost
            if runs or self.crew.draining:
                self._settle()
                return
            restart = _needs_restart(self._at_start, settings, str(self.config)) + self._of_workers(settings)
            await self.crew.apply(settings)
        except ConfigError as error:
            self._reject(error.problems)
        except BindError as error:
            self._reject((Problem(str(self.config), 0, 0, "apisix.stream_proxy", str(error)),))
        except Exception as error:  # noqa: BLE001  a bug in reading settings must not cost the sessions that run
            self._log.exception("settings_bug")
            self._reject((Problem("streamgw", 0, 0, "", f"bug while reading the settings: {error!r}"),))
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
            self._log.info(
                "settings_applied", listeners=[listener.name for listener in self.sockets.listeners()]
            )
            self.crew.publish_reload("settings", self.settings_status)

    def _of_workers(self, settings: Settings) -> tuple[Problem, ...]:
        return tuple(
            Problem(str(self.config), 0, 0, pointer, NEXT_START)
            for pointer, differs in self.crew.needs_start(self._at_start, settings).items()
            if differs
        )

    def _settle(self) -> None:
        """The file says again what is running: a rejected edit was taken back."""
        if self.settings_status.state == "rejected":
            self.settings_status = attrs.evolve(self.settings_status, state="applied", problems=())
            self._log.info(
                "settings_applied", listeners=[listener.name for listener in self.sockets.listeners()]
            )
            self.crew.publish_reload("settings", self.settings_status)

    def _reject(self, problems: tuple[Problem, ...]) -> None:
        status = self.settings_status
        if status.state == "rejected" and status.problems == problems:
            return  # the same broken file, looked at again
        self.settings_status = attrs.evolve(
            status, state="rejected", problems=problems, rejected=status.rejected + 1
        )
        for problem in problems:
            self._log.error("settings_rejected", problem=str(problem))
        self.crew.publish_reload("settings", self.settings_status)


def _import_many_workers() -> type[ManyWorkers]:
    from streamgw.process.many import ManyWorkers  # noqa: PLC0415  most gateways have one worker

    return ManyWorkers


def _needs_restart(old: Settings, new: Settings, file: str) -> tuple[Problem, ...]:
    """What changed in the file and cannot change in a running process."""
    places = {
        "apisix.status": (old.status, new.status),
        "apisix.control": (old.control, new.control),
        "plugin_attr.prometheus": (old.metrics, new.metrics),
        "deployment.admin": (_fixed(old.admin), _fixed(new.admin)),
        "streamgw.admin": (attrs.evolve(old.http, hosts=()), attrs.evolve(new.http, hosts=())),
    }
    return tuple(
        Problem(file, 0, 0, pointer, NEXT_START)
        for pointer, (before, after) in places.items()
        if before != after
    )


def _hand_over_to(pid: int) -> None:
    """The service manager follows the new process from now on, and hears of no one else."""
    systemd.notify(f"MAINPID={pid}")


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


def _say(words: LastWords, lines: list[str]) -> None:
    """The program's last words."""
    for line in lines:
        print(line, file=sys.stderr)  # noqa: T201  somebody looks there when it does not start
    words.say(lines)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
