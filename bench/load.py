"""One measurement: a load generator is run, and the CPU clocks are read at both ends of the measured time."""

from __future__ import annotations

import subprocess
import sys

import attrs

from bench.build import build
from bench.cpu import look
from bench.peers import Peer

_GRACE_S = 20.0


@attrs.frozen
class Scenario:
    """One kind of load."""

    name: str
    kind: str
    """What the generator calls it: ping, connect, down, up; full, resumed, resumed12, down, up; ping, session, up, down."""
    connections: int
    unit: str
    tls: bool = False
    """Clients speak TLS, and the proxy terminates it."""
    udp: bool = False
    rate: float = 0.0
    """Messages a second, and no more; latency then counts from when each was due. 0: as many as go. Only ping."""

    @property
    def program(self) -> str:
        return "load_tls" if self.tls else "load_udp" if self.udp else "load"

    @property
    def is_bulk(self) -> bool:
        """Counted in bytes. Datagrams are counted one by one."""
        return self.kind in ("down", "up") and not self.udp

    @property
    def has_latency(self) -> bool:
        return self.kind not in ("down", "up")

    def port_of(self, peer: Peer) -> int | None:
        """Where this peer takes such a load; None: it cannot."""
        if peer.is_for_bulk and (self.tls or not self.is_bulk):
            return None
        if self.udp:
            return peer.udp_session_port if self.kind == "session" else peer.udp_port
        return peer.tls_port if self.tls else peer.port

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
    Scenario("tls-full-32", "full", 32, "conn", tls=True),
    Scenario("tls-resumed-32", "resumed", 32, "conn", tls=True),
    Scenario("tls12-resumed-32", "resumed12", 32, "conn", tls=True),
    Scenario("tls-bulk-down-1", "down", 1, "GiB", tls=True),
    Scenario("tls-bulk-down-8", "down", 8, "GiB", tls=True),
    Scenario("tls-bulk-up-1", "up", 1, "GiB", tls=True),
    Scenario("tls-bulk-up-8", "up", 8, "GiB", tls=True),
    Scenario("udp-ping-32", "ping", 32, "req", udp=True),
    Scenario("udp-session-32", "session", 32, "session", udp=True),
    Scenario("udp-up-1", "up", 1, "datagram", udp=True),
    Scenario("udp-down-1", "down", 1, "datagram", udp=True),
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
    """Connections that failed, or were not resumed, and were opened again; datagrams that were lost."""
    proxy_us: float
    load_us: float
    kernel_threads_us: float
    machine_us: float
    """CPU microseconds per unit: of the proxy's processes, of the load generator, of kernel threads, of everything."""


def begin(scenario: Scenario, peer: Peer, *, warmup_s: float, seconds: float) -> subprocess.Popen[str]:
    """Put one load on one peer: the generator, which says on stdout when the measured time begins and ends."""
    port = scenario.port_of(peer)
    assert port is not None, f"{peer.name} cannot do {scenario.name}"
    words = [build(scenario.program), scenario.kind, port, scenario.connections, warmup_s, seconds]
    words += [scenario.rate] if scenario.rate else []
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True)


def measure(scenario: Scenario, peer: Peer, *, warmup_s: float, seconds: float) -> Sample:
    """Put one load on one peer and look at the CPU clocks at both ends of the measured time."""
    with begin(scenario, peer, warmup_s=warmup_s, seconds=seconds) as process:
        read_line(process, "start", peer)
        before = look(peer.pid, process.pid)
        result = read_line(process, "stop", peer)
        after = look(peer.pid, process.pid)
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
        load_us=used.load_s * 1e6 / units,
        kernel_threads_us=used.kernel_threads_s * 1e6 / units,
        machine_us=used.machine_s * 1e6 / units,
    )


def read_line(process: subprocess.Popen[str], word: str, peer: Peer) -> list[str]:
    """The rest of the generator's next line, which begins with that word."""
    assert process.stdout is not None
    line = process.stdout.readline().split()
    if not line or line[0] != word:
        sys.exit(f"bench: the load on {peer.name} ended early ({process.wait(_GRACE_S)})")
    return line[1:]
