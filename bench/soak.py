"""`python -m bench.soak`: half an hour of idle and busy connections. Memory and descriptors have to stay where they are.

Ten thousand connections say nothing, two thousand exchange messages at a steady pace, and every ten seconds others come
and go for one. What is looked at is the gateway from outside: its memory, its descriptors; at the end all clients leave, and
the descriptors have to be what they were before the first one came.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import click

from bench.build import build
from bench.cpu import family
from bench.load import Scenario, begin, measure, read_line
from bench.memory import hold_connections, pss_kib
from bench.network import enter_private_network, raise_descriptor_limit
from bench.peers import Peer, running_peers
from bench.report import describe, write_json

_SETTLE_S = 20.0
_EVERY_S = 10.0
_GONE_WITHIN_S = 30.0
_PASSING = Scenario("passing", "connect", 8, "conn")


@attrs.frozen
class Look:
    """The gateway at one moment."""

    at_s: float
    pss_kib: int
    descriptors: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--idle", default=10_000, show_default=True, help="Connections that say nothing.")
@click.option("--busy", default=2_000, show_default=True, help="Connections that exchange messages.")
@click.option("--rate", default=5_000.0, show_default=True, help="Messages a second, of all busy ones.")
@click.option("--workers", default=2, show_default=True, help="Two: one may not have 24,000 descriptors.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write every look here.")
def main(minutes: float, idle: int, busy: int, rate: float, workers: int, output: Path | None) -> None:
    """Run, look, and say whether anything grew."""
    congestion = enter_private_network("bench.soak")
    raise_descriptor_limit()
    build("load")
    seconds = minutes * 60
    with running_peers(["streamgw"], workers=workers) as (gateway,):
        about = describe([gateway], congestion) | {
            "minutes": minutes,
            "idle": idle,
            "busy": busy,
            "rate": rate,
        }
        before = _at_rest(gateway)
        with hold_connections(gateway.port, idle), _busy(gateway, busy, rate, seconds):
            looks = list(_looks(gateway, seconds))
        left = _descriptors_in_the_end(gateway, before.descriptors)
    first, last = looks[0], looks[-1]
    print(f"{idle:,} idle and {busy:,} busy connections, {minutes:g} minutes, {workers} workers")
    print(
        f"PSS {first.pss_kib / 1024:.1f} MiB, at the end {last.pss_kib / 1024:.1f}, at most {max(look.pss_kib for look in looks) / 1024:.1f}"
    )
    print(
        f"descriptors before {before.descriptors}, with everybody {last.descriptors}, when all had left {left}"
    )
    if output is not None:
        write_json(output, {"about": about, "before": before, "looks": looks, "descriptors_left": left})
    if left > before.descriptors:
        raise click.ClickException(f"{left - before.descriptors} descriptors have leaked")


def _at_rest(gateway: Peer) -> Look:
    """Before anybody comes, but after some have been: everything that is opened once is open."""
    with hold_connections(gateway.port, 32):
        pass
    look, before = _look(gateway, 0.0), None
    while before is None or look.descriptors != before.descriptors:
        time.sleep(1.0)
        look, before = _look(gateway, 0.0), look
    return look


def _looks(gateway: Peer, seconds: float) -> Iterator[Look]:
    began = time.perf_counter()
    time.sleep(min(_SETTLE_S, seconds / 2))
    while (now_s := time.perf_counter() - began) < seconds:
        look = _look(gateway, now_s)
        click.echo(
            f"{now_s:6.0f} s  {look.pss_kib / 1024:8.1f} MiB  {look.descriptors} descriptors", err=True
        )
        yield look
        measure(_PASSING, gateway, warmup_s=0.0, seconds=1.0)
        time.sleep(_EVERY_S)


def _look(gateway: Peer, at_s: float) -> Look:
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in family(gateway.pid))
    return Look(round(at_s, 1), pss_kib(gateway), descriptors)


@contextlib.contextmanager
def _busy(gateway: Peer, connections: int, rate: float, seconds: float) -> Iterator[None]:
    scenario = Scenario("soak", "ping", connections, "req", rate=rate)
    with begin(scenario, gateway, warmup_s=1.0, seconds=seconds + _SETTLE_S) as process:
        read_line(process, "start", gateway)
        try:
            yield
        finally:
            process.terminate()


def _descriptors_in_the_end(gateway: Peer, wanted: int) -> int:
    """When all have left, as soon as there are no more than there were, or after a while."""
    deadline = time.perf_counter() + _GONE_WITHIN_S
    while (found := _look(gateway, 0.0).descriptors) > wanted and time.perf_counter() < deadline:
        time.sleep(0.2)
    return found


if __name__ == "__main__":
    main()
