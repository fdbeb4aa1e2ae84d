from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_own_coverage import spans

ROOT = Path(__file__).parents[2]

MODULE = """\
def double(number: int) -> int:
    if number < 0:
        return 0
    return 2 * number
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two modules, of which `double` needs two tests."""
    for name, content in {
        "streamgw/__init__.py": "",
        "streamgw/core/__init__.py": "",
        "streamgw/core/double.py": MODULE,
        "streamgw/core/other.py": "from streamgw.core.double import double\nthere = 1\n",
        "streamgw/config/__init__.py": "",
        "tests/core/test_double.py": "",
        "tests/core/test_other.py": "from streamgw.core import other\ndef test(): assert other.double(-2) == 0\n",
        "tests/config/test_nothing.py": "",
        "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['.']\naddopts = ['--import-mode=importlib']\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def judge(project: Path) -> tuple[int, str]:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tools.check_own_coverage import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def test_the_tests_of_another_module_do_not_count(project: Path) -> None:
    (project / "tests/core/test_double.py").write_text(
        "from streamgw.core.double import double\ndef test_a_number_is_doubled(): assert double(2) == 4\n"
    )

    code, output = judge(project)

    assert code == 1
    assert "streamgw/core/double.py: not reached from its own tests: line 3, branch 2→3" in output
    assert "1 of 2 modules complete" in output


def test_a_module_that_its_own_tests_cover_passes(project: Path) -> None:
    (project / "tests/core/test_double.py").write_text(
        "from streamgw.core.double import double\n"
        "def test_a_number_is_doubled(): assert double(2) == 4\n"
        "def test_a_negative_number_gives_nothing(): assert double(-1) == 0\n"
    )

    code, output = judge(project)

    assert code == 0, output
    assert "2 of 2 modules complete" in output


def test_a_failing_test_fails_the_gate(project: Path) -> None:
    (project / "tests/core/test_double.py").write_text("def test_wrong(): assert False\n")

    code, output = judge(project)

    assert code == 1
    assert "test_wrong" in output


def test_neighbouring_lines_are_named_as_one() -> None:
    assert spans([3, 7, 8, 9, 12]) == ["3", "7–9", "12"]
    assert spans([]) == []
