"""The data plane and the reloader, wired together, on real sockets and real files in one process."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from streamgw.config.settings import AccessLogSettings, LimitSettings, Settings
from streamgw.core.batch import Collector, ToFile
from streamgw.core.errors import ConfigError
from streamgw.core.hooks import Hooks
from streamgw.core.model import Listener
from streamgw.process.sockets import BindError, Sockets
from streamgw.process.worker import Worker
from tests.support.worker import says, worker_on


async def test_a_line_goes_there_and_back(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        async with await scene.connect() as client:
            assert await says(client) == b"upstream %d: hi" % scene.upstream_ports[0]
        await scene.until(lambda: scene.worker.sessions.totals.sessions == 1)

    (line,) = map(json.loads, scene.access_log.read_text().splitlines())
    assert (line["reason"], line["route"]) == ("closed", "echo")
    assert (line["bytes_up"], line["bytes_down"]) == (3, len("upstream 12345: hi\n"))


async def test_an_edit_moves_new_connections_and_leaves_old_ones(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as old:
        first, second = scene.upstream_ports
        assert await says(old) == b"upstream %d: hi" % first

        scene.write_route(second)
        await scene.until(lambda: scene.worker.reloader.status.reloads == 1)

        async with await scene.connect() as new:
            assert await says(new) == b"upstream %d: hi" % second
        assert await says(old) == b"upstream %d: hi" % first


async def test_a_broken_edit_changes_nothing_and_is_told(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        (scene.routes / "broken.yaml").write_text("stream_routes:\n  - id: 1\n    server_port: '80'\n")
        await scene.until(lambda: scene.worker.reloader.status.state == "rejected")

        assert any("broken.yaml:3" in str(problem) for problem in scene.worker.reloader.status.problems)
        async with await scene.connect() as client:
            assert (await says(client)).startswith(b"upstream")


async def test_listeners_open_and_close_live(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as old:
        await says(old)
        (first,) = scene.worker.settings.listeners
        other = Listener("tcp", "127.0.0.2", 0)

        scene.worker.apply(attrs.evolve(scene.worker.settings, listeners=(other,)))

        (bound,) = scene.worker.sockets.bound()
        async with await trio.open_tcp_stream("127.0.0.2", bound.port) as new:
            assert (await says(new)).startswith(b"upstream")
        assert (await says(old)).startswith(b"upstream"), "sessions of a closed listener live on"
        assert first not in scene.worker.sockets.bound()


async def test_an_address_that_cannot_be_had_keeps_everything(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        before = scene.worker.settings

        with pytest.raises(BindError):
            scene.worker.apply(attrs.evolve(before, listeners=(Listener("tcp", "192.0.2.1", 1),)))

        assert scene.worker.settings is before
        async with await scene.connect() as client:
            assert (await says(client)).startswith(b"upstream")


async def test_a_narrow_listener_becomes_a_wide_one_on_the_same_port(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as old:
        await says(old)
        port = scene.ports[0]
        scene.worker.apply(
            attrs.evolve(scene.worker.settings, listeners=(Listener("tcp", "127.0.0.1", port),))
        )

        scene.worker.apply(attrs.evolve(scene.worker.settings, listeners=(Listener("tcp", "0.0.0.0", port),)))

        async with await trio.open_tcp_stream("127.0.0.9", port) as new:
            assert (await says(new)).startswith(b"upstream")
        assert (await says(old)).startswith(b"upstream")


async def test_limits_change_live(tmp_path: Path) -> None:
    async with (
        worker_on(tmp_path, limits=LimitSettings(max_sessions=1)) as scene,
        await scene.connect() as old,
    ):
        await says(old)
        async with await scene.connect() as waiting:
            await waiting.send_all(b"hi\n")
            assert scene.worker.listeners.states() == {
                next(iter(scene.worker.sockets.bound())).name: "paused"
            }

            scene.worker.apply(attrs.evolve(scene.worker.settings, limits=LimitSettings(max_sessions=2)))

            with trio.fail_after(30):
                assert (await waiting.receive_some()).startswith(b"upstream")


async def test_udp_sessions_leave_half_of_the_descriptors_to_everything_else(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with worker_on(tmp_path) as scene:
        worker = scene.worker
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        try:
            worker.apply(worker.settings)
            assert worker.udp.table.limits.max_sessions == 300

            few = attrs.evolve(worker.settings, limits=LimitSettings(max_udp_sessions=20))
            worker.apply(few)
            assert worker.udp.table.limits.max_sessions == 20
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_drain_waits_for_sessions_and_writes_their_lines(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        client, port = await scene.connect(), scene.ports[0]
        await says(client)

        scene.worker.drain(trio.current_time() + 60)
        with pytest.raises(OSError, match="all attempts to connect"):
            await scene.connect(port)
        assert not scene.worker.ended.is_set()
        await client.aclose()
        with trio.fail_after(30):
            await scene.worker.ended.wait()

    assert json.loads(scene.access_log.read_text())["reason"] == "closed"


@pytest.mark.parametrize("_", range(4))
async def test_whoever_cancels_it_the_sessions_it_cuts_leave_their_lines(tmp_path: Path, _: int) -> None:
    """Users noticed: after an upgrade that failed late, the sessions that it had cut were not in the access log. Trio throws a
    coin for who hears first of a cancellation.
    """
    async with worker_on(tmp_path) as scene, contextlib.AsyncExitStack() as clients:
        for _ in range(5):
            await says(await clients.enter_async_context(await scene.connect()))

        scene.cancel()
        with trio.fail_after(30):
            await scene.worker.ended.wait()

    lines = [json.loads(line) for line in scene.access_log.read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["drain"] * 5


@pytest.mark.parametrize("is_drained", [True, False], ids=["drained", "cancelled"])
async def test_what_a_plugins_task_ships_with_its_last_breath_arrives(
    tmp_path: Path, is_drained: bool
) -> None:
    where = Collector(to=ToFile(path=str(tmp_path / "records")))
    async with worker_on(tmp_path) as scene:

        async def background() -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked(0.05)
                scene.worker.shipper.ship(where, b"the rest")

        scene.worker.backgrounds.sync([Hooks(plugin="keeper", background=background)])
        await trio.testing.wait_all_tasks_blocked()

        if not is_drained:
            scene.cancel()

    assert (tmp_path / "records").read_bytes() == b"the rest\n"
    assert not scene.worker.shipper.dropped


async def test_a_broken_configuration_at_the_start_is_an_error(tmp_path: Path) -> None:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    (routes / "bad.yaml").write_text("stream_routes: 7\n")
    worker = Worker(Settings(access_log=AccessLogSettings(path=str(tmp_path / "log"))), routes, Sockets())

    with pytest.RaisesGroup(ConfigError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)


@pytest.mark.parametrize("turns", range(16))
async def test_a_start_ends_whenever_it_is_cancelled(tmp_path: Path, turns: int) -> None:
    """As by SIGTERM. Users noticed: a gateway that was told to end while it started hung until SIGKILL."""
    (tmp_path / "routes.d").mkdir()
    settings = Settings(listeners=(), access_log=AccessLogSettings(path=str(tmp_path / "access.log")))
    worker = Worker(settings, tmp_path / "routes.d", Sockets())
    loading = trio.CancelScope()

    async def cancel() -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        loading.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with loading:
            await nursery.start(worker.run)
        nursery.cancel_scope.cancel()

    assert worker.ended.is_set()


def test_a_gateway_that_has_loaded_collects_garbage() -> None:
    """The command line has the collector pause until then."""
    script = (
        "import gc\nfrom streamgw.process.worker import GC_THRESHOLD, settle\ngc.disable()\nsettle()\n"
        "assert gc.isenabled() and gc.get_threshold()[0] == GC_THRESHOLD and gc.get_freeze_count()"
    )

    subprocess.run([sys.executable, "-c", script], check=True)
