from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_test_mirror import has_code, module_of, own_tests, problems

MODULES = [
    "streamgw/cli.py",
    "streamgw/core/router.py",
    "streamgw/core/router_index.py",
    "streamgw/core/wire/__init__.py",
    "tools/measure.py",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project in which everything is as it should be."""
    for name, content in {
        "streamgw/core/__init__.py": '"""Only words."""\n',
        "streamgw/core/router.py": "x = 1\n",
        "tests/core/test_router.py": "",
        "tests/core/test_router_index.py": "",
        "tests/conformance/test_pump.py": "",
        "tests/test_docs.py": "",
        "tools/measure.py": "x = 1\n",
        "tests/tools/test_measure.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_complete_tree_has_no_problems(tree: Path) -> None:
    assert problems(tree) == []


def test_a_module_without_a_test_file_is_named(tree: Path) -> None:
    (tree / "tests/tools/test_measure.py").unlink()

    assert problems(tree) == ["tools/measure.py: no test file"]


def test_a_test_file_without_a_module_is_named(tree: Path) -> None:
    (tree / "tests/core/test_rooter.py").touch()

    assert problems(tree) == ["tests/core/test_rooter.py: no module of that name"]


@pytest.mark.parametrize(
    ("test_file", "module"),
    [
        ("tests/core/test_router.py", "streamgw/core/router.py"),
        ("tests/core/test_router_explain.py", "streamgw/core/router.py"),
        ("tests/core/test_router_index.py", "streamgw/core/router_index.py"),
        ("tests/core/test_router_index_large.py", "streamgw/core/router_index.py"),
        ("tests/test_cli.py", "streamgw/cli.py"),
        ("tests/tools/test_measure.py", "tools/measure.py"),
        ("tests/core/wire/test_wire.py", "streamgw/core/wire/__init__.py"),
        ("tests/core/test_routers.py", None),
        ("tests/config/test_router.py", None),
    ],
)
def test_a_test_file_belongs_to_the_longest_name_that_fits(test_file: str, module: str | None) -> None:
    assert module_of(test_file, MODULES) == module


def test_a_package_with_code_is_tested_by_the_files_of_its_directory() -> None:
    tests = ["tests/core/wire/test_cursor.py", "tests/core/test_router.py"]

    assert own_tests("streamgw/core/wire/__init__.py", MODULES, tests) == ["tests/core/wire/test_cursor.py"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Words."""\n', False),
        ('"""Words."""\nfrom __future__ import annotations\n', False),
        ("", False),
        ("import os\n", True),
        ("x = 1\n", True),
    ],
)
def test_words_are_not_code(source: str, expected: bool) -> None:
    assert has_code(source) is expected
