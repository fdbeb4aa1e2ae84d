"""Programs that a test starts: output in a file, readiness waited for, gone when the test is.

A child is tied to the test process by the kernel (`PR_SET_PDEATHSIG`), so that nothing is left behind even when pytest
itself is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

_T = TypeVar("_T")

START_TIMEOUT_S = 60.0
"""Nobody waits for so long in peace; on a busy machine a process alone may take 10 s to start."""
END_TIMEOUT_S = 60.0
"""As above: who refuses to start has to start first."""
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
LOG_TAIL_LINES = 40

# Servers live in sbin, which an ordinary user's PATH leaves out on Debian.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

_children: list[Child] = []


def find_program(name: str, *, package: str, directory: str | None = None) -> str:
    """Return the path of a program, or fail the test with the Debian package to install: never skip silently."""
    path = shutil.which(name, path=directory or _SEARCH_PATH)
    if path is None:
        pytest.fail(f"{name} is not installed: apt-get install {package}", pytrace=False)
    return path


def wait_until(look: Callable[[], _T | None], *, what: str, timeout_s: float = START_TIMEOUT_S) -> _T:
    """Call `look` until it returns something true, and return that.

    For the state of another process, which nobody can await. Inside one process, wait for an event instead.

    Raises:
      AssertionError: it did not happen in time; says what was waited for.
    """
    deadline = _now() + timeout_s
    while True:
        if seen := look():
            return seen
        assert _now() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(POLL_S)


class Child:
    """One running program.

    Resource handling:
      Made by `running`, which ends it. `stop` and `kill` may be called before, any number of times.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def output(self) -> str:
        """Everything it has printed so far, both streams."""
        return self.log.read_text(errors="replace")

    def wait_for_line(self, text: str, *, timeout_s: float = START_TIMEOUT_S) -> str:
        """Wait until a line with `text` in it was printed, and return the line."""

        def look() -> str | None:
            return next((line for line in self.output().splitlines() if text in line), None)

        return self.wait_until(look, what=f"a line with {text!r}", timeout_s=timeout_s)

    def wait_until(
        self, look: Callable[[], _T | None], *, what: str, timeout_s: float = START_TIMEOUT_S
    ) -> _T:
        """As the function of that name, but fails at once, with the log, when the program has ended."""

        def look_while_alive() -> _T | None:
            seen = look()
            assert seen or self.exit_code is None, f"{self.name} ended with {self.exit_code}:\n{self.tail()}"
            return seen

        return wait_until(look_while_alive, what=f"{self.name}: {what}", timeout_s=timeout_s)

    def tell(self, text: str) -> None:
        """Write to its standard input (of a child started with `talk=True`)."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def end_input(self) -> None:
        """End its standard input: it reads EOF."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, *, timeout_s: float = END_TIMEOUT_S) -> int:
        """Wait for the end it chooses itself; return its exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout_s:g} s:\n{self.tail()}") from None

    def stop(self) -> int:
        """Ask it to end, then make it end; return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        return self._process.wait()

    def kill(self) -> None:
        """End it now, without a chance to clean up."""
        self._process.kill()
        self._process.wait()

    def tail(self) -> str:
        """The last lines it printed, for a person who looks at a failed test."""
        return "\n".join(self.output().splitlines()[-LOG_TAIL_LINES:])


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    name: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    talk: bool = False,
    stderr: int = subprocess.STDOUT,
) -> Iterator[Child]:
    """Run a program until the block is left. Its standard output and error go to the file `log`.

    Args:
      env: added to our own environment.
      talk: give it a standard input that `Child.tell` writes to.
      stderr: a descriptor for its standard error, if that should go elsewhere.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [_pdeathsig(), "--pdeathsig", "KILL", "--", *map(str, command)],
            stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
            stdout=output,
            stderr=stderr,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
    child = Child(name or Path(command[0]).name, process, log)
    _children.append(child)
    try:
        yield child
    except AssertionError as failure:
        failure.add_note(f"--- log of {child.name} ---\n{child.tail()}")
        raise
    finally:
        child.stop()


def recent_logs() -> Iterator[tuple[str, str]]:
    """Name and last lines of every child that lived during the current test."""
    for child in _children:
        if child.log.exists():
            yield child.name, child.tail()


def forget_ended() -> None:
    """Called between tests: the logs of children that are gone belong to tests that are over."""
    _children[:] = [child for child in _children if child.exit_code is None]


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float = START_TIMEOUT_S,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it said (UTF-8, undecodable bytes replaced).

    Raises:
      AssertionError: `check`, and it failed; with everything it printed.
    """
    done = subprocess.run(
        list(map(str, command)),
        input=stdin if stdin is not None else b"",
        capture_output=True,
        timeout=timeout_s,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
    )
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
    if check:
        words = " ".join(map(str, command))
        assert result.returncode == 0, f"{words}: exit {result.returncode}\n{result.stdout}{result.stderr}"
    return result


def _now() -> float:
    return time.monotonic()  # other processes live in real time


def _pdeathsig() -> str:
    return find_program("setpriv", package="util-linux")
