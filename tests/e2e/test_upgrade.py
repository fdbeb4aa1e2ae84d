"""`streamgw upgrade`: a new process takes over while clients come, talk and stay."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.callers import callers, hang_up
from tests.support.child import Child, run, wait_until
from tests.support.datagrams import DatagramClient, datagram_origin
from tests.support.gateway import PLAIN, STREAMGW, Gateway, stream_route
from tests.support.origin import Visitor, named_origin
from tests.support.ports import Ports
from tests.support.storm import finish, storm_clients, storm_origin
from tests.support.workers import SLOW_S, children, is_alive, kill, wait_for_death, with_workers

pytestmark = pytest.mark.slow

PATIENCE_S = 100.0
"""Two gateways start at the same time, on a machine that is busy."""


@pytest.fixture
def origin(tmp_path: Path, ports: Ports) -> Iterator[int]:
    port = ports.take()
    with named_origin(tmp_path, port, "a"):
        yield port


@pytest.fixture
def mourned() -> Iterator[list[int]]:
    """Gateways that are nobody's children: ended with the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        kill(pid)


def command(gateway: Gateway, *arguments: str, check: bool = True) -> str:
    """`streamgw upgrade`: what it says."""
    words = [*STREAMGW, "upgrade", "--timeout", f"{PATIENCE_S:g}", *arguments]
    done = run(words, cwd=gateway.directory, env=PLAIN, check=check, timeout_s=2 * PATIENCE_S)
    return done.stdout + done.stderr


def upgrade(gateway: Gateway, child: Child, mourned: list[int]) -> int:
    """Do so, and return the process id of the new gateway."""
    said = command(gateway)
    pid: int = gateway.status()["pid"]
    assert pid != child.pid
    assert f"(pid {pid}) has taken over from" in said
    mourned += [pid, *children(pid)]
    return pid


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_notices(  # noqa: PLR0917  pytest passes them by name
    gateway: Gateway,
    ports: Ports,
    tmp_path: Path,
    origin: int,
    seed: int,
    mourned: list[int],
    workers: int,
) -> None:
    stormy, calm, behind = ports.take(), ports.take(), ports.take()
    gateway.write_settings([stormy, calm], **with_workers(workers))
    gateway.write_routes(
        "a.yaml", stream_route("a", origin, server_port=calm), stream_route("s", behind, server_port=stormy)
    )
    with (
        storm_origin(tmp_path, behind, "s"),
        gateway.running() as child,
        storm_clients(tmp_path, stormy, 30, seed) as clients,
        callers(tmp_path, calm, 5, seed) as calling,
    ):
        old = [child.pid, *children(child.pid)]

        upgrade(gateway, child, mourned)
        with Visitor(calm) as visitor:
            assert visitor.greeting() == "a"
        assert child.exit_code is None, "its sessions go on"
        storm, calls = finish(clients), hang_up(calling)
        assert child.wait(timeout_s=SLOW_S) == 0
        wait_for_death(*old)

    assert (storm.intact, storm.failures) == (30, {})
    assert calls.failures == {}
    assert calls.intact > 10


def test_unix_sockets_http_and_a_drain_outlive_it_and_so_does_the_next_one(
    gateway: Gateway, ports: Ports, origin: int, mourned: list[int]
) -> None:
    port, path = ports.take(), gateway.directory / "in.sock"
    gateway.write_settings([port, f"unix:{path}"], **with_workers(1))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child:
        first = upgrade(gateway, child, mourned)
        assert child.wait(timeout_s=SLOW_S) == 0
        assert greeting(path) == b"a\n"

        # What takes effect at the start, an upgrade brings: two workers in place of one.
        gateway.write_settings([port, f"unix:{path}"], **with_workers(2))
        wait_until(lambda: warned(gateway), what="it says that workers need a start")
        command(gateway)
        second = gateway.status()["pid"]
        mourned += [second, *children(second)]
        wait_for_death(first)
        assert len(gateway.status()["workers"]) == 2
        assert not warned(gateway)
        assert greeting(path) == b"a\n"
        with ExitStack() as stack:
            visitors = [stack.enter_context(Visitor(port)) for _ in range(10)]
            assert {visitor.greeting() for visitor in visitors} == {"a"}

        os.kill(second, signal.SIGTERM)
        wait_for_death(second)
        assert not path.exists()


