"""Triggers, generations and errors, over a fake watcher and a fake loader; the loads run in real threads."""

import gc
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import structlog
import trio
import trio.testing

from streamgw.config.compile import Compilation, Loader
from streamgw.config.store import Store
from streamgw.control.polite import FREEZE_FROM
from streamgw.control.reloader import DAY_S, MAX_LOGGED, RETRY_S, Reloader, ReloadStatus
from streamgw.control.watch import Further, changes
from streamgw.core.errors import ConfigError, StoreError
from streamgw.core.model import Listener
from streamgw.core.snapshot import Snapshot
from tests.support.certificates import document, issue
from tests.support.fake_watch import NOON, FakeLoader, FakeWatch, compilation, problem
from tests.support.gateway import write_atomically
from tests.support.passing_time import settled

MYSQL = ("stream_routes", "mysql")
BROKEN = ConfigError((problem("expected an integer"), problem("unknown field", 4)))


@attrs.define
class Scene:
    loader: FakeLoader
    watch: FakeWatch
    swaps: list[str]
    reloader: Reloader
    told: list[ReloadStatus] = attrs.Factory(list)

    async def look(self) -> None:
        """Let the watcher speak, and wait until the look it caused is over."""
        self.watch.say()
        await settled()


def scene(loader: FakeLoader, *, listeners: tuple[Listener, ...] = ()) -> Scene:
    watch, swaps, told = FakeWatch(), list[str](), list[ReloadStatus]()

    def on_swap(snapshot: Snapshot) -> None:
        assert reloader.current is snapshot, "the swap is told when it has happened"
        swaps.append(snapshot.revision)

    reloader = Reloader(
        loader, lambda: listeners, on_swap, watch=watch, on_told=told.append, wall_clock=lambda: NOON
    )
    return Scene(loader, watch, swaps, reloader, told)


@asynccontextmanager
async def running(loader: FakeLoader) -> AsyncIterator[Scene]:
    stage = scene(loader)
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.reloader.run)
        yield stage
        nursery.cancel_scope.cancel()


async def test_the_first_load_is_done_when_it_has_started() -> None:
    async with running(FakeLoader(compilation("r1", mysql="d1"))) as stage:
        assert stage.reloader.current.revision == "r1"
        assert stage.reloader.status == ReloadStatus(
            revision=stage.reloader.current.revision,
            applied_at=NOON,
            duration_s=stage.reloader.status.duration_s,
        )

    assert stage.swaps == ["r1"]
    assert stage.watch.closed


async def test_the_watcher_stands_before_the_first_load_reads() -> None:
    order: list[str] = []

    class Counting(FakeLoader):
        def load(self, listeners: Sequence[Listener]) -> Compilation:
            order.append("load")
            return super().load(listeners)

    class Watch(FakeWatch):
        async def __call__(self) -> AsyncGenerator[None]:
            order.append("watch")
            async for _ in super().__call__():
                yield

    reloader = Reloader(Counting(compilation("r1")), tuple, lambda _: None, watch=Watch())
    async with trio.open_nursery() as nursery:
        await nursery.start(reloader.run)
        nursery.cancel_scope.cancel()

    assert order[:2] == ["watch", "load"]


@pytest.mark.parametrize(
    "error", [BROKEN, StoreError("cannot read routes.d")], ids=["problems", "unreadable"]
)
async def test_a_first_load_that_fails_is_the_end(error: Exception) -> None:
    stage = scene(FakeLoader(error))

    with pytest.raises(type(error)) as caught:
        await stage.reloader.run()

    assert caught.value is error
    assert stage.swaps == []
    assert stage.watch.closed


async def test_a_change_replaces_the_snapshot() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = compilation("r2")
        await stage.look()

        assert stage.reloader.current.revision == "r2"
        assert (stage.reloader.status.revision, stage.reloader.status.reloads) == ("r2", 1)

    assert stage.swaps == ["r1", "r2"]


async def test_the_same_documents_again_are_no_change() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        before = stage.reloader.current
        stage.loader.content = compilation("r1")
        await stage.look()

        assert stage.loader.loads == 2
        assert stage.reloader.current is before
        assert stage.reloader.status.reloads == 0

    assert stage.swaps == ["r1"]


async def test_a_poke_needs_no_watcher() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = compilation("r2")
        stage.reloader.poke()
        await settled()

    assert stage.swaps == ["r1", "r2"]


async def test_what_was_written_is_run_without_a_look() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = compilation("r2")
        stage.reloader.poke_written()
        await settled()

        assert (stage.loader.loads, stage.loader.written) == (2, 1)

    assert stage.swaps == ["r1", "r2"]


