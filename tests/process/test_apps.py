"""What the HTTP servers answer with, asked without a socket. Who gets in, and where, is tests/process/test_servers.py."""

from __future__ import annotations

from pathlib import Path

import httpx
import trio
import trio.testing

from streamgw.config.endpoints import AdminKey, AdminSettings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.model import Address
from streamgw.process.apps import Apps
from streamgw.process.fleet import LocalFleet
from tests.support.worker import Scene, worker_on

ADMIN = AdminSettings(Address("127.0.0.1", 1), keys=(AdminKey("admin", "a" * 32),))


def apps_of(scene: Scene) -> Apps:
    worker = scene.worker
    return Apps(worker.settings, worker, LocalFleet(worker, ReloadStatus, look_at_settings=lambda: None))


async def test_the_status_page_answers(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        transport = httpx.ASGITransport(apps_of(scene).status())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/status/ready")).json() == {"status": "ok"}


async def test_the_janitor_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async with worker_on(tmp_path, admin=ADMIN) as scene:
        apps, stop = apps_of(scene), trio.Event()
        apps.admin(ADMIN)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(apps.run, stop)
                await trio.testing.wait_all_tasks_blocked()
                stop.set()


async def test_there_is_no_janitor_without_an_admin_api(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        await apps_of(scene).run(trio.Event())
