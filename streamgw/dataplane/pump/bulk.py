"""Bulk bytes without copying: socket → pipe → socket by splice(2), through pooled pipes.

Rules, each of which was once broken and cost a hang or a corruption:

* A pipe goes back to the pool only when it is empty. One that still holds another session's bytes is closed: it would
  give them to the next session, and a full one would stall every bulk flow for good.
* A direction holds a pipe only while bytes are stuck in it, so idle sessions hold none and the pool is as large as the
  number of bulk flows that are blocked at one moment.
* Do not assert `held <= capacity`: splice moves segments by reference, and one slot may hold a coalesced packet that is
  larger than a page (sozu learnt this on loopback).
"""

from __future__ import annotations

import contextlib
import fcntl
import os

PIPE_BYTES = 1 << 20
"""Size asked for, and the most that one splice takes. The kernel gives less to an unprivileged process that holds many
(pipe-user-pages-soft); splice then takes what fits."""
MAX_PIPES = 256
"""Pipes in use and idle together: 512 descriptors. Beyond it bulk flows are copied."""
MAX_IDLE_PIPES = 32

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A pipe, and how many bytes are in it."""

    __slots__ = ("_read_fd", "_write_fd", "held")

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        # Over the user's share of pipe memory it fails: the default size works too, in smaller steps.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fill(self, fd: int, most: int = PIPE_BYTES) -> int:
        """Take what waits in a socket's receive buffer, at most so many bytes; the pipe must be empty.

        Returns:
          How many bytes; 0 is EOF.

        Raises:
          BlockingIOError: nothing waits there, or nothing before an urgent mark. With bytes in the pipe it could also
            mean that the pipe is full, which is why it must be empty.
          OSError: of that socket.
        """
        assert not self.held
        self.held = os.splice(fd, self._write_fd, most, flags=_FLAGS)
        return self.held

    def empty(self, fd: int) -> int:
        """Hand as much as possible to a socket.

        Raises:
          BlockingIOError: no room at all.
          OSError: of that socket.
        """
        moved = os.splice(self._read_fd, fd, self.held, flags=_FLAGS)
        self.held -= moved
        return moved

    def close(self) -> None:
        """Give up the pipe and whatever is in it."""
        os.close(self._read_fd)
        os.close(self._write_fd)


class Pipes:
    """The pipes of one pump."""

    __slots__ = ("_idle", "open")

    def __init__(self) -> None:
        self._idle: list[Pipe] = []
        self.open = 0
        """In use and idle together."""

    @property
    def idle(self) -> int:
        """How many wait in the pool."""
        return len(self._idle)

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there are too many or no descriptor is left: then copy."""
        if self._idle:
            return self._idle.pop()
        if self.open >= MAX_PIPES:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self.open += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back; one that is not empty is closed."""
        if pipe.held or len(self._idle) >= MAX_IDLE_PIPES:
            pipe.close()
            self.open -= 1
        else:
            self._idle.append(pipe)

    def shrink(self) -> None:
        """Close the idle ones: the process is short of descriptors, or ends."""
        self.open -= len(self._idle)
        while self._idle:
            self._idle.pop().close()
