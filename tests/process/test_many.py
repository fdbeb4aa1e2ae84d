"""Several workers as the supervisor sees them, with real processes. tests/e2e/test_workers.py has whole gateways under load."""

from __future__ import annotations

import errno
import itertools
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from structlog.testing import capture_logs

from streamgw.config.settings import AccessLogSettings, ReloadSettings, ResolverSettings, Settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import ConfigError
from streamgw.core.model import Listener
from streamgw.process import ledger, many, slots
from streamgw.process.channel import ChannelClosed, Refused
from streamgw.process.demo import serve_upstreams
from streamgw.process.many import CrashLoop, ManyWorkers
from streamgw.process.sockets import BindError, Sockets
from tests.support.worker import ANY, says, write_routes
from tests.support.workers import is_alive

pytestmark = pytest.mark.slow


@attrs.define
class Scene:
    crew: ManyWorkers
    sockets: Sockets
    routes: Path

    async def talks(self) -> bool:
        for listener in self.sockets.listeners():
            for _ in range(8):
                async with await trio.open_tcp_stream(listener.host, listener.port) as client:
                    if not (await says(client)).startswith(b"upstream"):
                        return False
        return True

    def pids(self) -> list[int]:
        return [process.pid for process in self.crew.processes]

    async def until(self, look: object) -> None:
        assert callable(look)
        while not look():
            await trio.sleep(0.01)


@asynccontextmanager
async def two_workers(tmp_path: Path, **changes: object) -> AsyncIterator[Scene]:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    settings = Settings(
        **{
            "listeners": (ANY,),
            "workers": 2,
            "access_log": AccessLogSettings(path=str(tmp_path / "access.log")),
            "reload": ReloadSettings(settle_ms=10),
            **changes,
        }
    )
    sockets = Sockets(slots=2)
    sockets.replace(settings.listeners)
    try:
        crew = ManyWorkers(settings, routes, sockets)
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(serve_upstreams, (0,)))
            write_routes(routes, listener.socket.getsockname()[1])
            with trio.fail_after(200):
                await nursery.start(crew.run)
                await crew.listen()
                yield Scene(crew, sockets, routes)
            nursery.cancel_scope.cancel()
    finally:
        sockets.close_all()
    assert all(process.ended.is_set() for process in crew.processes)


def failing(times: float, error: Exception) -> Callable[..., Awaitable[None]]:
    """Instead of `Process.load`: it fails so many times."""
    load, calls = slots.Process.load, itertools.count(1)

    async def fail(process: slots.Process, *arguments: object) -> None:
        if next(calls) <= times:
            raise error
        await load(process, *arguments)

    return fail


def without_room(times: float) -> Callable[..., Awaitable[trio.Process]]:
    """Instead of `trio.lowlevel.open_process`: there cannot be another one so many times."""
    start, calls = trio.lowlevel.open_process, itertools.count(1)

    async def fail(*arguments: object, **options: object) -> trio.Process:
        if next(calls) <= times:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await start(*arguments, **options)

    return fail


def crash_loop_of_worker(number: int) -> pytest.RaisesGroup[CrashLoop]:
    """What is raised where one worker died too often, however deep in nurseries."""
    match = f"worker {number} died 6 times in a row"
    return pytest.RaisesGroup(pytest.RaisesExc(CrashLoop, match=match), flatten_subgroups=True)


def stopping(first: list[int]) -> Callable[..., Awaitable[trio.Process]]:
    """Instead of `trio.lowlevel.open_process`: the first one, which is put into the list, stops before it does anything."""
    start = trio.lowlevel.open_process

    async def stop(*arguments: object, **options: object) -> trio.Process:
        process = await start(*arguments, **options)
        if not first:
            first.append(process.pid)
            process.send_signal(signal.SIGSTOP)
        return process

    return stop


