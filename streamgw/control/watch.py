"""Says "look again" whenever a file or a directory may have changed; which file changed is nobody's business.

Theory of operation. watchfiles (inotify) is only the alarm clock; the truth is what a survey of the path finds:

* A survey lists every directory whose entries matter: the directory itself, those below it, and the ones that hold it
  or a symlink on the way to it. So a path that does not exist yet, a directory that is replaced, and a Kubernetes
  `..data` link that is swapped are all entries of a watched directory.
* Watches are on inodes. A survey that finds other directories than are being watched makes a new watcher and surveys
  again, before anybody is told: whoever looks after that cannot miss what the old watcher did not see.
* What is read may lie elsewhere, too: certificates that an object refers to. Which files these are is known only after a
  load, so they come as `Further`, which wakes the watcher when there are others; the survey that follows finds them
  different from before, and so whatever happened to them meanwhile is seen.
* Every `relook_s` there is a survey without an alarm. It compares what stat(2) says of every file, which is cheaper than
  reading them. An event that got lost (an overflowing queue, a network file system, a link to elsewhere) heals then.
* Sessions must not end because of what somebody does to files: a name that is not UTF-8, a server that is away, a
  directory that nobody may enter. An alarm that cannot be told is an alarm, and a survey that fails found a change:
  whoever looks then hears from the kernel what is wrong.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import attrs
import structlog
import trio
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

LONGEST_BURST = 4
"""A burst of events that does not end is reported after this many times `settle_ms` all the same."""
PAUSE = 20
"""An alarm that cannot be told is passed on after this many times `settle_ms`: there may be a thousand of them."""
POLL_S = 0.3
MAX_LINKS = 40
"""Symlinks followed on the way to one path; Linux itself gives up (ELOOP) after 40."""
MAX_SURVEYS = 10
"""In a row, while the directories keep changing under our hands; the next alarm goes on from there."""

Identity: TypeAlias = tuple[int, int]
"""Device and inode."""
Stamp: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime (ns): another one means another content, or another mode."""


class Further:
    """Files elsewhere that are watched as well. Others at any time."""

    def __init__(self) -> None:
        self.paths: frozenset[Path] = frozenset()
        """Absolute. They need not exist."""
        self._replaced = trio.Event()

    def replace(self, paths: Collection[Path]) -> None:
        """From now on these, and only these."""
        if frozenset(paths) != self.paths:
            self.paths = frozenset(paths)
            self._replaced.set()
            self._replaced = trio.Event()

    async def wait_replaced(self, known: frozenset[Path]) -> None:
        """Wait until they are not these any more."""
        while self.paths == known:
            await self._replaced.wait()


async def changes(
    path: Path,
    *,
    settle_ms: int,
    relook_s: float,
    force_polling: bool = False,
    further: Further | None = None,
    is_known: Callable[[str], bool] = lambda _: False,
) -> AsyncGenerator[None]:
    """Yield at once, when the watcher stands, and then each time that `path` may have changed.

    Args:
      path: a file or a directory, which need not exist. Directories whose name begins with a dot are not entered.
      further: files elsewhere; one that becomes watched counts as a change.
      is_known: whether a file (an absolute path) is at this moment as whoever looks knows it already, because it was
        written from here: no alarm then. Asked in a worker thread.
      settle_ms: a burst of events is over after one step this long without another; it counts once.
      relook_s: time between surveys without an alarm.
      force_polling: for file systems without inotify: a survey every POLL_S, and no alarm clock.

    Resource handling:
      Iterate under contextlib.aclosing: the inotify descriptor is closed with the generator. While it is waited for, one
      worker thread waits.

    Never raises anything else than Cancelled, whatever the file system does.

    Cancellation:
      Takes up to `settle_ms`: that often the thread looks whether it is still wanted.
    """
    watch = _Watch(path, settle_ms, force_polling, is_known)
    further = further or Further()
    survey_every_s = min(relook_s, POLL_S) if force_polling else relook_s
    # A limiter of our own: this thread is always busy and must not count against everybody else's.
    limiter = trio.CapacityLimiter(1)
    try:
        surveyed = further.paths
        await trio.to_thread.run_sync(watch.survey, surveyed, limiter=limiter)
        yield
        while True:
            look_at = trio.current_time() + survey_every_s
            alarmed = False
            while not alarmed and further.paths == surveyed and (left_s := look_at - trio.current_time()) > 0:
                alarmed = await _listen(watch, left_s, limiter, partial(further.wait_replaced, surveyed))
            surveyed = further.paths
            if await trio.to_thread.run_sync(watch.survey, surveyed, limiter=limiter) or alarmed:
                yield
    finally:
        watch.close()


