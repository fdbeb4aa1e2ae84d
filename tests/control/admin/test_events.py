"""The live feed over a real WebSocket, with trio-websocket as the client."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket

from streamgw.control.admin.app import build_app, serve_admin
from streamgw.control.admin.connections import Bounds
from streamgw.control.admin.events import EventServer
from streamgw.control.admin.feed import MAX_QUEUED
from streamgw.core.model import Address
from tests.support.control_fleet import ControlFleet
from tests.support.http import Reply, exchange, get

HANDSHAKE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@attrs.frozen
class Scene:
    fleet: ControlFleet
    address: Address

    @asynccontextmanager
    async def listen(self, query: str = "") -> AsyncIterator[WebSocketConnection]:
        target = f"/streamgw/v1/events{query}"
        async with open_websocket(self.address.host, self.address.port, target, use_ssl=False) as client:
            assert len(self.fleet.hub), "whoever is let in hears what happens from then on"
            try:
                yield client
            finally:
                # trio-websocket leaves it to the server to close; a server that cut it off has done so by RST.
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(client._stream)

    async def knock(self, query: str = "") -> Reply:
        """Try to listen, and read what the refusal says."""
        lines = [f"GET /streamgw/v1/events{query} HTTP/1.1", "Host: a", *HANDSHAKE, "", ""]
        return await exchange(self.address, "\r\n".join(lines).encode())

    async def is_quiet(self) -> None:
        """Until nobody listens any more."""
        with trio.fail_after(30):
            while len(self.fleet.hub):
                await trio.sleep(0.005)


@asynccontextmanager
async def feed(
    *, max_clients: int = 32, ping_s: float = 60, bounds: Bounds | None = None
) -> AsyncIterator[Scene]:
    fleet = ControlFleet()
    server = EventServer(fleet, max_clients=max_clients, ping_s=ping_s)
    app = build_app([*server.routes("/streamgw/v1/events")], as_apisix=True)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(
            lambda task_status: serve_admin(
                app, Address("127.0.0.1", 0), bounds=bounds or Bounds(), task_status=task_status
            )
        )
        yield Scene(fleet, address)
        nursery.cancel_scope.cancel()


async def heard(client: WebSocketConnection) -> dict[str, Any]:
    with trio.fail_after(30):
        said: dict[str, Any] = json.loads(await client.get_message())
        return said


async def test_each_event_is_one_object() -> None:
    async with feed() as scene, scene.listen() as client:
        scene.fleet.hub.publish("session_opened", {"id": "1", "route": "mysql"})
        problem = os.fsdecode(b"\xe9t\xe9.yaml") + ": …"
        scene.fleet.hub.publish("reload", {"what": "routes", "state": "rejected", "problems": [problem]})

        assert await heard(client) == {"kind": "session_opened", "at": 5.0, "id": "1", "route": "mysql"}
        assert (await heard(client))["problems"] == [problem], "a name may be anything"


async def test_only_what_is_asked_for_is_sent() -> None:
    async with feed() as scene, scene.listen("?kinds=session_closed,health&route=mysql") as client:
        scene.fleet.hub.publish("reload", {})
        scene.fleet.hub.publish("session_closed", {"id": "1", "route": "redis"})
        scene.fleet.hub.publish("session_closed", {"id": "2", "route": "mysql"})

        assert (await heard(client))["id"] == "2"


async def test_whoever_leaves_is_forgotten() -> None:
    async with feed() as scene:
        async with scene.listen() as polite, scene.listen() as rude:
            assert len(scene.fleet.hub) == 2
            await polite.aclose()
            await rude._stream.aclose()  # without a word

            await scene.is_quiet()

        assert scene.fleet.hub.wanted == frozenset()


async def test_what_the_client_says_does_not_matter() -> None:
    async with feed() as scene, scene.listen() as client:
        await client.send_message("hello?")
        await client.send_message(b"\x00" * 100)
        scene.fleet.hub.publish("reload", {"what": "routes"})

        assert (await heard(client))["what"] == "routes"


async def test_who_says_too_much_is_shown_the_door() -> None:
    async with feed() as scene, scene.listen() as client:
        await client.send_message("x" * 10_000)

        with pytest.raises(ConnectionClosed), trio.fail_after(30):
            await client.get_message()
        await scene.is_quiet()


@pytest.mark.parametrize(
    ("query", "why"),
    [("?kinds=session_opened,nonsense", "unknown kind 'nonsense'"), ("?kinds=lost", "unknown kind 'lost'")],
)
async def test_an_unknown_kind_is_refused(query: str, why: str) -> None:
    async with feed() as scene:
        reply = await scene.knock(query)

    assert reply.status == 400
    assert why in reply.json()["error_msg"]


async def test_one_client_too_many_is_refused_and_may_come_when_another_has_gone() -> None:
    async with feed(max_clients=1) as scene:
        async with scene.listen():
            refused = await scene.knock()
        assert refused.status == 503
        assert "streamgw.admin.max_event_clients" in refused.json()["error_msg"]

        await scene.is_quiet()
        async with scene.listen() as client:
            scene.fleet.hub.publish("health", {"node": "a"})
            assert (await heard(client))["node"] == "a"


async def test_silence_is_broken_now_and_then() -> None:
    async with feed(ping_s=0.05) as scene, scene.listen("?kinds=health") as client:
        assert await heard(client) == {"kind": "ping"}
        assert await heard(client) == {"kind": "ping"}


async def test_a_slow_client_is_told_how_much_it_missed_and_delays_nobody() -> None:
    async with feed() as scene, scene.listen("?kinds=session_closed") as slow:
        with trio.fail_after(10):
            while not scene.fleet.hub.lost:
                for _ in range(MAX_QUEUED // 4):
                    scene.fleet.hub.publish("session_closed", {"detail": "x" * 4000})
                await trio.lowlevel.checkpoint()
        lost_by_then = scene.fleet.hub.lost

        async with scene.listen() as quick:
            scene.fleet.hub.publish("reload", {"what": "routes"})
            assert (await heard(quick))["what"] == "routes"

        count = 0
        while True:
            said = await heard(slow)
            if said["kind"] == "lost":
                count = said["count"]
                break
        assert count == lost_by_then


async def test_who_never_reads_is_cut_off_and_forgotten() -> None:
    async with feed(bounds=Bounds(stall_timeout_s=0.2)) as scene:
        request = "\r\n".join(["GET /streamgw/v1/events HTTP/1.1", "Host: a", *HANDSHAKE, "", ""])
        async with await trio.open_tcp_stream(scene.address.host, scene.address.port) as stream:
            await stream.send_all(request.encode())
            assert b"101" in await stream.receive_some()
            with trio.fail_after(10):
                while len(scene.fleet.hub):
                    scene.fleet.hub.publish("health", {"text": "x" * 100_000})
                    await trio.sleep(0.001)


async def test_a_plain_request_is_not_found() -> None:
    async with feed() as scene:
        assert (await get(scene.address, "/streamgw/v1/events")).status == 404
