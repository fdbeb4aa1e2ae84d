"""What becomes of standard error is its reader's business: it costs lines of the application log, and no session."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.descriptors import is_ready
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import Visitor, named_origin, whom
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

_MORE_THAN_A_PIPE_HOLDS = 500
"""Failed sessions: each has its line."""


@attrs.frozen
class Scene:
    """A listener with a route to an origin that echoes, and one without a route: its clients fail."""

    gateway: Gateway
    port: int
    origin: int
    no_route: int

    def write_settings(self, workers: int) -> None:
        """Of that many workers."""
        listeners = [f"127.0.0.1:{self.port}", f"127.0.0.1:{self.no_route}"]
        log = {"path": str(self.gateway.access_log)}
        self.gateway.write_settings(
            listeners,
            streamgw={"workers": workers, "access_log": log, "log": {"format": "json"}},
        )

    def write_routes(self, *ids: str) -> None:
        """All of them the same."""
        routes = [stream_route(id_, self.origin, server_port=self.port) for id_ in ids]
        self.gateway.write_routes("routes.yaml", *routes)


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(gateway, ports.take(), ports.take(), ports.take())
    scene.write_routes("1")
    with named_origin(tmp_path, scene.origin, "alpha"):
        yield scene


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("trouble", ["a reader that has gone", "a full disk"])
def test_a_log_that_cannot_be_written_costs_no_session(scene: Scene, trouble: str, workers: int) -> None:
    """Users noticed: with the `tee` behind it the gateway ended, at the next client that failed, and every session with it."""
    scene.write_settings(workers)
    reader, writer = os.pipe()
    if trouble == "a full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    with scene.gateway.running(stderr=writer) as child, Visitor(scene.port) as visitor:
        os.close(writer)
        assert visitor.greeting() == "alpha"
        os.close(reader)

        assert whom(scene.no_route) == ""
        scene.write_routes("1", "2")
        scene.gateway.wait_for_objects("1", "2")

        assert visitor.echo("still there?") == "still there?"
        visitor.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0


def test_a_log_that_nobody_reads_holds_up_no_session(scene: Scene) -> None:
    """Users noticed: after some hundreds of clients that failed nothing went on, not even its end."""
    scene.write_settings(1)
    reader, writer = os.pipe()
    with scene.gateway.running(stderr=writer) as child, Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        for _ in range(_MORE_THAN_A_PIPE_HOLDS):
            assert whom(scene.no_route) == ""

        assert not is_ready(writer, select.POLLOUT), "it has room"
        os.close(writer)
        assert visitor.echo("still there?") == "still there?"
        visitor.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0
    with os.fdopen(reader) as log:
        assert all(json.loads(line)["timestamp"] for line in log)


def test_a_refusal_to_start_has_its_exit_code_without_a_reader(scene: Scene) -> None:
    scene.write_settings(1)
    scene.gateway.config.write_text("apisix:\n  stream_proxi:\n    tcp: [9100]\n")
    reader, writer = os.pipe()
    os.close(reader)

    with scene.gateway.running(wait=False, stderr=writer) as child:
        os.close(writer)

        assert child.wait() == 78
