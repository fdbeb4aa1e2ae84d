"""The gateway as the HTTP side sees it: the same with one worker and with several; and what only several can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
import yaml

from streamgw.control.admin.fleet import Figures, SessionFilter
from streamgw.core.model import Address, Facts
from streamgw.process.members import Member
from tests.support.several import Stage, farewell, stage_on
from tests.support.worker import says


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage_on(tmp_path, request.param) as stage:
        yield stage


@asynccontextmanager
async def clients_of(stage: Stage, count: int) -> AsyncIterator[list[trio.SocketStream]]:
    """So many, one after the other; with several workers until each has one at least."""
    async with AsyncExitStack() as stack:
        clients: list[trio.SocketStream] = []
        while len(clients) < count or not all(worker.live_sessions for worker in stage.workers):
            client = await stack.enter_async_context(await stage.connect())
            await says(client)
            clients.append(client)
        yield clients


def name_of(client: trio.SocketStream) -> str:
    return f"127.0.0.1:{client.socket.getsockname()[1]}"


def ended(figures: Figures) -> int:
    return sum(each.sessions for each in figures.ended)


# With one worker and with two


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"route": "echo"}, True),
        ({"route": "other"}, False),
        ({"upstream": "stream_routes/echo/upstream"}, True),
        ({"upstream": "upstreams/1"}, False),
        ({"node": "127.0.0.1:{node}"}, True),
        ({"node": "127.0.0.1:1"}, False),
        ({"listener": "tcp 127.0.0.1:{port}"}, True),
        ({"listener": "tcp *:{port}"}, False),
        ({"client": "127.0.0.0/8"}, True),
        ({"client": "127.0.0.1"}, True),
        ({"client": "::/0"}, False),
        ({"transport": "tcp"}, True),
        ({"transport": "udp"}, False),
        ({"route": "echo", "transport": "udp"}, False),
    ],
)
async def test_sessions_are_found_by_what_is_asked(stage: Stage, wanted: dict[str, str], fits: bool) -> None:
    async with await stage.connect() as client:
        await says(client)
        places = {"port": stage.port, "node": stage.upstream_ports[0]}

        rows, total = await stage.fleet.sessions(
            SessionFilter(**{name: value.format(**places) for name, value in wanted.items()})
        )

    assert (len(rows), total) == (fits, fits)


async def test_at_most_so_many_are_shown_oldest_first_and_all_are_counted(stage: Stage) -> None:
    async with clients_of(stage, 6) as clients:
        rows, total = await stage.fleet.sessions(SessionFilter(limit=4))

        assert total == len(clients)
        assert [row.client for row in rows] == [name_of(client) for client in clients[:4]]
        workers = {row.client: row.worker for row in (await stage.fleet.sessions(SessionFilter()))[0]}
        assert set(workers.values()) == {worker.number for worker in stage.workers}


async def test_a_session_is_killed_by_its_id_wherever_it_is(stage: Stage) -> None:
    async with clients_of(stage, 2) as clients:
        rows, _ = await stage.fleet.sessions(SessionFilter())
        ids = {row.client: row.id for row in rows}

        for client in clients:
            assert await stage.fleet.kill(ids[name_of(client)])

            with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
                await client.receive_some()
        await stage.until(lambda: not stage.live)
        assert not await stage.fleet.kill(rows[0].id)


async def test_it_explains_by_what_runs(stage: Stage) -> None:
    server = Address("127.0.0.1", stage.port)
    facts = Facts("tcp", "", Address("10.0.0.1", 0), server, server_name="a.test", alpn=("h2",))

    said = stage.fleet.explain(facts)
    nobody = stage.fleet.explain(attrs.evolve(facts, server=Address("127.0.0.1", 1)))
    plain = stage.fleet.explain(attrs.evolve(facts, server_name=None, alpn=()))

    assert (said["winner"], said["listener"]) == ("echo", f"tcp {server}")
    assert said["sni"] is None, "a plain listener reads no name"
    assert (nobody["listener"], nobody["sni"]) == (None, "a.test")
    assert plain == said


async def test_who_waits_is_told_who_lags(stage: Stage) -> None:
    digest = stage.central.reloader.current.sources["stream_routes", "echo"]
    everybody = tuple(worker.number for worker in stage.workers)

    late = trio.current_time() + 60
    assert await stage.fleet.wait_applied([(("stream_routes", "echo"), digest)], late) == ()
    soon = trio.current_time() + 0.05
    assert await stage.fleet.wait_applied([(("stream_routes", "echo"), None)], soon) == everybody


async def test_what_was_written_is_live_when_the_wait_is_over(stage: Stage) -> None:
    for number in range(20):
        port = stage.upstream_ports[number % 2]
        stage.write_route(port, desc=f"edit {number}")
        stage.fleet.reload()
        written = yaml.safe_load((stage.routes / "echo.yaml").read_text())["stream_routes"][0]
        with trio.fail_after(10):
            while True:
                documents = stage.fleet.documents()  # none: the file was read when it was just being written
                if documents and documents[0].data.get("desc") == written["desc"]:
                    digest = stage.central.reloader.current.sources["stream_routes", "echo"]
                    break
                await trio.sleep(0.002)

        late = await stage.fleet.wait_applied([(("stream_routes", "echo"), digest)], trio.current_time() + 10)

        assert late == ()
        for _ in range(4):
            async with await stage.connect() as client:
                assert (await says(client)) == b"upstream %d: hi" % port


async def test_documents_come_in_the_order_in_which_routes_are_asked(stage: Stage) -> None:
    routes = [
        {"id": "late", "server_port": 1},
        {"id": "off", "server_port": 2, "status": 0},
        {"id": "first", "server_port": 3, "priority": 9},
    ]
    document = {"upstreams": [{"id": "u", "nodes": {"127.0.0.1:1": 1}}], "stream_routes": routes}
    (stage.routes / "echo.yaml").write_text(yaml.safe_dump(document))
    await stage.until(lambda: len(stage.fleet.documents()) == 4)

    ids = [document.key[1] for document in stage.fleet.documents() if document.key[0] == "stream_routes"]

    assert ids == ["first", "late", "off"]
    assert stage.fleet.documents() is stage.fleet.documents()


async def test_it_looks_again_at_everything_when_asked(stage: Stage) -> None:
    stage.fleet.reload()
    stage.fleet.poke()

    assert stage.asked == ["settings"]
    assert stage.fleet.ready()
    assert stage.fleet.health() == []
    assert (await stage.fleet.status())["listeners"] == await stage.fleet.listeners()
    assert (await stage.fleet.figures()).objects == {"stream_routes": 1}
    assert all(worker.reloader.status.state == "applied" for worker in stage.workers)


async def test_what_happens_is_heard_of_every_worker(stage: Stage) -> None:
    feed = stage.fleet.subscribe(["session_opened", "session_closed"], {"route": "echo"})
    await stage.until(lambda: all(worker.hub.wanted for worker in stage.workers))

    async with clients_of(stage, 2) as clients:
        names = {name_of(client) for client in clients}

    heard = []
    with trio.fail_after(30):
        while len(heard) < 2 * len(clients):
            heard.append(await feed.receive())
    assert {each.data["client"] for each in heard if each.kind == "session_closed"} == names
    assert {each.data["worker"] for each in heard} == {worker.number for worker in stage.workers}
    feed.close()


async def test_the_status_is_that_of_all_workers(stage: Stage) -> None:
    async with clients_of(stage, 4) as clients:
        said = await stage.fleet.status()

    assert said["ready"] is True
    assert said["sessions"]["active"] == said["sessions"]["total"] == len(clients)
    assert said["sessions"]["bytes_up"] == 3 * len(clients)
    (listener,) = said["listeners"]
    assert (listener["state"], listener["sessions"], listener["accepted"]) == (
        "listening",
        len(clients),
        len(clients),
    )
    revision = stage.central.reloader.current.revision
    assert [(row["worker"], row["state"], row["revision"]) for row in said["workers"]] == [
        (worker.number, "serving", revision) for worker in stage.workers
    ]
    assert sum(row["sessions"] for row in said["workers"]) == len(clients)


async def test_figures_are_those_of_all_workers(stage: Stage) -> None:
    async with clients_of(stage, 4) as clients:
        pass
    await stage.until(lambda: not stage.live)
    async with await stage.connect() as client:
        await says(client)

        figures = await stage.fleet.figures()

    (listener,) = figures.listeners
    assert (listener.accepted, listener.active, listener.bytes_up) == (len(clients) + 1, 1, 3)
    assert ended(figures) == sum(figures.duration.counts) == sum(figures.connect.counts) == len(clients)
    assert sum(each.bytes_up for each in figures.ended) == 3 * len(clients)
    assert figures.duration.sum > 0
    assert figures.revision == stage.central.reloader.current.revision


# With several


async def test_a_worker_that_is_killed_is_missed_in_no_counter(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage, clients_of(stage, 4) as clients:
        before = await stage.fleet.figures()
        await stage.fleet.status()
        victim = stage.colleagues[0]
        cut = victim.worker.live_sessions

        await stage.fire(victim)

        after, said = await stage.fleet.figures(), await stage.fleet.status()
        assert [(each.reason, each.sessions) for each in after.ended] == [("lost", cut)]
        (was,), (now) = before.listeners, after.listeners[0]
        assert now.accepted == was.accepted == len(clients)
        assert now.bytes_up + sum(each.bytes_up for each in after.ended) == was.bytes_up
        assert said["sessions"]["total"] == len(clients)
        assert said["sessions"]["by_reason"] == {"lost": cut}
        assert said["sessions"]["bytes_up"] == 3 * len(clients)
        assert [row["worker"] for row in said["workers"]] == [1]
        assert not stage.fleet.ready()


async def test_a_worker_that_ends_leaves_behind_what_it_has_counted_last(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        async with clients_of(stage, 2) as clients:
            pass
        await stage.until(lambda: not stage.live)
        leaver = stage.colleagues[0]

        await farewell(leaver)
        await stage.fire(leaver)

        assert ended(await stage.fleet.figures()) == len(clients)
        assert (await stage.fleet.status())["sessions"]["by_reason"] == {"closed": len(clients)}


async def test_an_answer_that_a_farewell_has_overtaken_changes_nothing(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        assert stage.office is not None
        leaver = stage.colleagues[0]
        async with clients_of(stage, 2) as clients:
            overtaken = await leaver.member.share()
        await stage.until(lambda: not stage.live)

        await farewell(leaver)
        stage.office.books.note(leaver.member, share=overtaken)
        await stage.fire(leaver)

        figures = await stage.fleet.figures()
        assert {each.reason for each in figures.ended} == {"closed"}
        assert ended(figures) == len(clients)


async def test_a_gateway_is_whole_again_when_its_slot_is_filled(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        await stage.fire(stage.colleagues[0])
        assert stage.hire is not None

        await stage.hire(0)

        assert stage.fleet.ready()
        async with clients_of(stage, 2):
            workers = {row.worker for row in (await stage.fleet.sessions(SessionFilter()))[0]}
            assert workers == {0, 1}


async def test_a_worker_that_does_not_answer_is_left_out_and_named(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage, clients_of(stage, 4):
        whole = await stage.fleet.figures()
        stuck, other = stage.colleagues
        stuck.is_stuck, stuck.member.answer_s = True, 0.1

        with trio.fail_after(30):
            rows, total = await stage.fleet.sessions(SessionFilter())
            said = await stage.fleet.status()
            figures = await stage.fleet.figures()
            killed = await stage.fleet.kill("nobody")
            late = await stage.fleet.wait_applied(
                [(("stream_routes", "echo"), "other")], trio.current_time() + 0.1
            )
            too_late = await stage.fleet.wait_applied([(("stream_routes", "echo"), "other")], 0.0)

        assert total == len(rows) == other.worker.live_sessions
        assert [row["state"] for row in said["workers"]] == ["silent", "serving"]
        assert figures.listeners == whole.listeners, "it counts as it last did"
        assert not killed
        assert late == too_late == (0, 1)


async def test_an_answer_stays_with_who_gave_it_though_another_one_ends_meanwhile(tmp_path: Path) -> None:
    async def number(member: Member) -> int:
        await member.status()
        return member.number

    async with stage_on(tmp_path, 3) as stage, trio.open_nursery() as nursery:
        stuck = stage.colleagues[0]
        stuck.is_stuck = True
        answers: list[tuple[int, int | None]] = []

        async def ask() -> None:
            answers.extend((member.number, answer) for member, answer in await stage.fleet._ask(number))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await stage.fire(stuck)

    assert answers == [(0, None), (1, 1), (2, 2)]


async def test_nobody_waits_for_a_worker_that_drains(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        stage.colleagues[0].member.state = "draining"

        late = await stage.fleet.wait_applied([(("stream_routes", "echo"), None)], trio.current_time() + 0.05)

        assert late == (1,)
        assert not stage.fleet.ready()


async def test_nobody_waits_for_a_worker_that_dies(tmp_path: Path) -> None:
    async with stage_on(tmp_path, 2) as stage:
        stuck = stage.colleagues[0]
        stuck.is_stuck = True
        digest = stage.central.reloader.current.sources["stream_routes", "echo"]
        late: list[object] = []

        async def wait() -> None:
            late.append(
                await stage.fleet.wait_applied(
                    [(("stream_routes", "echo"), digest)], trio.current_time() + 60
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(30):
                await stage.fire(stuck)

        assert late == [()]


async def test_a_worker_that_is_dead_and_not_buried_lags_behind_nobody(tmp_path: Path) -> None:
    """For a moment after a kill -9 it still counts as a member: writes were answered with 202."""
    async with stage_on(tmp_path, 2) as stage:
        digest = stage.central.reloader.current.sources["stream_routes", "echo"]
        stage.colleagues[0].theirs.close()

        late = await stage.fleet.wait_applied([(("stream_routes", "echo"), digest)], trio.current_time() + 60)

        assert late == ()
