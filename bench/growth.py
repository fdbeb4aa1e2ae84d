"""`python -m bench.growth`: how costs grow with routes and with connections, and how long a start takes.

Gateways that differ in nothing but the number of their routes take turns, so that a busy machine is busy for all of them.
The 64 bytes of `ping` go through 100, 1,000 and 9,500 connections of one gateway (20,000 descriptors are a common limit), and of
nginx beside it: four sockets of the kernel per connection leave its caches, whoever holds them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import click

from bench.build import build
from bench.load import Sample, Scenario, measure
from bench.memory import pss_kib
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import ORIGIN_PORT, Peer, is_answered, running_nginx, running_origin, running_streamgw
from bench.report import describe, median, write_json

WARMUP_S = 0.5
ROUTES_PER_FILE = 1000
PORTS = itertools.count(ORIGIN_PORT + 40)
"""Each gateway has its own; the TLS and UDP ports lie beside."""
_COMPILE = "import streamgw.cli.run, streamgw.process.supervisor"
"""All that a start imports. A checkout that was just edited, or a setting of the shell, may have no bytecode of it."""
_CONNECT = Scenario("connect-32", "connect", 32, "conn")


@attrs.frozen
class Grown:
    """A gateway with many routes."""

    routes: int
    peer: Peer
    memory_kib: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--routes", default="10,1000,100000", show_default=True, help="Numbers of routes.")
@click.option("--connections", default="100,1000,9500", show_default=True, help="Two descriptors each.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=1.5, show_default=True, help="Measured time of one run.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every figure here.")
def main(routes: str, connections: str, rounds: int, seconds: float, output: Path | None) -> None:
    """Measure growth."""
    congestion = enter_private_network("bench.growth")
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="streamgw-growth-") as name, contextlib.ExitStack() as stack:
        stack.enter_context(running_origin(build("load"), build("load_udp")))
        grown = [_with_routes(int(count), Path(name) / count, stack) for count in routes.split(",")]
        by_routes = _measure_routes(grown, rounds, seconds)
        beside = Path(name) / "nginx"
        beside.mkdir()
        peers = [grown[0].peer, stack.enter_context(running_nginx(beside))]
        about = describe(peers, congestion) | {"rounds": rounds, "seconds": seconds}
        by_connections = {
            int(count): _measure_connections(peers, int(count), rounds, seconds)
            for count in connections.split(",")
        }
        start_ms = [_start_ms(Path(name) / f"start-{number}") for number in range(rounds)]
    _print_routes(grown, by_routes)
    _print_connections(by_connections)
    print(
        f"from the start of the process to the first connection served: {statistics.median(start_ms):.0f} ms"
    )
    if output is not None:
        memory = {each.routes: each.memory_kib for each in grown}
        figures = {
            "routes": by_routes,
            "memory_kib": memory,
            "connections": by_connections,
            "start_ms": start_ms,
        }
        write_json(output, {"about": about, **figures})


def _with_routes(count: int, directory: Path, stack: contextlib.ExitStack) -> Grown:
    routes = directory / "routes.d" / "a"
    routes.mkdir(parents=True)
    for first in range(0, count, ROUTES_PER_FILE):
        numbers = range(first, min(first + ROUTES_PER_FILE, count))
        (routes / f"{first}.yaml").write_text("\n".join(["stream_routes:", *map(_route, numbers)]) + "\n")
    click.echo(f"loading {count:,} routes", err=True)
    peer = stack.enter_context(running_streamgw(directory, port=next(PORTS)))
    return Grown(count, peer, pss_kib(peer))


def _route(number: int) -> str:
    address = ipaddress.IPv4Address("10.0.0.0") + number
    upstream = f'upstream: {{type: roundrobin, nodes: {{"127.0.0.1:{ORIGIN_PORT}": 1}}}}'
    return f"  - {{id: r{number}, remote_addr: {address}, {upstream}}}"


def _measure_routes(grown: Sequence[Grown], rounds: int, seconds: float) -> dict[int, list[Sample]]:
    samples: dict[int, list[Sample]] = {each.routes: [] for each in grown}
    for number in range(rounds):
        turn = number % len(grown)
        for each in [*grown[turn:], *grown[:turn]]:
            click.echo(f"round {number + 1}/{rounds}  {each.routes:,} routes", err=True)
            samples[each.routes].append(measure(_CONNECT, each.peer, warmup_s=WARMUP_S, seconds=seconds))
    return samples


def _measure_connections(
    peers: Sequence[Peer], connections: int, rounds: int, seconds: float
) -> dict[str, list[Sample]]:
    scenario = Scenario(f"ping-{connections}", "ping", connections, "req")
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 else reversed(peers):
            click.echo(f"round {number + 1}/{rounds}  {connections:,} connections, {peer.name}", err=True)
            warmup_s = WARMUP_S + connections / 5000
            samples[peer.name].append(measure(scenario, peer, warmup_s=warmup_s, seconds=seconds))
    return samples


def _start_ms(directory: Path) -> float:
    """Configuration and all, until a client has its answer; from bytecode, as an installed gateway starts."""
    port = next(PORTS)
    directory.mkdir()
    with running_streamgw(directory, port=port):
        pass
    files = ["-c", str(directory / "config.yaml"), "-r", str(directory / "routes.d")]
    # The next start finds the same bytecode.
    bytecode = {"PYTHONPYCACHEPREFIX": str(directory.parent / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    environment = os.environ | bytecode
    subprocess.run([sys.executable, "-c", _COMPILE], env=environment, check=True)
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "streamgw", "run", *files],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        try:
            _say_until_answered(port)
            return (time.perf_counter() - began) * 1000
        finally:
            process.terminate()


def _say_until_answered(port: int) -> None:
    for _ in range(2000):
        if is_answered(port):
            return
        time.sleep(0.002)
    raise click.ClickException("the gateway did not answer")


def _print_routes(grown: Sequence[Grown], samples: dict[int, list[Sample]]) -> None:
    print(f"{'routes':>10}{'conn/s':>10}{'CPU µs':>10}{'PSS MiB':>10}")
    for each in grown:
        found = median(samples[each.routes])
        print(f"{each.routes:>10,}{found.rate:>10,.0f}{found.proxy_us:>10.1f}{each.memory_kib / 1024:>10.1f}")


def _print_connections(samples: dict[int, dict[str, list[Sample]]]) -> None:
    print(f"{'connections':>12}  {'':<10}{'req/s':>10}{'CPU µs':>10}{'all µs':>10}")
    for count, by_peer in samples.items():
        for name, rounds in by_peer.items():
            found = median(rounds)
            print(
                f"{count:>12,}  {name:<10}{found.rate:>10,.0f}{found.proxy_us:>10.1f}{found.machine_us:>10.1f}"
            )


if __name__ == "__main__":
    main()
