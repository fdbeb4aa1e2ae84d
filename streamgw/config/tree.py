"""One state of the directory, read whole: which files count, and how to read them while others change them."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import attrs

from streamgw.config.disk import Disk
from streamgw.config.documents import SourceFile
from streamgw.config.source_text import MAX_FILE_BYTES
from streamgw.core.errors import StoreError
from streamgw.core.model import Revision

MAX_FILES: Final = 200_000
"""More files than this are an error: this is not a directory of routes."""
TEMPORARY: Final = ".streamgw-tmp"
"""How the hidden file ends that a writer fills before it puts it in place."""
LOOK_AGAIN_S: Final = 0.01
_SETTLED_NS: Final = 2_000_000_000
"""Coarser than the stamps of any file system in use."""
_READS: Final = 20
"""How often a directory that changes under the reader is read again."""

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_IGNORED: Final = re.compile(r"\..*|#.*|.*~|.*\.(?:bak|old|orig|rej|sw[a-p]|tmp)")
"""Hidden names (Kubernetes' `..data`, Emacs' `.#x`, ours), backups, editors' temporary files. For directories too."""


class KeepsChanging(StoreError):
    """Somebody writes the files so fast that no moment of them could be read. It passes."""


@attrs.frozen
class Tree:
    """One state of the directory."""

    files: tuple[SourceFile, ...]
    """In the order of their names, compared as text."""
    revision: Revision
    """Digest of every name and content. How the directory itself is called does not count."""

    def read(self) -> Tree:
        """Itself: a state that a Loader can compile without asking the disk."""
        return self


class Entry(NamedTuple):
    """A file as the directory lists it. Two equal ones have the same content, as far as the kernel tells.

    A tuple: thousands are made and compared at each look, which takes attrs classes twice as long.
    """

    name: str
    """Below the directory, with slashes."""
    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """Whatever was changed: its content, its mode, its links."""


