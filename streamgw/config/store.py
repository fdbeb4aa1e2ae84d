"""The directory of routes: read it whole, change one object in it, atomically or not at all.

Files are the only write path: editor, command line and Admin API all end in one file being put in place here or by the
user, and only the reloader reads. Blocking: an event loop calls it in a worker thread.

Writing is a sequence of steps under a lock that every streamgw process takes (editors do not):

1. read the directory, find the object, make the new text of its file, check it (`edit.py`);
2. write it to a hidden file in the same directory and sync that;
3. an existing file: look once more whether somebody changed it, then rename over it; a new one: link, which fails if
   the name was taken meanwhile, then unlink the hidden name;
4. sync the directory.

Whatever step is the last one, a reader sees the old file or the new one. What a crash leaves behind is hidden from
`read` and removed by the next write.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from streamgw.config import edit
from streamgw.config.disk import Disk
from streamgw.config.documents import digest_of
from streamgw.config.edit import NotEditable
from streamgw.config.tree import (
    LOOK_AGAIN_S,
    TEMPORARY,
    Entry,
    State,
    Tree,
    build_tree,
    explain,
    look_at,
    read_state,
)
from streamgw.core.errors import StoreError
from streamgw.core.model import Key

LOCK_WAIT_S: Final = 10.0
"""A writer that holds the lock for longer is stuck; the next one gives up with an error."""

_LOCK_NAME: Final = ".streamgw.lock"
_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_COLLECTION: Final = re.compile(r"[a-z][a-z_]*")
_SECRET: Final = frozenset({"ssls", "secrets"})
"""Collections whose files only their owner may read."""


class AlreadyExists(StoreError):
    """An object, or a file of that name, is there already."""


class NotFound(StoreError):
    """There is no such object."""


class Stale(StoreError):
    """The object or its file is not what the writer believed. Nothing was written."""


@attrs.frozen
class Located:
    """One object where it stands."""

    key: Key
    file: str
    """`routes.d/mysql.yaml`."""
    line: int
    """From 1."""
    start: int
    """Offset of its first character in the text of the file (a byte order mark does not count)."""
    end: int
    """Offset after its last character."""
    data: Mapping[str, object]
    """As written, `${{NAME}}` not filled in."""
    digest: str


@attrs.frozen
class Written:
    """What a write did."""

    path: Path
    digest: str
    """`documents.digest_of` the object as it now stands in the file."""


@attrs.frozen
class _Change:
    """What a write will do to one file."""

    path: Path
    content: bytes
    """Empty: the file goes."""
    replaces: Entry | None
    """What stands there now."""
    mode: int = 0o644


class Store:
    """The files of one directory."""

    def __init__(self, directory: Path, *, disk: Disk | None = None) -> None:
        self.directory = directory
        """As the user wrote it: names in messages start with it."""
        self._disk = disk or Disk()
        # Looking again every two seconds must cost next to nothing while nothing changes.
        self._seen: tuple[State, Tree] | None = None

    def read(self) -> Tree:
        """Every `*.yaml`, `*.yml` and `*.json` below the directory.

        Links are followed, each directory is read once. The files are of one moment: when one changes, comes or goes
        meanwhile, all are read again.

        Raises:
          StoreError: there is no such directory (never an empty tree: a directory that is just being replaced must
            not remove every route), a file cannot be read, or it all keeps changing.
        """
        seen = self._seen
        state = read_state(self.directory, self._disk, seen[0] if seen else None)
        if seen is None or state.contents is not seen[0].contents:
            self._seen = seen = state, build_tree(self.directory, state.contents)
        return seen[1]

    def find(self, key: Key) -> Located | None:
        """Where an object stands.

        Raises:
          StoreError: like `read`; or a file that mentions the id is broken, or two files define it.
        """
        state = read_state(self.directory, self._disk)
        found = self._find(key, state)
        return found[1] if found else None

    def objects(self, collection: str) -> tuple[Located, ...]:
        """Every object of a collection that has an id, by file and line. Raises like `find`."""
        state = read_state(self.directory, self._disk)
        return tuple(
            located
            for entry in state.entries
            for located in self._located(entry, state.contents[entry.name])
            if located.key[0] == collection
        )

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
            state = read_state(self.directory, self._disk)
            change = self._plan_put(key, data, state, if_absent=if_absent, if_match=if_match)
            if change.content != state.contents.get(self._name(change.path)):
                self._apply(change, state.strays)
        written = next(item for item in edit.find_items(edit.decode(change.content)) if item.key == key)
        return Written(change.path, digest_of(written.data))

    def delete(self, key: Key, *, if_match: str | None = None) -> Path:
        """Remove an object, and its file if that was written for it alone. Returns the file.

        Raises:
          NotFound: it is not there.
          Stale, NotEditable, StoreError: like `put`.
        """
        with self._locked():
            state = read_state(self.directory, self._disk)
            change = self._plan_delete(key, state, if_match=if_match)
            self._apply(change, state.strays)
        return change.path

    def preview_put(self, key: Key, data: Mapping[str, object], *, if_absent: bool = False) -> Tree:
        """What the directory would be after `put`: the very text, so that problems name the right lines."""
        state = read_state(self.directory, self._disk)
        change = self._plan_put(key, data, state, if_absent=if_absent, if_match=None)
        return build_tree(self.directory, {**state.contents, self._name(change.path): change.content})

    def preview_delete(self, key: Key) -> Tree:
        """What the directory would be after `delete`."""
        state = read_state(self.directory, self._disk)
        change = self._plan_delete(key, state, if_match=None)
        contents = {**state.contents, self._name(change.path): change.content}
        return build_tree(self.directory, {name: content for name, content in contents.items() if content})

    def _name(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    # Finding

    def _located(self, entry: Entry, content: bytes) -> list[Located]:
        shown = str(self.directory / entry.name)
        with _in_file(shown):
            return [
                Located(item.key, shown, item.line, item.start, item.end, item.data, digest_of(item.data))
                for item in edit.find_items(edit.decode(content))
            ]

    def _find(self, key: Key, state: State) -> tuple[Entry, Located] | None:
        # Parsing ten thousand files to find one takes seconds. A file that defines an id holds it as it is, or with
        # escapes, which have a backslash.
        candidates = (
            entry
            for entry in state.entries
            if key[1].encode() in state.contents[entry.name] or b"\\" in state.contents[entry.name]
        )
        found = [
            (entry, located)
            for entry in candidates
            for located in self._located(entry, state.contents[entry.name])
            if located.key == key
        ]
        if len(found) > 1:
            places = " and ".join(f"{located.file}:{located.line}" for _, located in found)
            raise StoreError(f"{key[0]} {key[1]} is defined more than once: {places}")
        return found[0] if found else None

    # Planning: what a write will do, decided before anything is touched

    def _plan_put(
        self,
        key: Key,
        data: Mapping[str, object],
        state: State,
        *,
        if_absent: bool,
        if_match: str | None,
    ) -> _Change:
        _check_key(key)
        if str(data.get("id", key[1])) != key[1]:
            raise StoreError(f"{key[0]} {key[1]}: its data says that its id is {data['id']}")
        found = self._find(key, state)
        _check_match(key, found[1] if found else None, if_match)
        if found is None:
            own = self._free_path(key, state)
            mode = 0o600 if key[0] in _SECRET else 0o644
            with _in_file(str(own)):
                return _Change(own, edit.new_file(key, data).encode(), None, mode)
        entry, located = found
        if if_absent:
            raise AlreadyExists(f"{located.file}:{located.line}: {key[0]} {key[1]} is there already")
        self._check_editable(entry)
        content = state.contents[entry.name]
        with _in_file(located.file):
            return _Change(
                Path(entry.path),
                edit.encode(edit.replace_item(edit.decode(content), key, data), content),
                entry,
            )

    def _plan_delete(self, key: Key, state: State, *, if_match: str | None) -> _Change:
        _check_key(key)
        found = self._find(key, state)
        _check_match(key, found[1] if found else None, if_match)
        if found is None:
            raise NotFound(f"{self.directory}: no {key[0]} {key[1]}")
        entry, located = found
        self._check_editable(entry)
        content = state.contents[entry.name]
        with _in_file(located.file):
            rest = edit.remove_item(edit.decode(content), key)
            alone = entry.name in _own_names(key) and not edit.find_items(rest)
        return _Change(Path(entry.path), b"" if alone else edit.encode(rest, content), entry)

    def _free_path(self, key: Key, state: State) -> Path:
        """`stream_routes/mysql.yaml`, or the next like it that is free: somebody may keep other objects there."""
        taken = {entry.name for entry in state.entries}
        return self.directory / next(name for name in _own_names(key) if name not in taken)

    def _check_editable(self, entry: Entry) -> None:
        real = Path(os.path.realpath(entry.path))
        if real == Path(os.path.realpath(self.directory)) / entry.name:
            return
        if any(part.startswith("..") for part in real.parts):
            # Kubernetes keeps the files of a volume in `..2026_11_21_…`, behind the link `..data`.
            raise NotEditable(
                f"{entry.path}: comes from a Kubernetes volume; change the ConfigMap or Secret instead"
            )
        raise NotEditable(f"{entry.path}: a link to {real}; edit that file instead")

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
            raise StoreError(f"{self.directory}: cannot be written to: {error.strerror}") from error
        try:
            yield
        except OSError as error:
            raise explain(error) from error
        finally:
            os.close(fd)

    def _apply(self, change: _Change, strays: tuple[str, ...]) -> None:
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

    def _put_in_place(self, change: _Change, temporary: Path) -> None:
        disk = self._disk
        try:
            self._write(temporary, change)
            if change.replaces:
                self._check_unchanged(change)
                disk.rename(temporary, change.path)
            else:
                disk.link(temporary, change.path)
                disk.unlink(temporary)
        except (OSError, StoreError) as error:
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
            if isinstance(error, FileExistsError):
                raise AlreadyExists(f"{change.path}: appeared meanwhile; nothing was written") from error
            raise

    def _write(self, path: Path, change: _Change) -> None:
        fd = self._disk.create(path, change.mode)
        try:
            if change.replaces:
                self._disk.adopt(fd, change.path.stat())
            rest = memoryview(change.content)
            while rest:
                rest = rest[self._disk.write(fd, rest) :]
            self._disk.sync(fd)
        finally:
            self._disk.close(fd)

    def _check_unchanged(self, change: _Change) -> None:
        """An editor takes no lock: this leaves it the microseconds until the rename."""
        assert change.replaces is not None, "asked of files that are there"
        if look_at(str(change.path), change.replaces.name) != change.replaces:
            raise Stale(f"{change.path}: changed meanwhile; nothing was written")


def _own_names(key: Key) -> Iterator[str]:
    """The names that a file of this object's own may have, in the order in which they are tried."""
    yield f"{key[0]}/{key[1]}.yaml"
    yield from (f"{key[0]}/{key[1]}-{number}.yaml" for number in range(2, 100))


def _check_key(key: Key) -> None:
    """The key becomes a file name."""
    if not _COLLECTION.fullmatch(key[0]):
        raise StoreError(f"{key[0]!r} is no collection of objects")
    if not _ID.fullmatch(key[1]):
        raise StoreError(
            f"id {key[1]!r}: expected 1 to 64 letters, digits, '-', '_' and '.', not beginning with '.'"
        )


def _check_match(key: Key, located: Located | None, if_match: str | None) -> None:
    if if_match is not None and (located is None or located.digest != if_match):
        raise Stale(f"{key[0]} {key[1]}: not the version that was expected; nothing was written")


@contextlib.contextmanager
def _in_file(shown: str) -> Iterator[None]:
    """Say in which file an edit went wrong."""
    try:
        yield
    except NotEditable as error:
        raise NotEditable(f"{shown}: {error}") from error
