"""Medians, ratios and the table."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from bench.load import Sample, Scenario
from bench.peers import Peer

Samples = Mapping[str, Mapping[str, Sequence[Sample]]]
"""scenario → peer → one sample per round."""


def median(samples: Sequence[Sample]) -> Sample:
    """The median of every figure on its own; errors are summed."""
    figures = {
        field.name: statistics.median(getattr(sample, field.name) for sample in samples)
        for field in attrs.fields(Sample)
        if field.name != "errors"
    }
    return Sample(errors=sum(sample.errors for sample in samples), **figures)


def ratios(medians: Mapping[str, Sample], *, of: str = "streamgw") -> dict[str, float]:
    """Rate of one peer as a multiple of every other's: `{"nginx": 2.6}` is 2.6 times nginx."""
    if of not in medians:
        return {}
    return {peer: round(medians[of].rate / sample.rate, 3) for peer, sample in medians.items() if peer != of}


def table(
    scenarios: Sequence[Scenario], samples: Samples, baseline: Mapping[str, Mapping[str, float]]
) -> str:
    """The whole result for a terminal.

    Args:
      baseline: scenario → peer → ratio of an earlier run; shown in parentheses. Ratios, because absolute rates
        belong to one machine.
    """
    lines = []
    for scenario in scenarios:
        medians = {peer: median(rounds) for peer, rounds in samples[scenario.name].items()}
        lines += ["", _heading(scenario), _COLUMNS.format(*_TITLES)]
        lines += [_row(scenario, peer, sample, medians) for peer, sample in medians.items()]
        if found := ratios(medians):
            before = baseline.get(scenario.name, {})
            words = [_ratio(peer, value, before.get(peer)) for peer, value in found.items()]
            lines.append(f"  streamgw is {', '.join(words)}")
    return "\n".join(lines)


def describe(peers: Sequence[Peer], congestion: str) -> dict[str, object]:
    """What belongs to every result: the day, the shape of the machine, who was measured."""
    shape = f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release().split('-')[0]}"
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{shape}, Python {platform.python_version()}",
        "congestion_control": congestion,
        "peers": {peer.name: peer.version for peer in peers},
    }


def write_json(path: Path, document: object) -> None:
    """For charts, and for whoever wants to calculate otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=attrs.asdict) + "\n")


_TITLES = (
    "",
    "rate/s",
    "p50 µs",
    "p99 µs",
    "/nginx",
    "/haproxy",
    "proxy",
    "load",
    "kthreads",
    "machine",
    "errors",
)
_COLUMNS = "  {:<10}{:>12}{:>9}{:>9}{:>9}{:>10}{:>9}{:>9}{:>9}{:>9}{:>8}"


def _heading(scenario: Scenario) -> str:
    many = "client" if scenario.udp else "connection"
    many += "" if scenario.connections == 1 else "s"
    cost = "ms CPU per GiB" if scenario.is_bulk else f"µs CPU per {scenario.unit}"
    return f"{scenario.name}: {scenario.unit}/s, {scenario.connections} {many}; {cost}"


def _row(scenario: Scenario, peer: str, sample: Sample, medians: Mapping[str, Sample]) -> str:
    rate = f"{sample.rate:,.2f}" if scenario.is_bulk else f"{sample.rate:,.0f}"
    latency = ["–", "–"] if not scenario.has_latency else [f"{sample.p50_us:,.0f}", f"{sample.p99_us:,.0f}"]
    against = [
        f"{sample.rate / medians[other].rate:.2f}" if other in medians else "–"
        for other in ("nginx", "haproxy")
    ]
    per_ms = 1000.0 if scenario.is_bulk else 1.0
    digits = 0 if scenario.is_bulk else 1
    costs = [
        f"{value / per_ms:,.{digits}f}"
        for value in (sample.proxy_us, sample.load_us, sample.kernel_threads_us, sample.machine_us)
    ]
    return _COLUMNS.format(peer, rate, *latency, *against, *costs, sample.errors)


def _ratio(peer: str, now: float, before: float | None) -> str:
    was = "" if before is None else f" (baseline {before:.2f})"
    return f"{now:.2f} × {peer}{was}"
