"""Check that YAML and TOML files parse and that text files end in exactly one newline.

Usage: python -m tools.check_files [FILE…]; without files, everything that git tracks.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

# Broken on purpose: what the configuration is expected to reject.
BROKEN_ON_PURPOSE = ("tests/config/golden/",)


def tracked_files() -> list[str]:
    """Every file that git knows."""
    listing = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True)
    return [name for name in listing.stdout.split("\0") if name]


def problem_of(name: str, content: bytes) -> str | None:
    """What is wrong with this file, or None. Binary files are nobody's business here."""
    if b"\0" in content or name.startswith(BROKEN_ON_PURPOSE):
        return None
    try:
        if name.endswith((".yaml", ".yml")):
            list(yaml.compose_all(content, Loader=yaml.SafeLoader))
        elif name.endswith(".toml"):
            tomllib.loads(content.decode())
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return str(error)
    if content and not content.endswith(b"\n"):
        return "does not end in a newline"
    if content.endswith(b"\n\n"):
        return "ends in more than one newline"
    return None


def main(names: list[str]) -> int:
    """Print what is wrong, one line per file. Returns the exit code."""
    broken = 0
    for name in names or tracked_files():
        path = Path(name)
        if path.is_symlink() or not path.is_file():
            continue
        if problem := problem_of(name, path.read_bytes()):
            print(f"{name}: {problem}")
            broken += 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
