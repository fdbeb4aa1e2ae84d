from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_files import main, problem_of


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.yaml", b"a: [1\n", "expected ',' or ']'"),
        ("a.toml", b"a = \n", "Invalid value"),
        ("a.toml", b"\xff\n", "can't decode"),
        ("a.py", b"x = 1", "does not end in a newline"),
        ("a.py", b"x = 1\n\n", "more than one newline"),
    ],
)
def test_a_broken_file_is_named_with_its_problem(name: str, content: bytes, expected: str) -> None:
    assert expected in (problem_of(name, content) or "nothing")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", b"a: 1\n---\nb: 2\n"),
        ("a.toml", b"a = 1\n"),
        ("empty.py", b""),
        ("picture.yaml", b"\0a: [1"),
        ("tests/config/golden/broken.yaml", b"a: [1\n"),
    ],
)
def test_a_good_file_has_no_problem(name: str, content: bytes) -> None:
    assert problem_of(name, content) is None


def test_the_exit_code_says_whether_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("fine\n")
    bad.write_text("no newline")

    assert main([str(good), str(tmp_path / "not there")]) == 0
    assert main([str(good), str(bad)]) == 1

    assert capsys.readouterr().out == f"{bad}: does not end in a newline\n"
