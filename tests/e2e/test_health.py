"""Nodes that die and come back, under load, with real servers: what clients notice of it."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.support.child import Child, find_program, running, wait_until
from tests.support.gateway import Gateway
from tests.support.origin import Visitor, named_origin
from tests.support.ports import Ports
from tests.support.servers import ROOT_PASSWORD, Server, mariadb, redis

pytestmark = [pytest.mark.slow, pytest.mark.servers]

ACTIVE: Mapping[str, object] = {"streamgw": {"probe": "redis"}}
"""With the default interval of one second: two probes that fail find a node down."""


@attrs.frozen
class Scene:
    """One listener, and places for two nodes."""

    gateway: Gateway
    port: int
    nodes: tuple[int, int]
    directory: Path

    def write_upstream(self, checks: Mapping[str, object], **fields: object) -> None:
        nodes = {f"127.0.0.1:{port}": 1 for port in self.nodes}
        upstream = {"nodes": nodes, "checks": checks, **fields}
        self.gateway.write_routes("route.yaml", {"id": "1", "upstream": upstream})

    def health(self) -> dict[int, str]:
        """What the control API says of each node, by port."""
        (checker,) = json.loads(self.read(self.gateway.control_port, "/v1/healthcheck"))
        return {node["port"]: node["status"] for node in checker["nodes"]}

    def wait_for_health(self, *wanted: str) -> None:
        wait_until(
            lambda: self.health() == dict(zip(self.nodes, wanted, strict=True)) or None,
            what=f"nodes are {wanted}",
        )

    def read(self, port: int, path: str, accept: str = "*/*") -> str:
        """What a server of the gateway answers."""
        url = f"http://127.0.0.1:{port}{path}"
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    def fresh(self, name: str) -> Path:
        """A directory for a server."""
        directory = self.directory / f"{name}-{time.monotonic_ns()}"
        directory.mkdir()
        return directory

    @contextlib.contextmanager
    def redis(self, which: int) -> Iterator[Child]:
        """A Redis that says which one it is."""
        with redis(self.fresh("redis"), self.nodes[which]) as server:
            _ask(self.nodes[which], f"SET name {which}")
            yield server.child


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Scene:
    scene = Scene(gateway, ports.take(), (ports.take(), ports.take()), tmp_path)
    gateway.write_settings([f"127.0.0.1:{scene.port}"])
    return scene


def _ask(port: int, command: str) -> str:
    """One session with one command of Redis: the last line of the answer. Empty: it was not served."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(f"{command}\r\n".encode())
            answer = sock.recv(100).decode()
    except OSError:
        return ""
    return answer.strip().rpartition("\n")[2]


class Load:
    """Clients that come one after another, all the time, and what each was told."""

    def __init__(self, visit: Callable[[], str], clients: int = 4) -> None:
        self._go = visit
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._visit) for _ in range(clients)]
        self.answers: list[tuple[float, str]] = []
        """When the session began, and which node answered; empty: none."""

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more clients; returns when the last one has gone."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def since(self, moment: float, until: float = math.inf) -> Counter[str]:
        """Answers of sessions that began then or later, and before `until`."""
        return Counter(answer for at, answer in self.answers if moment <= at < until)

    def wait_for(self, count: int, moment: float) -> Counter[str]:
        """At least so many answers of sessions that began then or later."""
        wait_until(lambda: self.since(moment).total() >= count or None, what=f"{count} answers")
        return self.since(moment)

    def _visit(self) -> None:
        while not self._stopped.wait(0.005):
            began_at = time.monotonic()
            self.answers.append((began_at, self._go()))


