"""Print the style of a tree in one line of figures: python -m tools.measure streamgw tests.

The row to hold it against, from the code bases this one wants to be compared with: at most 55 files and 8,000 lines;
file median 110 to 170, largest 400; function median 9, 90th percentile 32, largest 70; comments 7 to 12 %, docstrings
12 to 20 %; one broad except; every function annotated; at least 1.2 lines of tests per line of source.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from pathlib import Path

import attrs


@attrs.define
class Tally:
    """What was counted so far."""

    sizes: list[int] = attrs.Factory(list)
    spans: list[int] = attrs.Factory(list)
    comments: int = 0
    doc_lines: int = 0
    asserts: int = 0
    broad: int = 0
    typed: int = 0

    def add_file(self, source: bytes) -> None:
        """Count one file."""
        self.sizes.append(source.count(b"\n"))
        tokens = tokenize.tokenize(io.BytesIO(source).readline)
        self.comments += sum(token.type == tokenize.COMMENT for token in tokens)
        for node in ast.walk(ast.parse(source)):
            self._add_node(node)

    def _add_node(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.spans.append(span_of(node))
            self.typed += node.returns is not None
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node) is not None
        ):
            self.doc_lines += span_of(node.body[0])
        self.asserts += isinstance(node, ast.Assert)
        if isinstance(node, ast.ExceptHandler):
            self.broad += is_broad(node)


def span_of(node: ast.stmt) -> int:
    """Lines from the first to the last of a statement."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches everything: `except:`, `except Exception`, `except BaseException`."""
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & {"Exception", "BaseException"})


def measure(root: Path, tests: Path) -> str:
    """One line of figures about the Python files below `root`."""
    tally = Tally()
    for path in sorted(root.rglob("*.py")):
        tally.add_file(path.read_bytes())
    lines, spans, functions = sum(tally.sizes), sorted(tally.spans), len(tally.spans)
    test_lines = sum(path.read_bytes().count(b"\n") for path in tests.rglob("*.py"))
    return (
        f"files {len(tally.sizes)} | lines {lines}"
        f" | file median/max {statistics.median(tally.sizes):.0f}/{max(tally.sizes)}"
        f" | function median/p90/max {statistics.median(spans):.0f}/{spans[int(functions * 0.9)]}/{spans[-1]}"
        f" | comment {tally.comments / lines:.0%} | docstring {tally.doc_lines / lines:.0%}"
        f" | asserts per function {tally.asserts / functions:.2f} | broad except {tally.broad}"
        f" | return-annotated {tally.typed / functions:.0%} | tests/source {test_lines / lines:.2f}"
    )


if __name__ == "__main__":
    print(measure(Path(sys.argv[1]), Path(sys.argv[2])))
