"""One state of the directory, read whole: which files count, and how to read them while others change them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

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
_READS: Final = 20
"""How often a directory that changes under the reader is read again."""

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_IGNORED: Final = re.compile(r"\..*|#.*|.*~|.*\.(?:bak|old|orig|rej|sw[a-p]|tmp)")
"""Hidden names (Kubernetes' `..data`, Emacs' `.#x`, ours), backups, editors' temporary files. For directories too."""


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


@attrs.frozen
class Entry:
    """A file as the directory lists it. Two equal ones have the same content, as far as the kernel tells."""

    path: Path
    name: str
    """Below the directory, with slashes."""
    device: int
    inode: int
    size: int
    changed_ns: tuple[int, int]


@attrs.frozen
class State:
    """What the directory held at one moment."""

    entries: tuple[Entry, ...]
    """In the order of their names, compared as text."""
    contents: Mapping[str, bytes] = attrs.field(repr=False)
    """By `Entry.name`."""
    strays: tuple[Path, ...]
    """Hidden files that a writer left behind when it died, or is just writing."""


def read_state(directory: Path, disk: Disk) -> State:
    """Read every file that counts. When one changes, comes or goes meanwhile, all are read again.

    Links are followed, and each directory is read once.

    Raises:
      StoreError: the directory or a file cannot be read, or it keeps changing.
    """
    trouble: OSError | None = None
    for attempt in range(_READS):
        if attempt:
            disk.pause(LOOK_AGAIN_S)
        try:
            entries, strays = _list(directory, disk)
            contents = {entry.name: disk.read(entry.path) for entry in entries}
            if _list(directory, disk)[0] == entries:
                return State(entries, contents, strays)
            trouble = None
        except (FileNotFoundError, NotADirectoryError) as error:
            trouble = error  # moved away between our looking and our reading, or really not there
        except OSError as error:
            raise explain(error) from error
    if trouble is None:
        raise StoreError(f"{directory}: keeps changing while it is read")
    raise explain(trouble) from trouble


def build_tree(directory: Path, contents: Mapping[str, bytes]) -> Tree:
    """The files as a Loader wants them, with the names that messages show."""
    revision = hashlib.sha256()
    files = []
    for name, content in sorted(contents.items()):
        digest = hashlib.sha256(content).hexdigest()
        revision.update(f"{digest} {name}\0".encode("utf-8", "surrogateescape"))
        files.append(SourceFile(name=str(directory / name), text=content, digest=digest, path=name))
    return Tree(tuple(files), Revision(revision.hexdigest()[:32]))


def look_at(path: Path, name: str) -> Entry:
    """A file as it is now.

    Raises:
      StoreError: a pipe or a device, which could block for ever; or too large to be configuration.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path}: not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise StoreError(f"{path}: larger than {MAX_FILE_BYTES // 1024**2} MiB")
    changed_ns = (status.st_mtime_ns, status.st_ctime_ns)
    return Entry(path, name, status.st_dev, status.st_ino, status.st_size, changed_ns)


def explain(error: OSError) -> StoreError:
    """What the disk said, in our words."""
    path = error.filename
    if isinstance(error, FileNotFoundError) and path is not None and Path(path).is_symlink():
        return StoreError(f"{path}: a link to a file that is not there")
    return StoreError(f"{path}: {error.strerror}" if path is not None else str(error.strerror))


def _list(directory: Path, disk: Disk) -> tuple[tuple[Entry, ...], tuple[Path, ...]]:
    entries: list[Entry] = []
    strays: list[Path] = []
    for found in _walk(directory, "", set(), disk):
        if isinstance(found, Path):
            strays.append(found)
            continue
        entries.append(found)
        if len(entries) > MAX_FILES:
            raise StoreError(f"{directory}: more than {MAX_FILES} files")
    return tuple(sorted(entries, key=lambda entry: entry.name)), tuple(strays)


def _walk(directory: Path, prefix: str, seen: set[tuple[int, int]], disk: Disk) -> Iterator[Entry | Path]:
    status = directory.stat()
    if (status.st_dev, status.st_ino) in seen:
        return  # a link back to where we are, or to where we were
    seen.add((status.st_dev, status.st_ino))
    # Links last: a directory that is reached both ways goes by its own name.
    for found in sorted(disk.scan(directory), key=os.DirEntry.is_symlink):
        path, name = directory / found.name, prefix + found.name
        if found.name.endswith(TEMPORARY):
            yield path
        elif _IGNORED.fullmatch(found.name):
            continue
        elif found.is_dir():
            yield from _walk(path, name + "/", seen, disk)
        elif path.suffix.lower() in _SUFFIXES:
            yield look_at(path, name)
