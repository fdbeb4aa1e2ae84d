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
SCENARIOS = ["bulk-down-1", "bulk-up-8", "ping-32", "connect-32"]
PEERS = ["direct", "streamgw", "nginx", "haproxy"]


def test_each_kind_of_load_gets_through_each_peer_without_an_error(tmp_path: Path) -> None:
    for program, package in {
        "gcc": "gcc libc6-dev",
        "nginx": "nginx libnginx-mod-stream",
        "haproxy": "haproxy",
    }.items():
        find_program(program, package=package)
    if not may_make_networks():
        pytest.skip("the benchmark needs a network of its own, which this kernel refuses")
    results = tmp_path / "results.json"
    how_long = ["--rounds", "1", "--seconds", "0.2"]

    done = run(
        [sys.executable, "-m", "bench", *how_long, "--only", ",".join(SCENARIOS), "--json", results],
        cwd=ROOT,
        env=PLAIN,
        timeout_s=100,
    )

    medians = json.loads(results.read_text())["medians"]
    assert list(medians) == SCENARIOS
    for scenario, by_peer in medians.items():
        assert list(by_peer) == PEERS
        assert {peer: sample["errors"] for peer, sample in by_peer.items()} == dict.fromkeys(PEERS, 0), (
            scenario
        )
    assert "streamgw is" in done.stdout
