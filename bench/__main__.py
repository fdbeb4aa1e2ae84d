"""`python -m bench`: measure, print a table, write results as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from bench.build import build
from bench.load import SCENARIOS, Sample, Scenario, measure
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import Peer, running_peers
from bench.report import describe, median, ratios, table, write_json

WARMUP_S = 0.3
BASELINE = Path(__file__).with_name("baseline.json")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rounds", default=5, show_default=True, help="Each scenario through each peer this many times."
)
@click.option("--seconds", default=1.5, show_default=True, help="Measured time of one run.")
@click.option("--only", default="", help="Comma-separated parts of scenario names: bulk, ping-32, tls.")
@click.option(
    "--peers", default="direct,streamgw,nginx,nginx-64k,haproxy", show_default=True, help="Whom to measure."
)
@click.option("--workers", default=1, show_default=True, help="Processes (HAProxy: threads) of each peer.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every sample and median here.")
@click.option("--save-baseline", is_flag=True, help=f"Write the ratios to {BASELINE.name}.")
def main(  # noqa: PLR0913  one parameter for each option
    rounds: int,
    seconds: float,
    only: str,
    peers: str,
    workers: int,
    output: Path | None,
    *,
    save_baseline: bool,
) -> None:
    """Compare streamgw with nginx and HAProxy, one worker each or more: bulk, ping-pong, connections; the same over TLS and UDP.

    Runs in a network namespace of its own. Peers take turns within a round, so that a machine that is busy for a
    while is busy for all of them. Differences below 20 % are noise on a shared machine: look at the CPU columns.
    """
    congestion = enter_private_network("bench")
    scenarios = _chosen(only)
    for name in ["load", *{scenario.program for scenario in scenarios}]:
        build(name)
    raise_descriptor_limit()
    with running_peers(peers.split(","), workers=workers) as running:
        samples = _measure_all(scenarios, running, rounds, seconds)

    medians = {name: {peer: median(rows) for peer, rows in found.items()} for name, found in samples.items()}
    found_ratios = {name: ratios(rows) for name, rows in medians.items()}
    about = describe(running, congestion) | {"workers": workers, "rounds": rounds, "seconds": seconds}
    baseline = _baseline(workers)
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(table(scenarios, samples, baseline))
    if output is not None:
        write_json(output, {"about": about, "ratios": found_ratios, "medians": medians, "samples": samples})
    if save_baseline:
        write_json(BASELINE, {"about": about, "ratios": found_ratios})


def _baseline(workers: int) -> Mapping[str, Mapping[str, float]]:
    """The ratios of an earlier run with as many workers, if there was one."""
    saved = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    return saved["ratios"] if saved and saved["about"]["workers"] == workers else {}


def _chosen(only: str) -> list[Scenario]:
    words = [word for word in only.split(",") if word]
    chosen = [scenario for scenario in SCENARIOS if not words or any(word in scenario.name for word in words)]
    if not chosen:
        names = ", ".join(scenario.name for scenario in SCENARIOS)
        raise click.BadParameter(f"no scenario fits; there are {names}", param_hint="--only")
    return chosen


def _measure_all(
    scenarios: Sequence[Scenario], peers: Sequence[Peer], rounds: int, seconds: float
) -> dict[str, dict[str, list[Sample]]]:
    samples: dict[str, dict[str, list[Sample]]] = {
        scenario.name: {peer.name: [] for peer in _able(scenario, peers)} for scenario in scenarios
    }
    for number in range(rounds):
        # Nobody always comes first, right after an idle moment, or last.
        turn = number % len(peers)
        for scenario in scenarios:
            for peer in _able(scenario, [*peers[turn:], *peers[:turn]]):
                click.echo(f"round {number + 1}/{rounds}  {scenario.name}  {peer.name}", err=True)
                sample = measure(scenario, peer, warmup_s=WARMUP_S, seconds=seconds)
                samples[scenario.name][peer.name].append(sample)
    return samples


def _able(scenario: Scenario, peers: Sequence[Peer]) -> list[Peer]:
    """The origin speaks no TLS, HAProxy no UDP."""
    return [peer for peer in peers if scenario.port_of(peer) is not None]


if __name__ == "__main__":
    main()
