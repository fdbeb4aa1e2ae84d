"""What a gateway has once, however many workers it has: what the HTTP side needs of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from streamgw.config.compile import Loader
from streamgw.config.settings import Settings
from streamgw.config.store import Store
from streamgw.control.admin.feed import Hub
from streamgw.control.reloader import Reloader
from streamgw.core.hooks import PluginServices
from streamgw.core.model import Listener
from streamgw.dataplane.discovery import Naming
from streamgw.process.prober import Checker


class Health(Protocol):
    """To look at only."""

    @property
    def checkers(self) -> Mapping[str, Checker]:
        """Of every upstream that has checks, by key."""


class Listening(Protocol):
    """To look at only."""

    def bound(self) -> Mapping[Listener, object]:
        """What clients can connect to."""


class Central(Protocol):
    """The one worker of a gateway that has no other; otherwise the office (`office.Office`)."""

    @property
    def settings(self) -> Settings:
        """Of now."""

    @property
    def sockets(self) -> Listening:
        """What clients can connect to."""

    @property
    def store(self) -> Store:
        """Through which routes are written."""

    @property
    def loader(self) -> Loader:
        """Checks what shall be written."""

    @property
    def reloader(self) -> Reloader:
        """What runs."""

    @property
    def prober(self) -> Health:
        """Which nodes are up."""

    @property
    def resolver(self) -> Naming:
        """What DNS says, of names and of services."""

    @property
    def hub(self) -> Hub:
        """The live feed."""

    @property
    def services(self) -> PluginServices:
        """For plugins that are built to be checked."""

    @property
    def refused(self) -> Counter[str]:
        """Requests that the Admin API did not let in, by reason."""

    @property
    def started_at(self) -> float:
        """trio.current_time() when it began."""

    @property
    def draining(self) -> bool:
        """No client is accepted any more."""
