"""When the Admin API answers, the change is live: whoever connects right after is routed by it."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.admin_api import admin_settings, api_client
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import named_origin, whom
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c")
WRITES = 1000


class Scene:
    """Three origins, a listener, and a client of the API."""

    def __init__(self, gateway: Gateway, ports: Ports, api: httpx.Client, port: int) -> None:
        self.gateway = gateway
        self.api = api
        self.port = port
        self.origins = {name: ports.take() for name in NAMES}

    def lead_to(self, name: str) -> httpx.Response:
        upstream = {"type": "roundrobin", "nodes": {f"127.0.0.1:{self.origins[name]}": 1}}
        return self.api.put("/stream_routes/main", json={"upstream": upstream})


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    port, admin_port = ports.take(), ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], deployment=admin_settings(admin_port))
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(api_client(admin_port))
        scene = Scene(gateway, ports, api, port)
        for name, origin_port in scene.origins.items():
            stack.enter_context(named_origin(tmp_path, origin_port, name))
        stack.enter_context(gateway.running())
        yield scene


def test_a_thousand_writes_are_each_live_when_they_are_answered(scene: Scene) -> None:
    for number in range(WRITES):
        name = NAMES[number % len(NAMES)]

        assert scene.lead_to(name).status_code == (200 if number else 201)

        assert whom(scene.port) == name, f"after write {number}"

    status = scene.gateway.status()
    assert (status["config"]["state"], status["config"]["rejected"]) == ("applied", 0)


def test_among_a_thousand_routes_too(scene: Scene) -> None:
    for number in range(1000):
        route = stream_route(f"r{number}", 1, remote_addr=f"192.0.{number // 256}.{number % 256}")
        scene.gateway.write_routes(f"r{number}.yaml", route)
    assert scene.lead_to("a").status_code == 201

    took_ms = []
    for number in range(60):
        name = NAMES[number % len(NAMES)]
        began = time.perf_counter()
        assert scene.lead_to(name).status_code == 200
        took_ms.append((time.perf_counter() - began) * 1000)
        assert whom(scene.port) == name
    # Not asserted: medians of 21 to 32 ms were seen on two cores. Files that were written within the last two
    # seconds are read again each time (the clock of the disk cannot tell), so the first ones do not count.
    sys.stdout.write(f"a PUT among 1,000 routes: median {statistics.median(took_ms[30:]):.1f} ms\n")

    assert scene.api.get("/stream_routes", params={"page": 1, "page_size": 10}).json()["total"] == 1001


def test_what_is_deleted_leads_nowhere_any_more(scene: Scene) -> None:
    scene.lead_to("a")
    assert whom(scene.port) == "a"

    assert scene.api.delete("/stream_routes/main").status_code == 200

    assert whom(scene.port) == ""


def test_a_file_and_the_api_are_one(scene: Scene) -> None:
    """What a person saves is what the API shows; what the API changes is what the person sees."""
    path = scene.gateway.routes / "mine.yaml"
    scene.gateway.write_routes("mine.yaml", stream_route("main", scene.origins["b"]))
    scene.gateway.wait_for_objects("main")
    shown = scene.api.get("/stream_routes/main")
    assert shown.json()["value"] == stream_route("main", scene.origins["b"])

    nodes = {f"127.0.0.1:{scene.origins['c']}": 1}
    changed = scene.api.patch(
        "/stream_routes/main/upstream/nodes", json=nodes, headers={"If-Match": shown.headers["etag"]}
    )

    assert changed.status_code == 200
    assert whom(scene.port) == "c"
    assert yaml.safe_load(path.read_text())["stream_routes"][0]["upstream"]["nodes"] == nodes
    assert scene.lead_to("a").status_code == 200
    stale = scene.api.delete("/stream_routes/main", headers={"If-Match": changed.headers["etag"]})
    assert stale.status_code == 412


def test_while_a_file_is_broken_nothing_is_written_and_everything_runs(scene: Scene) -> None:
    scene.lead_to("a")
    (scene.gateway.routes / "broken.yaml").write_text("stream_routes: [")

    answer = scene.lead_to("b")

    assert answer.status_code == 409
    assert "broken.yaml: line 1" in answer.json()["error_msg"]
    assert whom(scene.port) == "a"
    assert scene.api.get("/stream_routes").json()["total"] == 1
    (scene.gateway.routes / "broken.yaml").unlink()
    assert scene.lead_to("b").status_code == 200
    assert whom(scene.port) == "b"
