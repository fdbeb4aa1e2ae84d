"""Pages of documentation as something to follow: what to type, what it prints, which files to write.

docs/testing.md tells authors how a page is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import attrs


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
