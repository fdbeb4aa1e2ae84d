"""The load generators, in C: load.c, load_tls.c and load_udp.c are compiled at first use."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

_SOURCES = Path(__file__).parent
_LIBRARIES = {"load": (), "load_tls": ("-lssl", "-lcrypto"), "load_udp": ()}
_PACKAGES = {
    "load": "gcc libc6-dev",
    "load_tls": "gcc libc6-dev libssl-dev",
    "load_udp": "gcc libc6-dev",
}
_CACHE = Path(__file__).parents[1] / "build" / "bench"


@functools.cache
def build(name: str = "load") -> Path:
    """Compile a load generator unless this very text was compiled before; return the program."""
    source = _SOURCES / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes() + (_SOURCES / "load.h").read_bytes()).hexdigest()[:16]
    program = _CACHE / f"{name}-{digest}"
    if program.exists():
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        sys.exit(f"bench: the load generators are written in C: apt-get install {_PACKAGES[name]}")
    _CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(".tmp")
    flags = ["-O2", "-Wall", "-Wextra", "-o", str(unfinished)]
    done = subprocess.run([compiler, *flags, str(source), *_LIBRARIES[name]], check=False)
    if done.returncode:
        sys.exit(f"bench: {source.name} does not compile; it needs {_PACKAGES[name]} (apt-get install)")
    unfinished.replace(program)
    return program
