from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from streamgw.control.admin.feed import MAX_QUEUED, Hub
from streamgw.control.admin.fleet import EVENT_KINDS, Event


def hub() -> Hub:
    return Hub(lambda: 5.0)


async def test_what_happens_is_told_in_order_with_its_time() -> None:
    events = hub()
    feed = events.subscribe(EVENT_KINDS, {})

    events.publish("session_opened", {"id": "1"})
    events.publish("reload", {"state": "applied"})

    assert await feed.receive() == Event("session_opened", 5.0, {"id": "1"})
    assert await feed.receive() == Event("reload", 5.0, {"state": "applied"})


async def test_who_waits_is_woken(nursery: trio.Nursery) -> None:
    events, heard = hub(), list[Event]()
    feed = events.subscribe(["reload"], {})

    async def listen() -> None:
        heard.append(await feed.receive())

    nursery.start_soon(listen)
    await wait_all_tasks_blocked()
    events.publish("reload", {})
    await wait_all_tasks_blocked()

    assert [event.kind for event in heard] == ["reload"]


def test_nothing_is_wanted_while_nobody_listens() -> None:
    events = hub()
    assert events.wanted == frozenset()

    one, other = events.subscribe(["reload"], {}), events.subscribe(["reload", "health"], {})
    assert (events.wanted, len(events)) == ({"reload", "health"}, 2)

    other.close()
    assert events.wanted == {"reload"}

    one.close()
    one.close()
    assert (events.wanted, len(events)) == (frozenset(), 0)


async def test_only_what_was_asked_for_is_told() -> None:
    events = hub()
    feed = events.subscribe(["session_closed", "reload"], {"route": "mysql"})

    events.publish("session_opened", {"route": "mysql"})
    events.publish("session_closed", {"route": "redis"})
    events.publish("session_closed", {"route": "mysql"})
    events.publish("reload", {"what": "routes"})

    assert [(await feed.receive()).data for _ in range(2)] == [{"route": "mysql"}, {"what": "routes"}]


async def test_a_slow_one_loses_events_and_is_told_how_many_and_nobody_else_does() -> None:
    events = hub()
    slow, quick = events.subscribe(["health"], {}), events.subscribe(["health"], {})

    for number in range(MAX_QUEUED + 3):
        events.publish("health", {"number": number})
        assert (await quick.receive()).data == {"number": number}

    heard = [await slow.receive() for _ in range(MAX_QUEUED + 1)]
    assert [event.data["number"] for event in heard[:-1]] == list(range(MAX_QUEUED))
    assert heard[-1] == Event("lost", 5.0, {"count": 3})
    assert events.lost == 3

    events.publish("health", {"number": -1})
    assert (await slow.receive()).data == {"number": -1}


async def test_a_listener_may_come_to_want_something_else_and_keeps_what_is_queued() -> None:
    events = hub()
    feed = events.subscribe(["health"], {})
    events.publish("health", {"number": 1}, at=4.0)

    feed.want(["reload"])
    events.publish("health", {"number": 2})
    events.publish("reload", {"number": 3})

    assert events.wanted == {"reload"}
    assert feed.queued == 2
    assert await feed.receive() == Event("health", 4.0, {"number": 1})
    assert (await feed.receive()).data == {"number": 3}
    assert feed.queued == 0


async def test_what_was_lost_on_the_way_here_is_told_to_everybody() -> None:
    events = hub()
    feeds = [events.subscribe(["health"], {}), events.subscribe(["reload"], {})]

    events.lose(7)

    assert [await feed.receive() for feed in feeds] == [Event("lost", 5.0, {"count": 7})] * 2
    assert events.lost == 14


async def test_it_says_when_something_else_is_wanted() -> None:
    events = hub()
    events.subscribe(["health"], {})
    seen: list[frozenset[str]] = []

    async def wait() -> None:
        seen.append(await events.wait_wanted(frozenset()))
        seen.append(await events.wait_wanted(seen[-1]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        events.subscribe(["health"], {})  # the same, once more
        await wait_all_tasks_blocked()
        assert seen == [{"health"}]
        events.subscribe(["reload"], {})

    assert seen[-1] == {"health", "reload"}