async def _listen(
    watch: _Watch,
    timeout_s: float,
    limiter: trio.CapacityLimiter,
    wait_outdated: Callable[[], Awaitable[None]],
) -> bool:
    # A thread cannot be cancelled, and trio waits for it: shutdown would take up to `relook_s`. But the thread does look
    # at `stop`, and the finally of a sibling runs as soon as the cancellation arrives, so that one sets it.
    stop = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set_at_the_end, stop, wait_outdated)
        alarmed = await trio.to_thread.run_sync(watch.listen, timeout_s, stop, limiter=limiter)
        nursery.cancel_scope.cancel()
    return alarmed


async def _set_at_the_end(stop: threading.Event, wait_outdated: Callable[[], Awaitable[None]]) -> None:
    try:
        await wait_outdated()
    finally:
        stop.set()


@attrs.frozen
class _Survey:
    """What a path looks like right now."""

    directories: dict[str, Identity]
    """To watch: path as the user would write it → which directory that is at the moment."""
    inside: frozenset[str]
    """Those of them in which every entry matters."""
    entries: frozenset[str]
    """The entries that matter in the others: the path itself and the links on the way to it."""
    files: tuple[tuple[str, Stamp | None], ...]
    """Every file, links followed; None for a link to nowhere."""

    def concerns(self, event: str) -> bool:
        """Whether an event at this path may change what is read."""
        directory, name = os.path.split(event)
        if event in self.entries or event in self.inside:
            return True
        # An editor's swap file and our own temporary files begin with one dot; Kubernetes' links with two.
        return directory in self.inside and (not name.startswith(".") or name.startswith(".."))