def greeting(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        return sock.makefile("rb").readline()


def warned(gateway: Gateway) -> bool:
    return any("streamgw upgrade" in each["message"] for each in gateway.status()["settings"]["warnings"])


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_cannot_start_changes_nothing_and_says_why(
    gateway: Gateway, ports: Ports, origin: int, workers: int
) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(workers))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child, Visitor(port) as visitor:
        visitor.greeting()
        (gateway.routes / "broken.yaml").write_text("stream_routes: [{id: 7, server_port: none}]\n")
        gateway.wait_for_status(lambda s: s["config"]["state"] == "rejected", what="rejected")

        for attempt in (1, 2):
            said = command(gateway, check=False)
            assert f"attempt {attempt} failed: routes.d/broken.yaml:1" in said

        assert gateway.status()["pid"] == child.pid
        assert len(children(child.pid)) == (workers if workers > 1 else 0)
        assert visitor.echo("still there") == "still there"
        with Visitor(port) as another:
            assert another.greeting() == "a"

        gateway.config.write_text("apisix: [1]\n")
        said = command(gateway, "--url", f"http://127.0.0.1:{gateway.status_port}", check=False)
        assert "attempt 3 failed: conf/config.yaml:1" in said
        with Visitor(port) as another:
            assert another.greeting() == "a"


def test_a_udp_client_s_next_datagram_goes_through_the_new_process(
    gateway: Gateway, ports: Ports, tmp_path: Path, mourned: list[int]
) -> None:
    port, behind = ports.take_for_udp(), ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", behind))
    with datagram_origin(tmp_path, behind, "a"), gateway.running() as child, ExitStack() as stack:
        clients = [stack.enter_context(DatagramClient(port)) for _ in range(8)]
        assert all("before" in client.ask("before") for client in clients)

        upgrade(gateway, child, mourned)

        for _ in range(3):
            assert all("after" in client.ask("after") for client in clients)


def test_the_service_manager_follows(
    gateway: Gateway,
    ports: Ports,
    tmp_path: Path,
    origin: int,
    mourned: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway.write_settings([ports.take()], **with_workers(1))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(SLOW_S)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with gateway.running() as child:
            assert manager.recv(100) == b"READY=1"

            pid = upgrade(gateway, child, mourned)

            assert manager.recv(100) == f"MAINPID={pid}".encode()
            assert manager.recv(100) == b"READY=1"
            assert child.wait(timeout_s=SLOW_S) == 0


def test_a_signal_to_end_ends_both(gateway: Gateway, ports: Ports, origin: int) -> None:
    gateway.write_settings([ports.take()], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child:
        child.send_signal(signal.SIGUSR2)
        child.wait_for_line("upgrading")
        wait_until(lambda: len(children(child.pid)) == 3, what="a new process is there")
        everybody = children(child.pid)

        child.send_signal(signal.SIGTERM)

        assert child.wait(timeout_s=SLOW_S) == 0
        wait_until(lambda: not any(map(is_alive, everybody)), what="nobody is left", timeout_s=SLOW_S)


def test_the_first_signal_to_end_lets_an_old_gateway_drain_on(
    gateway: Gateway, ports: Ports, origin: int, mourned: list[int]
) -> None:
    """A service manager tells all processes of the gateway: sessions of the old one were cut while those of the new one were not."""
    port = ports.take()
    gateway.write_settings([port], **with_workers(1))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child, Visitor(port) as visitor:
        visitor.greeting()
        upgrade(gateway, child, mourned)

        child.send_signal(signal.SIGTERM)
        child.wait_for_line("SIGTERM")
        assert visitor.echo("still there") == "still there"

        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout_s=SLOW_S) == 0

    assert [line["reason"] for line in gateway.access_lines()] == ["drain"]


def test_killing_the_new_process_in_the_middle_changes_nothing(
    gateway: Gateway, ports: Ports, origin: int
) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(1))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child:
        child.send_signal(signal.SIGUSR2)
        (new,) = wait_until(lambda: children(child.pid), what="a new process is there")
        kill(new)

        child.wait_for_line("upgrade_failed")
        with Visitor(port) as visitor:
            assert visitor.greeting() == "a"