async def test_they_serve_follow_and_drain_as_one(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as scene:
        crew = scene.crew
        fleet = crew.fleet(settings_status=ReloadStatus, look_at_settings=lambda: None)
        assert fleet.ready()
        assert await scene.talks()

        await crew.apply(attrs.evolve(crew.settings, listeners=(ANY, attrs.evolve(ANY, host="127.0.0.2"))))
        assert await scene.talks()
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            taken = Listener("tcp", "127.0.0.1", stranger.getsockname()[1])
            with pytest.raises(BindError, match="in use"):
                await crew.apply(attrs.evolve(crew.settings, listeners=(taken,)))
        assert len(scene.sockets.listeners()) == 2
        assert await scene.talks()

        crew.poke()
        crew.reopen_logs()
        crew.publish_reload("settings", ReloadStatus())
        await crew.step_back(trio.current_time() + 60)
        await crew.ended.wait()
        assert crew.draining
        assert crew.live_sessions == 0


async def test_a_listener_that_a_rejected_edit_cost_costs_no_worker(tmp_path: Path) -> None:
    async with two_workers(tmp_path, listeners=(ANY, attrs.evolve(ANY, host="127.0.0.2"))) as scene:
        crew, before = scene.crew, scene.pids()
        lost, kept = scene.sockets.listeners()
        wide = Listener("tcp", "0.0.0.0", lost.port)
        with scene.sockets.bound()[lost].dup(), pytest.raises(BindError, match="nor any more on"):
            await crew.apply(attrs.evolve(crew.settings, listeners=(crew.settings.listeners[1], wide)))

        assert scene.sockets.listeners() == (kept,)
        assert await scene.talks()
        await crew.apply(crew.settings)
        assert len(scene.sockets.listeners()) == 2
        assert await scene.talks()
        assert scene.pids() == before


async def test_one_that_is_killed_is_replaced_on_the_same_sockets(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as scene:
        before, ports = scene.pids(), [each.port for each in scene.sockets.listeners()]

        os.kill(before[0], signal.SIGKILL)
        await scene.until(lambda: len(scene.pids()) == 2 and before[0] not in scene.pids())

        assert scene.pids()[1] == before[1]
        assert [each.port for each in scene.sockets.listeners()] == ports
        assert await scene.talks()


async def test_one_that_is_stuck_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_workers(tmp_path) as scene:
        before = scene.pids()
        monkeypatch.setattr(slots, "FOLLOW_S", 5.0)  # long enough for the other one, on a busy machine too
        os.kill(before[1], signal.SIGSTOP)

        await scene.crew.apply(attrs.evolve(scene.crew.settings, drain_timeout_s=7.0))
        monkeypatch.setattr(slots, "FOLLOW_S", 15.0)
        await scene.until(lambda: len(scene.pids()) == 2 and before[1] not in scene.pids())

        assert await scene.talks()


async def test_one_that_is_stuck_is_found_out_when_nobody_tells_it_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_workers(tmp_path) as scene:
        before = scene.pids()
        monkeypatch.setattr(slots, "SILENT_LOOKS", 2)
        os.kill(before[1], signal.SIGSTOP)

        await scene.until(lambda: not is_alive(before[1]))
        monkeypatch.setattr(slots, "SILENT_LOOKS", 8)
        await scene.until(lambda: len(scene.pids()) == 2 and before[1] not in scene.pids())

        assert await scene.talks()


async def test_one_that_is_stuck_while_it_loads_is_killed_and_the_next_one_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_workers(tmp_path) as scene:
        # Long enough for one that is not stuck, on a busy machine too.
        monkeypatch.setattr(many, "LOAD_S", 5.0)
        monkeypatch.setattr(trio.lowlevel, "open_process", stopping(first := []))
        os.kill(scene.pids()[0], signal.SIGKILL)

        await scene.until(lambda: first and not is_alive(first[0]))
        monkeypatch.setattr(many, "LOAD_S", 300.0)
        await scene.until(lambda: len(scene.pids()) == 2)

        assert await scene.talks()


async def test_one_that_drains_meanwhile_is_no_stuck_one(tmp_path: Path) -> None:
    """The signal comes while new settings are on their way."""
    with capture_logs() as logs:
        async with two_workers(tmp_path) as scene:
            (listener,) = scene.sockets.listeners()
            clients = [await trio.open_tcp_stream(listener.host, listener.port) for _ in range(20)]
            for client in clients:
                await says(client)
            crew, before = scene.crew, scene.pids()
            for pid in before:
                os.kill(pid, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                changed = attrs.evolve(crew.settings, drain_timeout_s=7.0)
                nursery.start_soon(crew.apply, changed)
                await scene.until(lambda: crew.settings == changed)
                crew.drain(trio.current_time() + 60)
                await trio.testing.wait_all_tasks_blocked()
                for pid in before:
                    os.kill(pid, signal.SIGCONT)

            for client in clients:
                assert (await says(client)).startswith(b"upstream")
                await client.aclose()
            await crew.ended.wait()

    assert "worker_stuck" not in [entry["event"] for entry in logs]


@pytest.mark.parametrize("told", ["follow", "make_way"])
async def test_what_one_that_drains_says_no_to_is_no_reason_to_kill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    async with two_workers(tmp_path) as scene:
        (listener,) = scene.sockets.listeners()
        client = await trio.open_tcp_stream(listener.host, listener.port)
        await says(client)
        crew = scene.crew

        async def refuse(process: slots.Process, *_: object) -> None:
            crew.drain(trio.current_time() + 60)
            await scene.until(lambda: process.member.state == "draining")
            raise Refused("no socket was handed down")

        monkeypatch.setattr(slots.Process, told, refuse)

        await crew.apply(attrs.evolve(crew.settings, listeners=(ANY, attrs.evolve(ANY, host="127.0.0.2"))))

        assert (await says(client)).startswith(b"upstream")
        await client.aclose()
        await crew.ended.wait()


async def test_where_all_seats_are_taken_the_one_that_drains_for_longest_makes_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SEATS", 3)
    async with two_workers(tmp_path) as scene:
        before = scene.pids()
        (listener,) = scene.sockets.listeners()
        clients = [await trio.open_tcp_stream(listener.host, listener.port) for _ in range(20)]
        for client in clients:
            await says(client)

        scene.crew.replace_soon()
        await scene.until(lambda: before[0] not in scene.pids() and len(scene.pids()) == 3)

        assert [process.pid for process in scene.crew.processes if process.member.state == "draining"] == [
            before[1]
        ]
        assert await scene.talks()
        for client in clients:
            await trio.aclose_forcefully(client)


async def test_what_they_have_for_good_is_changed_by_replacing_them(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as scene:
        before = scene.pids()
        settings = attrs.evolve(scene.crew.settings, resolver=ResolverSettings(max_ttl_s=7.0))
        assert not any(scene.crew.needs_start(scene.crew.settings, settings).values())

        await scene.crew.apply(settings)
        await scene.until(lambda: len(scene.pids()) == 2 and not set(before) & set(scene.pids()))

        assert await scene.talks()


async def test_a_replacement_begins_with_the_routes_that_run_if_those_on_the_disk_cannot(
    tmp_path: Path,
) -> None:
    async with two_workers(tmp_path) as scene:
        before = scene.pids()
        (scene.routes / "broken.yaml").write_text("stream_routes: 7\n")
        await scene.until(lambda: scene.crew.office.reloader.status.state == "rejected")

        await scene.crew.apply(attrs.evolve(scene.crew.settings, resolver=ResolverSettings(max_ttl_s=7.0)))
        await scene.until(lambda: len(scene.pids()) == 2 and not set(before) & set(scene.pids()))

        assert {process.settings.resolver.max_ttl_s for process in scene.crew.processes} == {7.0}
        assert await scene.talks()


async def test_each_stays_on_a_cpu_of_its_own_if_wanted(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    async with two_workers(tmp_path, has_cpu_affinity=True) as scene:
        crew, before = scene.crew, scene.pids()
        assert [os.sched_getaffinity(pid) for pid in before] == [{cpus[0]}, {cpus[1 % len(cpus)]}]

        await crew.apply(attrs.evolve(crew.settings, has_cpu_affinity=False))
        await scene.until(lambda: len(scene.pids()) == 2 and not set(before) & set(scene.pids()))

        assert [os.sched_getaffinity(pid) for pid in scene.pids()] == [set(cpus)] * 2


async def test_a_replacement_that_cannot_load_changes_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BACKOFF_S", 0.001)
    async with two_workers(tmp_path) as scene:
        crew, before = scene.crew, scene.pids()
        load = slots.Process.load
        monkeypatch.setattr(slots.Process, "load", failing(math.inf, Refused("no space left on device")))

        with capture_logs() as logs:
            await crew.apply(attrs.evolve(crew.settings, resolver=ResolverSettings(max_ttl_s=7.0)))
            await scene.until(lambda: [entry["event"] for entry in logs].count("worker_replace_failed") >= 3)
            assert scene.pids() == before
            assert await scene.talks()
            monkeypatch.setattr(slots.Process, "load", load)
            await scene.until(lambda: len(scene.pids()) == 2 and not set(before) & set(scene.pids()))

        failures = [entry for entry in logs if "attempt" in entry]
        assert [entry["attempt"] for entry in failures] == list(range(1, len(failures) + 1))
        assert {(entry["worker"], entry["error"]) for entry in failures} == {(0, "no space left on device")}
        assert await scene.talks()


async def test_a_replacement_that_fails_is_superseded_by_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BACKOFF_S", 1000.0)
    monkeypatch.setattr(many, "MAX_BACKOFF_S", 1000.0)
    async with two_workers(tmp_path) as scene:
        crew, before = scene.crew, scene.pids()
        monkeypatch.setattr(slots.Process, "load", failing(1, Refused("no space left on device")))
        with capture_logs() as logs:
            await crew.apply(attrs.evolve(crew.settings, resolver=ResolverSettings(max_ttl_s=7.0)))
            await scene.until(lambda: "worker_replace_failed" in [entry["event"] for entry in logs])

            await crew.apply(attrs.evolve(crew.settings, resolver=ResolverSettings(max_ttl_s=8.0)))
            await scene.until(lambda: len(scene.pids()) == 2 and not set(before) & set(scene.pids()))
            await scene.until(lambda: not crew._replacing.locked())

        assert {process.settings.resolver.max_ttl_s for process in crew.processes} == {8.0}
        assert [entry["event"] for entry in logs].count("workers_replaced") == 1


async def test_nobody_is_replaced_any_more_once_they_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BACKOFF_S", 0.001)
    async with two_workers(tmp_path) as scene:
        crew = scene.crew
        (listener,) = scene.sockets.listeners()
        async with await trio.open_tcp_stream(listener.host, listener.port) as client:
            await says(client)
            monkeypatch.setattr(slots.Process, "load", failing(math.inf, Refused("no space left on device")))
            with capture_logs() as logs:
                crew.replace_soon()
                await scene.until(lambda: "worker_replace_failed" in [entry["event"] for entry in logs])

                crew.drain(trio.current_time() + 60)
                await scene.until(lambda: not crew._replacing.locked())

            assert (await says(client)).startswith(b"upstream")
        await crew.ended.wait()


async def test_one_that_dies_again_and_again_ends_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BACKOFF_S", 0.01)
    monkeypatch.setattr(many, "YOUNG_S", 1000.0)
    with crash_loop_of_worker(1):
        async with two_workers(tmp_path) as scene:
            while True:
                for process in scene.crew.processes:
                    if process.number == 1:
                        process.kill()
                await trio.sleep(0.01)


@pytest.mark.parametrize("is_full", [False, True])
async def test_one_that_cannot_be_started_is_tried_again_for_ever_while_others_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_full: bool
) -> None:
    monkeypatch.setattr(many, "BACKOFF_S", 0.001)
    monkeypatch.setattr(many, "MAX_BACKOFF_S", 0.001)
    async with two_workers(tmp_path) as scene:
        before = scene.pids()
        if is_full:
            text, times = "No space left on device: 'access.log'", 10
            monkeypatch.setattr(slots.Process, "load", failing(times, Refused(text)))
        else:
            text, times = "[Errno 11] Resource temporarily unavailable", 20
            monkeypatch.setattr(trio.lowlevel, "open_process", without_room(times))

        with capture_logs() as logs:
            os.kill(before[0], signal.SIGKILL)
            await scene.until(lambda: len(scene.pids()) == 2 and before[0] not in scene.pids())

        assert scene.pids()[1] == before[1]
        assert await scene.talks()
        assert scene.crew._slots[0].young_deaths <= 1, "it has died once"
        said = [entry for entry in logs if entry["event"] == "worker_start_failed"]
        assert [entry["attempt"] for entry in said] == [*range(1, times + 1)]
        assert {entry["error"] for entry in said} == {text}


def test_the_wait_before_an_attempt_has_an_upper_bound() -> None:
    assert [many._backoff_s(failures) for failures in (0, 1, 2, 5_000)] == [0, 0.2, 0.4, 5.0]


async def test_where_none_can_be_started_the_gateway_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BACKOFF_S", 0.01)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  a scene, and what happens in it
        async with two_workers(tmp_path) as scene:
            monkeypatch.setattr(trio.lowlevel, "open_process", without_room(math.inf))
            for process in scene.crew.processes:
                process.kill()
            await trio.sleep_forever()

    text = "could not be started 6 times in a row, and no other one serves: [Errno 11] Resource temporarily unavailable"
    _, others = caught.value.split(lambda error: isinstance(error, CrashLoop) and text in str(error))
    assert others is None, "of one worker or of both"


async def test_one_that_does_not_come_to_serve_has_died_of_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BACKOFF_S", 0.01)
    monkeypatch.setattr(many, "YOUNG_S", 1000.0)
    with crash_loop_of_worker(0):
        async with two_workers(tmp_path) as scene:

            async def die(process: slots.Process, *_: object) -> None:
                process.kill()
                await process.ended.wait()
                raise ChannelClosed("the other process is gone")

            monkeypatch.setattr(slots.Process, "follow", die)
            scene.crew.processes[0].kill()
            await trio.sleep_forever()


async def test_what_cannot_be_loaded_at_the_start_is_raised(tmp_path: Path) -> None:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    (routes / "broken.yaml").write_text("stream_routes: 7\n")
    crew = ManyWorkers(Settings(workers=2), routes, Sockets(slots=2))

    with pytest.RaisesGroup(ConfigError, flatten_subgroups=True, allow_unwrapped=False):
        await crew.run()
