"""The gateway is killed in the middle of writes, again and again. What was acknowledged is there; nothing is ever broken."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from streamgw.config.tree import TEMPORARY
from tests.support.admin_api import admin_settings, api_client, to
from tests.support.child import Child, running, wait_until
from tests.support.gateway import PLAIN, Gateway
from tests.support.ports import Ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 200
IDS = tuple(f"r{number}" for number in range(6))
ABSENT = ""


class Crashes:
    """A gateway that can be killed, and a client that remembers what it was told.

    Attributes:
      known: what each object is, as far as it was acknowledged.
      in_flight: the write whose answer did not come.
      written: writes that were begun.
      acknowledged: those of them that were answered.
    """

    def __init__(self, gateway: Gateway, launcher: Child, port: int, rng: random.Random) -> None:
        self.known = dict.fromkeys(IDS, ABSENT)
        self.in_flight: tuple[str, str] | None = None
        self.written = self.acknowledged = 0
        self._write_s = 0.0
        """What the first write after a start took, the latest that was answered."""
        self._gateway = gateway
        self._launcher = launcher
        self._port = port
        self._rng = rng
        self._starts = 0

    def start(self) -> int:
        """Start it, and wait until it answers; return its process id."""
        self._launcher.tell("start\n")
        self._starts += 1

        def seen() -> str | None:
            lines = [line for line in self._launcher.output().splitlines() if line.startswith("started")]
            return lines[-1] if len(lines) == self._starts else None

        pid = int(self._launcher.wait_until(seen, what="starts").split()[1])
        wait_until(self._gateway.is_ready, what="the gateway is ready")
        return pid

    def write_until_killed(self, pid: int) -> None:
        """Put and delete at random; somewhere in there the kill comes, on any machine: half the time within the first."""
        after_s = self._rng.uniform(0.0, 2 * self._write_s)
        killer = threading.Timer(after_s, os.kill, (pid, signal.SIGKILL))
        with api_client(self._port) as api:
            killer.start()
            try:
                self._write_first(api)
                while True:
                    self._write(api)
            except httpx.TransportError:
                pass
            finally:
                killer.join()

    def write(self) -> None:
        """One write that is acknowledged, the first after a start."""
        with api_client(self._port) as api:
            self._write_first(api)

    def _write_first(self, api: httpx.Client) -> None:
        began = time.perf_counter()
        try:
            self._write(api)
        except httpx.TransportError:
            # It would have taken longer still: without this, a machine that became slow would never see one answered.
            self._write_s = max(self._write_s, time.perf_counter() - began)
            raise
        self._write_s = time.perf_counter() - began

    def _write(self, api: httpx.Client) -> None:
        self.written += 1
        id_ = self._rng.choice(IDS)
        desc = ABSENT if self.known[id_] and self._rng.random() < 0.3 else f"write {self.written}"
        self.in_flight = (id_, desc)
        if desc:
            answer = api.put(f"/stream_routes/{id_}", json=to(9, desc=desc))
        else:
            answer = api.delete(f"/stream_routes/{id_}")
        assert answer.is_success, answer.text
        self.known[id_], self.in_flight = desc, None
        self.acknowledged += 1

    def check(self) -> None:
        """What the gateway shows is what was acknowledged; the last write may have been made or not."""
        with api_client(self._port) as api:
            listed = api.get("/stream_routes").json()["list"]
        shown = dict.fromkeys(IDS, ABSENT) | {item["value"]["id"]: item["value"]["desc"] for item in listed}
        if self.in_flight is not None:
            id_, desc = self.in_flight
            assert shown[id_] in {self.known[id_], desc}
            self.known[id_] = shown[id_]
        assert shown == self.known
        self.in_flight = None

    def check_files(self) -> None:
        """Each file can be read by anybody, at any time."""
        for path in self._gateway.routes.rglob("*.yaml"):
            document = yaml.safe_load(path.read_text())
            assert list(document) == ["stream_routes"]
            assert len(document["stream_routes"]) == 1

    def strays(self) -> list[Path]:
        """What crashes have left behind."""
        return [path for path in self._gateway.routes.rglob(".*") if path.name.endswith(TEMPORARY)]


@pytest.fixture
def crashes(gateway: Gateway, ports: Ports, seed: int) -> Iterator[Crashes]:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=admin_settings(port))
    arguments = (gateway.config, gateway.routes, gateway.directory / "streamgw.log")
    command = [sys.executable, "-m", "tests.support.relaunch", *arguments]
    with running(
        command, log=gateway.directory / "launcher.log", cwd=gateway.directory, env=PLAIN, talk=True
    ) as launcher:
        yield Crashes(gateway, launcher, port, random.Random(seed))


def test_no_kill_breaks_a_file_or_loses_what_was_acknowledged(crashes: Crashes) -> None:
    left_behind = 0
    pid = crashes.start()
    crashes.write()
    os.kill(pid, signal.SIGKILL)
    for _ in range(KILLS):
        pid = crashes.start()
        crashes.check()
        if crashes.strays():
            left_behind += 1
            crashes.write()
            assert crashes.strays() == []
        crashes.write_until_killed(pid)
        crashes.check_files()

    sys.stdout.write(
        f"{crashes.written} writes, {crashes.acknowledged} answered; {left_behind} kills left a temporary file behind\n"
    )
    assert crashes.acknowledged > KILLS / 4, "kills before any answer show little"
