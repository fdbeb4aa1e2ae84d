"""Upstreams whose nodes DNS says: a real dnsmasq whose answers change, and clients that are in the middle of something."""

from __future__ import annotations

import contextlib
import getpass
import json
import signal
import socket
import socketserver
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.child import Child, find_program, running, wait_until
from tests.support.gateway import Gateway
from tests.support.origin import Visitor, named_origin, whom
from tests.support.ports import Ports
from tests.support.udp_servers import is_receiving

pytestmark = [pytest.mark.slow, pytest.mark.servers]

SERVICE = "_db._tcp.db.test"
TIMES: Mapping[str, Any] = {"streamgw": {"resolver": {"min_ttl_s": 0.2, "stale_s": 60}}}


@attrs.define
class NameServer:
    """dnsmasq with a few names, all of which live for a second. Its hosts change while it runs, its records do not."""

    port: int
    directory: Path
    hosts: Sequence[str] = ()
    """Lines of hosts(5)."""
    records: Sequence[str] = ()
    """`name,target,port,priority,weight` (dnsmasq's `srv-host`)."""
    child: Child | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._write()
        program = find_program("dnsmasq", package="dnsmasq-base")
        alone = ["--no-daemon", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--pid-file="]
        where = [
            f"--port={self.port}",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            f"--user={getpass.getuser()}",
        ]
        what = [f"--addn-hosts={self._hosts_file}", "--local=/test/", "--local-ttl=1", "--no-round-robin"]
        srv = [f"--srv-host={record}" for record in self.records]
        log = self.directory / "dnsmasq.log"
        with running([program, *alone, *where, *what, *srv], log=log) as child:
            self.child = child
            child.wait_until(lambda: is_receiving(self.port), what="receives")
            yield

    def say(self, *hosts: str) -> None:
        """Other addresses from now on."""
        self.hosts = hosts
        self._write()
        assert self.child is not None
        self.child.send_signal(signal.SIGHUP)

    @property
    def _hosts_file(self) -> Path:
        return self.directory / "names"

    def _write(self) -> None:
        self._hosts_file.write_text("".join(f"{line}\n" for line in self.hosts))


@attrs.frozen
class Scene:
    """A gateway with one listener, and three nodes that say their names."""

    gateway: Gateway
    port: int
    names: NameServer
    nodes: dict[str, int]
    """Name to port."""

    def write(self, **upstream: object) -> None:
        where = {"servers": [f"127.0.0.1:{self.names.port}"]}
        self.gateway.write_settings([f"127.0.0.1:{self.port}"], discovery={"dns": where}, **TIMES)
        fields = {"discovery_type": "dns", "service_name": SERVICE, **upstream}
        self.gateway.write_routes("route.yaml", {"id": "1", "upstream": fields})

    def records(self, **of: tuple[int, int]) -> list[str]:
        """`a=(10, 3)`: the record of node a with priority and weight."""
        return [
            f"{SERVICE},{name}.db.test,{self.nodes[name]},{priority},{weight}"
            for name, (priority, weight) in of.items()
        ]

    def discovered(self) -> dict[str, Any]:
        (service,) = self.gateway.status()["discovery"]
        return dict(service)

    def wait_for_nodes(self, *names: str) -> None:
        wanted = {self.nodes[name] for name in names}
        wait_until(
            lambda: {node["port"] for node in self.discovered()["nodes"]} == wanted or None,
            what=f"DNS says {names}",
        )

    def read(self, path: str) -> Any:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.gateway.control_port}{path}", timeout=30
        ) as answer:
            return json.load(answer)

    def served_by(self, count: int) -> Counter[str]:
        return Counter(whom(self.port) for _ in range(count))


@contextlib.contextmanager
def listening_everywhere(port: int) -> Iterator[None]:
    """Servers on 127.0.0.1 to 127.0.0.3 that say their address, then echo."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(f"{self.connection.getsockname()[0]}\n".encode())
            for line in self.rfile:
                self.wfile.write(line)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 128

    with contextlib.ExitStack() as stack:
        for number in (1, 2, 3):
            server = stack.enter_context(Server((f"127.0.0.{number}", port), Handler))
            threading.Thread(target=server.serve_forever, args=(0.05,)).start()
            stack.callback(server.shutdown)
        yield


def whom_from(client: str, port: int) -> str:
    """Connect from this address; the name of the node that answers."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(client, 0)) as sock,
        sock.makefile("rb") as lines,
    ):
        return lines.readline().decode().strip()


