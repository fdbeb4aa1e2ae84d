"""The benchmark runs: every kind of load through every peer, for a blink."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support.child import find_program, run
from tests.support.gateway import PLAIN
from tests.support.namespace import need_networks

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PROXIES = ["streamgw", "nginx", "haproxy"]
BULK_SCENARIOS = ["bulk-down-1", "bulk-up-8"]
SMALL_SCENARIOS = ["ping-32", "connect-32"]
TLS_SCENARIOS = [
    "tls-full-32",
    "tls-resumed-32",
    "tls12-resumed-32",
    "tls-bulk-down-1",
    "tls-bulk-up-8",
]
UDP_SCENARIOS = ["udp-ping-32", "udp-session-32", "udp-up-1", "udp-down-1"]
PEERS = {
    **{scenario: ["direct", "streamgw", "nginx", "nginx-64k", "haproxy"] for scenario in BULK_SCENARIOS},
    **{scenario: ["direct", *PROXIES] for scenario in SMALL_SCENARIOS},
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
    need_networks()


def test_each_kind_of_load_gets_through_each_peer_without_an_error(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    how_long = ["--rounds", "1", "--seconds", "0.2"]

    done = run(
        [sys.executable, "-m", "bench", *how_long, "--only", ",".join(PEERS), "--json", results],
        cwd=ROOT,
        env=PLAIN,
        timeout_s=500,
    )

    medians = json.loads(results.read_text())["medians"]
    errors = {
        scenario: {peer: sample["errors"] for peer, sample in by_peer.items()}
        for scenario, by_peer in medians.items()
    }
    assert errors == {scenario: dict.fromkeys(peers, 0) for scenario, peers in PEERS.items()}
    assert "streamgw is" in done.stdout


def bench(module: str, *words: object) -> str:
    """Run a part of the benchmark; return what it printed."""
    return run([sys.executable, "-m", module, *words], cwd=ROOT, env=PLAIN, timeout_s=500).stdout


def drawn(results: Path) -> dict[str, str]:
    """File → the words in it, of all pictures that are drawn from these results."""
    page = results / "page.md"
    page.touch()
    bench("bench.charts", results, "--page", page)
    pictures = {path.name: ET.parse(path) for path in (results / "images").iterdir()}
    return {name: "".join(picture.getroot().itertext()) for name, picture in pictures.items()}


def test_the_results_are_drawn(tmp_path: Path) -> None:
    results = tmp_path / "one-worker.json"
    bench("bench", "--rounds", "1", "--seconds", "0.2", "--only", "bulk-down-1,udp-ping", "--json", results)

    words = drawn(tmp_path)

    assert sorted(words) == [
        "bench-bulk.svg",
        "bench-cpu-bulk.svg",
        "bench-cpu-messages.svg",
        "bench-small.svg",
    ], "no picture without a figure"
    assert "1 connection, down" in words["bench-bulk.svg"]
    assert "beside haproxy" in words["bench-bulk.svg"]
    assert "beside haproxy" not in words["bench-small.svg"], "it has no UDP, and nothing else was measured"


def test_two_workers_stand_beside_two(tmp_path: Path) -> None:
    results = tmp_path / "results.json"

    bench(
        *(
            "bench",
            "--workers",
            "2",
            "--rounds",
            "1",
            "--seconds",
            "0.2",
            "--only",
            "connect",
            "--json",
            results,
        )
    )

    about = json.loads(results.read_text())["about"]
    assert about["workers"] == 2
    assert set(about["peers"]) >= {"streamgw", "nginx", "haproxy"}


def test_idle_connections_cost_memory_and_this_says_how_much(tmp_path: Path) -> None:
    how_much = ["--rounds", "1", "--connections", "200", "--peers", "streamgw,nginx"]

    said = bench("bench.memory", *how_much, "--json", tmp_path / "memory.json")

    rows = dict(line.split()[:2] for line in said.splitlines()[1:])
    assert set(rows) == {"streamgw", "nginx"}
    assert 0 < float(rows["streamgw"]) < 100
    assert f"{rows['nginx']} KiB" in drawn(tmp_path)["bench-memory.svg"]


def test_latencies_are_compared_at_the_same_pace(tmp_path: Path) -> None:
    how_long = ["--rounds", "1", "--seconds", "0.3", "--connections", "16"]

    said = bench("bench.pace", *how_long, "--json", tmp_path / "pace.json")

    assert [line.split()[0] for line in said.splitlines()[1:]] == ["rival", "nginx", "haproxy"]
    assert "16 connections" in drawn(tmp_path)["bench-pace.svg"]


def test_growth_is_measured(tmp_path: Path) -> None:
    counts = ["--routes", "10,1000", "--connections", "10,100"]
    results = tmp_path / "growth.json"

    said = bench("bench.growth", "--rounds", "1", "--seconds", "0.3", *counts, "--json", results)

    assert [line.split()[0] for line in said.splitlines()[:3]] == ["routes", "10", "1,000"]
    assert "from the start of the process to the first connection served" in said
    assert json.loads(results.read_text())["about"]["peers"].keys() == {"streamgw", "nginx"}
    words = drawn(tmp_path)
    assert "1,000 routes" in words["bench-growth-routes.svg"]
    assert "100 connections" in words["bench-growth-connections.svg"]


def test_reloads_are_measured_by_who_is_there_and_by_who_comes() -> None:
    said = bench("bench.reload", "--rounds", "1", "--routes", "100", "--seconds", "2")

    rows = [line[:34].strip() for line in said.splitlines()]
    looks = [
        "no gateway, in peace",
        *(f"100 routes, {when}" for when in ("in peace", "one file changes", "all files change")),
    ]
    assert rows == ["ping-1", *looks, "connect-1", *looks]
    assert said.count("–") == 8, "without a reload nothing is applied"


def test_a_soak_says_what_is_left_when_all_have_left() -> None:
    said = bench("bench.soak", "--minutes", "0.1", "--idle", "50", "--busy", "20", "--workers", "1")

    assert "descriptors before" in said.splitlines()[-1]


def test_a_session_is_measured_in_peace_and_in_a_storm_of_handshakes() -> None:
    how_long = ["--rounds", "1", "--seconds", "0.2", "--clients", "4", "--peers", "streamgw"]

    done = run([sys.executable, "-m", "bench.stall", *how_long], cwd=ROOT, env=PLAIN, timeout_s=500)

    titles = [line[:34].rstrip() for line in done.stdout.splitlines()]
    assert titles[-4:] == [
        "no proxy, in peace",
        "no proxy, streamgw in the storm",
        "streamgw, in peace",
        "streamgw, in the storm",
    ]
