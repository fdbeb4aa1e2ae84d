"""What a busy gateway tells those who watch it: metrics, the live feed, `streamgw top`. The figures fit what was done."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from trio_websocket import open_websocket

from tests.support.admin_api import KEY, admin_settings, api_client, to
from tests.support.child import find_program, run, wait_until
from tests.support.gateway import Gateway, write_atomically
from tests.support.origin import Visitor, named_origin, whom
from tests.support.ports import Ports

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@attrs.frozen
class Scene:
    """A gateway with a route to an origin, and everything that watches it."""

    gateway: Gateway
    admin: int
    port: int
    origin: int
    api: httpx.Client
    """Below `/streamgw/v1`."""

    def lead_to(self, port: int) -> None:
        with api_client(self.admin) as api:
            assert api.put("/stream_routes/main", json=to(port, plugins={"prometheus": {}})).is_success

    def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.gateway.metrics_port}/apisix/prometheus/metrics"
        answer = httpx.get(url, trust_env=False, timeout=30)
        assert answer.status_code == 200
        return answer.text

    def figure(self, name: str, *labels: str) -> float:
        """The sum of the samples of one name that have these labels."""
        found = _SAMPLE.findall(self.metrics())
        return sum(
            float(value) for each, has, value in found if each == name and all(one in has for one in labels)
        )

    def wait_until_idle(self) -> None:
        wait_until(lambda: not self.api.get("/sessions").json()["total"], what="no session lives")


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    admin, port, origin = ports.take(), ports.take(), ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], deployment=admin_settings(admin))
    with (
        named_origin(tmp_path, origin, "alpha"),
        gateway.running() as child,
        api_client(admin, prefix="/streamgw/v1") as api,
    ):
        scene = Scene(gateway, admin, port, origin, api)
        scene.lead_to(origin)
        yield scene
        assert "admin_bug" not in child.output()


def make_busy(scene: Scene) -> None:
    """12 sessions that end well, one that is killed, three that find nobody, and a reload that is refused."""
    for _ in range(12):
        assert whom(scene.port) == "alpha"
    with Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"
        (session,) = wait_until(lambda: scene.api.get("/sessions").json()["sessions"], what="one session")[
            -1:
        ]
        assert scene.api.delete(f"/sessions/{session['id']}").status_code == 200
        assert visitor.is_over()
    scene.lead_to(1)
    for _ in range(3):
        assert whom(scene.port) == ""
    (scene.gateway.routes / "broken.yaml").write_text("stream_routes: [")
    scene.gateway.wait_for_status(lambda status: status["config"]["state"] == "rejected", what="rejected")
    scene.wait_until_idle()


def test_promtool_has_nothing_to_say_about_a_busy_gateway(scene: Scene) -> None:
    make_busy(scene)
    with Visitor(scene.port):
        text = scene.metrics()
    promtool = find_program("promtool", package="prometheus")

    done = run([promtool, "check", "metrics"], stdin=text.encode())

    assert (done.stdout, done.stderr) == ("", "")


def test_the_metrics_count_what_was_done(scene: Scene) -> None:
    make_busy(scene)

    assert scene.figure("apisix_stream_connection_total", 'route="main"') == 16
    assert scene.figure("streamgw_sessions_total", 'reason="killed"') == 1
    assert scene.figure("apisix_stream_status", 'code="502"') == 3
    assert scene.figure("apisix_stream_active_connections") == 0
    # Each hears `alpha` and a line's end.
    assert scene.figure("apisix_stream_bandwidth", 'type="egress"', 'side="downstream"') == 13 * len(
        "alpha\n"
    )


def test_a_scrape_does_not_wait_for_slow_ones(scene: Scene) -> None:
    request = b"GET /apisix/prometheus/metrics HTTP/1.1\r\nHost: localhost\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            visitor = stack.enter_context(Visitor(scene.gateway.metrics_port))
            visitor._socket.sendall(request)

        assert "apisix_stream_active_connections" in scene.metrics()


class Events:
    """What comes over the live feed."""

    def __init__(self, get_message: Any) -> None:
        self._get_message = get_message

    async def next(self, kind: str) -> Mapping[str, Any]:
        """The next event, which has to be of this kind."""
        with trio.fail_after(60):
            event: Mapping[str, Any] = json.loads(await self._get_message())
        assert event["kind"] == kind, event
        return event

    async def all(self, *kinds: str) -> Sequence[Mapping[str, Any]]:
        """So many events, of these kinds in this order."""
        return [await self.next(kind) for kind in kinds]


@contextlib.asynccontextmanager
async def listening(scene: Scene, query: str = "") -> AsyncIterator[Events]:
    target = f"/streamgw/v1/events?api_key={KEY}{query}"
    async with open_websocket("127.0.0.1", scene.admin, target, use_ssl=False) as client:
        try:
            yield Events(client.get_message)
        finally:
            await client.aclose()


async def test_the_feed_tells_a_session_from_its_start_to_its_kill(scene: Scene) -> None:
    async with listening(scene, "&kinds=session_opened,session_closed") as events:
        with Visitor(scene.port) as visitor:
            assert await trio.to_thread.run_sync(visitor.greeting) == "alpha"
            opened = await events.next("session_opened")
            answer = await trio.to_thread.run_sync(scene.api.delete, f"/sessions/{opened['id']}")
            closed = await events.next("session_closed")

    assert answer.json() == {"killed": opened["id"]}
    assert (opened["route"], closed["id"], closed["reason"]) == ("main", opened["id"], "killed")
    assert closed["at"] >= opened["at"]


async def test_the_feed_tells_of_reloads_while_sessions_come_and_go(scene: Scene) -> None:
    broken = scene.gateway.routes / "broken.yaml"
    async with listening(scene, "&kinds=reload") as events, trio.open_nursery() as nursery:
        nursery.start_soon(_come_and_go, scene)
        revisions = []
        for port in (scene.origin, 1, scene.origin):
            await trio.to_thread.run_sync(scene.lead_to, port)
        for _ in range(2):  # the first of the three changes nothing
            event = await events.next("reload")
            assert (event["what"], event["state"], event["routes"]) == ("routes", "applied", 1)
            revisions.append(event["revision"])
        assert len(set(revisions)) == 2

        write_atomically(broken, "stream_routes: [")
        rejected = await events.next("reload")
        assert rejected["state"] == "rejected"
        assert "broken.yaml:1" in rejected["problems"][0]
        assert rejected["revision"] == revisions[-1]
        broken.unlink()
        mended = await events.next("reload")
        assert (mended["state"], mended["revision"]) == ("applied", revisions[-1])
        nursery.cancel_scope.cancel()


async def _come_and_go(scene: Scene) -> None:
    while True:
        await trio.to_thread.run_sync(whom, scene.port)


async def test_everybody_who_listens_hears_the_same(scene: Scene) -> None:
    query = "&kinds=session_closed"
    async with (
        listening(scene, query) as one,
        listening(scene, query) as other,
        listening(scene, f"{query}&route=no"),
    ):
        for _ in range(20):
            assert await trio.to_thread.run_sync(whom, scene.port) == "alpha"
        kinds = ["session_closed"] * 20

        heard = [[event["id"] for event in await events.all(*kinds)] for events in (one, other)]

    assert heard[0] == heard[1]
    assert len(set(heard[0])) == 20


@pytest.mark.parametrize(("key", "status"), [("", 401), ("wrong", 401), (KEY, 101)])
def test_the_feed_asks_for_the_key(key: str, status: int, scene: Scene) -> None:
    lines = [
        f"GET /streamgw/v1/events?api_key={key} HTTP/1.1",
        *("Host: localhost", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
        *("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""),
    ]
    with Visitor(scene.admin) as visitor:
        visitor._socket.sendall("\r\n".join(lines).encode())

        assert int(visitor.greeting().split()[1]) == status


def test_top_shows_the_sessions_and_how_the_last_ones_ended(scene: Scene) -> None:
    with Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        printed = scene.gateway.cli("top", "--once", "-d", "0.5")

    assert "1 of 1 session" in printed
    assert "main" in printed
    assert f"127.0.0.1:{scene.origin}" in printed
