"""Which error ends with which exit code."""

from __future__ import annotations

import pytest

from streamgw.cli.failure import EXIT_CODES, translate
from streamgw.config.edit import NotEditable
from streamgw.config.store import AlreadyExists, NotFound, Stale
from streamgw.core.errors import ConfigError, Problem, StoreError, StreamgwError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AlreadyExists("x"), 73),
        (NotFound("x"), 65),
        (NotEditable("x"), 65),
        (Stale("x"), 74),
        (StoreError("x"), 74),
    ],
)
def test_the_store_says_no(error: StreamgwError, code: int) -> None:
    failure = translate(error)

    assert (failure.exit_code, failure.lines) == (code, ("error: x",))
    assert code in EXIT_CODES


def test_problems_are_listed() -> None:
    failure = translate(
        ConfigError((Problem("a.yaml", 1, 2, "x", "no"), Problem("b.yaml", 0, 0, "", "gone")))
    )

    assert failure.exit_code == 65
    assert failure.lines == ("error: a.yaml:1:2 x: no", "error: b.yaml: gone")