class _Watch:
    """The blocking half. Called from one worker thread at a time."""

    def __init__(
        self,
        path: Path,
        settle_ms: int,
        force_polling: bool,
        is_known: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._path = path.absolute()
        self._step_ms = max(settle_ms, 1)
        self._force_polling = force_polling
        self._is_known = is_known
        self._notify: RustNotify | None = None
        self._watched: dict[str, Identity] | None = None
        self._survey: _Survey | None = None
        self._complaint = ""
        self._log = structlog.get_logger()

    def survey(self, further: Collection[Path] = ()) -> bool:
        """Look at everything, `further` files included, and watch exactly what is there. Returns whether anything is different from last time."""
        before = self._survey
        try:
            for _ in range(MAX_SURVEYS):
                self._survey = _survey(self._path, further)
                if self._survey.directories == self._watched or not self._rewatch(self._survey.directories):
                    break
        except Exception as error:  # noqa: BLE001  e.g. directories so deep that Python does not descend
            self._complain(str(error))
            self._drop()
            self._survey = None
            return True
        return self._survey != before

    def listen(self, timeout_s: float, stop: threading.Event) -> bool:
        """Block until an event that matters (True), or until the time is over or `stop` is set (False).

        May return False earlier, after events that do not matter. Only what was surveyed is listened to.
        """
        if self._notify is None:
            stop.wait(timeout_s)
            return False
        try:
            events = self._notify.watch(
                LONGEST_BURST * self._step_ms, self._step_ms, max(int(timeout_s * 1000), 1), stop
            )
        except (OSError, WatchfilesRustInternalError):
            # Something happened to a name that is not UTF-8, were it that somebody opened it. This watcher says nothing
            # else any more; the survey that follows makes another, or tells why not.
            self._drop()
            stop.wait(min(PAUSE * self._step_ms / 1000, timeout_s))
            return True
        if isinstance(events, str):
            return False
        assert self._survey is not None, "survey comes first"
        return any(self._survey.concerns(path) and not self._is_known(path) for _, path in events)

    def close(self) -> None:
        """Give the inotify descriptor back."""
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    def _rewatch(self, directories: dict[str, Identity]) -> bool:
        """Returns whether another survey is needed: something may have changed before the new watcher stood."""
        self._drop()
        if self._force_polling:
            # Not watchfiles' own polling: it compares times in whole seconds and misses the second of two quick edits.
            return False
        try:
            # Not recursive: that would enter .git, and stay with a directory that was moved away.
            self._notify = RustNotify(list(directories), False, False, 0, False, True)
        except FileNotFoundError:
            return True
        except (OSError, WatchfilesRustInternalError) as error:
            # Out of inotify instances or watches. Surveys still see every change, only later.
            self._complain(str(error))
            return False
        except UnicodeEncodeError as error:
            self._complain(f"not UTF-8: {error.object!r}")
            return False
        self._watched = directories
        self._complaint = ""
        return True

    def _drop(self) -> None:
        self.close()
        self._watched = None

    def _complain(self, error: str) -> None:
        """Once, until a watcher stands again."""
        if error != self._complaint:
            self._complaint = error
            self._log.error("cannot_watch", path=str(self._path), error=error)


def _survey(path: Path, further: Collection[Path]) -> _Survey:
    links: dict[Path, Path | None] = {}
    entries = set(_trail(path, links))
    inside: dict[Identity, str] = {}
    files: list[tuple[str, Stamp | None]] = []
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises for a directory that may not be entered
        _enter(str(path), inside, files)
    else:
        files.append((str(path), _stamp(str(path))))
    for file in sorted(further):
        entries.update(_trail(file, links))
        files.append((str(file), _stamp(str(file))))
    directories = {directory: identity for identity, directory in inside.items()}
    for holder in {str(entry.parent) for entry in entries} - directories.keys():
        if (identity := _identity(holder)) is not None:
            directories[holder] = identity
    return _Survey(directories, frozenset(inside.values()), frozenset(map(str, entries)), tuple(files))


def _enter(directory: str, inside: dict[Identity, str], files: list[tuple[str, Stamp | None]]) -> None:
    """Depth first through `directory`; each directory once, however many links lead to it."""
    identity = _identity(directory)
    if identity is None or identity in inside:
        return
    inside[identity] = directory
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_directory(entry):
            _enter(entry.path, inside, files)
        else:
            files.append((entry.path, _stamp(entry.path)))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself (ELOOP)


def _trail(path: Path, known: dict[Path, Path | None]) -> Iterator[Path]:
    """The path, where it really is, and each name on the way that leads elsewhere when replaced: a link, or a gap.

    `known` is where links were found to lead: a thousand certificates in one directory have one way there.
    """
    yield path
    here = Path("/")
    pending = list(path.parts[1:])
    links = 0
    while pending and links < MAX_LINKS:
        name = pending.pop(0)
        here = here.parent if name == ".." else here / name
        if here not in known:
            try:
                known[here] = here.readlink()
            except FileNotFoundError:
                break
            except (OSError, ValueError):
                known[here] = None  # EINVAL: not a link; or a name that no file can have
        target = known[here]
        if target is None:
            continue
        yield here
        links += 1
        here = Path("/") if target.is_absolute() else here.parent
        pending = [part for part in target.parts if part != "/"] + pending
    yield here


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116  ten thousand of them every two seconds
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _identity(path: str) -> Identity | None:
    stamp = _stamp(path)
    return None if stamp is None else stamp[:2]