@attrs.frozen
class State:
    """What the directory held at one moment."""

    entries: tuple[Entry, ...]
    """In the order of their names, compared as text."""
    contents: Mapping[str, bytes] = attrs.field(repr=False)
    """By `Entry.name`."""
    strays: tuple[str, ...]
    """Paths of hidden files that a writer left behind when it died, or is just writing."""
    began_ns: int
    """When the reading began."""

    def unsettled(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of these files whose stamps might not show a change since they were read."""
        limit_ns = self.began_ns - _SETTLED_NS
        return [entry for entry in entries if entry.modified_ns >= limit_ns or entry.changed_ns >= limit_ns]


@attrs.frozen
class Moment:
    """A state of the directory, and the same as a Loader wants it."""

    state: State
    tree: Tree


def read_state(directory: Path, disk: Disk, known: State | None = None) -> State:
    """Read every file that counts. When one changes, comes or goes meanwhile, all are read again.

    Links are followed, and each directory is read once. A file that looks as it did in the `known` state is not opened,
    unless it had been changed just before that: then a change in the same tick of the clock would not show. When nothing
    changed, the state has the very `contents` of the known one.

    Raises:
      StoreError: the directory or a file cannot be read.
      KeepsChanging: it changed each time that it was read, for 0.2 s.
    """
    trouble: OSError | None = None
    for attempt in range(_READS):
        if attempt:
            disk.pause(LOOK_AGAIN_S)
        try:
            began_ns = disk.now_ns()
            entries, strays = _list(directory, disk)
            if known is not None and _is_still(known, entries, disk):
                return attrs.evolve(known, strays=strays, began_ns=began_ns)
            settled = _settled(known) if known is not None else {}
            contents = {
                entry.name: known.contents[entry.name]
                if known is not None and settled.get(entry.name) == entry
                else disk.read(entry.path)
                for entry in entries
            }
            if _list(directory, disk)[0] == entries:
                return State(entries, contents, strays, began_ns)
            trouble = None
        except (FileNotFoundError, NotADirectoryError) as error:
            trouble = error  # moved away between our looking and our reading, or really not there
        except OSError as error:
            raise explain(error) from error
    if trouble is None:
        raise KeepsChanging(f"{directory}: keeps changing while it is read")
    raise explain(trouble) from trouble


def _is_still(known: State, entries: tuple[Entry, ...], disk: Disk) -> bool:
    """Whether the directory is what it was: it looks like it, and so do the files whose stamps cannot tell yet."""
    return entries == known.entries and all(
        disk.read(entry.path) == known.contents[entry.name] for entry in known.unsettled(entries)
    )


def _settled(known: State) -> dict[str, Entry]:
    unsettled = set(known.unsettled(known.entries))
    return {entry.name: entry for entry in known.entries if entry not in unsettled}


def build_tree(directory: Path, contents: Mapping[str, bytes], known: Tree | None = None) -> Tree:
    """The files as a Loader wants them, with the names that messages show. What is as in the `known` tree is taken over."""
    old = {file.path: file for file in known.files} if known is not None else {}
    revision = hashlib.sha256()
    files = []
    for name, content in sorted(contents.items()):
        file = old.get(name)
        if file is None or file.text is not content:
            digest = hashlib.sha256(content).hexdigest()
            file = SourceFile(name=str(directory / name), text=content, digest=digest, path=name)
        revision.update(f"{file.digest} {name}\0".encode("utf-8", "surrogateescape"))
        files.append(file)
    return Tree(tuple(files), Revision(revision.hexdigest()[:32]))


def look_at(path: str, name: str) -> Entry:
    """A file as it is now.

    Raises:
      StoreError: a pipe or a device, which could block for ever; or too large to be configuration.
    """
    return _entry(path, name, os.stat(path))  # noqa: PTH116  # a string: there may be 10,000 of them


def _entry(path: str, name: str, status: os.stat_result) -> Entry:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path}: not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise StoreError(f"{path}: larger than {MAX_FILE_BYTES // 1024**2} MiB")
    return Entry(
        name, path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def explain(error: OSError) -> StoreError:
    """What the disk said, in our words."""
    path = error.filename
    if isinstance(error, FileNotFoundError) and path is not None and Path(path).is_symlink():
        return StoreError(f"{path}: a link to a file that is not there")
    return StoreError(f"{path}: {error.strerror}" if path is not None else str(error.strerror))


def _list(directory: Path, disk: Disk) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """The files that count, and those that a writer left behind."""
    walk = _Walk(disk)
    walk.enter(str(directory), "")
    return tuple(sorted(walk.entries)), tuple(walk.strays)


@attrs.define
class _Walk:
    """Strings and DirEntry, no Path: with 10,000 files that is a third of the time, and it is done every 2 s."""

    disk: Disk
    entries: list[Entry] = attrs.Factory(list)
    strays: list[str] = attrs.Factory(list)
    _seen: set[tuple[int, int]] = attrs.Factory(set)

    def enter(self, directory: str, prefix: str) -> None:
        status = os.stat(directory)  # noqa: PTH116  # see above
        if (status.st_dev, status.st_ino) in self._seen:
            return  # a link back to where we are, or to where we were
        self._seen.add((status.st_dev, status.st_ino))
        # Links last: a directory that is reached both ways goes by its own name.
        for found in sorted(self.disk.scan(directory), key=os.DirEntry.is_symlink):
            kind = _kind_of(found.name)
            if kind == "stray":
                self.strays.append(found.path)
            elif kind == "ignored":
                continue
            elif _is_directory(found, kind):
                self.enter(found.path, f"{prefix}{found.name}/")
            elif kind == "file":
                self.entries.append(_entry(found.path, prefix + found.name, found.stat()))
        if len(self.entries) > MAX_FILES:
            raise StoreError(f"{directory}: more than {MAX_FILES} files")


def _is_directory(found: os.DirEntry[str], kind: str) -> bool:
    try:
        return found.is_dir()
    except OSError as error:
        # A link that leads nowhere. One to where we may not look could be a directory, whose routes would be gone.
        if kind == "other" and error.errno in {errno.ELOOP, errno.ENAMETOOLONG}:
            return False
        raise


@functools.lru_cache(maxsize=MAX_FILES)
def _kind_of(name: str) -> Literal["stray", "ignored", "file", "other"]:
    if name.endswith(TEMPORARY):
        return "stray"
    if _IGNORED.fullmatch(name):
        return "ignored"
    return "file" if os.path.splitext(name)[1].lower() in _SUFFIXES else "other"  # noqa: PTH122  # see above
