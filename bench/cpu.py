"""CPU time from /proc: of a process tree, of the kernel's own threads, of the whole machine.

All three, because work moves: what a proxy saves may reappear in kernel threads (sockmap), and softirq time lands on
whoever ran at that moment.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_KERNEL_THREAD_PARENT = 2
"""kthreadd."""


@attrs.frozen
class Usage:
    """Seconds of CPU, since some start or between two looks."""

    proxy_s: float
    load_s: float
    """Of the load generator: near one whole CPU, and it is what was measured."""
    kernel_threads_s: float
    machine_s: float
    """All CPUs, everything but idle and I/O wait."""

    def since(self, earlier: Usage) -> Usage:
        return Usage(
            self.proxy_s - earlier.proxy_s,
            self.load_s - earlier.load_s,
            self.kernel_threads_s - earlier.kernel_threads_s,
            self.machine_s - earlier.machine_s,
        )


def look(proxy: int | None, load: int) -> Usage:
    """Read the clocks now.

    Args:
      proxy: the proxy's first process; its descendants count too. None: there is no proxy.
      load: the load generator's only process.
    """
    processes = _processes()
    proxies = _descendants(proxy, processes)
    return Usage(
        proxy_s=sum(cpu_s for pid, (_, cpu_s) in processes.items() if pid in proxies),
        load_s=processes[load][1],
        kernel_threads_s=sum(
            cpu_s for parent, cpu_s in processes.values() if parent == _KERNEL_THREAD_PARENT
        ),
        machine_s=_machine_s(),
    )


def family(root: int | None) -> set[int]:
    """A process and its descendants. None: nobody."""
    return _descendants(root, _processes())


def _processes() -> dict[int, tuple[int, float]]:
    """Every process: its parent, and the CPU seconds of it and its ended, waited-for children (proc(5), stat)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        # The command stands in parentheses and may hold spaces and parentheses itself.
        fields = stat[stat.rindex(")") + 2 :].split()
        found[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])) * _TICK_S)
    return found


def _descendants(root: int | None, processes: dict[int, tuple[int, float]]) -> set[int]:
    if root is None:
        return set()
    found = {root}
    while more := {pid for pid, (parent, _) in processes.items() if parent in found} - found:
        found |= more
    return found


def _machine_s() -> float:
    """user, nice, system, irq, softirq and steal of the `cpu` line; guest time is part of user (proc(5))."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_S
