"""`python -m bench.pace`: how long messages take when the proxy has room to spare.

A saturated proxy says little about what its users feel. Here each rival is first asked how many messages of 64 bytes it
can move through 256 connections; then both get half of that, each message due at a fixed time whether or not the ones
before it were answered, and the 99th percentile of the time from when it was due to its reply is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import attrs
import click

from bench.build import build
from bench.load import Sample, Scenario, measure
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import Peer, running_peers
from bench.report import describe, median, write_json

WARMUP_S = 0.5
_SHARE = 0.5


@attrs.frozen
class Row:
    """streamgw and one rival at the same pace."""

    rival: str
    rate: float
    ours: Sequence[Sample]
    theirs: Sequence[Sample]

    @property
    def ratio(self) -> float:
        """Our p99 as a multiple of theirs."""
        return median(self.ours).p99_us / median(self.theirs).p99_us


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--connections", default=256, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Each pair this many times, in turns.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured time of one run.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every sample here.")
def main(connections: int, rounds: int, seconds: float, output: Path | None) -> None:
    """Compare latencies at half of each rival's highest rate."""
    congestion = enter_private_network("bench.pace")
    raise_descriptor_limit()
    build("load")
    full = Scenario(f"ping-{connections}", "ping", connections, "req")
    with running_peers(["streamgw", "nginx", "haproxy"]) as (own, *rivals):
        about = describe([own, *rivals], congestion) | {
            "connections": connections,
            "rounds": rounds,
            "seconds": seconds,
        }
        rows = [_compare(full, own, rival, rounds, seconds) for rival in rivals]
    print(f"{connections} connections, messages of 64 bytes at half of the rival's highest rate; medians")
    print(f"{'rival':<10}{'req/s':>10}{'our p50':>10}{'theirs':>10}{'our p99':>10}{'theirs':>10}{'ratio':>8}")
    for row in rows:
        ours, theirs = median(row.ours), median(row.theirs)
        figures = (ours.p50_us, theirs.p50_us, ours.p99_us, theirs.p99_us)
        print(
            f"{row.rival:<10}{row.rate:>10,.0f}"
            + "".join(f"{us:>10,.0f}" for us in figures)
            + f"{row.ratio:>8.2f}"
        )
    if output is not None:
        write_json(
            output, {"about": about, "p99_ratios": {row.rival: row.ratio for row in rows}, "rows": rows}
        )


def _compare(full: Scenario, ours: Peer, rival: Peer, rounds: int, seconds: float) -> Row:
    most = statistics.median(measure(full, rival, warmup_s=WARMUP_S, seconds=seconds).rate for _ in range(3))
    paced = attrs.evolve(full, name=f"{full.name}-paced", rate=most * _SHARE)
    samples: dict[str, list[Sample]] = {ours.name: [], rival.name: []}
    for number in range(rounds):
        for peer in (ours, rival) if number % 2 else (rival, ours):
            click.echo(f"round {number + 1}/{rounds}  {paced.rate:,.0f}/s  {peer.name}", err=True)
            samples[peer.name].append(measure(paced, peer, warmup_s=WARMUP_S, seconds=seconds))
    return Row(rival.name, paced.rate, samples[ours.name], samples[rival.name])


if __name__ == "__main__":
    main()
