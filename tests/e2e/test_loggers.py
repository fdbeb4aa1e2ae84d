"""What loggers tell arrives: whoever dies, is slow, is edited or comes late meanwhile."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.certificates import CA_PEM, issue
from tests.support.gateway import Document, Gateway, stream_route
from tests.support.http_receiver import http_receiver
from tests.support.namespace import has_clients
from tests.support.origin import TIMEOUT_S, named_origin
from tests.support.ports import Ports
from tests.support.servers import write_server_tls
from tests.support.udp_servers import rsyslog

pytestmark = [pytest.mark.slow]

SESSIONS = 7
NAMED = {"port": "$remote_port"}
"""What tells one session from another."""
PATIENT = {"inactive_timeout": 600, "buffer_duration": 600}
STUBBORN = {"inactive_timeout": 1, "max_retry_count": 1000, "retry_delay": 0.2, "timeout": 20}


@pytest.fixture
def origin(tmp_path: Path, ports: Ports) -> Iterator[int]:
    port = ports.take()
    with named_origin(tmp_path, port, "a"):
        yield port


@pytest.fixture
def port(gateway: Gateway, ports: Ports) -> int:
    """Of the gateway's one listener."""
    port = ports.take()
    trusted = gateway.directory / "ca.pem"
    trusted.write_text(CA_PEM)
    gateway.write_settings([f"127.0.0.1:{port}"], apisix={"ssl": {"ssl_trusted_certificate": str(trusted)}})
    return port


def logged(origin: int, plugin: str, *, id: str = "a", **options: object) -> Document:  # noqa: A002 - the wire name
    """A route that tells of its sessions."""
    return stream_route(id, origin, plugins={plugin: {"log_format": NAMED, **options}})


def visit(port: int, times: int = SESSIONS) -> set[str]:
    """Come and go. Returns the names of the sessions."""
    names = set()
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
            assert client.recv(10)
            names.add(str(client.getsockname()[1]))
    return names


def names_in(lines: list[str]) -> list[str]:
    """Of the sessions that these lines of JSON tell of."""
    return [json.loads(line)["port"] for line in lines]


def ended(gateway: Gateway, sessions: int) -> None:
    """All sessions are over, and told of to whoever sends."""
    gateway.wait_for_status(
        lambda status: status["sessions"]["total"] == sessions and status["sessions"]["active"] == 0,
        what=f"{sessions} sessions over",
    )


@pytest.mark.servers
@pytest.mark.parametrize("plugin", ["tcp-logger", "tcp-logger over TLS", "udp-logger"])
def test_rsyslog_receives_a_line_of_each_session(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int, plugin: str
) -> None:
    udp_port, tcp_port = ports.take_for_udp(), ports.take()
    name, _, is_tls = plugin.partition(" over ")
    tls = write_server_tls(tmp_path, issue("collector.test")) if is_tls else None
    options: dict[str, object] = {"host": "127.0.0.1", "port": udp_port if name == "udp-logger" else tcp_port}
    if is_tls:
        options |= {"tls": True, "tls_verify": True, "tls_options": "collector.test"}
    gateway.write_routes("a.yaml", logged(origin, name, inactive_timeout=1, **options))

    with (
        rsyslog(tmp_path, udp_port, tcp_port=tcp_port, tls=tls, line="%rawmsg%") as server,
        gateway.running(),
    ):
        visited = visit(port)
        server.child.wait_until(lambda: len(server.received()) == SESSIONS, what="all lines")

    assert sorted(names_in(server.received())) == sorted(visited)
    assert all(json.loads(line)["route_id"] == "a" for line in server.received())


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
def test_an_http_server_is_posted_a_list_of_all(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int, is_tls: bool
) -> None:
    where = ports.take()
    tls = write_server_tls(tmp_path, issue("127.0.0.1")) if is_tls else None
    uri = f"http{'s' if is_tls else ''}://127.0.0.1:{where}/in"
    gateway.write_routes("a.yaml", logged(origin, "http-logger", uri=uri, batch_max_size=SESSIONS, **PATIENT))

    with http_receiver(tmp_path, where, tls=tls) as receiver, gateway.running():
        visited = visit(port)
        receiver.child.wait_until(receiver.bodies, what="a request")

    (body,) = receiver.bodies()
    assert sorted(record["port"] for record in body) == sorted(visited)


