"""The directory of routes: read it whole, change one object in it, atomically or not at all.

Files are the only write path: editor, command line and Admin API all end in one file being put in place here or by the
user, and only the reloader reads. Blocking: an event loop calls it in a worker thread.

Writing is a sequence of steps under a lock that every streamgw process takes (editors do not):

1. read the directory, find the object, make the new text of its file, check it (`plan.py`, `edit.py`);
2. write it to a hidden file in the same directory and sync that;
3. an existing file: look once more whether somebody changed it, then swap the two names, and look at what really stood
   there: if somebody else's file came in between, swap back; a new one: link, which fails if the name was taken
   meanwhile; then unlink the hidden name;
4. sync the directory.

Whatever step is the last one, a reader sees the old file or the new one. What a crash leaves behind is hidden from
`read` and removed by the next write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from streamgw.config.disk import Disk
from streamgw.config.edit import NotEditable
from streamgw.config.plan import AlreadyExists, Change, NotFound, Plan, Planner, Stale, digest_in
from streamgw.config.survey import Located, Survey, Surveyor
from streamgw.config.tree import (
    LOOK_AGAIN_S,
    TEMPORARY,
    Entry,
    Moment,
    State,
    Tree,
    build_tree,
    explain,
    look_at,
    read_state,
)
from streamgw.core.errors import StoreError
from streamgw.core.model import Key

__all__ = [
    "AlreadyExists",
    "Located",
    "NotEditable",
    "NotFound",
    "Plan",
    "Stale",
    "Store",
    "Survey",
    "Written",
]

LOCK_WAIT_S: Final = 10.0
"""A writer that holds the lock for longer is stuck; the next one gives up with an error."""

MAX_WRITTEN: Final = 1000
"""Files of which the store remembers how it left them."""

_LOCK_NAME: Final = ".streamgw.lock"
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class NotWritable(StoreError):
    """The directory can be read only."""


@attrs.frozen
class Written:
    """What a write did."""

    path: Path
    digest: str
    """`documents.digest_of` the object as it now stands in the file."""


class Store:
    """The files of one directory. Threads may share it."""

    def __init__(self, directory: Path, *, disk: Disk | None = None) -> None:
        self.directory = directory
        """As the user wrote it: names in messages start with it."""
        self._disk = disk or Disk()
        self._surveyor = Surveyor(directory)
        self._planner = Planner(directory)
        # Looking again every two seconds must cost next to nothing while nothing changes.
        self._seen: Moment | None = None
        self._writes = 0
        """That `_seen` knows of."""
        self._turn = threading.Lock()
        """Of whoever changes these two."""
        self._written: dict[str, tuple[int, ...] | None] = {}
        """What the latest writes left, by absolute path: the stamps of a file, None: no file. The latest last."""

    def read(self) -> Tree:
        """Every `*.yaml`, `*.yml` and `*.json` below the directory.

        Links are followed, each directory is read once. The files are of one moment: when one changes, comes or goes
        meanwhile, all are read again.

        Raises:
          StoreError: there is no such directory (never an empty tree: a directory that is just being replaced must
            not remove every route), a file cannot be read, or it all keeps changing.
        """
        return self._read().tree

    def latest(self) -> Tree:
        """What the latest look found, changed by what was written through this store since. Raises like `read`."""
        return self._seen.tree if self._seen is not None else self.read()

    def survey(self) -> Survey:
        """Every object of one moment, to look things up in and to plan changes by.

        Raises:
          StoreError: like `read`; or a file is broken, or two objects of a kind have the same id.
        """
        return self._surveyor.survey(self._read())

    def survey_to_show(self) -> Survey:
        """The same for whoever only looks: see `Surveyor.survey`. Raises like `read`."""
        return self._surveyor.survey(self._read(), to_show=True)

    def is_as_written(self, path: str) -> bool:
        """Whether this file (an absolute path) is what one of the latest writes through this store has left."""
        if path not in self._written:
            return False
        try:
            return look_at(path, path)[2:] == self._written[path]
        except FileNotFoundError:
            return self._written[path] is None
        except (OSError, StoreError):
            return False

    def find(self, key: Key) -> Located | None:
        """Where an object stands.

        Raises:
          StoreError: like `read`; or a file that mentions the id is broken, or two files define it.
        """
        return self._surveyor.find(key, self._read().state)

    def objects(self, collection: str) -> tuple[Located, ...]:
        """Every object of a collection that has an id, by file and line. Raises like `survey`."""
        found = self.survey().objects.values()
        return tuple(located for located in found if located.key[0] == collection and located.is_named)

    # Planned first, made later

    def plan_put(
        self, survey: Survey, key: Key, data: Mapping[str, object], *, if_absent: bool = False
    ) -> Plan:
        """What `put` would do to this state of the directory. Raises like `put`."""
        found = survey.objects.get(key)
        return self._planner.put(key, data, found, survey.moment, if_absent=if_absent)

    def plan_delete(self, survey: Survey, key: Key) -> Plan:
        """What `delete` would do to this state of the directory. Raises like `delete`."""
        return self._planner.delete(key, survey.objects.get(key), survey.moment)

    def plan_file(self, survey: Survey, name: str, content: bytes) -> Plan:
        """A whole file, put in place of what stands there. Raises NotEditable: that is a link."""
        return self._planner.file(name, content, survey.moment)

    def change(self, plan: Callable[[Survey], Plan], check: Callable[[Plan], None]) -> None:
        """Plan a write, check it, make it: under one lock, so that no other streamgw writes in between.

        An editor takes no lock. When it changes the very file meanwhile, nothing is written; when it changes another one,
        the next load sees both.

        Raises:
          Stale, AlreadyExists, StoreError: like `put`. What `plan` and `check` raise comes through; nothing is written.
        """
        with self._locked():
            survey = self.survey()
            planned = plan(survey)
            check(planned)
            self._make(planned, survey.moment.state.strays)

    # At once

    def put(
        self, key: Key, data: Mapping[str, object], *, if_absent: bool = False, if_match: str | None = None
    ) -> Written:
        """Add an object in a file of its own, or change it where it stands.

        `if_match` is the digest that the object must have now.

        Raises:
          AlreadyExists: with `if_absent`, when it is there.
          Stale: with `if_match`, when it is not there or differs; or the file changed while we wrote.
          NotEditable: its file cannot be changed without touching other objects, or is a link.
          StoreError: the disk said no.
        """
        with self._locked():
            moment = self._read()
            found = self._surveyor.find(key, moment.state)
            plan = self._planner.put(key, data, found, moment, if_absent=if_absent, if_match=if_match)
            self._make(plan, moment.state.strays)
        return Written(plan.change.path, digest_in(plan.change.content, key))

    def delete(self, key: Key, *, if_match: str | None = None) -> Path:
        """Remove an object, and its file if that was written for it alone. Returns the file.

        Raises:
          NotFound: it is not there.
          Stale, NotEditable, StoreError: like `put`.
        """
        with self._locked():
            moment = self._read()
            found = self._surveyor.find(key, moment.state)
            plan = self._planner.delete(key, found, moment, if_match=if_match)
            self._make(plan, moment.state.strays)
        return plan.change.path

    def preview_put(self, key: Key, data: Mapping[str, object], *, if_absent: bool = False) -> Tree:
        """What the directory would be after `put`: the very text, so that problems name the right lines."""
        moment = self._read()
        found = self._surveyor.find(key, moment.state)
        return self._planner.put(key, data, found, moment, if_absent=if_absent).after

    def preview_delete(self, key: Key) -> Tree:
        """What the directory would be after `delete`."""
        moment = self._read()
        return self._planner.delete(key, self._surveyor.find(key, moment.state), moment).after

    # Reading

    def _read(self) -> Moment:
        seen, writes = self._seen, self._writes
        state = read_state(self.directory, self._disk, seen.state if seen else None)
        if seen is not None and state.contents is seen.state.contents:
            moment = Moment(state, seen.tree)
        else:
            moment = Moment(state, build_tree(self.directory, state.contents, seen.tree if seen else None))
        with self._turn:
            # Else what was written meanwhile is newer than what this look may have found.
            if self._writes == writes:
                self._seen = moment
        return moment

    # Writing

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock that the command line and the Admin API share, and translate what the disk says."""
        path = self.directory / _LOCK_NAME
        try:
            for _ in range(round(LOCK_WAIT_S / LOOK_AGAIN_S)):
                fd = self._disk.lock(path)
                if fd is not None:
                    break
                self._disk.pause(LOOK_AGAIN_S)
            else:
                raise StoreError(f"{path}: another writer has held it for {LOCK_WAIT_S:g} s")
        except OSError as error:
            kind = NotWritable if error.errno in _READ_ONLY else StoreError
            raise kind(f"{self.directory}: cannot be written to: {error.strerror}") from error
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.directory)  # an open file says nothing of its name
            raise explain(error) from error
        finally:
            os.close(fd)

    def _make(self, plan: Plan, strays: tuple[str, ...]) -> None:
        if plan.changes_nothing:
            return
        self._apply(plan.change, strays)
        self._remember(plan)

    def _remember(self, plan: Plan) -> None:
        """What the directory is now, so that the next look finds it as expected and reads one file."""
        before, path = plan.before, plan.change.path
        entries = {entry.name: entry for entry in before.entries}
        contents = {**before.contents, plan.name: plan.change.content}
        if plan.change.content:
            entries[plan.name] = look_at(str(path), plan.name)
        else:
            del entries[plan.name], contents[plan.name]
        absolute = os.path.abspath(path)  # noqa: PTH100  as the watcher names it
        self._written.pop(absolute, None)
        self._written[absolute] = entries[plan.name][2:] if plan.change.content else None
        if len(self._written) > MAX_WRITTEN:
            del self._written[next(iter(self._written))]
        ordered = tuple(entries[name] for name in sorted(entries))
        with self._turn:
            self._seen = Moment(State(ordered, contents, (), before.began_ns), plan.after)
            self._writes += 1

    def _apply(self, change: Change, strays: tuple[str, ...]) -> None:
        disk, directory = self._disk, change.path.parent
        for stray in strays:
            disk.unlink(Path(stray))
        if not change.content:
            self._check_unchanged(change)
            disk.unlink(change.path)
        else:
            if not directory.is_dir():
                disk.make_directory(directory)
                disk.sync_directory(directory.parent)
            self._put_in_place(change, directory / f".{change.path.name}{TEMPORARY}")
        disk.sync_directory(directory)

    def _put_in_place(self, change: Change, temporary: Path) -> None:
        disk = self._disk
        try:
            self._write(temporary, change)
            if change.replaces:
                self._check_unchanged(change)
                self._swap(temporary, change)
            else:
                disk.link(temporary, change.path)
                disk.unlink(temporary)
        except (OSError, StoreError) as error:
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
            if isinstance(error, FileExistsError):
                raise AlreadyExists(f"{change.path}: appeared meanwhile; nothing was written") from error
            raise

    def _write(self, path: Path, change: Change) -> None:
        fd = self._disk.create(path, change.mode)
        try:
            if change.replaces:
                self._disk.adopt(fd, change.path.stat(), most=0o600 if change.is_narrowed else 0o7777)
            rest = memoryview(change.content)
            while rest:
                rest = rest[self._disk.write(fd, rest) :]
            self._disk.sync(fd)
        except OSError as error:
            raise StoreError(f"{change.path}: {error.strerror}; nothing was written") from error
        finally:
            self._disk.close(fd)

    def _swap(self, temporary: Path, change: Change) -> None:
        """Have both files swap their names, and see what comes back. Not what was expected: somebody saved it in the
        meantime, and it goes where it was; and so on, until nobody saves anything in between.
        """
        assert change.replaces is not None, "asked of files that were there"
        disk, put = self._disk, _content_at(temporary)
        expected: tuple[int, ...] | None = _content_of(change.replaces)
        if not disk.exchange(temporary, change.path):
            disk.rename(temporary, change.path)
            return
        is_stale = False
        while (came := _content_at(temporary)) != expected:
            is_stale = True
            disk.exchange(temporary, change.path)
            expected, put = put, came
        if is_stale:
            raise Stale(f"{change.path}: changed meanwhile; nothing was written")
        disk.unlink(temporary)

    def _check_unchanged(self, change: Change) -> None:
        """An editor takes no lock. Where names cannot be swapped, this leaves it the microseconds until the rename."""
        assert change.replaces is not None, "asked of files that are there"
        if look_at(str(change.path), change.replaces.name) != change.replaces:
            raise Stale(f"{change.path}: changed meanwhile; nothing was written")


def _content_at(path: Path) -> tuple[int, ...] | None:
    """Tells contents from each other, wherever they are. None: not even a file."""
    try:
        return _content_of(look_at(str(path), ""))
    except StoreError:
        return None


def _content_of(entry: Entry) -> tuple[int, ...]:
    """Without the ctime, which moving a file changes."""
    return entry.device, entry.inode, entry.size, entry.modified_ns