@pytest.mark.parametrize("written_first", [True, False])
async def test_whoever_asks_for_a_look_gets_one_whatever_was_written(written_first: bool) -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        pokes = [stage.reloader.poke_written, stage.reloader.poke]
        for poke in pokes if written_first else reversed(pokes):
            poke()
        await settled()

        assert (stage.loader.loads, stage.loader.written) == (2, 0)


async def test_what_changes_during_a_load_is_seen_by_another_load_after_it() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = compilation("r2")
        stage.loader.may_finish.clear()
        stage.reloader.poke()
        while not stage.loader.under_way:
            await trio.testing.wait_all_tasks_blocked(0.02)

        stage.loader.content = compilation("r3")
        for _ in range(5):
            stage.reloader.poke()
        stage.loader.may_finish.set()
        await settled()

        assert stage.loader.loads == 3
        assert stage.loader.most_at_once == 1

    assert stage.swaps == ["r1", "r2", "r3"]


async def test_a_rejected_change_changes_nothing_and_is_told_completely() -> None:
    async with running(FakeLoader(compilation("r1", problem("no listener has port 1")))) as stage:
        stage.loader.content = BROKEN
        with structlog.testing.capture_logs() as logs:
            await stage.look()
            await stage.look()

        status = stage.reloader.status
        assert stage.reloader.current.revision == "r1"
        assert (status.state, status.revision, status.rejected) == ("rejected", "r1", 1)
        assert status.problems == BROKEN.problems
        assert status.warnings == (problem("no listener has port 1"),)

    assert stage.swaps == ["r1"]
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("routes_rejected", "error"),
        ("routes_problem", "error"),
        ("routes_problem", "error"),
    ]
    assert logs[1]["problem"] == "routes.d/mysql.yaml:1:1: expected an integer"


async def test_another_mistake_is_another_rejection() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = BROKEN
        await stage.look()
        stage.loader.content = ConfigError((problem("unknown field"),))
        await stage.look()

        assert stage.reloader.status.rejected == 2
        assert len(stage.reloader.status.problems) == 1


async def test_a_mistake_that_is_repaired_is_applied() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = BROKEN
        await stage.look()
        stage.loader.content = compilation("r2")
        await stage.look()

        status = stage.reloader.status
        assert (status.state, status.problems, status.revision, status.rejected) == ("applied", (), "r2", 1)


async def test_a_mistake_that_is_taken_back_is_applied_without_a_swap() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = BROKEN
        await stage.look()
        stage.loader.content = compilation("r1")
        with structlog.testing.capture_logs() as logs:
            await stage.look()

        assert (stage.reloader.status.state, stage.reloader.status.problems) == ("applied", ())

    assert stage.swaps == ["r1"]
    assert [line["event"] for line in logs] == ["routes_as_before"]


async def test_whoever_asked_is_told_of_each_turn_and_of_nothing_twice() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        for content in (BROKEN, BROKEN, compilation("r1"), compilation("r1"), compilation("r2")):
            stage.loader.content = content
            await stage.look()

    assert [(status.state, status.revision, len(status.problems)) for status in stage.told] == [
        ("applied", "r1", 0),
        ("rejected", "r1", 2),
        ("applied", "r1", 0),
        ("applied", "r2", 0),
    ]


async def test_what_runs_can_be_read_object_by_object() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        assert stage.reloader.documents == compilation("r1").documents


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreError("cannot read routes.d: permission denied"), "cannot read routes.d: permission denied"),
        (ZeroDivisionError("oops"), "bug while loading: ZeroDivisionError('oops')"),
    ],
    ids=["unreadable directory", "bug in the loader"],
)
async def test_whatever_a_later_load_raises_the_gateway_goes_on(error: Exception, told: str) -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = error
        await stage.look()
        assert stage.reloader.status.state == "rejected"
        assert told in str(stage.reloader.status.problems[0])

        stage.loader.content = compilation("r2")
        await stage.look()
        assert stage.reloader.current.revision == "r2"