LOOPBACK_HOSTS = tuple(f"127.0.0.1 {name}.db.test" for name in "abc")


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    nodes = {name: ports.take() for name in "abc"}
    names = NameServer(ports.take_for_udp(), tmp_path, LOOPBACK_HOSTS)
    with contextlib.ExitStack() as stack:
        for name, port in nodes.items():
            stack.enter_context(named_origin(tmp_path, port, name))
        yield Scene(gateway, ports.take(), names, nodes)


def test_srv_records_give_port_weight_and_priority(scene: Scene) -> None:
    scene.names.records = scene.records(a=(10, 3), b=(10, 1), c=(20, 0))
    scene.write()
    with scene.names.running(), scene.gateway.running():
        assert scene.served_by(40) == {"a": 30, "b": 10}

        dump = scene.read("/v1/discovery/dns/dump")["services"][SERVICE]["nodes"]
        assert {(node["name"], node["weight"], node["priority"]) for node in dump} == {
            ("a.db.test", 3, -10),
            ("b.db.test", 1, -10),
            ("c.db.test", 1, -20),
        }
        assert scene.gateway.metric(f'streamgw_discovered_nodes{{service="{SERVICE}"}}') == 3
        explained = scene.read(f"/v1/explain?server_port={scene.port}")
        assert explained["service_name"] == SERVICE
        assert len(explained["discovered"]) == 3
        assert f"service {SERVICE}: 127.0.0.1:" in scene.gateway.cli("status")
        assert f"its nodes are what DNS says of {SERVICE}" in scene.gateway.cli(
            "explain", "--server-port", str(scene.port)
        )


def test_nodes_come_and_go_and_sessions_of_those_that_stay_go_on(scene: Scene) -> None:
    """A name server that is restarted with other records; nobody is cut, and new clients get the new node."""
    scene.names.records = scene.records(a=(1, 1), b=(1, 1))
    scene.write(type="least_conn")
    with scene.gateway.running():
        with scene.names.running():
            scene.wait_for_nodes("a", "b")
            visitors = [Visitor(scene.port) for _ in range(10)]
            assert Counter(visitor.greeting() for visitor in visitors) == {"a": 5, "b": 5}
            assert all(visitor.echo("one") == "one" for visitor in visitors)

        scene.names.records = scene.records(b=(1, 1), c=(1, 1))
        with scene.names.running():
            scene.wait_for_nodes("b", "c")
            assert scene.served_by(4) == {"c": 4}, "b has its five sessions"
            assert all(visitor.echo("two") == "two" for visitor in visitors), "also those of a"
            for visitor in visitors:
                visitor.close()
            scene.gateway.wait_for_status(
                lambda status: status["sessions"]["active"] == 0, what="all sessions over"
            )
            assert scene.served_by(10).keys() == {"b", "c"}


