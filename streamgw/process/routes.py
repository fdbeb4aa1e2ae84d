"""routes.d, followed by one process: what reads it, what compiles it, what runs."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import attrs

from streamgw.config.compile import FileTree, Loader
from streamgw.config.plugins import PluginSet
from streamgw.config.settings import ReloadSettings, TLSSettings
from streamgw.config.store import Store
from streamgw.control.reloader import Reloader, ReloadStatus
from streamgw.control.watch import Further, changes
from streamgw.core.model import Listener
from streamgw.core.snapshot import Snapshot


class Routes:
    """The store, the loader and the reloader of one process, put together.

    A process that serves clients has one, and so has the supervisor of several such processes: it explains, checks and writes.

    Args:
      first: what runs until the directory can be read without a problem: the state that other processes of the gateway run.
        None: there has to be one from the start.
      tls: settings of now.
      plugins: what routes may name, now.
      listeners: what the process listens on; only warnings depend on it.
      on_swap, on_told: see `Reloader`.
    """

    def __init__(  # noqa: PLR0913  one parameter for each who is asked or told
        self,
        path: Path,
        reload: ReloadSettings,
        *,
        tls: Callable[[], TLSSettings],
        plugins: Callable[[], PluginSet],
        listeners: Callable[[], Sequence[Listener]],
        on_swap: Callable[[Snapshot], None],
        on_told: Callable[[ReloadStatus], None],
        first: FileTree | None = None,
    ) -> None:
        further = Further()
        self.store = Store(path)
        directory = _Directory(self.store, first)
        self.loader = Loader(directory, environ=os.environ, tls=tls, plugins=plugins)
        self.good: FileTree | None = None
        """The files that `reloader.current` was made of."""

        def remember(snapshot: Snapshot) -> None:
            self.good = directory.seen
            on_swap(snapshot)

        self.reloader = Reloader(
            self.loader,
            listeners,
            remember,
            watch=lambda: watch(path, reload, further, self.store.is_as_written),
            on_loaded=lambda: further.replace(self.loader.files),
            on_told=on_told,
        )


@attrs.define
class _Directory:
    """The store, as the loader sees it."""

    store: Store
    first: FileTree | None
    seen: FileTree | None = None
    """What was given out last. One load at a time, so whoever has compiled something knows of what."""

    def read(self) -> FileTree:
        """See `config.compile.Directory`."""
        self.seen, self.first = self.first or self.store.read(), None
        return self.seen

    def latest(self) -> FileTree:
        """See `config.compile.Directory`."""
        self.seen = self.store.latest()
        return self.seen


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
