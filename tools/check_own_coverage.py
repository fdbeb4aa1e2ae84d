"""Check that every module of core and config is covered, lines and branches, by its own test file alone.

Coverage by accident, from tests about something else, hides what nobody has thought about. The tests of both layers
run once, recording which test ran which line; each module is then judged by the tests of its own file only. Seeds are
fixed: a gate must not depend on what hypothesis happens to try.

Usage: python -m tools.check_own_coverage [MODULE…]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import coverage

from tools.check_test_mirror import modules, own_tests, test_files

LAYERS = ("core", "config")

# What runs while modules are imported belongs to nobody: definitions, constants.
AT_IMPORT = "^$"


def run_tests(data_file: Path) -> int:
    """Run the tests of both layers, recording contexts. Returns pytest's exit code."""
    command = [
        sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:randomly", "-p", "no:cacheprovider",
        "--hypothesis-seed=0", "--cov=streamgw", "--cov-branch", "--cov-context=test", "--cov-report=",
        *(f"tests/{layer}" for layer in LAYERS),
    ]  # fmt: skip
    environment = {**os.environ, "COVERAGE_FILE": str(data_file)}
    return subprocess.run(command, env=environment, check=False).returncode


def gaps(measured: coverage.Coverage, module: str, tests: list[str]) -> list[str]:
    """Lines and branches of a module that these test files do not reach, as text."""
    contexts = [AT_IMPORT, *(f"^{re.escape(name)}::" for name in tests)]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        measured.json_report([module], outfile=report.name, contexts=contexts)
        figures = json.loads(Path(report.name).read_text(encoding="utf-8"))["files"][module]
    lines = [f"line {span}" for span in spans(figures["missing_lines"])]
    branches = [f"branch {start}→{'exit' if end < 0 else end}" for start, end in figures["missing_branches"]]
    return lines + branches


def spans(lines: list[int]) -> list[str]:
    """Line numbers with neighbours joined: `3`, `7–12`."""
    found: list[list[int]] = []
    for line in lines:
        if found and line == found[-1][-1] + 1:
            found[-1].append(line)
        else:
            found.append([line])
    return [str(span[0]) if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in found]


def main(chosen: list[str]) -> int:
    """Run the tests and judge. Returns the exit code."""
    root = Path()
    all_modules, all_tests = modules(root), test_files(root)
    judged = chosen or [
        name for name in all_modules if name.startswith(tuple(f"streamgw/{x}/" for x in LAYERS))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        data_file = Path(scratch) / "coverage"
        if failed := run_tests(data_file):
            return failed
        measured = coverage.Coverage(data_file=data_file)
        measured.load()
        poor = 0
        for module in judged:
            if found := gaps(measured, module, own_tests(module, all_modules, all_tests)):
                poor += 1
                print(f"{module}: not reached from its own tests: {', '.join(found)}")
    print(f"own coverage: {len(judged) - poor} of {len(judged)} modules complete")
    return 1 if poor else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
