"""Time, hidden: triggers, coalescing, threads, generations. Out come whole snapshots, one after the other.

Every trigger (the watcher, a signal, the API) does the same thing: it says "look again". One task looks, one look at a
time; what is said during a look causes one more after it. So it does not matter how many triggers there were, which file
they meant, or whether they came too early: the last look comes after the last trigger.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NoReturn, Protocol, TypeAlias

import attrs
import structlog
import trio

from streamgw.config.compile import Compilation
from streamgw.config.documents import Document
from streamgw.control.polite import polite_to_the_event_loop
from streamgw.core.errors import ConfigError, Problem, StoreError
from streamgw.core.model import Awaited, Listener, Revision
from streamgw.core.snapshot import Snapshot

NO_REVISION = Revision("")
MAX_LOGGED = 100
"""Problems or warnings of one look that are logged; `streamgw status` and `streamgw check` show all."""
RETRY_S = 2.0
"""Time between looks while the directory cannot be read."""
DAY_S = 86_400.0
"""Time between looks when nothing changes at all: certificates come to expire without anybody touching a file."""


class Loads(Protocol):
    """What the reloader asks of `config.compile.Loader`."""

    def load(self, listeners: Sequence[Listener]) -> Compilation:
        """Read and compile everything. Blocks. Raises ConfigError or StoreError."""

    def load_written(self, listeners: Sequence[Listener]) -> Compilation:
        """Compile what a write of ours has left, without looking at the files again. Blocks. Raises like `load`."""


_Load: TypeAlias = Callable[[Sequence[Listener]], Compilation]


@attrs.frozen
class ReloadStatus:
    """What became of the latest look that found something new. For `streamgw status`."""

    state: Literal["applied", "rejected"] = "applied"
    """Rejected: what runs is still `revision`; `problems` says what is wrong with what is on disk."""
    revision: Revision = NO_REVISION
    """Of what runs."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    """About what runs."""
    applied_at: datetime | None = None
    duration_s: float = 0.0
    """Reading and compiling, the latest time that was applied."""
    reloads: int = 0
    """Applied since the start, the first load not counted."""
    rejected: int = 0
    """Rejected since the start; the same problems found again are not counted again."""


@attrs.frozen
class _Found:
    """What one look found."""

    compilation: Compilation
    fresh: tuple[Problem, ...]
    """Warnings that were not there before, for the log: at most MAX_LOGGED."""
    duration_s: float


def _now() -> datetime:
    return datetime.now(UTC)


class Reloader:
    """Holds the current snapshot, and replaces it by the next one: all or nothing.

    Args:
      listeners: what the process listens on now; only warnings depend on it.
      on_swap: told each new snapshot, the first one included, at the same moment as `current` changes: no other task
        runs in between. Must not block or raise.
      watch: a fresh iteration of "look again", the first one when the watcher stands (`watch.changes`).
      on_loaded: told after each load, also one that failed: what it read may lie elsewhere than before. Must not block or
        raise.
      on_told: told the new `status` whenever the log is told: applied, rejected, or as it was before. Must not block or
        raise.
      wall_clock: for `applied_at`.
    """

    def __init__(  # noqa: PLR0913  one parameter for each who is asked or told
        self,
        loader: Loads,
        listeners: Callable[[], Sequence[Listener]],
        on_swap: Callable[[Snapshot], None],
        *,
        watch: Callable[[], AsyncGenerator[None]],
        on_loaded: Callable[[], None] = lambda: None,
        on_told: Callable[[ReloadStatus], None] = lambda _: None,
        wall_clock: Callable[[], datetime] = _now,
    ) -> None:
        self._loader = loader
        self._listeners = listeners
        self._on_swap = on_swap
        self._watch = watch
        self._on_loaded = on_loaded
        self._on_told = on_told
        self._wall_clock = wall_clock
        self._current: Snapshot | None = None
        self._documents: tuple[Document, ...] = ()
        self._swapped = trio.Event()
        self._poked = trio.Event()
        self._wanted: Literal["look", "written"] | None = None
        """What the pokes since the latest look ask for."""
        self._log = structlog.get_logger()
        self._retry_s = DAY_S
        self.status = ReloadStatus()

    @property
    def current(self) -> Snapshot:
        """The snapshot that new sessions pin. There is none before `run` has started."""
        assert self._current is not None, "the first load comes first"
        return self._current

    @property
    def documents(self) -> tuple[Document, ...]:
        """What `current` was made of."""
        return self._documents

    def poke(self) -> None:
        """Look again, now. Also while a look is under way: then once more after it."""
        self._wanted = "look"
        self._poked.set()

    def poke_written(self) -> None:
        """Run what was just written through the store. What others have changed meanwhile waits for its own poke."""
        self._wanted = self._wanted or "written"
        self._poked.set()

    async def wait_applied(self, awaited: Awaited) -> None:
        """Wait until these objects, by digest, have been what runs, each once. None: until there was no such object.

        May never return: the state on disk may be rejected, or changed again before anybody looked. Bring a deadline.
        """
        for key, digest in awaited:
            while self._current is None or self._current.sources.get(key) != digest:
                await self._swapped.wait()

    async def wait_revision(self, revision: str) -> None:
        """Wait until that is what runs. May never return, as `wait_applied`."""
        while self._current is None or self._current.revision != revision:
            await self._swapped.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Load, report that it has started, and keep following the directory.

        The watcher stands before the first load reads, so no change falls between the two.

        Raises:
          ConfigError, StoreError: the first load failed. Later ones are told in `status`, and change nothing.

        Cancellation:
          Waits for the end of a load under way (a thread cannot be stopped), whose result is then dropped.
        """
        async with contextlib.aclosing(self._watch()) as looks:
            await anext(looks)
            self._apply(await self._load(self._loader.load))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._poke_for_each, looks)
                task_status.started()
                while True:
                    with trio.move_on_after(self._retry_s):
                        await self._poked.wait()
                    self._poked = trio.Event()
                    wanted, self._wanted = self._wanted, None
                    await self._look(self._loader.load_written if wanted == "written" else self._loader.load)
        raise AssertionError("only cancellation ends this")

    async def _poke_for_each(self, looks: AsyncGenerator[None]) -> None:
        async for _ in looks:
            self.poke()

    async def _look(self, load: _Load) -> None:
        self._retry_s = DAY_S
        try:
            found = await self._load(load)
        except ConfigError as error:
            self._reject(error.problems)
        except StoreError as error:
            # It may be over without any file changing: no descriptor left, a directory that is being replaced.
            self._retry_s = RETRY_S
            self._reject((Problem("the routes", 0, 0, "", str(error)),))
        except Exception as error:  # noqa: BLE001  a bug in reading files must not cost the sessions that run
            self._log.exception("reload_bug")
            self._reject((Problem("streamgw", 0, 0, "", f"bug while loading: {error!r}"),))
        else:
            replaced = self._apply(found)
            await trio.to_thread.run_sync(_take_apart, replaced)

    async def _load(self, load: _Load) -> _Found:
        began_at = trio.current_time()
        listeners = tuple(self._listeners())
        # Not abandoned on cancel: two loads at once would share the loader's memory of parsed files.
        try:
            with polite_to_the_event_loop():
                compilation, fresh = await trio.to_thread.run_sync(self._load_and_compare, load, listeners)
        finally:
            self._on_loaded()
        await trio.lowlevel.checkpoint_if_cancelled()
        return _Found(compilation, fresh, trio.current_time() - began_at)

    def _load_and_compare(
        self, load: _Load, listeners: tuple[Listener, ...]
    ) -> tuple[Compilation, tuple[Problem, ...]]:
        """In the worker thread: only the looking task writes `status`, and it waits for this."""
        compilation = load(listeners)
        known = frozenset(self.status.warnings)
        fresh = (warning for warning in compilation.warnings if warning not in known)
        return compilation, tuple(itertools.islice(fresh, MAX_LOGGED))

    def _apply(self, found: _Found) -> list[object]:
        """Returns what is replaced, in pieces, for `_take_apart`."""
        before = self.status
        snapshot, warnings = found.compilation.snapshot, found.compilation.warnings
        replaced: list[object] = [*self._documents, *before.warnings]
        self._documents = found.compilation.documents
        if self._current is None or snapshot.revision != self._current.revision:
            if self._current is not None:
                replaced += [*self._current.router.routes, *self._current.upstreams.values()]
            self._current = snapshot
            self._on_swap(snapshot)
            self.status = ReloadStatus(
                revision=snapshot.revision,
                warnings=warnings,
                applied_at=self._wall_clock(),
                duration_s=found.duration_s,
                reloads=before.reloads + (before.applied_at is not None),
                rejected=before.rejected,
            )
            self._log.info(
                "routes_applied",
                revision=snapshot.revision,
                routes=len(snapshot.router.routes),
                warnings=len(warnings),
                duration_ms=round(found.duration_s * 1000),
            )
            self._swapped.set()
            self._swapped = trio.Event()
            self._on_told(self.status)
        else:
            # The same documents. But the listeners may be others, and with them the warnings.
            self.status = attrs.evolve(before, state="applied", problems=(), warnings=warnings)
            if before.state == "rejected":
                self._log.info("routes_as_before", revision=snapshot.revision)
                self._on_told(self.status)
        for warning in found.fresh:
            self._log.warning("routes_warning", problem=str(warning))
        return replaced

    def _reject(self, problems: tuple[Problem, ...]) -> None:
        before = self.status
        if before.state == "rejected" and before.problems == problems:
            return
        self.status = attrs.evolve(before, state="rejected", problems=problems, rejected=before.rejected + 1)
        self._log.error("routes_rejected", problems=len(problems), still_running=before.revision)
        for problem in problems[:MAX_LOGGED]:
            self._log.error("routes_problem", problem=str(problem))
        self._on_told(self.status)


def _take_apart(pieces: list[object]) -> None:
    """Free one by one what nobody else holds: the last reference to a whole configuration frees all of it in one go.

    Between two pieces the event loop can have the interpreter. Old sessions still pin what they need.
    """
    while pieces:
        pieces.pop()
