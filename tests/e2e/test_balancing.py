"""Sessions that stay, nodes that are full or away, edits meanwhile: with real connections and real servers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from tests.support.child import wait_until
from tests.support.gateway import Gateway
from tests.support.origin import Visitor, named_origin, whom
from tests.support.ports import Ports
from tests.support.servers import redis

pytestmark = pytest.mark.slow

PATIENCE_S = 20.0


@attrs.frozen
class Scene:
    """One listener, two origins."""

    gateway: Gateway
    port: int
    alpha: int
    beta: int

    def write_upstream(self, **fields: object) -> None:
        nodes = {f"127.0.0.1:{self.alpha}": 1, f"127.0.0.1:{self.beta}": 1}
        self.gateway.write_routes("route.yaml", {"id": "1", "upstream": {"nodes": nodes, **fields}})

    def visit(self, stack: contextlib.ExitStack) -> tuple[str, Visitor]:
        """A client that stays."""
        visitor = stack.enter_context(Visitor(self.port))
        return visitor.greeting(), visitor


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(gateway, ports.take(), ports.take(), ports.take())
    gateway.write_settings([f"127.0.0.1:{scene.port}"])
    with named_origin(tmp_path, scene.alpha, "alpha"), named_origin(tmp_path, scene.beta, "beta"):
        yield scene


def test_sessions_count_where_they_are_also_after_an_edit(scene: Scene) -> None:
    scene.write_upstream(type="least_conn")

    with scene.gateway.running(), contextlib.ExitStack() as stack:
        visits = [scene.visit(stack) for _ in range(8)]
        assert Counter(name for name, _ in visits) == {"alpha": 4, "beta": 4}
        for name, visitor in visits:
            if name == "alpha":
                visitor.close()
        scene.gateway.wait_for_status(lambda status: status["sessions"]["active"] == 4, what="four are left")

        before = scene.gateway.status()["config"]["revision"]
        scene.write_upstream(type="least_conn", name="edited")
        scene.gateway.wait_for_status(lambda status: status["config"]["revision"] != before, what="the edit")

        again = [scene.visit(stack)[0] for _ in range(4)]

    assert again == ["alpha"] * 4


@pytest.mark.parametrize("slow", ["alpha", "beta"])
def test_of_two_nodes_that_connect_alike_the_one_that_answers_slowly_gets_few_sessions(
    gateway: Gateway, ports: Ports, tmp_path: Path, slow: str
) -> None:
    scene = Scene(gateway, ports.take(), ports.take(), ports.take())
    gateway.write_settings([f"127.0.0.1:{scene.port}"])
    scene.write_upstream(type="ewma")

    with (
        named_origin(tmp_path, scene.alpha, "alpha", thinks_s=0.5 if slow == "alpha" else 0),
        named_origin(tmp_path, scene.beta, "beta", thinks_s=0.5 if slow == "beta" else 0),
        scene.gateway.running(),
    ):
        visits = Counter(whom(scene.port) for _ in range(30))

    assert 1 <= visits[slow] <= 5, "it was tried"
    assert visits.total() == visits["alpha"] + visits["beta"] == 30, "everybody was served"


def test_a_client_of_a_full_upstream_is_served_when_another_leaves(scene: Scene) -> None:
    scene.write_upstream(streamgw={"max_conns": 1, "queue_timeout": "20s"})

    with scene.gateway.running(), contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as threads:
        visits = dict(scene.visit(stack) for _ in range(2))
        assert set(visits) == {"alpha", "beta"}

        waiting = threads.submit(whom, scene.port)
        scene.gateway.wait_for_status(lambda status: status["sessions"]["active"] == 3, what="a third client")
        assert not waiting.done()
        visits["beta"].close()

        assert waiting.result(timeout=20) == "beta"


def test_a_client_that_waits_too_long_is_closed_and_the_log_says_why(scene: Scene) -> None:
    scene.write_upstream(streamgw={"max_conns": 1, "queue_timeout": "200ms"})

    with scene.gateway.running(), contextlib.ExitStack() as stack:
        for _ in range(2):
            scene.visit(stack)

        assert whom(scene.port) == ""

        line = scene.gateway.wait_for_access_line(lambda line: line["reason"] == "no_node", what="no_node")
        words, _, waited = line["detail"].removesuffix(" s").rpartition(" ")
        assert words == "every node of stream_routes/1/upstream has its 1 sessions, for"
        assert 0.2 <= float(waited) < PATIENCE_S


@pytest.mark.servers
def test_three_seconds_without_any_node_cost_no_client_an_error(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    """Redis is killed under load, and started again: clients that come meanwhile are late, and served."""
    port, node = ports.take(), ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"])
    upstream = {"nodes": {f"127.0.0.1:{node}": 1}, "streamgw": {"wait_for_node": "60s"}}
    gateway.write_routes("redis.yaml", {"id": "redis", "upstream": upstream})
    answers: list[str] = []
    over = threading.Event()

    def ping() -> None:
        while not over.is_set():
            answers.append(_ask_redis(port))

    with gateway.running(), ThreadPoolExecutor(4) as threads, contextlib.ExitStack() as stack:
        stack.callback(over.set)
        with redis(tmp_path, node) as server:
            pings = [threads.submit(ping) for _ in range(4)]
            wait_until(lambda: len(answers) > 100 or None, what="some answers")
            server.child.kill()
        killed_at, seen = time.monotonic(), len(answers)
        wait_until(lambda: time.monotonic() - killed_at > 3 or None, what="three seconds without a node")
        with redis(tmp_path, node):
            wait_until(lambda: len(answers) > seen + 100 or None, what="answers again")
            over.set()
            for each in pings:
                each.result(timeout=60)

    refused = [line for line in gateway.access_lines() if line["reason"] in {"connect_failed", "no_node"}]
    assert refused == []
    late = [line for line in gateway.access_lines() if line.get("attempts")]
    assert late, "somebody waited"
    assert Counter(answers).keys() <= {"+PONG", ""}
    assert answers.count("") <= 4, "the sessions that were live when it was killed"


def _ask_redis(port: int) -> str:
    """PING over a connection of its own; empty if that was cut."""
    with (
        contextlib.suppress(
            ConnectionError
        ),  # also while it connects: a reset may come before that has returned
        socket.create_connection(("127.0.0.1", port), timeout=60) as client,
    ):
        client.sendall(b"PING\r\n")
        return client.recv(64).decode().strip()
    return ""
