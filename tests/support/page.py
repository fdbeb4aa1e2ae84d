"""Pages of documentation as something to follow: what to type, what it prints, which files to write.

docs/testing.md tells authors how a page is read. Pages are followed inside a private network (tests/support/namespace.py),
so that ports are those of the page.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import attrs

from tests.support.child import find_program, run, running, wait_until
from tests.support.servers import Prefix

STATUS_URL = "http://127.0.0.1:7085/streamgw/v1/status"


@attrs.frozen
class Step:
    """One thing that a page says to do."""

    page: str
    line: int
    kind: Literal["run", "write"]
    what: str
    """The command, or the path of the file to write."""
    text: str = ""
    """What the command prints, empty if the page does not say; or the content of the file."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.what}"


_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:ya?ml|json))\n")


def steps_of(page: str, text: str) -> Iterator[Step]:
    """Everything that a page says to run or to write, in order."""
    for fence in _FENCE.finditer(text):
        line = text[: fence.start()].count("\n") + 2
        body = fence["body"]
        if fence["language"] == "console":
            for chunk in re.split(r"^(?=\$ )", body, flags=re.MULTILINE)[1:]:
                command, _, output = chunk.removeprefix("$ ").partition("\n")
                yield Step(page, line, "run", command, output)
                line += chunk.count("\n")
        elif fence["language"] == "sh":
            for number, command in enumerate(body.splitlines()):
                if command and not command.startswith("#"):
                    yield Step(page, line + number, "run", command)
        elif fence["language"] == "yaml" and (file := _FILE.match(body)):
            yield Step(page, line, "write", file[1], body)


def is_like(printed: str, expected: str) -> bool:
    """Whether a command printed what the page says; `…` stands for anything."""
    pattern = ".*?".join(re.escape(part.strip(" ")) for part in expected.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


class Reader:
    """Somebody who follows a page word for word, in a directory of their own.

    Args:
      logs: where the output of the gateway goes.
      prefix: of every command: the private network.
      stack: ends the gateway that the page starts.
    """

    def __init__(self, directory: Path, *, logs: Path, prefix: Prefix, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self.path = os.environ["PATH"].split(os.pathsep)
        """Where programs are looked for."""
        self._logs = logs
        self._prefix = prefix
        self._stack = stack
        # A page shows what a terminal shows; there curl has no progress meter.
        (logs / ".curlrc").write_text("silent\nshow-error\n")

    def follow(self, step: Step) -> None:
        """Do one step; what it changes has taken effect when this returns."""
        before, files = self._status(), self._files()
        if step.kind == "write":
            path = self.directory / step.what
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
        elif step.what.startswith(("streamgw run", "streamgw demo")):
            self.start(step.what.split())
        else:
            self._type(step)
        if before and self._files() != files:
            wait_until(lambda: self._status() != before, what=f"effect of {step}")

    def start(self, command: Sequence[str]) -> None:
        """Start a gateway and wait until it answers."""
        program = shutil.which(command[0], path=os.pathsep.join(self.path))
        assert program, f"{command[0]}: command not found in {self.path}"
        gateway = running(
            [*self._prefix, program, *command[1:]],
            log=self._logs / "gateway.log",
            name="gateway",
            cwd=self.directory,
        )
        child = self._stack.enter_context(gateway)
        self._stack.callback(child.kill)  # no drain: the page is over
        child.wait_until(self._status, what="answers on its status endpoint")

    def _type(self, step: Step) -> None:
        done = run(
            [*self._prefix, "bash", "-c", f"exec 2>&1; {step.what}"],
            cwd=self.directory,
            env={
                "PATH": os.pathsep.join(self.path),
                "CURL_HOME": str(self._logs),
                "COLUMNS": "120",
                "LC_ALL": "C.UTF-8",
            },
            check=False,
        )
        assert done.returncode == 0, f"{step}\nexit {done.returncode}\n{done.stdout}"
        if step.text:
            assert is_like(done.stdout, step.text), f"{step}\nprinted\n{done.stdout}\ninstead of\n{step.text}"

    def _files(self) -> dict[Path, bytes]:
        watched = [*self.directory.glob("conf/*"), *self.directory.glob("routes.d/**/*.*")]
        return {path: path.read_bytes() for path in watched if path.is_file()}

    def _status(self) -> object:
        """What the gateway says about its files and its settings; empty while nobody answers."""
        curl = find_program("curl", package="curl")
        done = run([*self._prefix, curl, "--silent", "--fail", STATUS_URL], check=False)
        if done.returncode != 0:
            return {}
        status = json.loads(done.stdout)
        return {half: status[half] for half in ("config", "settings")}
