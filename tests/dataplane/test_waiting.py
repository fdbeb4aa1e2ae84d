"""First come, first served; and nobody is left in the line."""

from __future__ import annotations

import math

import attrs
import trio
import trio.testing

from streamgw.dataplane.waiting import WaitingLine


@attrs.define
class Counter:
    """A counter with so many places, and the line before it."""

    places: int = 0
    line: WaitingLine = attrs.Factory(WaitingLine)
    served: list[str] = attrs.Factory(list)

    async def take(self) -> bool | None:
        if not self.places:
            return None
        self.places -= 1
        return True

    async def come(self, who: str, *, patience_s: float = math.inf) -> None:
        deadline = trio.current_time() + patience_s
        found = await self.line.until(self.take, lambda: deadline)
        self.served.append(who if found else f"{who} left")

    def free(self, places: int = 1) -> None:
        self.places += places
        self.line.on_room()


async def stand(nursery: trio.Nursery, counter: Counter, *who: str, patience_s: float = math.inf) -> None:
    """They come one after the other."""
    for each in who:
        nursery.start_soon(lambda name: counter.come(name, patience_s=patience_s), each)
        await trio.testing.wait_all_tasks_blocked()


async def test_who_came_first_is_served_first(autojump_clock: trio.testing.MockClock) -> None:
    counter = Counter()
    async with trio.open_nursery() as nursery:
        await stand(nursery, counter, "a", "b", "c")
        assert len(counter.line) == 3
        assert counter.line.is_standing
        for _ in range(3):
            counter.free()
            await trio.testing.wait_all_tasks_blocked()

    assert counter.served == ["a", "b", "c"]
    assert not counter.line.is_standing


async def test_places_that_become_free_together_serve_as_many_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    counter = Counter()
    async with trio.open_nursery() as nursery:
        await stand(nursery, counter, "a", "b", "c", "d")
        counter.free(3)
        await trio.testing.wait_all_tasks_blocked()
        assert counter.served == ["a", "b", "c"]
        counter.free()

    assert counter.served == ["a", "b", "c", "d"]


async def test_a_call_for_nothing_leaves_everybody_where_he_stands(
    autojump_clock: trio.testing.MockClock,
) -> None:
    counter = Counter()
    async with trio.open_nursery() as nursery:
        await stand(nursery, counter, "a", "b")
        counter.line.on_room()
        await trio.testing.wait_all_tasks_blocked()
        assert counter.served == []
        counter.free(2)

    assert counter.served == ["a", "b"]


async def test_patience_has_an_end(autojump_clock: trio.testing.MockClock) -> None:
    counter = Counter()
    began_at = trio.current_time()

    await counter.come("a", patience_s=5)

    assert counter.served == ["a left"]
    assert trio.current_time() - began_at == 5
    assert len(counter.line) == 0


async def test_patience_may_change_while_one_waits(autojump_clock: trio.testing.MockClock) -> None:
    deadline = 10.0
    line = WaitingLine()

    async def find() -> None:
        nonlocal deadline
        deadline = 2.0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.until, find, lambda: deadline)
        await trio.testing.wait_all_tasks_blocked()
        line.on_room()

    assert trio.current_time() == 2.0


async def test_one_who_is_called_and_gone_passes_the_call_on(autojump_clock: trio.testing.MockClock) -> None:
    counter, scope = Counter(), trio.CancelScope()

    async def come_and_be_cancelled() -> None:
        with scope:
            await counter.come("a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_and_be_cancelled)
        await trio.testing.wait_all_tasks_blocked()
        await stand(nursery, counter, "b")
        scope.cancel()
        counter.free()

    assert counter.served == ["b"]
    assert len(counter.line) == 0


async def test_a_pause_ends_with_its_time_or_with_news(autojump_clock: trio.testing.MockClock) -> None:
    line = WaitingLine()
    began_at = trio.current_time()

    await line.pause(3)
    assert trio.current_time() - began_at == 3

    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.pause, 100)
        await trio.testing.wait_all_tasks_blocked()
        assert len(line) == 1
        assert not line.is_standing, "one who pauses is in nobody's way"
        line.on_change()

    assert trio.current_time() - began_at == 3
    assert len(line) == 0


async def test_a_crowd_is_served_in_order(autojump_clock: trio.testing.MockClock) -> None:
    counter = Counter()
    names = [f"{number}" for number in range(20)]
    async with trio.open_nursery() as nursery:
        await stand(nursery, counter, *names)
        counter.free(20)

    assert counter.served == names
