"""What every end-to-end test uses: ports, a gateway, servers that are slow to start once for all tests."""

from __future__ import annotations

import os
import resource
import secrets
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import servers, udp_servers
from tests.support.child import forget_ended, recent_logs
from tests.support.gateway import Gateway
from tests.support.ports import Ports

_DESCRIPTORS = 16_384
"""What the reload storm needs, with room: Debian's default is 1,024."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of all children next to a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {name}", tail) for name, tail in recent_logs()]
    return report


@pytest.fixture(autouse=True)
def _logs_of_this_test_only() -> None:
    forget_ended()


@pytest.fixture(autouse=True, scope="session")
def _enough_descriptors() -> None:
    """Children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


@pytest.fixture(scope="session")
def ports() -> Iterator[Ports]:
    with Ports() as ports:
        yield ports


@pytest.fixture
def seed() -> int:
    """A new one each run; STREAMGW_SEED replays one. Printed, so that a failure shows it."""
    seed = int(os.environ.get("STREAMGW_SEED") or secrets.randbelow(1_000_000))
    sys.stdout.write(f"STREAMGW_SEED={seed}\n")
    return seed


@pytest.fixture
def gateway(tmp_path: Path, ports: Ports) -> Gateway:
    """Not started yet: write its files, then `with gateway.running():`."""
    return Gateway(tmp_path / "gateway", ports)


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory, ports: Ports) -> Iterator[servers.Server]:
    with servers.mariadb(tmp_path_factory.mktemp("mariadb"), ports.take()) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server(ports: Ports) -> Iterator[servers.Server]:
    with servers.postgresql(ports.take()) as server:
        yield server


@pytest.fixture
def redis_server(tmp_path: Path, ports: Ports) -> Iterator[servers.Server]:
    with servers.redis(tmp_path, ports.take()) as server:
        yield server


@pytest.fixture
def ssh_server(tmp_path: Path, ports: Ports) -> Iterator[servers.SSHServer]:
    with servers.sshd(tmp_path, ports.take()) as server:
        yield server


@pytest.fixture
def iperf3_server(tmp_path: Path, ports: Ports) -> Iterator[servers.Server]:
    with servers.iperf3(tmp_path, ports.take()) as server:
        yield server


@pytest.fixture
def unbound_server(tmp_path: Path, ports: Ports) -> Iterator[servers.Server]:
    with udp_servers.unbound(tmp_path, ports.take_for_udp(), "192.0.2.2") as server:
        yield server


@pytest.fixture
def dnsmasq_server(tmp_path: Path, ports: Ports) -> Iterator[servers.Server]:
    with udp_servers.dnsmasq(tmp_path, ports.take_for_udp(), "192.0.2.1") as server:
        yield server


@pytest.fixture
def udp_iperf3_server(tmp_path: Path, ports: Ports) -> Iterator[servers.Server]:
    """As `iperf3_server`, on a port that is free over UDP too."""
    with servers.iperf3(tmp_path, ports.take_for_udp()) as server:
        yield server
