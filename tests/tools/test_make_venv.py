"""How `make run` gets its virtual environment, with fakes of a bare Debian's python3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/make_venv.sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose tools/ notes what it would install."""
    (tmp_path / "tools").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools/make_venv.sh")
    write_program(tmp_path / "tools/debian_install.sh", 'echo "$@" >installed')
    return tmp_path


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def make_venv(checkout: Path, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["tools/make_venv.sh", ".venv"],
        cwd=checkout,
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_environment_with_pip_is_made_and_then_left_alone(checkout: Path) -> None:
    assert make_venv(checkout, sys.executable).returncode == 0
    made = (checkout / ".venv/bin/python").lstat().st_ino

    assert make_venv(checkout, "/no/such/python").returncode == 0

    assert (checkout / ".venv/bin/python").lstat().st_ino == made
    assert not (checkout / "installed").exists()


def test_a_python_without_venv_gets_debians_package(checkout: Path) -> None:
    python = checkout / "python3"
    write_program(
        python, f'[ -e installed ] || case "$*" in *venv*) exit 1;; esac; exec {sys.executable} "$@"'
    )

    done = make_venv(checkout, str(python))

    assert done.returncode == 0, done.stderr
    assert (checkout / "installed").read_text() == "python3-venv\n"
    assert (checkout / ".venv/bin/pip").exists()


def test_a_python_that_is_too_old_is_refused_with_what_is_needed(checkout: Path) -> None:
    python = checkout / "python3"
    write_program(python, 'case "$*" in --version) echo Python 3.9.2;; *) exit 1;; esac')

    done = make_venv(checkout, str(python))

    assert done.returncode == 1
    assert "Python 3.9.2 is too old; it needs Python 3.11 or newer" in done.stderr


def test_no_python_at_all_is_said(checkout: Path) -> None:
    done = make_venv(checkout, "python3.99")

    assert done.returncode == 1
    assert "python3.99 is not installed" in done.stderr