async def test_a_directory_that_could_not_be_read_is_tried_again_without_being_told_to(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Out of descriptors, for example: nothing in the directory changes when that is over."""
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = StoreError("cannot read routes.d: too many open files")
        await stage.look()
        stage.loader.content = compilation("r2", mysql="d1")
        await stage.reloader.wait_applied([(MYSQL, "d1")])

        loads = stage.loader.loads
        await trio.sleep(100 * RETRY_S)
        assert stage.loader.loads == loads


async def test_it_looks_once_a_day_because_certificates_expire_by_themselves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        expiring = problem("the certificate expires in 20 days")
        stage.loader.content = compilation("r1", expiring)

        await trio.sleep(DAY_S + 1)

        with trio.fail_after(DAY_S / 2):  # the load is in a thread, for which this clock does not wait
            while stage.reloader.status.warnings != (expiring,):
                await trio.sleep(1)
        assert stage.swaps == ["r1"]


async def test_what_a_load_has_read_elsewhere_is_asked_for_after_each_load() -> None:
    """Also after one that failed: the missing certificate is what has to be watched."""
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    loader, watch = FakeLoader(compilation("r1")), FakeWatch()
    reloader = Reloader(loader, lambda: (), lambda _: None, watch=watch, on_loaded=count)
    async with trio.open_nursery() as nursery:
        await nursery.start(reloader.run)
        assert asked == 1

        loader.content = BROKEN
        watch.say()
        while reloader.status.state == "applied":
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert asked == 2
        nursery.cancel_scope.cancel()


async def test_a_flood_of_problems_does_not_flood_the_log() -> None:
    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = ConfigError(tuple(problem("unknown field", line) for line in range(5000)))
        with structlog.testing.capture_logs() as logs:
            await stage.look()

        assert len(stage.reloader.status.problems) == 5000

    assert logs[0]["problems"] == 5000
    assert len(logs) == 1 + MAX_LOGGED


async def test_each_warning_is_logged_once_and_follows_the_listeners() -> None:
    old, new = problem("no listener has port 1"), problem("no listener has port 2")
    with structlog.testing.capture_logs() as logs:
        async with running(FakeLoader(compilation("r1", old))) as stage:
            stage.loader.content = compilation("r2", old)
            await stage.look()
            stage.loader.content = compilation("r2", old, new)
            await stage.look()
            assert stage.reloader.status.warnings == (old, new)
            stage.loader.content = compilation("r2")
            await stage.look()
            assert stage.reloader.status.warnings == ()

    assert [line["problem"] for line in logs if line["event"] == "routes_warning"] == [str(old), str(new)]
    assert stage.swaps == ["r1", "r2"]


async def test_each_load_sees_the_listeners_of_its_moment() -> None:
    listeners: list[Listener] = []
    loader, watch = FakeLoader(compilation("r1")), FakeWatch()
    reloader = Reloader(loader, lambda: listeners, lambda _: None, watch=watch)
    listener = Listener("tcp", "127.0.0.1", 9100)

    async with trio.open_nursery() as nursery:
        await nursery.start(reloader.run)
        listeners.append(listener)
        reloader.poke()
        await settled()
        nursery.cancel_scope.cancel()

    assert (loader.seen[0], loader.seen[-1]) == ((), (listener,))


async def test_a_writer_can_wait_until_its_object_is_what_runs() -> None:
    async with running(FakeLoader(compilation("r1", mysql="d1"))) as stage:
        with trio.fail_after(5):
            await stage.reloader.wait_applied([(MYSQL, "d1")])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.reloader.wait_applied, [(MYSQL, "d3")])
                for revision, digest in [("r2", "d2"), ("r3", "d3")]:
                    assert len(nursery.child_tasks) == 1
                    stage.loader.content = compilation(revision, mysql=digest)
                    await stage.look()


async def test_who_waits_may_have_come_before_the_first_load() -> None:
    async with running(FakeLoader(compilation("r1", mysql="d1"))) as stage:
        with trio.fail_after(5):
            current, stage.reloader._current = stage.reloader._current, None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.reloader.wait_applied, [(MYSQL, "d2")])
                nursery.start_soon(stage.reloader.wait_revision, "r2")
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 2
                stage.reloader._current = current
                stage.loader.content = compilation("r2", mysql="d2")
                await stage.look()
            await stage.reloader.wait_revision("r2")


async def test_a_writer_can_wait_until_its_object_is_gone() -> None:
    async with running(FakeLoader(compilation("r1", mysql="d1"))) as stage:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.reloader.wait_applied, [(MYSQL, None)])
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 1
                stage.loader.content = compilation("r2")
                await stage.look()


async def test_cancelled_during_a_load_it_waits_for_the_thread_and_drops_the_result(
    nursery: trio.Nursery,
) -> None:
    async def finish_when_the_reloader_waits() -> None:
        await trio.testing.wait_all_tasks_blocked(0.02)
        stage.loader.may_finish.set()

    async with running(FakeLoader(compilation("r1"))) as stage:
        stage.loader.content = compilation("r2")
        stage.loader.may_finish.clear()
        stage.reloader.poke()
        while not stage.loader.under_way:
            await trio.testing.wait_all_tasks_blocked(0.02)
        nursery.start_soon(finish_when_the_reloader_waits)

    assert stage.loader.under_way == 0
    assert stage.swaps == ["r1"]


async def test_a_load_leaves_the_interpreter_as_it_found_it() -> None:
    seen: list[tuple[float, bool]] = []

    class Counting(FakeLoader):
        def load(self, listeners: Sequence[Listener]) -> Compilation:
            seen.append((sys.getswitchinterval(), gc.isenabled()))
            return super().load(listeners)

    before = (sys.getswitchinterval(), gc.isenabled())
    stage = scene(Counting(BROKEN))
    with pytest.raises(ConfigError):
        await stage.reloader.run()

    assert seen == [(pytest.approx(0.0005), False)]
    assert (sys.getswitchinterval(), gc.isenabled()) == before


@pytest.fixture
def thawed() -> Iterator[None]:
    """What a test freezes is thawed after it, and what earlier ones left frozen before: it may die meanwhile."""
    gc.unfreeze()
    yield
    gc.unfreeze()


async def test_during_a_big_load_and_after_it_the_garbage_collector_stalls_nobody(thawed: None) -> None:
    collections: list[int] = []

    class Counting(FakeLoader):
        def load(self, listeners: Sequence[Listener]) -> Compilation:
            gc.callbacks.append(count)
            self.many = [[number] for number in range(2 * FREEZE_FROM)]
            gc.callbacks.remove(count)
            return super().load(listeners)

    def count(phase: str, info: dict[str, int]) -> None:
        collections.append(info["generation"])

    loader = Counting(compilation("r1"))
    async with running(loader):
        assert gc.get_freeze_count() >= len(loader.many)

    assert collections == []


async def test_a_small_load_freezes_nothing(thawed: None) -> None:
    before = gc.get_freeze_count()

    async with running(FakeLoader(compilation("r1"))):
        assert gc.get_freeze_count() == before


ROUTE = """
stream_routes:
  - id: mysql
    server_port: 3306
    upstream: {{type: roundrobin, nodes: {{"127.0.0.1:{port}": 1}}}}
"""


@pytest.mark.slow
async def test_an_edit_of_a_real_directory_reaches_the_data_plane(tmp_path: Path) -> None:
    file = tmp_path / "routes.d" / "mysql.yaml"
    write_atomically(file, ROUTE.format(port=3307))
    swaps, swapped = trio.open_memory_channel[Snapshot](10)
    reloader = Reloader(
        Loader(Store(file.parent), environ={}),
        lambda: (Listener("tcp", "127.0.0.1", 3306),),
        swaps.send_nowait,
        watch=lambda: changes(file.parent, settle_ms=50, relook_s=3600),
    )

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(reloader.run)
            first = await swapped.receive()

            write_atomically(file, ROUTE.format(port=3308))
            began_at = trio.current_time()
            second = await swapped.receive()
            print(f"applied after {(trio.current_time() - began_at) * 1000:.0f} ms")  # noqa: T201  pytest -rP shows it

            write_atomically(file, ROUTE.format(port="no-port"))
            while reloader.status.state == "applied":
                await trio.sleep(0.005)
            assert reloader.current is second
            assert "mysql.yaml" in reloader.status.problems[0].file

            write_atomically(file, ROUTE.format(port=3307))
            third = await swapped.receive()
            nursery.cancel_scope.cancel()

    assert [route.id for route in second.router.routes] == ["mysql"]
    assert first.revision == third.revision != second.revision


@pytest.mark.slow
async def test_a_renewed_certificate_beside_the_routes_reaches_the_data_plane(tmp_path: Path) -> None:
    """Also the one that was missing when the routes named it."""
    routes = tmp_path / "routes.d"
    write_atomically(routes / "a.yaml", document(ssls=[{"id": "a", "sni": "a.test", "cert": "$file://../a.pem", "key": "$file://../a.key"}]))  # fmt: skip
    issue("a.test").write(tmp_path)
    swaps, swapped = trio.open_memory_channel[Snapshot](10)
    loader, further = Loader(Store(routes), environ={}), Further()
    reloader = Reloader(
        loader,
        lambda: (),
        swaps.send_nowait,
        watch=lambda: changes(routes, settle_ms=50, relook_s=3600, further=further),
        on_loaded=lambda: further.replace(loader.files),
    )

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(reloader.run)
            first = await swapped.receive()

            issue("a.test").write(tmp_path)
            began_at = trio.current_time()
            second = await swapped.receive()
            print(f"applied after {(trio.current_time() - began_at) * 1000:.0f} ms")  # noqa: T201  pytest -rP shows it

            (tmp_path / "a.pem").unlink()
            while reloader.status.state == "applied":
                await trio.sleep(0.005)
            assert "No such file or directory" in str(reloader.status.problems[0])
            issue("a.test").write(tmp_path)
            third = await swapped.receive()
            nursery.cancel_scope.cancel()

    fingerprints = [
        next(state.certificates.candidates("a.test")).fingerprint for state in (first, second, third)
    ]
    assert len(set(fingerprints)) == 3
