"""Objects that were written with a `ttl` go when their time has come, also if nobody was running at that moment.

The time stands in the object (`expire_time`), so a person sees it in the file and can change it there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NoReturn

import structlog
import trio

from streamgw.config.survey import Located, Survey
from streamgw.control.admin.changes import Changes
from streamgw.control.admin.references import use_of
from streamgw.control.admin.replies import RequestError, bad
from streamgw.control.admin.writer import Writer
from streamgw.core.model import Key

LOOK_S = 60.0
"""Time between looks: an editor may write an `expire_time`, too, and what could not go may be able to later."""
_FIRST = ("stream_routes", "services", "upstreams")


class Janitor:
    """Deletes what has expired."""

    def __init__(self, changes: Changes, writer: Writer, wall_clock: Callable[[], float]) -> None:
        self._changes = changes
        self._writer = writer
        self._wall_clock = wall_clock
        self._woken = trio.Event()
        self._log = structlog.get_logger()

    def wake(self) -> None:
        """Look again: an object has a time now."""
        self._woken.set()

    async def run(self) -> NoReturn:
        """Look, sleep until the next object expires, and so on.

        Cancellation:
          Whatever is being deleted is deleted.
        """
        while True:
            self._woken = trio.Event()
            try:
                next_s = await self._look()
            except Exception:  # noqa: BLE001  a bug here must not cost the sessions that run
                self._log.exception("expiry_bug")
                next_s = LOOK_S
            with trio.move_on_after(next_s):
                await self._woken.wait()
        raise AssertionError("only cancellation ends this")

    async def _look(self) -> float:
        """Delete what has expired. Returns in how many seconds to look again."""
        now = self._wall_clock()
        try:
            times = await trio.to_thread.run_sync(self._times)
        except RequestError:
            return LOOK_S  # the reload says what is wrong with the directory
        for key in sorted((key for key, time in times.items() if time <= now), key=_by_reference):
            await self._remove(key)
        return min([LOOK_S, *(time - now for time in times.values() if time > now)])

    def _times(self) -> dict[Key, float]:
        objects = self._changes.survey().objects
        return {key: time for key, located in objects.items() if (time := expire_time(located)) is not None}

    async def _remove(self, key: Key) -> None:
        try:
            await self._writer.make(partial(self._changes.remove, key, self._allow))
        except RequestError as error:
            self._log.warning("not_expired", object="/".join(key), reason=str(error))
        else:
            self._log.info("expired", object="/".join(key))

    def _allow(self, survey: Survey, located: Located) -> None:
        time = expire_time(located)
        if time is None or time > self._wall_clock():
            raise bad("somebody gave it more time")
        if said := use_of(located.key, survey.objects):
            raise bad(said)


def _by_reference(key: Key) -> tuple[int, Key]:
    """Whoever refers to something goes before it."""
    return (_FIRST.index(key[0]) if key[0] in _FIRST else len(_FIRST)), key


def expire_time(located: Located) -> float | None:
    """When an object expires, Unix time; None: never."""
    time = located.data.get("expire_time")
    return float(time) if type(time) in {int, float} else None  # type: ignore[arg-type]  # a number, then
