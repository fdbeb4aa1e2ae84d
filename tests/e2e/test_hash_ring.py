"""The same keys find the same nodes as behind nginx: Debian's own, asked over real connections."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections import Counter
from collections.abc import Iterator, Sequence

import attrs
import pytest

from streamgw.core.model import Address, Node
from streamgw.core.ring import Ring
from tests.support.gateway import Gateway
from tests.support.ports import Ports
from tests.support.servers import nginx

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_KEYS = 1000
_WEIGHTS = {"even": (1, 1, 1, 1), "weighted": (1, 2, 5, 3), "one dead": (2, 1, 1, 1), "two nodes": (3, 7)}
_DEAD = "one dead"
"""Its first node refuses."""

_CONFIG = """\
stream {{
  {nodes}
  {fronts}
}}
"""
_NODE = "server {{ listen {node}; return {node}; }}"
_FRONT = """\
  upstream u{port} {{ hash $proxy_protocol_addr consistent; {servers} }}
  server {{ listen 127.0.0.1:{port} proxy_protocol; proxy_pass u{port}; }}
"""


@attrs.frozen
class Scene:
    """nginx with one listener for each set of nodes, and the nodes, each of which answers with its own address."""

    fronts: dict[str, int]
    nodes: dict[str, list[Node]]
    dead: int


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, ports: Ports) -> Iterator[Scene]:
    hosts = ["127.0.0.1", "127.0.0.2", "::1", "127.0.0.1"]
    alive, dead = [Address(host, ports.take()) for host in hosts], ports.take()
    fronts = {name: ports.take() for name in _WEIGHTS}
    nodes = {
        name: [Node(place.host, place.port, weight) for place, weight in zip(alive, weights, strict=False)]
        for name, weights in _WEIGHTS.items()
    }
    nodes[_DEAD][0] = attrs.evolve(nodes[_DEAD][0], port=dead)
    config = _CONFIG.format(
        nodes="\n  ".join(_NODE.format(node=place) for place in alive),
        fronts="".join(
            _FRONT.format(port=port, servers=" ".join(_server(node) for node in nodes[name]))
            for name, port in fronts.items()
        ),
    )
    with nginx(tmp_path_factory.mktemp("ring"), list(fronts.values()), config):
        yield Scene(fronts, nodes, dead)


def _server(node: Node) -> str:
    return f"server {_place(node)} weight={node.weight} max_fails=0;"


def _place(node: Node) -> str:
    return str(Address(node.host, node.port))


def _ask(port: int, key: str) -> str:
    """Which node a client with this address gets, according to whoever listens on `port`."""
    family = "TCP6" if ":" in key else "TCP4"
    here = "::1" if ":" in key else "127.0.0.1"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(f"PROXY {family} {key} {here} 40000 {port}\r\n".encode())
        with client.makefile("rb") as answer:
            return answer.read().decode()


def _keys(seed: int) -> Sequence[str]:
    """Half of them IPv4, half IPv6, as they are written."""
    rng = random.Random(seed)
    four = [str(ipaddress.IPv4Address(rng.randrange(1 << 24, 1 << 31))) for _ in range(_KEYS // 2)]
    six = [str(ipaddress.IPv6Address(rng.randrange(1 << 112, 1 << 126))) for _ in range(_KEYS // 2)]
    return four + six


@pytest.mark.parametrize("name", _WEIGHTS)
def test_a_key_finds_the_node_that_nginx_finds(scene: Scene, name: str, seed: int) -> None:
    """A node that refuses is followed by the same one as in nginx, too."""
    ring = Ring(scene.nodes[name])
    seen: Counter[str] = Counter()

    for key in _keys(seed):
        ours = next(node for node in ring.walk(key) if node.port != scene.dead)
        assert _ask(scene.fronts[name], key) == _place(ours), key
        seen[_place(ours)] += 1

    assert len(seen) == len(scene.nodes[name]) - (name == _DEAD), "every node was somebody's"


def test_a_client_gets_the_same_node_from_the_gateway_as_from_nginx(
    scene: Scene, gateway: Gateway, ports: Ports, seed: int
) -> None:
    port = ports.take()
    listener = {"addr": f"127.0.0.1:{port}", "proxy_protocol": True}
    gateway.write_settings([listener], nginx_config={"stream": {"real_ip_from": ["127.0.0.0/8"]}})
    nodes = {_place(node): node.weight for node in scene.nodes["weighted"]}
    upstream = {"type": "chash", "key": "remote_addr", "nodes": nodes}
    gateway.write_routes("route.yaml", {"id": "1", "upstream": upstream})

    with gateway.running():
        differing = [key for key in _keys(seed) if _ask(port, key) != _ask(scene.fronts["weighted"], key)]

    assert differing == []
