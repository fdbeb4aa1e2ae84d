"""A terminal that a test holds in its hands: what was drawn on it, and its keys."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.child import find_program, wait_until

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>78])")

_LOOK_MS = 20
"""How often the reader asks whether it shall hang up."""


class PtyScreen:
    """The master's side. Everything drawn is kept; `cleared` says where the latest frame begins.

    Made by `pty_screen`, which reads in a thread: a program that draws must never wait for the test.
    """

    def __init__(self, master: int, slave: int) -> None:
        self.slave = slave
        self._master = master
        self._drawn = bytearray()
        self._hung_up = threading.Event()
        self._has_read = threading.Event()
        self.modes_before = self.modes()

    def modes(self) -> list[object]:
        """Of the terminal: echo, line mode, special characters."""
        return list(termios.tcgetattr(self.slave))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def hang_up(self) -> None:
        """The window is closed."""
        # Not under the reader's hands: a read that waits would hold the terminal, and then read what gets its number.
        self._hung_up.set()
        assert self._has_read.wait(10)
        os.close(self._master)
        self._master = -1

    @property
    def raw(self) -> str:
        return self._drawn.decode(errors="replace")

    def text(self) -> str:
        """What stands on the screen: the latest frame, without colours."""
        return _ESCAPES.sub("", self.frame)

    @property
    def frame(self) -> str:
        """As `text`, with colours. The latest that is complete, when another one is being drawn."""
        *_, before, latest = ["", *self.raw.split("\x1b[H")]
        return latest if latest.count("\n") >= before.count("\n") else before

    def wait_for(self, *words: str) -> str:
        """Blocks until all of them stand on the screen."""
        return self.wait_until(
            lambda text: all(word in text for word in words), what=f"{words} on the screen"
        )

    def wait_until(self, look: Callable[[str], bool], *, what: str) -> str:
        try:
            return wait_until(
                lambda: (text := self.text()) if look(self.text()) else None, what=what, timeout_s=60
            )
        except AssertionError as error:
            error.add_note(self.text())
            raise

    @property
    def is_restored(self) -> bool:
        """The modes are as before, the other screen is left, the cursor is back."""
        end = self.raw.rpartition("\x1b[?1049h")[2]
        return self.modes() == self.modes_before and "\x1b[?1049l" in end and "\x1b[?25h" in end

    def _read(self) -> None:
        readable = select.poll()
        readable.register(self._master, select.POLLIN)
        with contextlib.suppress(OSError):  # EIO: the last slave is closed
            while not self._hung_up.is_set():
                if readable.poll(_LOOK_MS):
                    self._drawn += os.read(self._master, 65536)
        self._has_read.set()


@contextlib.contextmanager
def pty_screen(width: int = 120, height: int = 32) -> Iterator[PtyScreen]:
    """A terminal of that size. `slave` is closed with the block; a program that still has it would keep the reader."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (height, width))
    screen = PtyScreen(master, slave)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(screen._read)
        try:
            yield screen
        finally:
            os.close(slave)
            reading.result(10)
            if screen._master >= 0:
                os.close(master)


@contextlib.contextmanager
def program_on(
    screen: PtyScreen, command: Sequence[str], *, environ: Mapping[str, str], cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that the terminal controls: who presses Ctrl-C there means it. Killed with the block at the latest.

    `environ` is all that it gets.
    """
    controlled = [find_program("setsid", package="util-linux"), "--ctty", *command]
    streams = {"stdin": screen.slave, "stdout": screen.slave, "stderr": screen.slave}
    process = subprocess.Popen(controlled, env=dict(environ), cwd=cwd, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
