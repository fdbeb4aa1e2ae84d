"""The benchmark runs: every kind of load through every peer, for a blink."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.child import find_program, run
from tests.support.gateway import PLAIN
from tests.support.namespace import may_make_networks

pytestmark = [pytest.mark.slow, pytest.mark.servers]

ROOT = Path(__file__).parents[2]
PROXIES = ["streamgw", "nginx", "haproxy"]
PLAIN_SCENARIOS = ["bulk-down-1", "bulk-up-8", "ping-32", "connect-32"]
TLS_SCENARIOS = [
    "tls-full-32",
    "tls-resumed-32",
    "tls12-resumed-32",
    "tls-bulk-down-1",
    "tls-bulk-up-8",
]
UDP_SCENARIOS = ["udp-ping-32", "udp-session-32", "udp-up-1", "udp-down-1"]
PEERS = {
    **{scenario: ["direct", *PROXIES] for scenario in PLAIN_SCENARIOS},
    **dict.fromkeys(TLS_SCENARIOS, PROXIES),  # the origin speaks no TLS
    **{scenario: ["direct", "streamgw", "nginx"] for scenario in UDP_SCENARIOS},  # HAProxy has no UDP
}


@pytest.fixture(autouse=True)
def _able_to_run() -> None:
    for program, package in {
        "gcc": "gcc libc6-dev libssl-dev",
        "nginx": "nginx libnginx-mod-stream",
        "haproxy": "haproxy",
    }.items():
        find_program(program, package=package)
    if not may_make_networks():
        pytest.skip("the benchmark needs a network of its own, which this kernel refuses")


def test_each_kind_of_load_gets_through_each_peer_without_an_error(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    how_long = ["--rounds", "1", "--seconds", "0.2"]

    done = run(
        [sys.executable, "-m", "bench", *how_long, "--only", ",".join(PEERS), "--json", results],
        cwd=ROOT,
        env=PLAIN,
        timeout_s=100,
    )

    medians = json.loads(results.read_text())["medians"]
    errors = {
        scenario: {peer: sample["errors"] for peer, sample in by_peer.items()}
        for scenario, by_peer in medians.items()
    }
    assert errors == {scenario: dict.fromkeys(peers, 0) for scenario, peers in PEERS.items()}
    assert "streamgw is" in done.stdout


def test_a_session_is_measured_in_peace_and_in_a_storm_of_handshakes() -> None:
    how_long = ["--rounds", "1", "--seconds", "0.2", "--clients", "4", "--peers", "streamgw"]

    done = run([sys.executable, "-m", "bench.stall", *how_long], cwd=ROOT, env=PLAIN, timeout_s=100)

    titles = [line[:34].rstrip() for line in done.stdout.splitlines()]
    assert titles[-4:] == [
        "no proxy, in peace",
        "no proxy, streamgw in the storm",
        "streamgw, in peace",
        "streamgw, in the storm",
    ]
