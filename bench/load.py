"""The load generator: built from load.c at first use, then run once per measurement."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

from bench.cpu import look
from bench.peers import Peer

_SOURCE = Path(__file__).with_name("load.c")
_CACHE = Path(__file__).parents[1] / "build" / "bench"
_GRACE_S = 20.0


@attrs.frozen
class Scenario:
    """One kind of load."""

    name: str
    kind: str
    """What load.c calls it: ping, connect, down, up."""
    connections: int
    unit: str

    @property
    def is_bulk(self) -> bool:
        return self.kind in ("down", "up")

    @property
    def scale(self) -> float:
        """Counts of the load generator per unit shown."""
        return float(1 << 30) if self.is_bulk else 1.0


SCENARIOS = (
    Scenario("bulk-down-1", "down", 1, "GiB"),
    Scenario("bulk-down-8", "down", 8, "GiB"),
    Scenario("bulk-up-1", "up", 1, "GiB"),
    Scenario("bulk-up-8", "up", 8, "GiB"),
    Scenario("ping-1", "ping", 1, "req"),
    Scenario("ping-32", "ping", 32, "req"),
    Scenario("ping-256", "ping", 256, "req"),
    Scenario("connect-32", "connect", 32, "conn"),
)


@attrs.frozen
class Sample:
    """One measurement of one scenario through one peer."""

    rate: float
    """Units a second."""
    p50_us: float
    p99_us: float
    max_us: float
    """All 0 for bulk."""
    errors: int
    """Connections that failed and were opened again."""
    proxy_us: float
    kernel_threads_us: float
    machine_us: float
    """CPU microseconds per unit: of the proxy's processes, of kernel threads, of everything."""


def build() -> Path:
    """Compile load.c unless this very text was compiled before; return the program."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    program = _CACHE / f"load-{digest}"
    if program.exists():
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        sys.exit("bench: the load generator is written in C: apt-get install gcc libc6-dev")
    _CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(".tmp")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(unfinished), str(_SOURCE)], check=True)
    unfinished.replace(program)
    return program


def measure(program: Path, scenario: Scenario, peer: Peer, *, warmup_s: float, seconds: float) -> Sample:
    """Put one load on one peer and look at the CPU clocks at both ends of the measured time."""
    words = [scenario.kind, peer.port, scenario.connections, warmup_s, seconds]
    process = subprocess.Popen([str(program), *map(str, words)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        _read(process, "start", peer)
        before = look(peer.pid)
        result = _read(process, "stop", peer)
        after = look(peer.pid)
        process.wait(_GRACE_S)
    count, real_s, p50_us, p99_us, max_us, errors = map(float, result)
    units = count / scenario.scale
    if units == 0:
        sys.exit(f"bench: {peer.name} moved nothing in {scenario.name}")
    used = after.since(before)
    return Sample(
        rate=units / real_s,
        p50_us=p50_us,
        p99_us=p99_us,
        max_us=max_us,
        errors=int(errors),
        proxy_us=used.proxy_s * 1e6 / units,
        kernel_threads_us=used.kernel_threads_s * 1e6 / units,
        machine_us=used.machine_s * 1e6 / units,
    )


def _read(process: subprocess.Popen[str], word: str, peer: Peer) -> list[str]:
    assert process.stdout is not None
    line = process.stdout.readline().split()
    if not line or line[0] != word:
        sys.exit(f"bench: the load on {peer.name} ended early ({process.wait(_GRACE_S)})")
    return line[1:]
