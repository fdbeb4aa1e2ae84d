"""Where a connection goes when nodes are weighted, down, or known by name."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.gateway import Gateway
from tests.support.origin import named_origin, whom
from tests.support.ports import Ports

pytestmark = pytest.mark.slow


@attrs.frozen
class Scene:
    """One listener, two origins, and a port where nobody listens."""

    gateway: Gateway
    port: int
    alpha: int
    beta: int
    dead: int

    def write_upstream(self, nodes: object, **fields: object) -> None:
        upstream = {"type": "roundrobin", "nodes": nodes, **fields}
        self.gateway.write_routes("route.yaml", {"id": "1", "upstream": upstream})


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(gateway, ports.take(), ports.take(), ports.take(), ports.take())
    gateway.write_settings([f"127.0.0.1:{scene.port}"])
    with named_origin(tmp_path, scene.alpha, "alpha"), named_origin(tmp_path, scene.beta, "beta"):
        yield scene


def test_weights_are_exact_over_a_cycle(scene: Scene) -> None:
    scene.write_upstream({f"127.0.0.1:{scene.alpha}": 3, f"127.0.0.1:{scene.beta}": 1})

    with scene.gateway.running():
        answers = collections.Counter(whom(scene.port) for _ in range(12))

    assert answers == {"alpha": 9, "beta": 3}


def test_a_node_that_is_down_costs_the_client_nothing(scene: Scene) -> None:
    scene.write_upstream({f"127.0.0.1:{scene.dead}": 1, f"127.0.0.1:{scene.alpha}": 1})

    with scene.gateway.running():
        assert [whom(scene.port) for _ in range(4)] == ["alpha"] * 4

        # Every other session met the dead node first; its line says so.
        line = scene.gateway.wait_for_access_line(lambda line: "attempts" in line, what="a failed attempt")
        failed = line["attempts"][0]
        assert failed["node"] == f"127.0.0.1:{scene.dead}"
        assert "refused" in failed["error"]
        assert (line["node"], line["reason"]) == (f"127.0.0.1:{scene.alpha}", "closed")


def test_a_backup_serves_only_while_the_preferred_nodes_are_down(scene: Scene, tmp_path: Path) -> None:
    scene.write_upstream(
        [
            {"host": "127.0.0.1", "port": scene.dead, "weight": 1, "priority": 1},
            {"host": "127.0.0.1", "port": scene.beta, "weight": 1, "priority": 0},
        ]
    )

    with scene.gateway.running():
        assert whom(scene.port) == "beta"
        with named_origin(tmp_path, scene.dead, "back again"):
            assert whom(scene.port) == "back again"
        assert whom(scene.port) == "beta"


def test_when_every_node_is_down_the_client_is_closed_and_the_log_has_every_attempt(scene: Scene) -> None:
    nodes = {f"127.0.0.1:{scene.dead}": 1, f"127.0.0.2:{scene.dead}": 1}
    scene.write_upstream(nodes)

    with scene.gateway.running():
        assert whom(scene.port) == ""

        line = scene.gateway.wait_for_access_line(
            lambda line: line["reason"] == "connect_failed", what="connect_failed"
        )
        assert {attempt["node"] for attempt in line["attempts"]} == set(nodes)
        assert (line["fault"], line["bytes_up"], line["bytes_down"]) == ("upstream", 0, 0)


def test_a_node_known_by_name_is_connected_to(scene: Scene) -> None:
    scene.write_upstream({f"localhost:{scene.alpha}": 1})

    with scene.gateway.running():
        assert whom(scene.port) == "alpha"


def test_a_name_that_nobody_knows_closes_the_client_and_says_so(scene: Scene) -> None:
    # Nobody answers there: the test asks no name server but its own.
    resolver = {"dns_resolver": [f"127.0.0.1:{scene.dead}"], "resolver_timeout": 1}
    scene.gateway.write_settings([f"127.0.0.1:{scene.port}"], apisix=resolver)
    scene.write_upstream({f"no-such-host.invalid:{scene.alpha}": 1})

    with scene.gateway.running() as child:
        assert whom(scene.port) == ""

        line = scene.gateway.wait_for_access_line(lambda line: line["reason"] == "no_node", what="no_node")
        assert line["fault"] == "upstream"
        assert "no-such-host.invalid" in child.output()
