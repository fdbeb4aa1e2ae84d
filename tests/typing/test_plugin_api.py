"""The interface of plugins as their authors write it: what is right passes the type checker, what is wrong does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.child import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/plugin/greylist/greylist.py"


def errors(file: Path, cache: Path) -> list[str]:
    """What mypy says of one file under the project's own rules."""
    words = ["--strict", "--no-error-summary", "--no-color-output", "--cache-dir", cache]
    done = run([sys.executable, "-m", "mypy", *words, file], cwd=ROOT, check=False, timeout_s=280)
    return [line.partition("error: ")[2] for line in done.stdout.splitlines() if "error: " in line]


def test_the_example_is_typed(tmp_path: Path) -> None:
    assert errors(EXAMPLE, tmp_path / "cache") == []


def test_a_hook_that_takes_or_gives_something_else_is_an_error(tmp_path: Path) -> None:
    """One run for all: starting a type checker takes longer than what it checks here."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        EXAMPLE.read_text()
        + "def gives_text(facts: Facts, now: float) -> str:\n    return 'no'\n"
        + "def takes_nothing() -> None: ...\n"
        + "A = Hooks(on_accept=gives_text)\n"
        + "B = Hooks(on_preread=takes_nothing)\n"
        + "C = Plugin(name='c', priority=1, options=int, build=build)\n"
    )

    said = errors(wrong, tmp_path / "cache")

    assert [text.partition(" to ")[2].split()[0].strip('"') for text in said[:2]] == ["Hooks", "Hooks"]
    assert len(said) == 3
