"""The door of the HTTP servers, asked through ASGI: no port, no network."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import attrs
import httpx
import pytest
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from streamgw.config.endpoints import AdminKey, AdminSettings
from streamgw.control.admin.access import (
    DRAIN_LIMIT_BYTES,
    Access,
    Headers,
    Limits,
    LocalNames,
    RequestLimits,
)
from streamgw.control.admin.app import build_app

KEYS = (AdminKey("admin", "a" * 32, "admin"), AdminKey("viewer", "v" * 32, "viewer"), AdminKey("nobody", ""))
SETTINGS = AdminSettings(keys=KEYS)
KEYLESS = AdminSettings(is_key_required=False)
RESOURCE = "/apisix/admin/stream_routes/1"
METHODS = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]


async def echo(request: Request) -> Response:
    """Says how it was reached."""
    return JSONResponse({"path": request.url.path, "size": len(await request.body())})


async def greet(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


INSIDE = build_app([WebSocketRoute("/events", greet), Route("/{path:path}", echo, methods=METHODS)])


def door(settings: AdminSettings = SETTINGS, *, hosts: Sequence[str] = ()) -> Access:
    return Access(INSIDE, lambda: settings, get_hosts=lambda: hosts)


async def ask(
    app: ASGIApp,
    method: str = "GET",
    path: str = RESOURCE,
    *,
    peer: str = "127.0.0.1",
    **request: Any,
) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=(peer, 50000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9180") as client:
        return await client.request(method, path, **request)


def key(value: str) -> dict[str, dict[str, str]]:
    return {"headers": {"X-API-KEY": value}}


# The key


@pytest.mark.parametrize(
    "request_with_key",
    [
        {"headers": {"X-API-KEY": "a" * 32}},
        {"params": {"api_key": "a" * 32}},
        {"headers": {"Cookie": f"theme=dark; x_api_key={'a' * 32}"}},
    ],
    ids=["header", "query", "cookie"],
)
async def test_a_key_may_come_in_three_ways(request_with_key: Mapping[str, Any]) -> None:
    reply = await ask(door(), "PUT", **request_with_key)

    assert (reply.status_code, reply.json()["path"]) == (200, RESOURCE)
    assert reply.headers["x-api-version"] == "v3"


@pytest.mark.parametrize(
    ("method", "given", "why"),
    [
        ("GET", {}, "missing apikey"),
        ("GET", key(""), "missing apikey"),
        ("GET", key("a" * 31), "wrong apikey"),
        ("GET", key("a" * 33), "wrong apikey"),
        ("GET", {"headers": {"X-API-KEY": b"\xfc"}}, "wrong apikey"),
        ("GET", {"params": {"api_key": "ü"}}, "wrong apikey"),
        ("GET", {"params": {"api_key": "nonsense"}}, "wrong apikey"),
        ("PUT", key("v" * 32), "invalid method for role viewer"),
        ("POST", key("v" * 32), "invalid method for role viewer"),
        ("PATCH", key("v" * 32), "invalid method for role viewer"),
        ("DELETE", key("v" * 32), "invalid method for role viewer"),
    ],
)
async def test_who_has_no_good_key_is_told_why(method: str, given: Mapping[str, Any], why: str) -> None:
    access = door()

    reply = await ask(access, method, **given)

    assert reply.status_code == 401
    assert reply.json() == {"error_msg": "failed to check token", "description": why}
    assert "x-api-version" not in reply.headers
    assert access.refused == {"key": 1}


async def test_a_viewer_reads() -> None:
    assert (await ask(door(), **key("v" * 32))).status_code == 200


async def test_an_empty_key_opens_nothing() -> None:
    only_empty = attrs.evolve(SETTINGS, keys=(AdminKey("admin", ""),))

    for given in ({}, key(""), {"params": {"api_key": ""}}, {"headers": {"Cookie": "x_api_key="}}):
        assert (await ask(door(only_empty), **given)).status_code == 401


async def test_keys_are_those_of_the_moment() -> None:
    settings = SETTINGS
    access = Access(INSIDE, lambda: settings)
    assert (await ask(access, **key("a" * 32))).status_code == 200

    settings = attrs.evolve(SETTINGS, keys=(AdminKey("admin", "b" * 32),))

    assert (await ask(access, **key("a" * 32))).status_code == 401
    assert (await ask(access, **key("b" * 32))).status_code == 200


async def test_where_no_key_is_required_none_is_asked_for() -> None:
    assert (await ask(door(KEYLESS), "PUT")).status_code == 200
    assert (await ask(door(KEYLESS), "PUT", **key("wrong"))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/apisix/admin", 200),
        ("GET", "/apisix/admin", 401),
        ("HEAD", "/apisix/admin/configs", 401),
        ("GET", "/ui", 200),
        ("GET", "/ui/app.js", 200),
        ("POST", "/ui/app.js", 401),
        ("GET", "/uix", 401),
        ("GET", "/streamgw/v1/sessions", 401),
        ("GET", "/", 401),
    ],
)
async def test_what_is_free_of_the_key(method: str, path: str, status: int) -> None:
    assert (await ask(door(), method, path)).status_code == status


# Addresses


@pytest.mark.parametrize(
    ("allowed", "peer", "status"),
    [
        (["10.0.0.0/8"], "10.1.2.3", 200),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", 200),
        (["10.0.0.0/8"], "11.1.2.3", 403),
        (["10.0.0.0/8"], "::1", 403),
        (["fd00::/8"], "fd00::7", 200),
        (["10.0.0.0/8"], "unix:", 403),
        ([], "11.1.2.3", 200),
    ],
)
async def test_only_allowed_addresses_get_an_answer(allowed: list[str], peer: str, status: int) -> None:
    settings = attrs.evolve(SETTINGS, allowed=tuple(map(ipaddress.ip_network, allowed)))

    reply = await ask(door(settings), peer=peer, **key("a" * 32))

    assert reply.status_code == status
    if status == 403:
        assert reply.headers["content-type"].startswith("text/html")
        assert "<h1>403 Forbidden</h1>" in reply.text


async def test_a_forbidden_address_gets_nothing_at_all() -> None:
    for method, path in (("HEAD", "/apisix/admin"), ("GET", "/ui/"), ("OPTIONS", RESOURCE)):
        assert (await ask(door(), method, path, peer="192.0.2.1")).status_code == 403


# Browsers


async def test_a_browser_asks_before_and_is_told_yes() -> None:
    reply = await ask(door(), "OPTIONS")

    assert (reply.status_code, reply.text) == (200, "")
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-allow-credentials"] == "true"
    assert reply.headers["access-control-allow-headers"] == "*"
    assert reply.headers["access-control-max-age"] == "3600"
    assert "PATCH" in reply.headers["access-control-allow-methods"]


async def test_every_answer_may_be_read_on_other_origins_refusals_too() -> None:
    for given in ({}, key("a" * 32)):
        reply = await ask(door(), **given)
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["access-control-expose-headers"] == "*"


async def test_cors_can_be_switched_off() -> None:
    access = door(attrs.evolve(SETTINGS, has_cors=False))

    assert (await ask(access, "OPTIONS")).status_code == 401
    assert "access-control-allow-origin" not in (await ask(access, **key("a" * 32))).headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9180"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]:9180"}, 200),
        ({"Host": "10.0.0.5"}, 200),
        ({"Host": "gw.example:9180"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://127.0.0.1:9180"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://127.0.0.1:8080"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ],
)
async def test_where_no_key_is_asked_for_no_foreign_page_gets_in(
    headers: Mapping[str, str], status: int
) -> None:
    access = door(KEYLESS, hosts=["gw.example"])

    assert (await ask(access, "PUT", headers=headers)).status_code == status
    assert access.refused["foreign"] == (status == 403)
    # The control API's door is the same.
    local = LocalNames(INSIDE, lambda: ["gw.example"])
    assert (await ask(local, "POST", headers=headers)).status_code == status


async def test_a_cookie_is_no_proof_of_who_wrote_the_request() -> None:
    cookie = {"Cookie": f"x_api_key={'a' * 32}"}

    assert (await ask(door(), "PUT", headers={**cookie, "Origin": "http://evil.example"})).status_code == 403
    assert (
        await ask(door(), "PUT", headers={**cookie, "Origin": "http://127.0.0.1:9180"})
    ).status_code == 200


async def test_with_a_key_in_hand_the_origin_does_not_matter() -> None:
    headers = {"X-API-KEY": "a" * 32, "Origin": "http://dashboard.example", "Host": "gw.internal"}

    assert (await ask(door(), "PUT", headers=headers)).status_code == 200


async def test_without_a_key_there_is_no_cors() -> None:
    reply = await ask(door(KEYLESS), headers={"Origin": "http://127.0.0.1:9180"})

    assert "access-control-allow-origin" not in reply.headers


# WebSocket


async def handshake(app: ASGIApp, query: str = "", headers: Mapping[str, str] | None = None) -> list[Message]:
    """What a WebSocket client gets to see."""
    seen: list[Message] = []
    scope: Scope = {
        "type": "websocket",
        "path": "/events",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 50000),
        "extensions": {"websocket.http.response": {}},
        "subprotocols": [],
    }

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        seen.append(message)

    await app(scope, receive, send)
    return seen


async def test_a_web_socket_needs_the_key_too() -> None:
    app = Headers(Limits(door(), RequestLimits()), [("Server", "streamgw/1")])

    refused = await handshake(app)
    accepted = await handshake(app, f"api_key={'v' * 32}")

    assert [message["type"] for message in refused] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert refused[0]["status"] == 401
    assert (b"server", b"streamgw/1") in refused[0]["headers"]
    assert accepted[0]["type"] == "websocket.accept"


async def test_headers_are_added_to_every_answer() -> None:
    app = Headers(door(), [("Server", "APISIX/3.18.0")])

    for given in ({}, key("a" * 32)):
        assert (await ask(app, **given)).headers["server"] == "APISIX/3.18.0"


# Sizes and times


def limited(app: ASGIApp = INSIDE, **limits: Any) -> Limits:
    return Limits(app, RequestLimits(**limits))


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_body_at_the_limit_passes_whole() -> None:
    app = limited(body_limit_bytes=10)

    assert (await ask(app, "PUT", content=b"x" * 10)).json()["size"] == 10
    assert (await ask(app, "PUT", content=chunks(b"12345", b"", b"67890"))).json()["size"] == 10
    assert (await ask(app, "GET")).json()["size"] == 0


@pytest.mark.parametrize("size", [1_572_865, DRAIN_LIMIT_BYTES + 1])
async def test_a_body_beyond_the_limit_is_refused_as_behind_apisix(size: int) -> None:
    reply = await ask(limited(), "PUT", content=b"x" * size)

    text = f"invalid request body: request size {size} is greater than the maximum size 1572864 allowed"
    assert (reply.status_code, reply.json()) == (400, {"error_msg": text})


async def test_a_body_that_does_not_say_how_long_it_is_is_counted() -> None:
    reply = await ask(limited(body_limit_bytes=10), "PUT", content=chunks(b"123456", b"789012", b"3"))

    assert "request size 13 is greater than the maximum size 10 allowed" in reply.json()["error_msg"]


async def test_an_endless_body_is_not_read_to_its_end() -> None:
    seen: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

    async def send(message: Message) -> None:
        seen.append(message)

    scope: Scope = {"type": "http", "method": "PUT", "path": "/", "headers": []}
    await limited()(scope, receive, send)

    assert seen[0]["status"] == 400


async def test_who_hangs_up_in_the_middle_reaches_no_handler() -> None:
    async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the request is not complete")

    pieces: list[Message] = [
        {"type": "http.request", "body": b"x", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return pieces.pop(0)

    async def send(_message: Message) -> None:
        raise AssertionError("nobody is there")

    await limited(never)({"type": "http", "method": "PUT", "path": "/", "headers": []}, receive, send)


async def test_a_slow_body_occupies_no_handler(autojump_clock: trio.testing.MockClock) -> None:
    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await trio.sleep(1)

    reply = await ask(limited(timeout_s=5), "PUT", content=slow())

    assert reply.status_code == 408
    assert reply.json()["error_msg"] == "the request was not complete after 5 s"


async def test_more_requests_than_may_be_wait_for_a_moment(autojump_clock: trio.testing.MockClock) -> None:
    at_once = most = 0

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(3)
        at_once -= 1
        await Response()(scope, receive, send)

    app = limited(busy, max_requests=2, timeout_s=5)
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await ask(app)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)

    assert most == 2
    assert sorted(statuses) == [200, 200, 200, 200, 503]
