"""Every way to write a listener accepts connections, and says under which address."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.origin import TIMEOUT_S, Visitor, named_origin, whom
from tests.support.ports import Ports

pytestmark = pytest.mark.slow


@attrs.frozen
class Scene:
    """A route for everybody, to an origin."""

    gateway: Gateway
    ports: Ports


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    origin = ports.take()
    gateway.write_routes("route.yaml", stream_route("1", origin))
    with named_origin(tmp_path, origin, "alpha"):
        yield Scene(gateway, ports)


def test_a_bare_port_is_every_address_of_both_families(scene: Scene) -> None:
    port = scene.ports.take()
    scene.gateway.write_settings([port])

    with scene.gateway.running():
        assert [whom(port, host) for host in ("127.0.0.1", "127.0.0.77", "::1")] == ["alpha"] * 3
        assert _names(scene.gateway) == [f"tcp *:{port}"]


def test_an_ipv4_client_of_a_bare_port_matches_ipv4_routes(scene: Scene) -> None:
    """The socket is IPv6 underneath, and shows such a client as ::ffff:127.0.0.1."""
    port, upstream = scene.ports.take(), scene.ports.take()
    scene.gateway.write_settings([str(port)])
    scene.gateway.write_routes(
        "route.yaml", stream_route("1", upstream, remote_addr="127.0.0.0/8", server_addr="127.0.0.1")
    )

    with scene.gateway.running():
        whom(port)
        line = scene.gateway.wait_for_access_line(lambda line: bool(line["route"]), what="a route")
        assert line["client"].startswith("127.0.0.1:")
        assert line["server"] == f"127.0.0.1:{port}"


def test_an_address_accepts_there_and_nowhere_else(scene: Scene) -> None:
    port = scene.ports.take("127.0.0.10")
    scene.gateway.write_settings([f"127.0.0.10:{port}"])

    with scene.gateway.running():
        assert whom(port, "127.0.0.10") == "alpha"
        with pytest.raises(ConnectionRefusedError):
            whom(port, "127.0.0.1")


def test_an_ipv6_address_stands_in_brackets(scene: Scene) -> None:
    port = scene.ports.take("::1")
    scene.gateway.write_settings([{"addr": f"[::1]:{port}"}])

    with scene.gateway.running():
        assert whom(port, "::1") == "alpha"
        assert _names(scene.gateway) == [f"tcp [::1]:{port}"]


def test_a_range_is_a_listener_for_each_port(scene: Scene) -> None:
    first = scene.ports.take_row(3)
    scene.gateway.write_settings([f"127.0.0.1:{first}-{first + 2}"])

    with scene.gateway.running():
        assert [whom(port) for port in range(first, first + 3)] == ["alpha"] * 3
        assert len(_names(scene.gateway)) == 3


def test_a_unix_socket_serves_local_programs(scene: Scene, tmp_path: Path) -> None:
    # A path may have 107 bytes at most.
    path = tmp_path / "in.sock"
    scene.gateway.write_settings([f"unix:{path}"])

    with scene.gateway.running(), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(str(path))
        assert client.recv(16) == b"alpha\n"
        client.sendall(b"hello")
        assert client.recv(16) == b"hello"

    assert not path.exists(), "removed with the listener"


def test_a_session_limit_of_one_listener_makes_the_rest_wait(scene: Scene) -> None:
    port = scene.ports.take()
    scene.gateway.write_settings([{"addr": f"127.0.0.1:{port}", "max_sessions": 1}])

    with scene.gateway.running(), Visitor(port) as first, Visitor(port) as second:
        assert first.greeting() == "alpha"
        assert [item["accepted"] for item in scene.gateway.status()["listeners"]] == [1]

        first.close()

        assert second.greeting() == "alpha", "it waited in the kernel's queue"


def _names(gateway: Gateway) -> list[str]:
    return [item["name"] for item in gateway.status()["listeners"]]