def test_a_receiver_that_is_killed_gets_everything_when_it_is_back(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int
) -> None:
    where = ports.take()
    uri = f"http://127.0.0.1:{where}/in"
    gateway.write_routes("a.yaml", logged(origin, "http-logger", uri=uri, batch_max_size=2, **STUBBORN))

    with gateway.running() as child:
        with http_receiver(tmp_path, where) as receiver:
            visited = visit(port)
            receiver.child.wait_until(lambda: len(receiver.records()) == SESSIONS, what="the first ones")
            receiver.child.wait_until(receiver.has_answered, what="the gateway knows that they came")
            receiver.child.kill()
            visited |= visit(port)
            child.wait_for_line("collector_failed")
        with http_receiver(tmp_path, where) as receiver:
            receiver.child.wait_until(lambda: len(receiver.records()) == 2 * SESSIONS, what="all of them")
            child.wait_for_line("collector_back")

    assert sorted(record["port"] for record in receiver.records()) == sorted(visited)


@pytest.mark.servers
@pytest.mark.parametrize("is_tls", [False, True], ids=["tcp", "tls"])
def test_an_rsyslog_that_is_killed_gets_everything_when_it_is_back(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int, is_tls: bool
) -> None:
    udp_port, tcp_port = ports.take_for_udp(), ports.take()
    tls = write_server_tls(tmp_path, issue("127.0.0.1")) if is_tls else None
    options = {"host": "127.0.0.1", "port": tcp_port, "tls": is_tls, "tls_verify": is_tls}
    stubborn = {**STUBBORN, "timeout": 20_000}
    gateway.write_routes("a.yaml", logged(origin, "tcp-logger", **options, **stubborn))

    with gateway.running() as child:
        with rsyslog(tmp_path, udp_port, tcp_port=tcp_port, tls=tls, line="%rawmsg%") as server:
            visited = visit(port)
            server.child.wait_until(lambda: len(server.received()) == SESSIONS, what="the first ones")
            server.child.wait_until(
                lambda: not has_clients(tcp_port), what="the gateway knows that they came"
            )
            server.child.kill()
            visited |= visit(port)
            child.wait_for_line("collector_failed")
        with rsyslog(tmp_path, udp_port, tcp_port=tcp_port, tls=tls, line="%rawmsg%") as server:
            server.child.wait_until(lambda: len(server.received()) == 2 * SESSIONS, what="all of them")

    assert sorted(names_in(server.received())) == sorted(visited)


def test_a_receiver_that_stands_still_costs_records_and_no_session(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int
) -> None:
    """What does not fit into the queue is dropped, counted, and said once."""
    where = ports.take()
    uri = f"http://127.0.0.1:{where}/in"
    room = {"drop_limit": 200, "batch_max_size": 1, "timeout": 1}
    gateway.write_routes("a.yaml", logged(origin, "http-logger", uri=uri, **{**STUBBORN, **room}))

    with gateway.running() as child, http_receiver(tmp_path, where) as receiver:
        receiver.child.send_signal(signal.SIGSTOP)
        visited = visit(port, 50)
        ended(gateway, 50)
        dropped = gateway.metric(f'streamgw_records_dropped_total{{collector="http://127.0.0.1:{where}"}}')
        assert dropped is not None
        assert 40 < dropped < 50
        receiver.child.send_signal(signal.SIGCONT)
        child.wait_for_line("collector_back")
        receiver.child.wait_until(
            lambda: len({record["port"] for record in receiver.records()}) == 50 - dropped,
            what="the ones that had room",
        )
        receiver.child.wait_until(receiver.has_answered, what="the gateway knows that they came")

    assert {record["port"] for record in receiver.records()} < visited
    assert child.output().count("records_dropped") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda origin, options: [logged(origin, "http-logger", id="b", **options)],
        lambda origin, options: [logged(origin, "http-logger", **options, batch_max_size=5)],
        lambda origin, options: [stream_route("a", origin)],
        lambda origin, options: [
            logged(origin, "http-logger", **options),
            stream_route("c", origin, server_port=1),
        ],
    ],
    ids=["the route is another", "its batches are others", "it no longer logs", "a route is added"],
)
def test_a_reload_loses_nothing_of_what_waits(
    gateway: Gateway,
    ports: Ports,
    tmp_path: Path,
    origin: int,
    port: int,
    change: Callable[[int, Document], list[Document]],
) -> None:
    """Before and after it sessions end, while the receiver is away; then it comes."""
    where = ports.take()
    options = {"uri": f"http://127.0.0.1:{where}/in", **STUBBORN}
    gateway.write_routes("a.yaml", logged(origin, "http-logger", **options))

    with gateway.running() as child:
        visited = visit(port)
        child.wait_for_line("collector_failed")
        revision = gateway.status()["config"]["revision"]
        routes = change(origin, options)
        gateway.write_routes("a.yaml", *routes)
        gateway.wait_for_status(
            lambda status: status["config"]["revision"] != revision, what="another revision"
        )
        after = visit(port)
        if any("plugins" in route for route in routes):
            visited |= after
        with http_receiver(tmp_path, where) as receiver:
            receiver.child.wait_until(
                lambda: {record["port"] for record in receiver.records()} == visited, what="all of them"
            )

    assert len(receiver.records()) == len(visited), "none of them twice"


