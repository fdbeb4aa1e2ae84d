"""Two logs. The application log: structlog, on stderr. The access log: one line per session, on stdout or in a file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import stat
import sys
from typing import NoReturn

import attrs
import structlog
import trio
from structlog.typing import EventDict

from streamgw.config.settings import LogSettings
from streamgw.process.append import append_whole
from streamgw.process.stderr import STDERR, LineLogger

FLUSH_INTERVAL_S = 0.1
PATIENCE_S = 2.0
"""With a stuck file, when the gateway ends."""
LIMIT_BYTES = 16 << 20
"""Lines waiting for a writer that is stuck (a full disk, a pipe nobody reads). Beyond that lines are dropped, and counted."""

_SAID_ONCE = frozenset(
    {
        "routes_applied",
        "routes_as_before",
        "routes_problem",
        "routes_rejected",
        "routes_warning",
    }
)
"""The supervisor looks at the same files as its workers, and says the same."""


def configure_logging(settings: LogSettings, *, worker: int | None = None) -> None:
    """Application log on stderr: JSON, or for people (`console`). Everything goes through structlog.

    `worker` is the number of the worker that this process is, and stands in each of its lines. None: it is not one of several.
    """
    renderer: structlog.types.Processor
    if settings.format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=STDERR.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *([] if worker is None else [_Told(worker)]),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.level.upper()]
        ),
        logger_factory=lambda *_: LineLogger(STDERR),
        cache_logger_on_first_use=False,
    )


@attrs.frozen
class _Told:
    """Names the worker, and leaves to the supervisor what it says for all of them."""

    worker: int

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        if event["event"] in _SAID_ONCE:
            raise structlog.DropEvent
        event["worker"] = self.worker
        return event


class AccessLog:
    """Collects lines and writes them ten times a second, off the event loop: a slow disk delays nobody's bytes.

    Resource handling:
      Opens its file in `run` and closes it there. `-` is standard output, which stays open.
    """

    def __init__(self, path: str, *, is_shared: bool = False) -> None:
        self._path = path
        self._is_shared = is_shared
        """Other processes write to it, too."""
        self._lines: list[str] = []
        self._bytes = 0
        self._reopen = False
        self._wake = trio.Event()
        self._ending = trio.Event()
        self._has_ended = False
        """Nobody looks at `_lines` any more."""
        self._fd = -1
        self.dropped = 0
        """Lines that were not written, or of which that is not known."""

    def write(self, line: str) -> None:
        """Queue one line (without its newline). Never blocks; drops it when LIMIT_BYTES are waiting."""
        if self._bytes > LIMIT_BYTES or self._has_ended:
            self.dropped += 1
            return
        if not self._lines:
            self._wake.set()
        self._lines.append(line)
        self._bytes += len(line)

    def reopen(self) -> None:
        """After the file was moved away (SIGUSR1, as nginx does it)."""
        self._reopen = True
        self._wake.set()

    def move(self, path: str) -> None:
        """Write to another file from now on. If that cannot be opened, this is logged, and the old one goes on."""
        if path != self._path:
            self._path = path
            self.reopen()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write what is queued.

        Raises:
          OSError: the file cannot be opened at the start.

        Cancellation:
          What is being written and what is queued by then is still written, within PATIENCE_S. The rest is dropped and
          counted; a thread that is stuck is left alone with the file.
        """
        self._fd = self._open()
        patience = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_when_due, patience)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                patience.deadline = trio.current_time() + PATIENCE_S
                self._ending.set()
                self._wake.set()
        raise AssertionError("only cancellation ends this")

    async def _write_when_due(self, patience: trio.CancelScope) -> None:
        """Until the end, and then what is left, or until the deadline of `patience`."""
        with patience:
            while not self._ending.is_set():
                await self._wake.wait()
                with trio.move_on_after(FLUSH_INTERVAL_S):
                    await self._ending.wait()
                self._wake = trio.Event()
                await self._flush()
            await self._flush()  # what came during the last one
            self._close()
        self._has_ended = True
        self.dropped += len(self._lines)
        if patience.cancelled_caught:
            structlog.get_logger().error("access_log_stuck", path=self._path, dropped=self.dropped)

    async def _flush(self) -> None:
        if self._reopen:
            self._reopen = False
            try:
                fd = self._open()
            except OSError as error:
                structlog.get_logger().error("access_log_reopen_failed", path=self._path, error=str(error))
            else:
                self._close()
                self._fd = fd
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        data = "\n".join((*lines, "")).encode(errors="replace")
        try:
            await trio.to_thread.run_sync(self._write_all, self._fd, data, abandon_on_cancel=True)
        except trio.Cancelled:
            self.dropped += len(lines)
            raise
        except OSError as error:
            self.dropped += len(lines)
            structlog.get_logger().error("access_log_write_failed", path=self._path, error=str(error))
        self._bytes = sum(map(len, self._lines))

    def _close(self) -> None:
        """Not while a thread writes: that would go on in whatever gets this descriptor next."""
        if not _is_stdout(self._fd):
            os.close(self._fd)

    def _write_all(self, fd: int, data: bytes) -> None:
        """In a thread. Into a file of its own as a whole or not at all: the next line must not be glued to half of one."""
        if not _is_stdout(fd) and stat.S_ISREG(os.fstat(fd).st_mode):
            append_whole(fd, data)
            return
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[: self._step(fd, data, len(data) - len(view))]) :]

    def _step(self, fd: int, data: bytes, start: int) -> int:
        """How much to write at once. A pipe or a terminal keeps writes of so many bytes apart, and no longer ones (pipe(7)):
        lines of several processes would get mixed. Files opened with O_APPEND do not mind (write(2)).
        """
        if not self._is_shared or stat.S_ISREG(os.fstat(fd).st_mode):
            return len(data)
        end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1
        return end - start if end else len(data)

    def _open(self) -> int:
        if self._path == "-":
            if sys.stdout is None:
                raise OSError(errno.EBADF, "standard output is closed")
            return sys.stdout.fileno()
        parent = os.path.dirname(self._path)  # noqa: PTH120  a path as the user wrote it, "-" included
        with contextlib.suppress(FileExistsError):
            os.makedirs(parent or ".")  # noqa: PTH103  as above
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _is_stdout(fd: int) -> bool:
    """Not if we were started without one: then the number is some file's of ours."""
    return sys.stdout is not None and fd == sys.stdout.fileno()
