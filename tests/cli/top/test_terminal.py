"""A terminal is given back as it was."""

from __future__ import annotations

import os
import termios

import pytest
import trio
from rich.console import Console
from rich.text import Text

from streamgw.cli.top.terminal import Terminal, own_terminal
from tests.support.pty_screen import PtyScreen, pty_screen


def terminal_on(screen: PtyScreen) -> Terminal:
    file = os.fdopen(os.dup(screen.slave), "w")
    return Terminal(screen.slave, Console(file=file, force_terminal=True, width=80, height=20))


def test_without_a_person_there_is_no_terminal() -> None:
    assert own_terminal() is None


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_however_it_ends_it_is_what_it_was(error: type[BaseException] | None) -> None:
    with pty_screen() as screen:
        terminal = terminal_on(screen)
        try:
            with terminal.borrowed() as live:
                live.update(Text("a frame"), refresh=True)
                screen.wait_for("a frame")
                assert not _echoes(screen)
                if error:
                    raise error
        except (ZeroDivisionError, KeyboardInterrupt):
            pass
        terminal.console.file.close()

        screen.wait_until(lambda _: screen.is_restored, what="the terminal is what it was")


def _echoes(screen: PtyScreen) -> bool:
    modes = screen.modes()[3]
    assert isinstance(modes, int)
    return bool(modes & termios.ECHO)


async def test_keys_come_as_they_are_pressed_and_ctrl_z_is_one() -> None:
    with pty_screen() as screen:
        terminal = terminal_on(screen)
        with terminal.borrowed():
            screen.press("q\x1a\x1c")
            data = b""
            with trio.fail_after(10):
                while len(data) < 3:
                    data += await terminal.read_keys()
        terminal.console.file.close()

    assert data == b"q\x1a\x1c"


async def test_a_terminal_that_is_gone_has_no_more_keys() -> None:
    with pty_screen() as screen:
        other = os.dup(screen.slave)
        screen.hang_up()
        with trio.fail_after(10):
            assert await Terminal(other, Console()).read_keys() == b""
        os.close(other)
