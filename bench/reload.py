"""`python -m bench.reload`: what those who are connected, and those who come, notice of a reload; how long it takes.

One session sends a message and waits for the reply, again and again; one client opens a connection, uses it and closes it,
again and again. Both in peace, and while one file of 100 routes changes, or every file. What counts is the longest of all
waits: a reload must not be felt. The new files are written elsewhere and moved into place within milliseconds. A reload has
taken until the moment that the status names as `applied_at`; the status is asked when the run is over, so as not to disturb it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import itertools
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import click

from bench.build import build
from bench.load import Sample, Scenario, measure
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import ORIGIN_PORT, STATUS, Peer, running_origin, running_streamgw
from bench.report import describe, median, write_json

ROUTES_PER_FILE = 100
WARMUP_S = 0.3
_MARGIN_S = 0.2
"""A change comes this long after the measured time has begun."""
_LOADS = (Scenario("ping-1", "ping", 1, "req"), Scenario("connect-1", "connect", 1, "conn"))
_VARIANTS = itertools.count(1)
_TITLES = ("a second", "p50 µs", "p99 µs", "max µs", "worst", "applied ms", "worst")
_COLUMNS = "{:<34}{:>10}{:>9}{:>9}{:>9}{:>9}{:>12}{:>8}"


@attrs.frozen
class Row:
    """One line of the result."""

    title: str
    peer: Peer
    changing: Sequence[Path] = ()
    """Files, each of which is replaced once in each run."""


@attrs.frozen
class Look:
    """One run of one row."""

    sample: Sample
    applied_ms: float | None
    """From the last file in place until all of them are what runs; None: nothing changed."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--routes", default="1000,10000", show_default=True, help="Numbers of routes.")
@click.option("--rounds", default=5, show_default=True, help="Each row this many times.")
@click.option("--seconds", default=3.0, show_default=True, help="Measured time of one run, with one reload.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every look here.")
def main(routes: str, rounds: int, seconds: float, output: Path | None) -> None:
    """Measure a running session and new connections in peace and under reloads."""
    congestion = enter_private_network("bench.reload")
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="streamgw-reload-") as name, contextlib.ExitStack() as stack:
        origin = stack.enter_context(running_origin(build("load"), build("load_udp")))
        # What the machine itself does to the longest wait, busy as it may be.
        rows = [Row("no gateway, in peace", origin)]
        for number, count in enumerate(map(int, routes.split(","))):
            rows += _rows(count, Path(name) / str(count), ORIGIN_PORT + 40 + number, stack)
        about = describe([row.peer for row in rows], congestion) | {"rounds": rounds, "seconds": seconds}
        looks = _measure_all(rows, rounds, seconds)
    for scenario in _LOADS:
        print(_COLUMNS.format(scenario.name, *_TITLES))
        for title, found in looks[scenario.name].items():
            _print(title, found)
    if output is not None:
        write_json(output, {"about": about, "looks": looks})


def _rows(count: int, directory: Path, port: int, stack: contextlib.ExitStack) -> Iterator[Row]:
    # Sorts before bench.yaml, whose one route fits everybody, so that it hides none of them.
    routes = directory / "routes.d" / "a"
    routes.mkdir(parents=True)
    files = [routes / f"{first}.yaml" for first in range(0, count, ROUTES_PER_FILE)]
    _replace(_written(files))
    click.echo(f"loading {count:,} routes", err=True)
    peer = stack.enter_context(running_streamgw(directory, port=port))
    yield Row(f"{count:,} routes, in peace", peer)
    yield Row(f"{count:,} routes, one file changes", peer, files[:1])
    yield Row(f"{count:,} routes, all files change", peer, files)


def _measure_all(rows: Sequence[Row], rounds: int, seconds: float) -> dict[str, dict[str, list[Look]]]:
    """Load → title → one look per round."""
    looks: dict[str, dict[str, list[Look]]] = {
        scenario.name: {row.title: [] for row in rows} for scenario in _LOADS
    }
    for number in range(rounds):
        for scenario, row in itertools.product(_LOADS, rows):
            click.echo(f"round {number + 1}/{rounds}  {scenario.name}  {row.title}", err=True)
            looks[scenario.name][row.title].append(_look(scenario, row, seconds))
    return looks


def _look(scenario: Scenario, row: Row, seconds: float) -> Look:
    unfinished = _written(row.changing)
    with ThreadPoolExecutor(1) as editor:
        changed = editor.submit(_change, unfinished)
        sample = measure(scenario, row.peer, warmup_s=WARMUP_S, seconds=seconds)
    if not unfinished:
        return Look(sample, None)
    took = _applied_at(row.peer) - changed.result()
    if took < dt.timedelta():
        raise click.ClickException(f"{row.title}: not applied within {seconds} s")
    return Look(sample, took / dt.timedelta(milliseconds=1))


def _change(unfinished: Sequence[Path]) -> dt.datetime:
    """Returns when the last file was in place."""
    time.sleep(WARMUP_S + _MARGIN_S)
    _replace(unfinished)
    return dt.datetime.now(dt.UTC)


def _applied_at(peer: Peer) -> dt.datetime:
    with urllib.request.urlopen(f"http://127.0.0.1:{peer.port + STATUS}/streamgw/v1/status") as answer:
        return dt.datetime.fromisoformat(json.load(answer)["config"]["applied_at"])


def _written(files: Sequence[Path]) -> list[Path]:
    """New contents, which differ from any before in every route, where the gateway does not look."""
    return [_write(file, number, next(_VARIANTS)) for number, file in enumerate(files)]


def _write(file: Path, number: int, variant: int) -> Path:
    upstream = f'upstream: {{type: roundrobin, nodes: {{"127.0.0.1:{ORIGIN_PORT}": {variant}}}}}'
    first = ipaddress.IPv4Address("10.0.0.0") + number * ROUTES_PER_FILE
    routes = (
        f"  - {{id: r{number}-{route}, remote_addr: {first + route}, {upstream}}}"
        for route in range(ROUTES_PER_FILE)
    )
    unfinished = file.parents[2] / file.name
    unfinished.write_text("\n".join(["stream_routes:", *routes]) + "\n")
    return unfinished


def _replace(unfinished: Sequence[Path]) -> None:
    for file in unfinished:
        file.replace(file.parent / "routes.d" / "a" / file.name)


def _print(title: str, looks: Sequence[Look]) -> None:
    """Medians of the rounds, and the worst of all."""
    samples = [look.sample for look in looks]
    found = median(samples)
    figures = [found.rate, found.p50_us, found.p99_us, found.max_us, max(sample.max_us for sample in samples)]
    applied_ms = [look.applied_ms for look in looks if look.applied_ms is not None]
    figures += [statistics.median(applied_ms), max(applied_ms)] if applied_ms else []
    shown = [f"{figure:,.0f}" for figure in figures] + ["–"] * (len(_TITLES) - len(figures))
    print(_COLUMNS.format(title, *shown))


if __name__ == "__main__":
    main()
