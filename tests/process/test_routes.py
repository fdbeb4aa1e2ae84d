"""routes.d, followed."""

from __future__ import annotations

from pathlib import Path

import trio

from streamgw.config.settings import ReloadSettings, Settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.model import Listener
from streamgw.core.snapshot import Snapshot
from streamgw.process.plugins import plugin_set
from streamgw.process.routes import Routes
from tests.support.worker import write_routes

LISTENER = Listener("tcp", "127.0.0.1", 9100)


async def test_an_edit_becomes_a_snapshot_without_any_data_plane(tmp_path: Path) -> None:
    write_routes(tmp_path, 1995)
    settings = Settings(listeners=(LISTENER,))
    swapped: list[Snapshot] = []
    told: list[ReloadStatus] = []
    routes = Routes(
        tmp_path,
        ReloadSettings(settle_ms=10),
        tls=lambda: settings.tls,
        plugins=lambda: plugin_set(settings),
        listeners=lambda: settings.listeners,
        on_swap=swapped.append,
        on_told=told.append,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(routes.reloader.run)

        write_routes(tmp_path, 1996)
        with trio.fail_after(10):
            while len(swapped) < 2:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()

    assert [status.reloads for status in told] == [0, 1]
    assert routes.reloader.current is swapped[1]
    assert routes.store.directory == tmp_path
