"""The few things the store asks of the file system, one system call each.

The store is written as a sequence of these steps, and a test stops it between any two of them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path
from time import sleep, time_ns

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""linux/fs.h."""


class Disk:
    """The real one."""

    def scan(self, path: str) -> list[os.DirEntry[str]]:
        """What a directory holds, in the order of the names."""
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    def read(self, path: str) -> bytes:
        """A whole file, whose kind and size were looked at before."""
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # half the time of Path.read_bytes, 10,000 times
            return file.read()

    def now_ns(self) -> int:
        """The time by which files are stamped."""
        return time_ns()

    def create(self, path: Path, mode: int) -> int:
        """Create a file that must not exist and open it for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write as much as the kernel takes, and say how much that was."""
        return os.write(fd, data)

    def adopt(self, fd: int, model: os.stat_result, *, most: int = 0o7777) -> None:
        """Give an open file the mode of another one, as far as `most` allows, and its owner where we may."""
        if os.geteuid() == 0:
            os.fchown(fd, model.st_uid, model.st_gid)
        os.fchmod(fd, stat.S_IMODE(model.st_mode) & most)

    def sync(self, fd: int) -> None:
        """Return once the file's bytes are on the disk."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Put a file in the place of another, at once."""
        old.rename(new)

    def exchange(self, one: Path, other: Path) -> bool:
        """Let two files swap their names, at once. False: this file system cannot (NFS), or this C library.

        Source:
          renameat2(2).
        """
        try:
            rename = ctypes.CDLL(None, use_errno=True).renameat2
        except AttributeError:
            return False
        if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return True
        error = ctypes.get_errno()
        if error in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
            return False
        raise OSError(error, os.strerror(error), str(other))

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name, which must be free."""
        new.hardlink_to(old)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def make_directory(self, path: Path) -> None:
        """Create a directory; one that exists is fine."""
        path.mkdir(exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        """Return once the names in a directory are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: Path) -> int | None:
        """Open a lock file and lock it: the descriptor that holds the lock until it is closed; None: somebody else does."""
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def pause(self, seconds: float) -> None:
        """Wait before looking again."""
        sleep(seconds)
