"""The workers of a gateway, as the rest of the supervisor knows them: one in this process, or several of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import trio

from streamgw.config.settings import Settings
from streamgw.control.admin.fleet import Fleet
from streamgw.control.reloader import ReloadStatus
from streamgw.process.central import Central
from streamgw.process.sockets import Sockets
from streamgw.process.worker import Worker

RESOLVER_POINTERS: Mapping[str, tuple[str, ...]] = {
    "apisix.dns_resolver": ("servers",),
    "apisix.dns_resolver_valid": ("ttl_override_s",),
    "apisix.resolver_timeout": ("timeout_s",),
    "apisix.enable_resolv_search_opt": ("search",),
    "streamgw.resolver": ("min_ttl_s", "max_ttl_s", "stale_s", "max_records"),
    "discovery.dns": ("discovery",),
}
"""Where each of the `ResolverSettings` is set."""


class MakeFleet(Protocol):
    """As the constructor of `LocalFleet`, for the workers there are."""

    def __call__(
        self, settings_status: Callable[[], ReloadStatus], look_at_settings: Callable[[], None]
    ) -> Fleet:
        """Made once."""


class Crew(Protocol):
    """All of them."""

    @property
    def settings(self) -> Settings:
        """Of now."""

    @property
    def sockets(self) -> Sockets:
        """On which they listen."""

    @property
    def central(self) -> Central:
        """What the gateway has once."""

    @property
    def fleet(self) -> MakeFleet:
        """Makes what the HTTP side asks."""

    @property
    def draining(self) -> bool:
        """No client is accepted any more."""

    @property
    def live_sessions(self) -> int:
        """Of all workers, as far as they have said."""

    @property
    def ended(self) -> trio.Event:
        """No worker is left."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load everything, report that, and serve from `listen` until `drain` has ended the last session.

        Raises:
          ConfigError: the first load of routes.d found problems.
          OSError: the access log cannot be opened.
        """

    async def listen(self) -> None:
        """Accept from exactly the sockets that are bound. Once `run` has reported."""

    async def apply(self, settings: Settings) -> None:
        """Follow a changed conf/config.yaml, all or nothing.

        Raises:
          BindError: an address cannot be had; everything is as it was, but for what that says is lost.
        """

    def drain(self, deadline: float) -> None:
        """Accept no more; see `Listeners.drain`. May be called again, with an earlier deadline."""

    async def step_back(self, deadline: float) -> None:
        """As `drain` for the sake of a successor. Returns when every worker has begun."""

    def poke(self) -> None:
        """Look at routes.d again, now."""

    def reopen_logs(self) -> None:
        """After they were moved away."""

    def publish_reload(self, what: str, status: ReloadStatus) -> None:
        """Tell the live feed what became of a configuration."""

    def needs_start(self, old: Settings, new: Settings) -> Mapping[str, bool]:
        """Settings that a worker has for good, and whether they differ: what takes effect at the next start."""


class OneWorker:
    """`workers: 1`: the worker's tree runs in the supervisor's nursery."""

    def __init__(self, settings: Settings, routes: Path, sockets: Sockets) -> None:
        self.sockets = sockets
        self.worker = worker = Worker(settings, routes, sockets)
        self.central: Central = worker
        self.ended = worker.ended

    @property
    def settings(self) -> Settings:
        """See `Crew`."""
        return self.worker.settings

    def fleet(
        self, settings_status: Callable[[], ReloadStatus], look_at_settings: Callable[[], None]
    ) -> Fleet:
        """See `Crew`."""
        from streamgw.process.fleet import LocalFleet  # noqa: PLC0415  see `Servers.start`

        return LocalFleet(self.worker, settings_status, look_at_settings)

    @property
    def draining(self) -> bool:
        """See `Crew`."""
        return self.worker.draining

    @property
    def live_sessions(self) -> int:
        """See `Crew`."""
        return self.worker.live_sessions

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Crew.run`."""
        await self.worker.run(task_status=task_status)

    async def listen(self) -> None:
        """See `Crew.listen`."""
        self.worker.listen()

    async def apply(self, settings: Settings) -> None:
        """See `Crew.apply`. Synchronous, in truth: no client can arrive half-way through."""
        self.worker.apply(settings)

    def drain(self, deadline: float) -> None:
        """See `Crew.drain`."""
        self.worker.drain(deadline)

    async def step_back(self, deadline: float) -> None:
        """See `Crew.step_back`. Synchronous, in truth."""
        self.worker.drain(deadline, is_succeeded=True)

    def poke(self) -> None:
        """See `Crew.poke`."""
        self.worker.reloader.poke()

    def reopen_logs(self) -> None:
        """See `Crew.reopen_logs`."""
        self.worker.access_log.reopen()

    def publish_reload(self, what: str, status: ReloadStatus) -> None:
        """See `Crew.publish_reload`."""
        self.worker.publish_reload(what, status)

    def needs_start(self, old: Settings, new: Settings) -> Mapping[str, bool]:
        """See `Crew.needs_start`."""
        return {
            "streamgw.workers": old.workers != new.workers,
            "streamgw.relay": old.relay != new.relay,
            "streamgw.reload": old.reload != new.reload,
            **{
                pointer: any(getattr(old.resolver, name) != getattr(new.resolver, name) for name in names)
                for pointer, names in RESOLVER_POINTERS.items()
            },
        }
