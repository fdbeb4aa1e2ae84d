"""Asking a gateway, and hearing its feed, over real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from streamgw.cli.top.client import SILENCE_S, Admin, Answer, Denied, Unreachable
from streamgw.control.admin.app import serve_admin
from streamgw.core.model import Address
from tests.support.fake_admin import FakeAdmin

ANYWHERE = Address("127.0.0.1", 0)


async def serve(nursery: trio.Nursery, app: Starlette) -> str:
    """Returns the URL of the handlers."""
    return f"http://{await nursery.start(serve_admin, app, ANYWHERE)}/streamgw/v1"


@pytest.fixture
async def fake(nursery: trio.Nursery) -> FakeAdmin:
    return FakeAdmin("secret")


@pytest.fixture
async def admin(fake: FakeAdmin, nursery: trio.Nursery) -> Admin:
    return Admin(await serve(nursery, fake.app()), "secret")


async def test_it_asks_for_status_and_sessions(fake: FakeAdmin, admin: Admin) -> None:
    fake.open(3)

    assert (await admin.status())["sessions"]["active"] == 3
    answer = await admin.sessions()

    assert [row["id"] for row in answer["sessions"]] == list(fake.sessions)
    assert answer["total"] == 3


async def test_a_kill_says_whether_there_was_one(fake: FakeAdmin, admin: Admin) -> None:
    fake.open(1)
    (id_,) = fake.sessions

    assert await admin.kill(id_)
    assert not await admin.kill(id_)
    assert not await admin.kill("../status?x=#1")
    assert fake.killed == [id_]


@pytest.mark.parametrize(("key", "why"), [("", "missing apikey"), ("wrong", "failed to check token")])
async def test_without_the_key_it_is_denied(admin: Admin, key: str, why: str) -> None:
    with pytest.raises(Denied, match=why):
        await Admin(admin.url, key).status()


def test_the_key_is_in_no_message() -> None:
    assert "secret" not in repr(Admin("http://x", "secret"))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/streamgw/v1", "http://[::1", "http://127.0.0.1:99999/v1"]
)
async def test_where_nobody_answers(url: str) -> None:
    with pytest.raises(Unreachable, match="no gateway answers"):
        await Admin(url).status()


@pytest.mark.parametrize(("body", "status"), [("<html>", 200), ("[]", 200), ('{"a": 1}', 200), ("{}", 500)])
async def test_somebody_else_answers(nursery: trio.Nursery, body: str, status: int) -> None:
    async def answer(_: object) -> PlainTextResponse:
        return PlainTextResponse(body, status)

    url = await serve(nursery, Starlette(routes=[Route("/{path:path}", answer)]))

    with pytest.raises(Unreachable, match="is no streamgw"):
        await Admin(url).status()


class Listener:
    """Somebody who listens to the feed in a task."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._send, self.events = trio.open_memory_channel[Answer](100)
        self.is_open = trio.Event()
        self.ended = trio.Event()
        self.error: Unreachable | None = None

    async def run(self) -> None:
        with self._send, contextlib.suppress(trio.Cancelled):
            try:
                await self._admin.listen(on_open=self.is_open.set, on_event=self._send.send_nowait)
            except Unreachable as error:
                self.error = error
            self.ended.set()


@contextlib.asynccontextmanager
async def listening(admin: Admin) -> AsyncIterator[Listener]:
    listener = Listener(admin)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run)
        yield listener
        nursery.cancel_scope.cancel()


async def test_it_hears_what_happens(fake: FakeAdmin, admin: Admin) -> None:
    with trio.fail_after(10):
        async with listening(admin) as listener, listener.events:
            await listener.is_open.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            fake.open(2)
            fake.close(next(iter(fake.sessions)), "reset", "client")

            kinds = [(await listener.events.receive())["kind"] for _ in range(3)]

    assert kinds == ["session_opened", "session_opened", "session_closed"]


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_the_feed_wants_the_key_too(admin: Admin, key: str) -> None:
    with trio.fail_after(10):
        async with listening(Admin(admin.url, key)) as listener, listener.events:
            await listener.ended.wait()

    assert "no live feed" in str(listener.error)


async def serve_feed(nursery: trio.Nursery, *messages: str, then_close: bool) -> Admin:
    async def feed(socket: WebSocket) -> None:
        await socket.accept()
        for message in messages:
            await socket.send_text(message)
        if then_close:
            await socket.close()
        else:
            await socket.receive()

    return Admin(await serve(nursery, Starlette(routes=[WebSocketRoute("/streamgw/v1/events", feed)])))


async def test_the_gateway_may_end_the_feed(nursery: trio.Nursery) -> None:
    admin = await serve_feed(nursery, '{"kind": "ping"}', "[1]", then_close=True)

    with trio.fail_after(10):
        async with listening(admin) as listener, listener.events:
            await listener.ended.wait()
            heard = [event async for event in listener.events]

    assert heard == [{"kind": "ping"}]
    assert listener.error is None


async def test_a_feed_that_falls_silent_is_given_up(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    # Real sockets on a virtual clock: it jumps only while every task sleeps.
    autojump_clock.autojump_threshold = 0.05
    admin = await serve_feed(nursery, then_close=False)
    began_at = trio.current_time()

    async with listening(admin) as listener, listener.events:
        await listener.ended.wait()

    assert trio.current_time() - began_at == pytest.approx(SILENCE_S, abs=15)
    assert "silent" in str(listener.error)


async def test_a_message_that_is_no_json_is_given_up_too(nursery: trio.Nursery) -> None:
    admin = await serve_feed(nursery, "not json", then_close=False)

    with trio.fail_after(10):
        async with listening(admin) as listener, listener.events:
            await listener.ended.wait()

    assert "no live feed" in str(listener.error)


async def test_an_encrypted_gateway_is_verified(admin: Admin) -> None:
    encrypted: Any = Admin(admin.url.replace("http:", "https:"))

    with pytest.raises(Unreachable):
        await encrypted.status()
    with trio.fail_after(10):
        async with listening(encrypted) as listener, listener.events:
            await listener.ended.wait()
    assert listener.error is not None