def test_addresses_of_a_name_change_under_load_without_a_failed_client(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    """SIGHUP after each change of the hosts file, as an operator does it."""
    port, node = ports.take(), ports.take()
    names = NameServer(ports.take_for_udp(), tmp_path, ["127.0.0.1 app.test"])
    where = {"servers": [f"127.0.0.1:{names.port}"]}
    gateway.write_settings([f"127.0.0.1:{port}"], discovery={"dns": where}, **TIMES)
    upstream = {"discovery_type": "dns", "service_name": f"app.test:{node}"}
    gateway.write_routes("route.yaml", {"id": "1", "upstream": upstream})
    seen: list[str] = []
    is_over = threading.Event()

    def clients() -> None:
        while not is_over.is_set():
            seen.append(whom(port))

    with listening_everywhere(node), names.running(), gateway.running(), Visitor(port) as lasting:
        assert lasting.greeting() == "127.0.0.1"
        thread = threading.Thread(target=clients)
        thread.start()
        try:
            for last in (3, 1, 2):
                hosts = [f"127.0.0.{number}" for number in range(1, last + 1)]
                names.say(*(f"{host} app.test" for host in hosts))
                wait_until(partial(_is_known, gateway, hosts), what=f"{last} nodes")
                wait_until(partial(_serve, hosts, seen, len(seen) + 1), what=f"{last} nodes serve")
        finally:
            is_over.set()
            thread.join(20)
        assert lasting.echo("still here") == "still here"

    assert set(seen) == {"127.0.0.1", "127.0.0.2", "127.0.0.3"}, "no client was closed without a word"


def _is_known(gateway: Gateway, hosts: Sequence[str]) -> bool | None:
    (service,) = gateway.status()["discovery"]
    return [node["host"] for node in service["nodes"]] == hosts or None


def _serve(hosts: Sequence[str], seen: Sequence[str], since: int) -> bool | None:
    """Exactly these: the client of before may still have gone elsewhere."""
    return set(seen[since:]) == set(hosts) or None


def test_a_name_server_that_goes_away_takes_no_node_with_it(scene: Scene) -> None:
    scene.names.records = scene.records(a=(1, 1), b=(1, 1))
    scene.write(checks={"active": {"type": "tcp", "healthy": {"interval": 1}}})
    with scene.gateway.running():
        with scene.names.running():
            scene.wait_for_nodes("a", "b")
            assert scene.served_by(4) == {"a": 2, "b": 2}
            (checker,) = scene.read("/v1/healthcheck")
            assert {node["hostname"] for node in checker["nodes"]} == {"a.db.test", "b.db.test"}
        wait_until(lambda: scene.discovered()["trouble"] or None, what="the name server is missed")

        assert scene.served_by(4) == {"a": 2, "b": 2}
        assert scene.gateway.metric(f'streamgw_discovery_failing{{service="{SERVICE}"}}') == 1

        with scene.names.running():
            wait_until(lambda: not scene.discovered()["trouble"] or None, what="the name server is back")


def test_a_service_that_nobody_knows_says_so(scene: Scene) -> None:
    scene.write()
    with scene.names.running(), scene.gateway.running():
        assert whom(scene.port) == ""
        line = scene.gateway.wait_for_access_line(lambda line: line["route"] == "1", what="a session")

    assert line["reason"] == "no_node"
    assert f"DNS says none for {SERVICE}: no such name (NXDOMAIN)" in line["detail"]


def test_a_wrong_resolv_conf_at_the_start_costs_its_names_alone(scene: Scene, ports: Ports) -> None:
    """It ended the gateway as soon as a name was looked up, and so did a file that went bad while it ran."""
    conf, other = scene.gateway.directory / "resolv.conf", ports.take()
    conf.write_text("nameserver 10.0.0.300\n")
    scene.gateway.write_settings(
        [f"127.0.0.1:{scene.port}", f"127.0.0.1:{other}"],
        discovery={"dns": {"resolv_conf": str(conf)}},
        **TIMES,
    )
    scene.gateway.write_routes(
        "route.yaml",
        {
            "id": "1",
            "server_port": scene.port,
            "upstream": {"discovery_type": "dns", "service_name": SERVICE},
        },
        {"id": "2", "server_port": other, "upstream": {"nodes": {f"127.0.0.1:{scene.nodes['a']}": 1}}},
    )
    wrong = f"{conf}: nameserver '10.0.0.300' is not an IP address"
    with scene.gateway.running() as child, Visitor(other) as lasting:
        assert lasting.greeting() == "a"
        assert whom(scene.port) == ""
        line = scene.gateway.wait_for_access_line(lambda line: line["route"] == "1", what="a session")
        assert wrong in line["detail"]
        assert scene.discovered()["trouble"] == wrong
        assert child.output().count("name_not_resolved") == 1

        conf.write_text("search a..b\n")
        wait_until(lambda: "label is empty" in scene.discovered()["trouble"] or None, what="another look")
        assert lasting.echo("still here") == "still here"


def test_a_client_is_kept_until_the_service_appears(scene: Scene) -> None:
    scene.write(streamgw={"wait_for_node": "60s"})
    with scene.gateway.running(), Visitor(scene.port) as early:
        scene.names.records = scene.records(c=(1, 1))
        with scene.names.running():
            assert early.greeting() == "c"


def test_an_answer_too_large_for_a_datagram_is_fetched_over_tcp(scene: Scene) -> None:
    many = [f"{SERVICE},none-{number:03}.db.test,{number + 1},99,1" for number in range(60)]
    hosts = [f"127.0.0.1 none-{number:03}.db.test" for number in range(60)]
    scene.names.hosts = (*LOOPBACK_HOSTS, *hosts)
    scene.names.records = [*scene.records(a=(1, 1)), *many]
    scene.write()
    with scene.names.running(), scene.gateway.running():
        assert scene.served_by(3) == {"a": 3}
        assert len(scene.discovered()["nodes"]) == 61


def test_traffic_keeps_its_place_on_the_ring_when_a_node_goes(scene: Scene) -> None:
    scene.names.records = scene.records(a=(1, 1), b=(1, 1), c=(1, 1))
    scene.write(type="chash", key="remote_addr")
    clients = [f"127.0.1.{number}" for number in range(1, 31)]
    with scene.gateway.running():
        with scene.names.running():
            scene.wait_for_nodes("a", "b", "c")
            before = {client: whom_from(client, scene.port) for client in clients}
        scene.names.records = scene.records(a=(1, 1), b=(1, 1))
        with scene.names.running():
            scene.wait_for_nodes("a", "b")
            after = {client: whom_from(client, scene.port) for client in clients}

    assert set(before.values()) == {"a", "b", "c"}
    assert all(after[client] == name for client, name in before.items() if name != "c")
