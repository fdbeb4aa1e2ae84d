"""PROXY protocol with the programs that others have in front of and behind a gateway: HAProxy and nginx."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import attrs
import pytest

from tests.support.child import find_program, run
from tests.support.gateway import Gateway
from tests.support.ports import Ports
from tests.support.servers import haproxy, nginx

pytestmark = [pytest.mark.slow, pytest.mark.servers]

CLIENT = "127.0.0.9"
"""Whom the programs in front name: an address that only the real client has."""

_NGINX_SAYS_WHO = """\
http {{
  access_log off;
  server {{ listen 127.0.0.1:{port} proxy_protocol; return 200 "$proxy_protocol_addr"; }}
}}
"""

_HAPROXY_SAYS_WHO = """\
frontend says_who
    mode http
    bind 127.0.0.1:{port} accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[src]"
"""

_HAPROXY_IN_FRONT = """\
listen v1
    bind 127.0.0.1:{v1}
    server streamgw 127.0.0.1:{gateway} send-proxy
listen v2
    bind 127.0.0.1:{v2}
    server streamgw 127.0.0.1:{gateway} send-proxy-v2
"""

_NGINX_IN_FRONT = """\
stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{gateway}; proxy_protocol on; }} }}
"""


@attrs.frozen
class Scene:
    """HAProxy in front (a port for each version), the gateway, and an upstream that answers with the client it sees."""

    gateway: Gateway
    port: int
    in_front: dict[str, int]
    says_who: dict[str, int]

    def write(self, upstream: str, send: str, *, trusted: str = "127.0.0.0/8", **match: str) -> None:
        """Configure the gateway: whom to ask, which version to send, whom to believe."""
        listener = {"addr": f"127.0.0.1:{self.port}", "proxy_protocol": True}
        self.gateway.write_settings([listener], nginx_config={"stream": {"real_ip_from": [trusted]}})
        nodes = {f"127.0.0.1:{self.says_who[upstream]}": 1}
        route = {"id": "1", **match, "upstream": {"nodes": nodes, "proxy_protocol": send}}
        self.gateway.write_routes("route.yaml", route)


@pytest.fixture(scope="module")
def in_front_port(ports: Ports) -> int:
    """Where the gateway of every test listens: HAProxy is started once, and leads here."""
    return ports.take()


@pytest.fixture(scope="module")
def programs(
    tmp_path_factory: pytest.TempPathFactory, ports: Ports, in_front_port: int
) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    in_front = {"v1": ports.take(), "v2": ports.take(), "nginx": ports.take()}
    says_who = {"nginx": ports.take(), "haproxy": ports.take()}
    front, back = tmp_path_factory.mktemp("front"), tmp_path_factory.mktemp("back")
    haproxy_front = _HAPROXY_IN_FRONT.format(gateway=in_front_port, v1=in_front["v1"], v2=in_front["v2"])
    nginx_front = _NGINX_IN_FRONT.format(gateway=in_front_port, port=in_front["nginx"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(haproxy(front, [in_front["v1"], in_front["v2"]], haproxy_front))
        stack.enter_context(nginx(front, [in_front["nginx"]], nginx_front))
        haproxy_back = _HAPROXY_SAYS_WHO.format(port=says_who["haproxy"])
        stack.enter_context(haproxy(back, [says_who["haproxy"]], haproxy_back))
        nginx_back = _NGINX_SAYS_WHO.format(port=says_who["nginx"])
        stack.enter_context(nginx(back, [says_who["nginx"]], nginx_back))
        yield in_front, says_who


@pytest.fixture
def scene(gateway: Gateway, in_front_port: int, programs: tuple[dict[str, int], dict[str, int]]) -> Scene:
    return Scene(gateway, in_front_port, *programs)


def _ask(port: int) -> str:
    """What the upstream at the end of the chain answers to a client at CLIENT."""
    curl = find_program("curl", package="curl")
    request = [curl, "--silent", "--show-error", "--max-time", "30", "--interface", CLIENT]
    return run([*request, f"http://127.0.0.1:{port}/"]).stdout.strip()


@pytest.mark.parametrize("upstream", ["nginx", "haproxy"])
@pytest.mark.parametrize("send", ["v1", "v2"])
@pytest.mark.parametrize("receive", ["v1", "v2", "nginx"])
def test_the_client_is_known_at_the_end_of_the_chain(
    scene: Scene, receive: str, send: str, upstream: str
) -> None:
    scene.write(upstream, send)

    with scene.gateway.running():
        assert _ask(scene.in_front[receive]) == CLIENT

        line = scene.gateway.wait_for_access_line(lambda line: line["reason"] == "closed", what="closed")
        assert line["client"].startswith(f"{CLIENT}:")
        assert line["peer"].startswith("127.0.0.1:"), "who really connected stays known"


def test_the_client_in_the_header_decides_the_route(scene: Scene) -> None:
    scene.write("nginx", "v1", remote_addr=CLIENT)

    with scene.gateway.running():
        assert _ask(scene.in_front["v2"]) == CLIENT


def test_a_header_from_a_peer_that_is_not_trusted_is_dropped(scene: Scene) -> None:
    scene.write("nginx", "v1", trusted="192.0.2.0/24")

    with scene.gateway.running():
        assert _ask(scene.in_front["v1"]) == "127.0.0.1", (
            "the upstream is told the peer, not what the peer claims"
        )


def test_a_client_without_a_header_is_closed_and_the_log_says_why(scene: Scene) -> None:
    scene.write("nginx", "v1")

    with scene.gateway.running():
        with contextlib.closing(socket.create_connection(("127.0.0.1", scene.port), timeout=10)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert _read_to_the_end(client) == b""

        line = scene.gateway.wait_for_access_line(
            lambda line: line["reason"] == "bad_preface", what="bad_preface"
        )
        assert line["fault"] == "client"


def _read_to_the_end(client: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(4096):
            found += chunk
    return found
