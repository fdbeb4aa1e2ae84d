from __future__ import annotations

from pathlib import Path

from tools.measure import measure

SOURCE = '''\
"""A module."""

# Why it is here.
def first() -> int:
    """One line."""
    assert True
    return 1


def second():
    try:
        return first()
    except Exception:
        return 0
'''


def test_a_tree_becomes_one_line_of_figures(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "source/module.py").write_text(SOURCE)
    (tmp_path / "tests/test_module.py").write_text("x = 1\n" * 28)

    assert measure(tmp_path / "source", tmp_path / "tests") == (
        "files 1 | lines 14 | file median/max 14/14 | function median/p90/max 4/5/5 | comment 7% | docstring 14%"
        " | asserts per function 0.50 | broad except 1 | return-annotated 50% | tests/source 2.00"
    )


def test_a_bare_except_is_broad_and_a_named_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "def f() -> None:\n  try:\n    pass\n  except (OSError, ValueError):\n    pass\n  except:\n    pass\n"
    )

    assert "broad except 1" in measure(tmp_path, tmp_path)
