"""Check that every module has its test file, and every test file its module.

`streamgw/core/router.py` is tested by `tests/core/test_router.py`; a module with much to say may have more of them,
`tests/core/test_router_index.py`. A package's `__init__.py` that holds code is tested by the files of its directory, where
one may have the package's name: `tests/cli/test_cli.py`.

Usage: python -m tools.check_test_mirror
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

# Modules without a test file of their own, and why. Keep it short: a reason that fits twice is a rule.
UNTESTED = {
    "streamgw/__init__.py": "holds the version",
    "streamgw/__main__.py": "one call; every end-to-end test starts the gateway through it",
    "streamgw/dataplane/pump/__init__.py": "a Protocol and records; tests/conformance/test_pump.py holds the contract",
    "tools/install_servers.sh": "a list; every test with the servers marker needs it to be right",
    "tools/lock.sh": "downloads the newest versions; run by hand",
}

# Directories below tests/ that mirror nothing: they test many modules together.
FREE = ("conformance", "e2e", "support", "typing")

# Test files outside of these directories that mirror nothing, and why.
UNMIRRORED = {
    "tests/test_docs.py": "runs the commands of README.md and docs/",
    "tests/core/sim/test_udp_sessions_sim.py": "plays random histories of streamgw/core/udp_sessions.py",
}


def has_code(source: str) -> bool:
    """Whether a module holds more than a docstring and `from __future__` imports."""
    return any(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        for node in ast.parse(source).body
    )


def modules(root: Path) -> list[str]:
    """Every module with code in it, and every script in tools/, as paths: `streamgw/core/router.py`."""
    paths = [*sorted((root / "streamgw").rglob("*.py")), *sorted((root / "tools").rglob("*.py"))]
    with_code = [path for path in paths if has_code(path.read_text(encoding="utf-8"))]
    return [str(path.relative_to(root)) for path in [*with_code, *sorted((root / "tools").glob("*.sh"))]]


def test_files(root: Path) -> list[str]:
    """Every test file that has to mirror a module."""
    paths = sorted((root / "tests").rglob("test_*.py"))
    names = [str(path.relative_to(root)) for path in paths]
    return [name for name in names if Path(name).parts[1] not in FREE and name not in UNMIRRORED]


def module_of(test_file: str, among: list[str]) -> str | None:
    """The module that a test file tests: the one with the longest name that fits, None if there is none."""
    directory = Path(test_file).parent.relative_to("tests")
    name = Path(test_file).stem.removeprefix("test_")
    fitting = []
    for module in among:
        path = Path(module)
        mirrored = path.parent if path.parts[0] == "tools" else path.parent.relative_to("streamgw")
        stem = mirrored.name if path.stem == "__init__" else path.stem
        if mirrored == directory and (name == stem or name.startswith(f"{stem}_")):
            fitting.append(module)
    return max(fitting, key=len, default=None)


def own_tests(module: str, among_modules: list[str], among_tests: list[str]) -> list[str]:
    """The test files of one module."""
    if Path(module).name == "__init__.py":
        directory = Path("tests") / Path(module).parent.relative_to("streamgw")
        return [name for name in among_tests if Path(name).parent == directory]
    return [name for name in among_tests if module_of(name, among_modules) == module]


def problems(root: Path) -> list[str]:
    """Every module without a test file, and every test file without a module."""
    all_modules, all_tests = modules(root), test_files(root)
    found = [
        f"{module}: no test file"
        for module in all_modules
        if module not in UNTESTED and not own_tests(module, all_modules, all_tests)
    ]
    found += [f"{name}: no module of that name" for name in all_tests if not module_of(name, all_modules)]
    return found


def main() -> int:
    """Print what is missing. Returns the exit code."""
    found = problems(Path())
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