def test_reloads_under_load_lose_nothing(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int
) -> None:
    """A queue that is never empty while the files change 20 times, its own options among them."""
    where = ports.take()
    uri = f"http://127.0.0.1:{where}/in"
    visited: set[str] = set()

    def write(number: int) -> None:
        log_format = {**NAMED, "number": str(number)}
        plugin = {
            "uri": uri,
            "log_format": log_format,
            "batch_max_size": 3,
            **STUBBORN,
            "retry_delay": number % 3,
        }
        gateway.write_routes("a.yaml", stream_route("a", origin, plugins={"http-logger": plugin}))

    write(0)
    with gateway.running(), http_receiver(tmp_path, where) as receiver:
        for number in range(1, 21):
            visited |= visit(port, 4)
            write(number)
        receiver.child.wait_until(
            lambda: {record["port"] for record in receiver.records()} == visited, what="all of them"
        )

    assert len(receiver.records()) == 80


def test_a_gateway_that_stops_sends_what_it_still_has(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int
) -> None:
    where, path = ports.take(), gateway.directory / "a.log"
    uri = f"http://127.0.0.1:{where}/in"
    both = {
        "http-logger": {"uri": uri, "log_format": NAMED, **PATIENT},
        "file-logger": {"path": "a.log", "log_format": NAMED, **PATIENT},
    }
    gateway.write_routes("a.yaml", stream_route("a", origin, plugins=both))

    with http_receiver(tmp_path, where) as receiver, gateway.running():
        visited = visit(port)
        ended(gateway, SESSIONS)
        assert receiver.bodies() == []
        assert not path.exists()

    assert sorted(record["port"] for record in receiver.records()) == sorted(visited)
    assert sorted(names_in(path.read_text().splitlines())) == sorted(visited)


def test_a_gateway_that_stops_does_not_wait_for_a_receiver_that_stands_still(
    gateway: Gateway, ports: Ports, tmp_path: Path, origin: int, port: int
) -> None:
    where = ports.take()
    uri = f"http://127.0.0.1:{where}/in"
    gateway.write_routes("a.yaml", logged(origin, "http-logger", uri=uri, timeout=600, **PATIENT))

    with http_receiver(tmp_path, where) as receiver, gateway.running() as child:
        receiver.child.send_signal(signal.SIGSTOP)
        visit(port)
        ended(gateway, SESSIONS)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0
        receiver.child.send_signal(signal.SIGCONT)

    assert f"pending={SESSIONS}" in child.wait_for_line("records_dropped")


def test_a_file_is_rotated_without_a_signal_and_two_routes_share_it(
    gateway: Gateway, origin: int, ports: Ports, port: int
) -> None:
    path, other = gateway.directory / "a.log", ports.take()
    gateway.write_settings([f"127.0.0.1:{port}", f"127.0.0.1:{other}"])
    gateway.write_routes(
        "a.yaml",
        {**logged(origin, "file-logger", inactive_timeout=1), "server_port": port},
        {**logged(origin, "file-logger", id="b", batch_max_size=2, inactive_timeout=1), "server_port": other},
        plugin_metadata=[{"id": "file-logger", "path": "a.log"}],
    )

    def lines(name: str) -> list[str]:
        file = gateway.directory / name
        return file.read_text().splitlines() if file.exists() else []

    with gateway.running() as child:
        first = visit(port) | visit(other)
        child.wait_until(lambda: len(lines("a.log")) == 2 * SESSIONS, what="all lines")
        path.rename(gateway.directory / "a.log.1")
        second = visit(port)
        child.wait_until(lambda: len(lines("a.log")) == SESSIONS, what="all lines after the rotation")

    assert sorted(names_in(lines("a.log.1"))) == sorted(first)
    assert sorted(names_in(lines("a.log"))) == sorted(second)
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_only_what_failed_is_told(gateway: Gateway, ports: Ports, origin: int, port: int) -> None:
    other = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}", f"127.0.0.1:{other}"])
    failed = {"path": "failed.log", "match": [[["reason", "~=", "closed"]]], "inactive_timeout": 1}
    format_ = {"log_format": {"reason": "$reason"}}
    gateway.write_routes(
        "a.yaml",
        stream_route("a", origin, server_port=port, plugins={"file-logger": {**failed, **format_}}),
        stream_route("b", ports.take(), server_port=other, plugins={"file-logger": {**failed, **format_}}),
    )

    with gateway.running() as child:
        visit(port)
        with socket.create_connection(("127.0.0.1", other), TIMEOUT_S) as client:
            assert client.recv(10) == b""
        child.wait_until((gateway.directory / "failed.log").exists, what="a line")

    (line,) = (gateway.directory / "failed.log").read_text().splitlines()
    assert json.loads(line) == {"reason": "connect_failed", "route_id": "b"}
