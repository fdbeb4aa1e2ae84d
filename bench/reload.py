"""`python -m bench.reload`: how long a new connection waits while a large configuration is reloaded.

One connection at a time is opened, used and closed, first in peace, then while all of the routes change again and again,
then while one file of a hundred does. What counts is the longest of them: a reload must not be felt.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from bench.build import build
from bench.load import Sample, Scenario, measure
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import ORIGIN_PORT, Peer, running_origin, running_streamgw

FILES = 100
WARMUP_S = 0.3
_ONE_AT_A_TIME = Scenario("connect-1", "connect", 1, "conn")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--routes", default=10_000, show_default=True, help="How many routes there are.")
@click.option("--seconds", default=5.0, show_default=True, help="Measured time of each phase.")
@click.option("--every", default=1.0, show_default=True, help="Seconds between two changes.")
def main(routes: int, seconds: float, every: float) -> None:
    """Measure the wait of new connections in peace and under reloads."""
    enter_private_network("bench.reload")
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="streamgw-reload-") as name, contextlib.ExitStack() as stack:
        origin = stack.enter_context(running_origin(build(), build("load_udp")))
        peer = stack.enter_context(running_streamgw(Path(name)))
        # Sorts before bench.yaml, whose one route fits everybody, so that it hides none of them.
        directory = Path(name) / "routes.d" / "a"
        _write_files(directory, routes, 0, range(FILES))
        print(f"{routes:,} routes in {FILES} files; one connection at a time")
        print(f"{'':<24}{'conn/s':>10}{'p50 µs':>10}{'p99 µs':>10}{'max µs':>10}")
        # What the machine itself does to the longest wait, busy as it may be.
        _print("no gateway, in peace", _measure(origin, seconds))
        _print("in peace", _measure(peer, seconds))
        with _changing(directory, routes, every, FILES):
            _print("all routes change", _measure(peer, seconds))
        with _changing(directory, routes, every, 1):
            _print("one file changes", _measure(peer, seconds))


def _measure(peer: Peer, seconds: float) -> Sample:
    return measure(_ONE_AT_A_TIME, peer, warmup_s=WARMUP_S, seconds=seconds)


def _print(phase: str, sample: Sample) -> None:
    print(
        f"{phase:<24}{sample.rate:>10,.0f}{sample.p50_us:>10,.0f}{sample.p99_us:>10,.0f}{sample.max_us:>10,.0f}"
    )


@contextlib.contextmanager
def _changing(directory: Path, routes: int, every: float, files: int) -> Iterator[None]:
    """Change that many files at a time while the block lasts, in a process of its own: ours measures."""
    editor = multiprocessing.Process(target=_change, args=(directory, routes, every, files))
    editor.start()
    try:
        yield
    finally:
        editor.terminate()
        editor.join()


def _change(directory: Path, routes: int, every: float, files: int) -> None:
    for variant in itertools.count(1):
        _write_files(directory, routes, variant, range(files))
        time.sleep(every)


def _write_files(directory: Path, routes: int, variant: int, numbers: Iterable[int]) -> None:
    """Put files in place, each whole. Another variant differs in every route."""
    directory.mkdir(exist_ok=True)
    for number in numbers:
        lines = ["stream_routes:"]
        for route in range(routes // FILES):
            address = ipaddress.IPv4Address("10.0.0.0") + number * (routes // FILES) + route
            nodes = f'{{"127.0.0.1:{ORIGIN_PORT}": {variant % 100 + 1}}}'
            upstream = f"upstream: {{type: roundrobin, nodes: {nodes}}}"
            lines.append(f"  - {{id: r{number}-{route}, remote_addr: {address}, {upstream}}}")
        unfinished = directory / f".{number}.tmp"
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(directory / f"{number}.yaml")


if __name__ == "__main__":
    main()