def test_a_redis_that_is_killed_under_load_is_avoided_and_comes_back_slowly(scene: Scene) -> None:
    scene.write_upstream({"active": ACTIVE}, streamgw={"slow_start": "10s"})

    with (
        scene.redis(0),
        scene.redis(1) as second,
        scene.gateway.running(),
        Load(lambda: _ask(scene.port, "GET name")) as load,
    ):
        wait_until(lambda: {"0", "1"} <= load.since(0).keys() or None, what="both serve")

        second.kill()
        killed_at = time.monotonic()
        scene.wait_for_health("healthy", "unhealthy")
        found_after_s = time.monotonic() - killed_at
        assert load.wait_for(200, time.monotonic()).keys() == {"0"}
        # Two probes, a second apart; a tenth of jitter, and a machine that may be very busy.
        assert found_after_s < 10

        with scene.redis(1):
            scene.wait_for_health("healthy", "healthy")
            up_at = time.monotonic()
            wait_until(lambda: time.monotonic() > up_at + 10.5 or None, what="the end of slow start")
            slow_start = load.since(up_at, up_at + 10)
            afterwards = load.wait_for(200, time.monotonic())

    # A share that grows from nothing to a half: 1 - ln 2 of them all, and more if its return was seen late.
    assert 0.1 < slow_start["1"] / slow_start.total() < 0.45, "slowly, but it does"
    assert 0.4 < afterwards["1"] / afterwards.total() < 0.6
    assert "" not in slow_start + afterwards


def test_a_mariadb_that_is_killed_under_load_is_avoided_and_comes_back(scene: Scene) -> None:
    scene.write_upstream({"active": {"streamgw": {"probe": "mysql"}}})

    clients = 2
    directories = [scene.fresh("mariadb") for _ in scene.nodes]
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(mariadb(directory, port))
            for directory, port in zip(directories, scene.nodes, strict=True)
        ]
        stack.enter_context(scene.gateway.running())
        load = stack.enter_context(Load(lambda: _ask_mariadb(scene.port), clients=clients))
        names = {str(port) for port in scene.nodes}
        wait_until(lambda: names <= load.since(0).keys() or None, what="both serve")

        servers[1].child.kill()
        scene.wait_for_health("healthy", "unhealthy")
        down_at = time.monotonic()
        assert load.wait_for(20, down_at).keys() == {str(scene.nodes[0])}

        stack.enter_context(_mariadb_again(directories[1], servers[1]))
        scene.wait_for_health("healthy", "healthy")
        back_at = time.monotonic()
        wait_until(lambda: names <= load.since(back_at).keys() or None, what="both serve again")
        load.stop()

    assert "" not in load.since(down_at)
    # Before it was found down, a node that refuses is left for the next one: only who was there when it died can have noticed, or who came
    # while it was dying and its socket was still open.
    assert load.since(0, down_at)[""] <= 2 * clients


@contextlib.contextmanager
def _mariadb_again(directory: Path, server: Server) -> Iterator[None]:
    """On the data that it was killed over."""
    program = find_program("mariadbd", package="mariadb-server")
    where = [f"--datadir={directory}/data", "--bind-address=127.0.0.1", f"--port={server.port}"]
    options = ["--socket=mariadb.sock", "--skip-name-resolve", "--innodb-buffer-pool-size=16M", "--user=root"]
    with running([program, "--no-defaults", *where, *options], log=directory / "again.log", cwd=directory):
        yield


