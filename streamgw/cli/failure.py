"""Exit codes, and how an error that streamgw raises on purpose becomes lines on stderr instead of a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from streamgw.core.errors import ConfigError, Problem, StreamgwError

BUG: Final = 1
DATA: Final = 65
UNREACHABLE: Final = 69
FAILED: Final = 70
EXISTS: Final = 73
IO_ERROR: Final = 74
TIMED_OUT: Final = 75
DENIED: Final = 77
CONFIG: Final = 78

EXIT_CODES: Final = {
    0: "it worked",
    BUG: "a bug in streamgw",
    2: "wrong usage",
    DATA: "what routes.d says is wrong, or would be",
    UNREACHABLE: "the gateway does not answer",
    FAILED: "workers die one after the other, or the upgrade failed",
    EXISTS: "it exists already",
    IO_ERROR: "a file could not be read or written",
    TIMED_OUT: "not applied in time (--wait)",
    DENIED: "the gateway refuses the key",
    CONFIG: "what config.yaml says is wrong, or a listener could not be opened",
}
"""Those of sysexits.h where it has one."""


class Failure(StreamgwError):
    """The end of a command: lines for stderr and an exit code."""

    def __init__(self, exit_code: int, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.exit_code = exit_code
        self.lines = lines


def translate(error: StreamgwError) -> Failure:
    """What the layers below raise, as the end of a command."""
    if isinstance(error, ConfigError):
        return Failure(DATA, *show_problems(error.problems))
    return Failure(_code_of(error), f"error: {error}")


def show_problems(problems: Sequence[Problem], *, level: str = "error") -> list[str]:
    """One line per problem."""
    return [f"{level}: {problem}" for problem in problems]


def _code_of(error: StreamgwError) -> int:
    # The store brings YAML along, which --help does not need.
    from streamgw.config.edit import NotEditable  # noqa: PLC0415  # see above
    from streamgw.config.store import AlreadyExists, NotFound  # noqa: PLC0415  # see above

    if isinstance(error, AlreadyExists):
        return EXISTS
    return DATA if isinstance(error, NotFound | NotEditable) else IO_ERROR
