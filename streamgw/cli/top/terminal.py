"""A terminal for one program alone: no echo, key by key, another screen; given back as it was, however the program ends."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import trio
from rich.console import Console
from rich.live import Live

ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_READ_BYTES: Final = 1024


def own_terminal() -> Terminal | None:
    """That of this process; None: nobody looks at it, or nobody can press keys."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    return Terminal(sys.stdin.fileno(), Console(highlight=False))


@attrs.frozen
class Terminal:
    """Where keys come from, and where frames go.

    Args:
      keys: a file descriptor.
    """

    keys: int
    console: Console

    @contextmanager
    def borrowed(self) -> Iterator[Live]:
        """The screen, and keys as they are pressed.

        Resource handling:
          Left in any way but SIGKILL, the terminal is what it was: echo, line by line, its cursor and what stood on it.
          The signals that end a program have to be heard inside (ENDING): by default they would end it on the spot.
        """
        before = termios.tcgetattr(self.keys)
        try:
            tty.setcbreak(self.keys)
            self._hear_suspend_as_a_key()
            # auto_refresh would draw from a thread of its own.
            with Live(
                console=self.console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live:
                yield live
        finally:
            termios.tcsetattr(self.keys, termios.TCSAFLUSH, before)

    async def read_keys(self) -> bytes:
        """What was pressed since the last look; empty when the terminal is gone."""
        await trio.lowlevel.wait_readable(self.keys)
        try:
            return os.read(self.keys, _READ_BYTES)
        except OSError:
            return b""  # EIO: hung up

    def _hear_suspend_as_a_key(self) -> None:
        """What suspends or quits would leave the shell with our screen: Ctrl-Z and the like become keys, which mean nothing."""
        mode = termios.tcgetattr(self.keys)
        disabled = os.fpathconf(self.keys, "PC_VDISABLE").to_bytes(1, sys.byteorder)
        for character in (termios.VSUSP, termios.VQUIT):
            mode[6][character] = disabled
        termios.tcsetattr(self.keys, termios.TCSANOW, mode)
