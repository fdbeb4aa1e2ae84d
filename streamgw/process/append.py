"""Lines at the end of a file, a batch at a time, off the event loop.

The file is opened for each batch: one that was moved away by a rotation is made anew, without a signal to wait for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

import trio

from streamgw.core.batch import Collector

MODE = 0o640
"""Of a file that is made, less the umask."""
THREADS = 8
"""That write at a time. Threads of their own: disks that are stuck must not take those of look-ups and handshakes."""


class Appender:
    """Writes batches whole or not at all, as far as the file system lets it."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS)
        self._writing: set[Collector] = set()
        """For which a thread writes, perhaps one that was left alone with it."""

    async def append(self, collector: Collector, path: str, data: bytes) -> None:
        """Add to the end of a file, and make it if there is none. Its directory has to be there.

        Raises:
          OSError: nothing of `data` is in the file; in what is no regular file (`/dev/stdout`) a part may be.

        Cancellation:
          A thread that is stuck is left alone with it. Until it comes back nothing else is written for this collector: EBUSY.
        """
        await trio.to_thread.run_sync(
            self._append, collector, path, data, abandon_on_cancel=True, limiter=self._limiter
        )

    def _append(self, collector: Collector, path: str, data: bytes) -> None:
        if collector in self._writing:
            raise OSError(errno.EBUSY, "still writing the batch before")
        self._writing.add(collector)
        try:
            _append(path, data)
        finally:
            self._writing.discard(collector)


def _append(path: str, data: bytes) -> None:
    # A FIFO that nobody reads is ENXIO this way, where it would be a thread that never comes back.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    fd = os.open(path, flags, MODE)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.set_blocking(fd, True)
            _write_all(fd, data)
            return
        append_whole(fd, data)
    finally:
        os.close(fd)


def append_whole(fd: int, data: bytes) -> None:
    """Add to the end of a regular file that was opened with O_APPEND.

    Raises:
      OSError: nothing of `data` is in the file; on a file system without flock(2) a part may be.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # others append, too, and each may have to take its part back
    except OSError:
        _write_all(fd, data)
        return
    try:
        size = os.fstat(fd).st_size
        try:
            _write_all(fd, data)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
            raise
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
