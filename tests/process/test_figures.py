"""The numbers behind the metrics, taken from a worker that serves."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import trio

from streamgw.config.discovery import DiscoverySettings
from streamgw.config.settings import LimitSettings, ResolverSettings
from streamgw.control.admin.fleet import Figures, NodeFigures, ServiceFigures
from streamgw.control.reloader import ReloadStatus
from streamgw.core.model import Address, Facts, Listener
from streamgw.process.figures import BATCH, batches, of_gateway, take_share
from streamgw.process.fleet import LocalFleet
from streamgw.process.stderr import STDERR
from tests.support.gateway import write_atomically
from tests.support.worker import ANY, Scene, says, worker_on


async def figures_of(scene: Scene, settings: ReloadStatus | None = None) -> Figures:
    return of_gateway(await take_share(scene.worker), scene.worker, settings or ReloadStatus())


async def one_session(scene: Scene) -> None:
    async with await scene.connect() as client:
        await says(client)
    await scene.until(lambda: not scene.worker.sessions.live)


async def test_what_ended_and_what_lives_is_counted_once(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        await one_session(scene)
        async with await scene.connect() as client:
            await says(client)

            figures = await figures_of(scene)

    (listener,) = figures.listeners
    assert (listener.accepted, listener.active) == (2, 1)
    assert listener.bytes_up == 3
    assert listener.bytes_down == figures.ended[0].bytes_down > 3
    (ended,) = figures.ended
    assert (ended.reason, ended.status, ended.sessions, ended.bytes_up) == ("closed", 200, 1, 3)
    assert ended.node == f"127.0.0.1:{scene.upstream_ports[0]}"
    assert sum(figures.connect.counts) == sum(figures.duration.counts) == 1
    assert figures.objects == {"stream_routes": 1}
    assert figures.bugs == 0


async def test_lines_that_standard_error_did_not_take_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STDERR, "dropped", 3)
    async with worker_on(tmp_path) as scene:
        fleet = LocalFleet(scene.worker, ReloadStatus, look_at_settings=lambda: None)

        figures = await fleet.figures()

    assert figures.log_dropped == 3


async def test_reloads_are_counted_by_what_they_read(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        write_atomically(scene.routes / "echo.yaml", "stream_routes: 7")
        await scene.until(lambda: scene.worker.reloader.status.rejected == 1)

        figures = await figures_of(scene, ReloadStatus(reloads=2))

    routes, settings = figures.reloads
    assert (routes.what, routes.applied, routes.rejected, routes.is_rejected) == ("routes", 1, 1, True)
    assert routes.applied_at > 1_700_000_000
    assert (settings.what, settings.applied, settings.applied_at) == ("settings", 3, 0.0)


async def test_a_listener_that_stops_accepting_is_noticed(tmp_path: Path) -> None:
    limits = LimitSettings(max_sessions=1)
    async with worker_on(tmp_path, limits=limits) as scene:
        for _ in range(2):
            await one_session(scene)

        (listener,) = (await figures_of(scene)).listeners

    assert listener.pauses == 2


async def test_dropped_datagrams_are_told_by_listener_and_reason(tmp_path: Path) -> None:
    listeners = (ANY, Listener("udp", "127.0.0.1", 0))
    async with worker_on(tmp_path, listeners=listeners) as scene:
        (udp,) = [each for each in scene.worker.sockets.bound() if each.transport == "udp"]
        (scene.routes / "echo.yaml").write_text("{}")
        await scene.until(lambda: not scene.worker.reloader.current.router.routes)
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as client:
            await client.sendto(b"?", ("127.0.0.1", udp.port))
            drops: dict[tuple[str, str], int] = {}
            while (udp.name, "no_route") not in drops:
                await trio.sleep(0.01)
                drops = dict((await figures_of(scene)).drops)

    assert drops == {(udp.name, "no_route"): 1, (udp.name, "receive_buffer"): 0}


async def test_many_sessions_are_looked_at_in_turns(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene, await scene.connect() as client:
        await says(client)
        (session,) = scene.worker.sessions.live.values()
        live = scene.worker.sessions.live
        for number in range(2 * BATCH):
            live[f"copy {number}"] = attrs.evolve(session, id=f"copy {number}")
        try:
            sizes = [len(batch) for batch in batches(scene.worker)]
        finally:
            for number in range(2 * BATCH):
                del live[f"copy {number}"]

    assert sizes == [BATCH, BATCH, 1]


async def test_nodes_that_are_checked_have_figures(tmp_path: Path) -> None:
    async with worker_on(tmp_path) as scene:
        assert not (await figures_of(scene)).nodes
        port = scene.upstream_ports[0]
        upstream = {"nodes": {f"127.0.0.1:{port}": 1}, "checks": {"active": {"healthy": {"interval": 60}}}}
        (scene.routes / "echo.yaml").write_text(
            json.dumps({"stream_routes": [{"id": "e", "upstream": upstream}]})
        )
        await scene.until(lambda: any(each.results for each in scene.worker.prober.checkers.values()))

        figures = await figures_of(scene)

    assert figures.nodes == [NodeFigures("stream_routes/e", "127.0.0.1", port, True, {"success": 1})]


async def test_services_have_figures(tmp_path: Path) -> None:
    """Of localhost nobody has to be asked."""
    by_address = ResolverSettings(discovery=DiscoverySettings(order=("A",)))
    async with worker_on(tmp_path, resolver=by_address) as scene:
        assert not (await figures_of(scene)).services
        service = f"localhost:{scene.upstream_ports[0]}"
        upstream = {"service_name": service, "discovery_type": "dns"}
        (scene.routes / "echo.yaml").write_text(
            json.dumps({"stream_routes": [{"id": "e", "upstream": upstream}]})
        )
        await scene.until(lambda: bool(scene.worker.resolver.nodes(service)))
        async with await scene.connect() as client:
            assert str(scene.upstream_ports[0]).encode() in await says(client)

        figures = await figures_of(scene)
        fleet = LocalFleet(scene.worker, ReloadStatus, look_at_settings=lambda: None)
        (row,) = fleet.discovery()
        facts = Facts("tcp", "", Address("127.0.0.1", 0), Address("127.0.0.1", scene.ports[0]))
        explained = fleet.explain(facts)
        status = await fleet.status()

    assert figures.services == [ServiceFigures(service, 1, is_failing=False)]
    assert status["discovery"] == [row]
    assert (explained["service_name"], explained["discovered"]) == (service, [f"127.0.0.1:{service[10:]}"])