def _ask_mariadb(port: int) -> str:
    """One session with the port of the server that it ended up at. Empty: it was not served."""
    client = find_program("mariadb", package="mariadb-client")
    where = ["--no-defaults", "--protocol=tcp", "--host=127.0.0.1", f"--port={port}", "--connect-timeout=20"]
    login = ["--user=root", f"--password={ROOT_PASSWORD}", "--skip-column-names", "--batch"]
    done = subprocess.run(
        [client, *where, *login, "--execute=SELECT @@port"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def test_clients_that_wait_do_not_notice_three_seconds_without_a_node(scene: Scene) -> None:
    scene.write_upstream(
        {"active": ACTIVE, "streamgw": {"on_all_down": "closed"}}, streamgw={"wait_for_node": "60s"}
    )

    with scene.gateway.running():
        scene.wait_for_health("unhealthy", "unhealthy")
        with Load(lambda: _ask(scene.port, "PING"), clients=20) as load:
            began_at = time.monotonic()
            wait_until(lambda: time.monotonic() > began_at + 3 or None, what="three seconds without a node")
            assert not load.answers
            with scene.redis(0):
                served = load.wait_for(100, 0)
                # All of them have come in, before the server goes.
                load.stop()

    assert served.keys() == {"+PONG"}
    assert load.since(0).keys() == {"+PONG"}


def test_sessions_of_a_node_that_hangs_are_ended_if_that_is_wanted(scene: Scene) -> None:
    checks = {"active": {"timeout": 2, "unhealthy": {"timeouts": 2}, **ACTIVE}}
    scene.write_upstream({**checks, "streamgw": {"on_marked_down": "close"}})

    with scene.redis(0) as hanging, scene.redis(1), scene.gateway.running(), contextlib.ExitStack() as stack:
        wait_until(lambda: scene.health() or None, what="nodes are known")
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", scene.port), timeout=60))
            for _ in range(4)
        ]
        for client in clients:
            client.sendall(b"PING\r\n")
            assert client.recv(100) == b"+PONG\r\n"

        hanging.send_signal(signal.SIGSTOP)
        try:
            ended = scene.gateway.wait_for_access_line(
                lambda line: line["reason"] == "node_down" and line["node"].endswith(f":{scene.nodes[0]}"),
                what="node_down",
            )
            wait_until(lambda: len(scene.gateway.access_lines()) >= 2 or None, what="the other one, too")
            scene.wait_for_health("unhealthy", "healthy")
        finally:
            hanging.send_signal(signal.SIGCONT)

        assert ended["fault"] == "upstream"
        reasons = Counter(line["reason"] for line in scene.gateway.access_lines())
        assert reasons == {"node_down": 2}


def test_health_is_shown_to_people_and_to_prometheus(scene: Scene) -> None:
    scene.write_upstream({"active": ACTIVE})

    with scene.redis(0), scene.gateway.running():
        scene.wait_for_health("healthy", "unhealthy")
        page = scene.read(scene.gateway.control_port, "/v1/healthcheck", accept="text/html")
        metrics = scene.read(scene.gateway.metrics_port, "/apisix/prometheus/metrics")
        (checker,) = json.loads(scene.read(scene.gateway.control_port, "/v1/healthcheck"))
        one = json.loads(scene.read(scene.gateway.control_port, "/v1/healthcheck/stream_routes/1"))

    assert f"<td>127.0.0.1:{scene.nodes[1]}</td><td>unhealthy</td>" in page
    for port, up in zip(scene.nodes, ("1.0", "0.0"), strict=True):
        labels = f'ip="127.0.0.1",name="/apisix/stream_routes/1",port="{port}"'
        assert f"apisix_upstream_status{{{labels}}} {up}" in metrics
    assert checker["name"] == one["name"] == "/apisix/stream_routes/1"
    (down,) = [node for node in checker["nodes"] if node["port"] == scene.nodes[1]]
    assert (down["ip"], down["hostname"]) == ("127.0.0.1", "127.0.0.1")
    assert down["counter"]["tcp_failure"] == 2


def test_a_node_that_is_known_by_connects_alone_is_left_out_and_tried_again(
    scene: Scene, tmp_path: Path
) -> None:
    scene.write_upstream({"passive": {}, "streamgw": {"recover_after": "5s"}})

    with scene.gateway.running(), named_origin(tmp_path, scene.nodes[0], "alpha"):
        for _ in range(4):
            with Visitor(scene.port) as visitor:
                assert visitor.greeting() == "alpha"
        scene.wait_for_health("healthy", "unhealthy")
        with named_origin(tmp_path, scene.nodes[1], "beta"):
            scene.wait_for_health("healthy", "mostly_healthy")

            def greeted() -> str | None:
                with Visitor(scene.port) as visitor:
                    return "beta" if visitor.greeting() == "beta" else None

            wait_until(greeted, what="beta serves")


def test_the_switch_turns_everything_off_live(scene: Scene) -> None:
    scene.write_upstream({"active": ACTIVE})

    with scene.redis(0), scene.gateway.running():
        scene.wait_for_health("healthy", "unhealthy")
        scene.gateway.write_settings(
            [f"127.0.0.1:{scene.port}"], apisix={"disable_upstream_healthcheck": True}
        )
        wait_until(
            lambda: json.loads(scene.read(scene.gateway.control_port, "/v1/healthcheck")) == {} or None,
            what="nothing is checked",
        )
