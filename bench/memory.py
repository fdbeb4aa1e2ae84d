"""`python -m bench.memory`: what an idle connection costs, in the proxy's own memory.

Each connection says something once, hears it back, and then says nothing: thousands of clients of a database pool, or of
a message broker. Proportional set size (PSS) of the proxy's processes, before and after; the kernel's socket buffers are
not part of it.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from bench.cpu import family
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import MESSAGE, Peer, running_peers
from bench.report import describe, write_json


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--connections", default=4000, show_default=True, help="Idle ones, all at a time.")
@click.option(
    "--rounds", default=5, show_default=True, help="Each peer this many times, with fresh processes."
)
@click.option("--peers", default="streamgw,nginx,haproxy", show_default=True, help="Whom to measure.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every figure here.")
def main(connections: int, rounds: int, peers: str, output: Path | None) -> None:
    """Measure the memory of idle connections."""
    congestion = enter_private_network("bench.memory")
    raise_descriptor_limit()
    found: dict[str, list[float]] = {}
    about: dict[str, object] = {}
    for number in range(rounds):
        with running_peers(peers.split(",")) as running:
            about = describe(running, congestion) | {"connections": connections, "rounds": rounds}
            for peer in running:
                click.echo(f"round {number + 1}/{rounds}  {peer.name}", err=True)
                found.setdefault(peer.name, []).append(_per_connection(peer, connections))
    print(f"{connections:,} idle connections; PSS of all processes, KiB per connection")
    for name, figures in found.items():
        print(f"{name:<12}{statistics.median(figures):>8.2f}   {_listed(figures)}")
    if output is not None:
        medians = {name: statistics.median(figures) for name, figures in found.items()}
        write_json(output, {"about": about, "kib_per_connection": medians, "samples": found})


def _per_connection(peer: Peer, connections: int) -> float:
    """Some go first: what is allocated once is not theirs."""
    with hold_connections(peer.port, 32):
        before = pss_kib(peer)
        with hold_connections(peer.port, connections):
            return (pss_kib(peer) - before) / connections


@contextlib.contextmanager
def hold_connections(port: int, count: int) -> Iterator[None]:
    """That many connections, each after one exchange, while the block lasts."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            sock.sendall(MESSAGE)
            if len(sock.recv(len(MESSAGE), socket.MSG_WAITALL)) != len(MESSAGE):
                raise click.ClickException(f"port {port} closed a connection early")
        yield


def pss_kib(peer: Peer) -> int:
    """Of a proxy and its descendants: shared pages are divided among those who share them (proc(5), smaps_rollup)."""
    return sum(_pss_kib(pid) for pid in family(peer.pid))


def _pss_kib(pid: int) -> int:
    lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _listed(figures: Sequence[float]) -> str:
    return "(" + ", ".join(f"{figure:.2f}" for figure in figures) + ")"


if __name__ == "__main__":
    main()
