"""Keeps what DNS says fresh, off the connect path: a session reads what is known and never waits for a server again.

Each name in use has one task that looks it up, sleeps for the answer's time to live, and looks again. A failure keeps
the last answer for a while (serve-stale, RFC 8767) and is retried soon. That includes NXDOMAIN, which RFC 8767 would
believe: a record deleted by mistake or a headless service between two pods should not cut off nodes that still answer;
if they are gone indeed, connecting to them fails, and says so.

Any other exception is a bug, and costs that one look: it is told of, and the name is in trouble as after a failure.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Awaitable, Callable, Collection
from typing import Generic, NoReturn, TypeAlias, TypeVar

import attrs
import structlog
import trio

from streamgw.core.errors import StreamgwError

FLOOR_S = 0.1
"""Between two looks at one name at least, whatever the settings say: names of the hosts file have no time to live."""
RETRY_FIRST_S = 1.0
RETRY_LIMIT_S = 30.0
"""A name that cannot be looked up is tried again after 1, 2, 4, … 30 seconds."""

T = TypeVar("T")


class LookupFailed(StreamgwError):
    """Nothing is known of a name, and why: `no such name (NXDOMAIN)`, `no answer within 5 s`."""


@attrs.frozen
class Answer(Generic[T]):
    """What a lookup found. Nothing at all only where DNS says just that: the service is not available here."""

    found: tuple[T, ...]
    """In a fixed order: a server that rotates its records reports no change."""
    ttl_s: float
    """How long the answer may be used; 0 asks for the shortest time that is allowed."""
    left_out: int = 0
    """Records beyond the limit."""


Lookup: TypeAlias = Callable[[str], Awaitable[Answer[T]]]
"""Looks one name up. Raises LookupFailed, nothing else."""


@attrs.frozen
class Standing(Generic[T]):
    """How things stand with one name, for people."""

    name: str
    found: tuple[T, ...]
    trouble: str
    """Why the latest lookup failed; empty: it did not."""


@attrs.define(eq=False)
class _Entry(Generic[T]):
    """One name in use."""

    name: str
    found: tuple[T, ...] = ()
    usable_until: float = -math.inf
    """trio.current_time() when what was found is too stale to use."""
    failures: int = 0
    """Since the last answer."""
    trouble: str = ""
    """The failure that was logged last; empty while all is well."""
    is_cut: bool = False
    """The last answer had more records than are used."""
    answered: trio.Event = attrs.Factory(trio.Event)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


def _log_bug(error: Exception) -> None:
    structlog.get_logger().error(
        "bug", phase="background", traceback="".join(traceback.format_exception(error))
    )


class Refresher(Generic[T]):
    """Keeps the answers for all names that are in use.

    Args:
      lookup: asks.
      min_ttl_s: no name is asked for more often (see FLOOR_S), nor …
      max_ttl_s: more seldom.
      stale_s: how long an answer is used beyond its time while lookups fail.
      on_change: told of each name whose answer is another one. Must not block.
    """

    def __init__(
        self,
        lookup: Lookup[T],
        *,
        min_ttl_s: float,
        max_ttl_s: float,
        stale_s: float,
        on_change: Callable[[str], None],
    ) -> None:
        self._lookup = lookup
        self._min_ttl_s = max(min_ttl_s, FLOOR_S)
        self._max_ttl_s = max(max_ttl_s, FLOOR_S)
        self._stale_s = stale_s
        self._on_change = on_change
        self.on_bug: Callable[[Exception], None] = _log_bug
        """Told of an exception that nobody expected, of a lookup or of `on_change`."""
        self._entries: dict[str, _Entry[T]] = {}
        self._nursery: trio.Nursery | None = None
        self._log = structlog.get_logger()

    def sync(self, names: Collection[str]) -> None:
        """Keep exactly these names fresh from now on.

        A name that stays is not asked for again. Before `run`, names are only noted.
        """
        wanted = set(names)
        for name in self._entries.keys() - wanted:
            entry = self._entries.pop(name)
            entry.scope.cancel()
            # Nobody will answer any more: a session that waits for this name goes on with what there is.
            entry.answered.set()
        for name in sorted(wanted - self._entries.keys()):
            self._entries[name] = entry = _Entry(name)
            if self._nursery is not None:
                self._nursery.start_soon(self._keep, entry, name=f"resolve {name}")

    def known(self, name: str) -> tuple[T, ...]:
        """What is known now, without waiting: () if nothing is."""
        entry = self._entries.get(name)
        return () if entry is None else entry.found

    def trouble(self, name: str) -> str:
        """Why the latest lookup failed; empty: it did not, or has not ended yet."""
        entry = self._entries.get(name)
        return "" if entry is None else entry.trouble

    def standings(self) -> tuple[Standing[T], ...]:
        """All names in use, sorted."""
        return tuple(
            Standing(name, entry.found, entry.trouble) for name, entry in sorted(self._entries.items())
        )

    async def first(self, name: str) -> None:
        """Wait until the first lookup of a name has ended, well or not. Returns at once for a name not in use."""
        entry = self._entries.get(name)
        if entry is not None:
            await entry.answered.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep looking. `on_change(name)` is called when what is found is something else, and only then.

        Cancellation:
          Every lookup under way ends with it. What is known stays readable.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for entry in self._entries.values():
                    nursery.start_soon(self._keep, entry, name=f"resolve {entry.name}")
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
        raise AssertionError("sleep_forever returned")

    async def _keep(self, entry: _Entry[T]) -> None:
        try:
            with entry.scope:
                while True:
                    delay_s = await self._look(entry)
                    entry.answered.set()
                    await trio.sleep(delay_s)
        except* Exception as errors:  # noqa: BLE001  it broke while it was cancelled: the name is not in use any more
            self.on_bug(errors)

    async def _look(self, entry: _Entry[T]) -> float:
        """Returns the seconds until the next look."""
        try:
            return self._succeeded(entry, await self._lookup(entry.name))
        except LookupFailed as error:
            return self._failed(entry, str(error))
        except Exception as error:  # noqa: BLE001  a bug says nothing of the name, and ends no session
            self.on_bug(error)
            return self._failed(entry, f"a bug: {type(error).__name__}")

    def _succeeded(self, entry: _Entry[T], answer: Answer[T]) -> float:
        ttl_s = min(max(answer.ttl_s, self._min_ttl_s), self._max_ttl_s)
        entry.usable_until = trio.current_time() + ttl_s + self._stale_s
        entry.failures = 0
        if entry.trouble:
            entry.trouble = ""
            self._log.info("name_resolves_again", name=entry.name, addresses=_shown(answer.found))
        if bool(answer.left_out) is not entry.is_cut:
            entry.is_cut = not entry.is_cut
            if entry.is_cut:
                self._log.warning(
                    "too_many_records", name=entry.name, used=len(answer.found), left_out=answer.left_out
                )
        self._set(entry, answer.found)
        return ttl_s

    def _failed(self, entry: _Entry[T], why: str) -> float:
        """Returns the seconds until the next try."""
        left_s = entry.usable_until - trio.current_time()
        if left_s <= 0:
            self._set(entry, ())
        if why != entry.trouble:
            entry.trouble = why
            self._log.warning("name_not_resolved", name=entry.name, why=why, still_used=_shown(entry.found))
        delay_s = min(RETRY_FIRST_S * 2.0 ** min(entry.failures, 10), RETRY_LIMIT_S)
        entry.failures += 1
        # Not later than the moment at which what we serve becomes too old, so that it is dropped then.
        return min(delay_s, left_s) if entry.found else delay_s

    def _set(self, entry: _Entry[T], found: tuple[T, ...]) -> None:
        if found != entry.found:
            entry.found = found
            try:
                self._on_change(entry.name)
            except Exception as error:  # noqa: BLE001  the answer is as good as without it
                self.on_bug(error)


def _shown(found: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(map(str, found))
