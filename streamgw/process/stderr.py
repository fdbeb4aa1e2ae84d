"""Standard error of a gateway: lines go there as far as it takes them, and whoever has something to say never waits, nor fails.

A pipe that nobody reads, a reader that has died, a disk that is full: all of that is the reader's trouble. Sessions go on.
Only for a file on a slow disk they wait, as for any program that is redirected into one.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import socket
import stat
import sys
import threading
import time
from typing import TextIO, cast

import attrs
import structlog

LIMIT_BYTES = 1 << 20
"""Waiting for room. Beyond that lines are dropped, and counted."""
PATIENCE_S = 2.0
"""With a reader that is slow, when the process ends."""


class Stderr(io.TextIOBase):
    """A text stream on a descriptor, which stays open, and stays as it is: who started us has the same open file.

    What cannot be written now is kept, in order, until something else is said, or the process ends. Any thread may write, a
    finaliser in the middle of a write as well: none of them waits for another.

    Resource handling:
      Has a descriptor of its own for a pipe or a terminal, until `close`.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._own = -1
        self._own_pipe: tuple[int, int] | None = None
        """Which it is that `_own` writes to: device and inode."""
        self._pending = bytearray()
        self._writing = threading.Lock()
        """Who has it writes what others add meanwhile. Nobody waits for it."""
        self.dropped = 0
        """Lines, since the start."""
        self._told = 0
        """How many of them somebody has heard of."""

    def write(self, text: str) -> int:
        """Take all of it, or drop it. Written when a line is complete."""
        if self._is_full:
            self.flush()
            if self._is_full:
                self.dropped += text.count("\n")
                return len(text)
        self._pending += text.encode(errors=self.errors)
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what there is room for."""
        with contextlib.suppress(OSError):
            self._write_out()

    def drain(self, patience_s: float) -> None:
        """Write what is left, within so much time. Blocks."""
        deadline = time.monotonic() + patience_s  # noqa: TID251  when the event loop has ended, and its clock
        while self._pending and (left_s := deadline - time.monotonic()) > 0:  # noqa: TID251  as above
            if not self._writing.acquire(timeout=left_s):
                return  # a thread is stuck with it
            self._writing.release()
            try:
                self._write_out()
            except BlockingIOError:
                _has_room(self._fd, left_s)
            except OSError:
                return

    def close(self) -> None:
        """Let go of the pipe. What it was given stays open."""
        super().close()
        self._close_own()

    def take_count(self) -> int:
        """How many lines were dropped that nobody has heard of, if there is room to say so; else 0."""
        if self.dropped == self._told:
            return 0
        self.flush()
        count = 0 if self._is_full else self.dropped - self._told
        self._told += count
        return count

    def isatty(self) -> bool:
        """Whether a person looks."""
        return os.isatty(self._fd)

    def fileno(self) -> int:
        """Of what is written to."""
        return self._fd

    @property
    def _is_full(self) -> bool:
        return len(self._pending) > LIMIT_BYTES

    def _write_out(self) -> None:
        # Looks again after it has let go: somebody may have added a line, and gone since this one was at it.
        while self._pending and self._writing.acquire(blocking=False):
            try:
                del self._pending[: self._write_some()]
            finally:
                self._writing.release()

    def _write_some(self) -> int:
        """Write once, without waiting. Raises OSError; BlockingIOError: there is no room now."""
        status = os.fstat(self._fd)
        if stat.S_ISREG(status.st_mode):
            return os.write(self._fd, bytes(self._pending))
        # Lines that a pipe keeps apart from what others write (pipe(7)), or a single one that is longer: in one piece, because
        # others come in between two.
        end = self._pending.rfind(b"\n", 0, select.PIPE_BUF) + 1 or self._pending.find(b"\n") + 1
        piece = bytes(self._pending[: end or None])
        if stat.S_ISSOCK(status.st_mode):
            return _send(self._fd, piece)
        fd = self._descriptor((status.st_dev, status.st_ino))
        return os.write(fd, piece if fd == self._own else piece[: select.PIPE_BUF])

    def _descriptor(self, pipe: tuple[int, int]) -> int:
        """Where to write to a pipe or a terminal. O_NONBLOCK belongs to the open file: to have it, ours is opened once more."""
        if pipe != self._own_pipe:
            self._close_own()
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{self._fd}", flags)
            except OSError:
                # Somebody else's (sudo), or out of descriptors. Then a pipe that has room has it for a piece, unless another
                # process is quicker.
                if not _has_room(self._fd, 0):
                    raise BlockingIOError from None
                return self._fd
            self._own_pipe = pipe
        return self._own

    def _close_own(self) -> None:
        if self._own_pipe is not None:
            self._own_pipe = None
            os.close(self._own)


def _send(fd: int, piece: bytes) -> int:
    sock = socket.socket(fileno=fd)  # noqa: TID251  it is there already
    try:
        return sock.send(piece, socket.MSG_DONTWAIT)
    finally:
        sock.detach()


def _has_room(fd: int, timeout_s: float) -> bool:
    """Whether it does within this time; also if writing fails."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))


STDERR = Stderr(2 if sys.__stderr__ is not None else -1)
"""Of this process. If it was started without one, the number is another file's by now: then everything is lost."""


@attrs.frozen
class LineLogger:
    """What structlog hands lines to. Before the first one that is not dropped any more it says how many were."""

    stream: Stderr

    def msg(self, message: str) -> None:
        """Log one line (without its newline)."""
        if count := self.stream.take_count():
            structlog.get_logger().error("log_lines_dropped", count=count)
        self.stream.write(f"{message}\n")

    debug = info = warning = error = critical = msg


def take_over_stderr() -> None:
    """From now on all that this process says there goes through STDERR: warnings too, and the traceback of a bug that ends it.

    A stream of Python's would keep what it could not write, fail with it again at the end, and make the exit code 120.
    """
    sys.stderr = cast("TextIO", STDERR)
    atexit.register(STDERR.drain, PATIENCE_S)
