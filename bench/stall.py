"""`python -m bench.stall`: what a storm of TLS handshakes costs a session that has nothing to do with it.

One plain session sends a message and waits for the reply, again and again, first in peace, then while other clients do
full handshakes with the same proxy as fast as it can. A handshake is a third of a millisecond of CPU in one piece; one
worker that does several before it looks at other sockets makes all of them wait. nginx and HAProxy stand beside it, and
the origin without a proxy while the storm goes on: that much the machine itself does, whose cores are all busy.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import attrs
import click

from bench.build import build
from bench.load import Sample, Scenario, begin, measure, read_line
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import Peer, running_peers
from bench.report import median

WARMUP_S = 0.5
_MARGIN_S = 0.5
"""The storm outlasts the measurement by this on either side, so that all of it was stormy."""
_ONE_SESSION = Scenario("ping-1", "ping", 1, "req")


@attrs.frozen
class Row:
    """One line of the result."""

    title: str
    session: Peer
    """Whom the plain session goes through."""
    storm: Peer | None
    """Who does the handshakes meanwhile."""


@attrs.frozen
class Look:
    """One measurement of one row."""

    sample: Sample
    handshakes: float
    """A second."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clients", default=32, show_default=True, help="How many clients do handshakes at a time.")
@click.option("--rounds", default=5, show_default=True, help="Each row this many times.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured time of one run.")
@click.option("--peers", default="streamgw,nginx,haproxy", show_default=True, help="Whom to measure.")
def main(clients: int, rounds: int, seconds: float, peers: str) -> None:
    """Measure the round trips of a plain session in peace and in a storm of TLS handshakes."""
    enter_private_network("bench.stall")
    storm = Scenario(f"tls-full-{clients}", "full", clients, "conn", tls=True)
    for scenario in (storm, _ONE_SESSION):
        build(scenario.program)
    raise_descriptor_limit()
    with running_peers(["direct", *peers.split(",")]) as (origin, *running):
        rows = list(_rows(origin, running))
        looks: dict[Row, list[Look]] = {row: [] for row in rows}
        for number in range(rounds):
            for row in rows:
                click.echo(f"round {number + 1}/{rounds}  {row.title}", err=True)
                looks[row].append(_look(row, storm, seconds))
    print(f"one plain session; the storm: {clients} clients, each a full TLS 1.3 handshake after another")
    print(f"{'':<34}{'req/s':>9}{'p50 µs':>9}{'p99 µs':>9}{'max µs':>9}{'handshakes/s':>14}")
    for row in rows:
        _print(row, looks[row])


def _rows(origin: Peer, peers: Sequence[Peer]) -> Iterator[Row]:
    yield Row("no proxy, in peace", origin, None)
    for peer in peers:
        yield Row(f"no proxy, {peer.name} in the storm", origin, peer)
        yield Row(f"{peer.name}, in peace", peer, None)
        yield Row(f"{peer.name}, in the storm", peer, peer)


def _look(row: Row, storm: Scenario, seconds: float) -> Look:
    if row.storm is None:
        return Look(measure(_ONE_SESSION, row.session, warmup_s=WARMUP_S, seconds=seconds), 0.0)
    lasts = WARMUP_S + seconds + _MARGIN_S
    with begin(storm, row.storm, warmup_s=_MARGIN_S, seconds=lasts) as weather:
        read_line(weather, "start", row.storm)
        sample = measure(_ONE_SESSION, row.session, warmup_s=WARMUP_S, seconds=seconds)
        count, real_s, *_ = map(float, read_line(weather, "stop", row.storm))
    return Look(sample, count / real_s)


def _print(row: Row, looks: Sequence[Look]) -> None:
    """Medians of the rounds; the maximum is the worst of all."""
    samples = [look.sample for look in looks]
    found = median(samples)
    max_us = max(sample.max_us for sample in samples)
    handshakes = statistics.median(look.handshakes for look in looks)
    shown = f"{handshakes:,.0f}" if row.storm is not None else "–"
    print(
        f"{row.title:<34}{found.rate:>9,.0f}{found.p50_us:>9,.0f}{found.p99_us:>9,.0f}{max_us:>9,.0f}{shown:>14}"
    )


if __name__ == "__main__":
    main()
