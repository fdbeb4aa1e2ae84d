from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import trio

from streamgw.control.admin.app import serve_admin
from streamgw.control.admin.control import build_status_app
from streamgw.core.model import Address
from tests.support.fake_gateway import FakeGateway
from tests.support.http import get


@asynccontextmanager
async def status_pages(gateway: FakeGateway) -> AsyncIterator[Address]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_admin, build_status_app(gateway), Address("127.0.0.1", 0))
        nursery.cancel_scope.cancel()


async def test_the_process_is_alive_even_while_it_is_not_ready() -> None:
    async with status_pages(FakeGateway(is_ready=False)) as address:
        reply = await get(address, "/status")

    assert (reply.status, reply.json()) == (200, {"status": "ok"})


async def test_ready_means_that_clients_are_accepted() -> None:
    gateway = FakeGateway()

    async with status_pages(gateway) as address:
        ready = await get(address, "/status/ready")
        gateway.is_ready = False
        draining = await get(address, "/status/ready")

    assert (ready.status, ready.json()) == (200, {"status": "ok"})
    assert (draining.status, draining.json()["status"]) == (503, "error")
    assert "draining" in draining.json()["error"]


async def test_the_status_page_shows_what_the_gateway_says() -> None:
    applied_at = datetime(2026, 11, 21, 5, 30, tzinfo=UTC)
    gateway = FakeGateway(body={"pid": 7, "config": {"applied_at": applied_at, "problems": []}})

    async with status_pages(gateway) as address:
        reply = await get(address, "/streamgw/v1/status")

    assert "content-type: application/json" in reply.head
    assert reply.json() == {
        "pid": 7,
        "config": {"applied_at": "2026-11-21T05:30:00.000+00:00", "problems": []},
    }
