"""Several workers: each promise of a single one, and what happens when one of them dies."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.callers import callers, hang_up
from tests.support.child import run, wait_until
from tests.support.datagrams import DatagramClient, datagram_origin
from tests.support.descriptors import open_descriptors
from tests.support.gateway import PLAIN, STREAMGW, Gateway, stream_route
from tests.support.origin import Visitor, named_origin
from tests.support.ports import Ports
from tests.support.storm import finish, storm_clients, storm_origin
from tests.support.workers import (
    SLOW_S,
    children,
    is_alive,
    kill,
    pids,
    sessions,
    wait_for_death,
    wait_for_workers,
    with_workers,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def origin(tmp_path: Path, ports: Ports) -> int:
    port = ports.take()
    with ExitStack() as stack:
        stack.enter_context(named_origin(tmp_path, port, "a"))
        yield port


def reachable(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_clients_are_spread_and_seen_as_those_of_one_gateway(
    gateway: Gateway, ports: Ports, origin: int
) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running(), ExitStack() as stack:
        visitors = [stack.enter_context(Visitor(port)) for _ in range(40)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}

        rows = sessions(gateway)

        assert len(rows) == 40
        assert {row["worker"] for row in rows} == {0, 1}
        assert gateway.status()["sessions"]["active"] == 40


def test_an_edit_moves_new_connections_in_every_worker(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int
) -> None:
    port, other = ports.take(), ports.take()
    gateway.write_settings([port], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with named_origin(tmp_path, other, "b"), gateway.running(), ExitStack() as stack:
        old = [stack.enter_context(Visitor(port)) for _ in range(10)]
        assert {visitor.greeting() for visitor in old} == {"a"}

        gateway.write_routes("a.yaml", stream_route("a", other))
        revision = gateway.wait_for_status(
            lambda status: status["config"]["reloads"] == 1, what="the supervisor runs it"
        )["config"]["revision"]
        gateway.wait_for_status(
            lambda status: {row["revision"] for row in status["workers"]} == {revision}, what="all run it"
        )

        new = [stack.enter_context(Visitor(port)) for _ in range(20)]
        assert {visitor.greeting() for visitor in new} == {"b"}
        assert {visitor.echo("still there") for visitor in old} == {"still there"}


def test_a_killed_worker_is_noticed_by_its_own_clients_only(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, seed: int
) -> None:
    stormy, calm, behind = ports.take(), ports.take(), ports.take()
    gateway.write_settings([stormy, calm], **with_workers(2))
    gateway.write_routes(
        "a.yaml", stream_route("a", origin, server_port=calm), stream_route("s", behind, server_port=stormy)
    )
    with (
        storm_origin(tmp_path, behind, "s"),
        gateway.running(),
        storm_clients(tmp_path, stormy, 100, seed) as clients,
        callers(tmp_path, calm, 10, seed) as calling,
    ):
        before = pids(gateway.status())
        theirs = sum(row["worker"] == 0 and row["route"] == "s" for row in sessions(gateway))

        kill(before[0])
        after = wait_for_workers(gateway, 2, instead_of={0: before[0]})
        storm, calls = finish(clients), hang_up(calling)

    assert after[1] == before[1]
    assert after[0] != before[0]
    assert storm.intact == 100 - theirs, storm.failures
    assert 0 < theirs < 100
    assert set(storm.failures) <= {"reset", "ended early"}
    assert set(calls.failures) <= {"cut off"}, "nobody was refused, nobody got wrong bytes"
    assert calls.failures.get("cut off", 0) <= 10, "one of each caller's at most"


def test_a_worker_that_dies_while_routes_are_broken_comes_back_with_those_that_run(
    gateway: Gateway, ports: Ports, origin: int
) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running():
        revision = gateway.status()["config"]["revision"]
        (gateway.routes / "broken.yaml").write_text("stream_routes: [{id: 7, server_port: none}]\n")
        gateway.wait_for_status(lambda s: s["config"]["state"] == "rejected", what="rejected")
        before = pids(gateway.status())

        kill(before[1])
        after = wait_for_workers(gateway, 2, instead_of={1: before[1]})

        assert after[1] != before[1]
        assert {row["revision"] for row in gateway.status()["workers"]} == {revision}
        with ExitStack() as stack:
            visitors = [stack.enter_context(Visitor(port)) for _ in range(20)]
            assert {visitor.greeting() for visitor in visitors} == {"a"}

        (gateway.routes / "broken.yaml").unlink()
        gateway.write_routes("a.yaml", stream_route("b", origin))
        gateway.wait_for_objects("b")
        gateway.wait_for_status(
            lambda s: revision not in {row["revision"] for row in s["workers"]},
            what="the new one follows too",
        )


def test_settings_of_the_data_plane_replace_the_workers_one_by_one(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, seed: int
) -> None:
    stormy, calm, behind = ports.take(), ports.take(), ports.take()
    routes = [stream_route("a", origin, server_port=calm), stream_route("s", behind, server_port=stormy)]
    gateway.write_settings([stormy, calm], **with_workers(2))
    gateway.write_routes("a.yaml", *routes)
    with (
        storm_origin(tmp_path, behind, "s"),
        gateway.running() as child,
        storm_clients(tmp_path, stormy, 60, seed) as clients,
        callers(tmp_path, calm, 10, seed) as calling,
    ):
        before = pids(gateway.status())

        gateway.write_settings([stormy, calm], **with_workers(2, streamgw={"resolver": {"max_ttl_s": 60}}))
        wait_for_workers(gateway, 2, instead_of=before)
        child.wait_for_line("workers_replaced")
        assert {row["state"] for row in gateway.status()["workers"]} == {"serving", "draining"}
        storm, calls = finish(clients), hang_up(calling)
        wait_for_death(*before.values())

    assert (storm.intact, storm.failures) == (60, {})
    assert calls.failures == {}
    assert calls.intact > 20


def test_listeners_come_and_go_in_every_worker_all_or_nothing(
    gateway: Gateway, ports: Ports, origin: int
) -> None:
    first, second, third = (ports.take() for _ in range(3))
    gateway.write_settings([first], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child, ExitStack() as stack:
        old = [stack.enter_context(Visitor(first)) for _ in range(10)]
        assert {visitor.greeting() for visitor in old} == {"a"}

        gateway.write_settings([second, f"127.0.0.1:{third}"], **with_workers(2))
        child.wait_until(lambda: reachable(second) and not reachable(first), what="the new listeners")
        visitors = [stack.enter_context(Visitor(port)) for port in (second, third) for _ in range(30)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}
        assert {row["worker"] for row in sessions(gateway) if str(second) in row["listener"]} == {0, 1}

        with socket.create_server(("127.0.0.1", 0)) as stranger:
            gateway.write_settings([first, f"127.0.0.1:{stranger.getsockname()[1]}"], **with_workers(2))
            gateway.wait_for_status(lambda s: s["settings"]["state"] == "rejected", what="rejected")
            assert not reachable(first)
            with Visitor(second) as visitor:
                assert visitor.greeting() == "a"

        # One address in place of all: every worker has to let go before the supervisor can bind.
        gateway.write_settings([second, third], **with_workers(2))
        gateway.wait_for_status(
            lambda s: (
                {each["name"] for each in s["listeners"] if each["state"] == "listening"}
                == {f"tcp *:{second}", f"tcp *:{third}"}
            ),
            what="127.0.0.1 has become any address",
        )
        with Visitor(third) as visitor:
            assert visitor.greeting() == "a"
        assert {visitor.echo("still there") for visitor in old} == {"still there"}


def test_a_udp_client_stays_with_its_worker_and_a_listener_can_come_back(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    port, behind = ports.take_for_udp(), ports.take_for_udp()
    address = f"127.0.0.1:{port}"
    gateway.write_settings([], [address], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", behind))
    with datagram_origin(tmp_path, behind, "a"), gateway.running() as child, ExitStack() as stack:
        clients = [stack.enter_context(DatagramClient(port)) for _ in range(40)]
        for text in ("one", "two", "three"):
            for client in clients:
                assert text in client.ask(text)
        assert len(sessions(gateway)) == 40
        assert {row["worker"] for row in sessions(gateway)} == {0, 1}

        gateway.write_settings([], [], **with_workers(2))
        gateway.wait_for_status(
            lambda s: not any(each["state"] == "listening" for each in s["listeners"]), what="it is gone"
        )
        gateway.write_settings([], [address], **with_workers(2))
        gateway.wait_for_status(
            lambda s: any(each["state"] == "listening" for each in s["listeners"]), what="it is back"
        )
        assert all("again" in client.ask("again") for client in clients)
        assert child.exit_code is None


def test_a_second_gateway_on_the_same_address_is_refused(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int
) -> None:
    port, udp = ports.take(), ports.take_for_udp()
    gateway.write_settings([port], [udp], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    for settings, taken in (([port], f"tcp *:{port}"), ([f"127.0.0.1:{port}"], f"tcp 127.0.0.1:{port}")):
        second = Gateway(tmp_path / taken.replace(":", "-"), ports)
        second.write_settings(settings, **with_workers(2))
        with gateway.running():
            done = run([*STREAMGW, "run"], cwd=second.directory, env=PLAIN, check=False)

        assert done.returncode == 78
        assert f"cannot listen on {taken}: address already in use" in done.stderr


def test_a_drain_lets_sessions_finish_in_every_worker_and_leaves_nothing_behind(
    gateway: Gateway, ports: Ports, origin: int
) -> None:
    port = ports.take()
    gateway.write_settings([port, f"unix:{gateway.directory}/in.sock"], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child, ExitStack() as stack:
        visitors = [stack.enter_context(Visitor(port)) for _ in range(10)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}
        workers = pids(gateway.status())

        child.send_signal(signal.SIGTERM)
        child.wait_until(lambda: not reachable(port), what="nobody else gets in")
        assert {visitor.echo("finishing") for visitor in visitors} == {"finishing"}
        for visitor in visitors:
            visitor.close()

        assert child.wait(timeout_s=SLOW_S) == 0
        wait_for_death(*workers.values())
        assert not (gateway.directory / "in.sock").exists()
    reasons = Counter(line["reason"] for line in gateway.access_lines())
    assert reasons["closed"] >= 10
    assert "drain" not in reasons


def test_a_second_signal_ends_every_worker_now(gateway: Gateway, ports: Ports, origin: int) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child, ExitStack() as stack:
        visitors = [stack.enter_context(Visitor(port)) for _ in range(10)]
        assert {visitor.greeting() for visitor in visitors} == {"a"}

        child.send_signal(signal.SIGTERM)
        child.wait_for_line("draining")
        child.send_signal(signal.SIGTERM)

        assert child.wait(timeout_s=SLOW_S) == 0
    assert Counter(line["reason"] for line in gateway.access_lines()) == {"drain": 10}


def test_workers_end_with_their_supervisor(gateway: Gateway, ports: Ports, origin: int) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child, Visitor(port) as visitor:
        visitor.greeting()
        workers = pids(gateway.status())

        child.kill()
        wait_for_death(*workers.values())

        assert not reachable(port)
    (line,) = gateway.access_lines()
    assert line["reason"] == "drain"


def test_a_worker_that_dies_again_and_again_ends_the_gateway(
    gateway: Gateway, ports: Ports, origin: int
) -> None:
    gateway.write_settings([ports.take()], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child:
        while child.exit_code is None:
            for pid in children(child.pid):
                kill(pid)

        assert child.exit_code == 70
        died = "died 6 times in a row, each time within 10 s of its start"
        not_started = (
            "could not be started 6 times in a row, and no other one serves"  # killed before it could answer
        )
        assert died in child.output() or not_started in child.output()


def test_logs_are_reopened_by_all_workers_and_moved_live(gateway: Gateway, ports: Ports, origin: int) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child:
        rotated = gateway.access_log.rename(gateway.directory / "access.log.1")
        child.send_signal(signal.SIGUSR1)
        workers = pids(gateway.status()).values()
        wait_until(
            lambda: not any(what == str(rotated) for pid in workers for _, what in open_descriptors(pid)),
            what="nobody has the old file",
        )
        call(port, 20)
        wait_until(lambda: len(gateway.access_lines()) == 20, what="all lines in the new file")
        assert rotated.read_text() == ""

        elsewhere = gateway.directory / "elsewhere.log"
        gateway.write_settings([port], **with_workers(2, streamgw={"access_log": {"path": str(elsewhere)}}))
        gateway.wait_for_status(lambda s: s["settings"]["reloads"] == 1, what="applied")
        call(port, 20)
        wait_until(lambda: elsewhere.exists() and len(elsewhere.read_text().splitlines()) == 20, what="moved")
        assert gateway.status()["settings"]["warnings"] == []


def call(port: int, times: int) -> None:
    for _ in range(times):
        with Visitor(port) as visitor:
            assert visitor.greeting() == "a"


def test_the_limits_of_a_gateway_are_kept_by_all_workers_together(
    gateway: Gateway, ports: Ports, origin: int
) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(2, streamgw={"limits": {"max_sessions": 6}}))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running(), ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(Visitor(port))

        gateway.wait_for_status(lambda s: s["listeners"][0]["state"] == "paused", what="full")
        gateway.wait_for_status(lambda s: s["sessions"]["active"] == 6, what="as many as there may be")


def test_nothing_is_left_of_workers_that_came_and_went(gateway: Gateway, ports: Ports, origin: int) -> None:
    port = ports.take()
    gateway.write_settings([port], **with_workers(2))
    gateway.write_routes("a.yaml", stream_route("a", origin))
    with gateway.running() as child:
        call(port, 4)
        before = open_fds(child.pid)
        for slot in (0, 1, 0):
            old = pids(gateway.status())[slot]
            kill(old)
            wait_for_workers(gateway, 2, instead_of={slot: old})

        wait_until(lambda: open_fds(child.pid) <= before, what="no descriptor more than before")
        assert len(children(child.pid)) == 2
        assert all(map(is_alive, children(child.pid)))
        call(port, 4)


def open_fds(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])
