"""Questions, answers, news and descriptors between two processes."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from streamgw.core.errors import ConfigError, Problem, StreamgwError
from streamgw.process import channel as module
from streamgw.process.channel import Channel, ChannelClosed, Refused
from tests.support.descriptors import open_descriptors, opened_since


@attrs.define
class Side:
    """One process, as its channel knows it. Answers by the functions that the story gives."""

    sock: socket.socket
    answers: dict[str, Callable[..., object]] = attrs.Factory(dict)
    news: list[tuple[str, Mapping[str, object], tuple[int, ...]]] = attrs.Factory(list)
    channel: Channel = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.channel = Channel(self.sock, answer=self.answer, heard=self.heard)

    async def answer(self, what: str, arguments: Mapping[str, object]) -> object:
        said = self.answers[what](**arguments)
        return await said if hasattr(said, "__await__") else said

    def heard(self, what: str, data: Mapping[str, object], fds: tuple[int, ...]) -> None:
        self.news.append((what, data, fds))


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Side, Side]]:
    ours, theirs = (Side(sock) for sock in socket.socketpair())
    async with trio.open_nursery() as nursery:
        await nursery.start(ours.channel.run)
        await nursery.start(theirs.channel.run)
        yield ours, theirs
        nursery.cancel_scope.cancel()


async def test_a_question_brings_its_answer_both_ways() -> None:
    async with two() as (ours, theirs):
        theirs.answers["double"] = lambda number: 2 * number
        ours.answers["half"] = lambda number: number / 2

        assert await ours.channel.ask("double", {"number": 21}) == 42
        assert await theirs.channel.ask("half", {"number": 21}) == 10.5


async def test_text_that_is_no_unicode_arrives_as_it_was() -> None:
    async with two() as (ours, theirs):
        theirs.answers["same"] = lambda text: text

        assert await ours.channel.ask("same", {"text": "café \udcff"}) == "café \udcff"


async def test_a_slow_answer_keeps_nobody_waiting() -> None:
    async with two() as (ours, theirs):
        theirs.answers["never"] = trio.sleep_forever
        theirs.answers["now"] = lambda: "now"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.channel.ask, "never")
            await trio.testing.wait_all_tasks_blocked()
            assert await ours.channel.ask("now") == "now"
            nursery.cancel_scope.cancel()


async def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    async with two() as (ours, theirs):
        asked, go = trio.Event(), trio.Event()

        async def late() -> str:
            asked.set()
            await go.wait()
            return "late"

        theirs.answers |= {"late": late, "now": lambda: "now"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.channel.ask, "late")
            await asked.wait()
            nursery.cancel_scope.cancel()
        go.set()

        assert await ours.channel.ask("now") == "now"


async def test_an_error_of_ours_is_raised_where_was_asked() -> None:
    problem = Problem("routes.d/a.yaml", 3, 1, "upstream", "expected a mapping", error_msg="property bad")

    def refuse() -> None:
        raise StreamgwError("not today")

    def reject() -> None:
        raise ConfigError((problem,))

    async with two() as (ours, theirs):
        theirs.answers |= {"refuse": refuse, "reject": reject}

        with pytest.raises(Refused, match="not today"):
            await ours.channel.ask("refuse")
        with pytest.raises(ConfigError) as caught:
            await ours.channel.ask("reject")
        assert caught.value.problems == (problem,)
        assert caught.value.problems[0].error_msg == "property bad"


async def test_a_bug_in_answering_ends_nothing() -> None:
    async with two() as (ours, theirs):
        theirs.answers["divide"] = lambda: 1 // 0

        with pytest.raises(Refused, match="ZeroDivisionError"):
            await ours.channel.ask("divide")
        with pytest.raises(Refused, match="KeyError"):
            await ours.channel.ask("unheard of")


async def test_the_end_of_the_other_side_ends_every_question() -> None:
    async with two() as (ours, theirs):
        theirs.answers["never"] = trio.sleep_forever
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_soon, theirs.channel)
            with pytest.raises(ChannelClosed):
                await ours.channel.ask("never")

        with pytest.raises(ChannelClosed):
            await ours.channel.ask("never")
        ours.channel.tell("too late", {})
        assert ours.channel.dropped == 1


async def _close_soon(channel: Channel) -> None:
    await trio.testing.wait_all_tasks_blocked()
    channel.close()


async def test_what_the_kernel_does_not_take_ends_the_channel_and_nothing_else() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # where a message has to fit
    with other:
        ours = Side(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.channel.run)

            with trio.fail_after(30), pytest.raises(ChannelClosed):
                await ours.channel.ask("swallow", {"text": "x" * (16 << 20)})


async def test_run_returns_when_the_other_side_is_gone() -> None:
    ours, theirs = (Side(sock) for sock in socket.socketpair())
    theirs.channel.close()
    ours.channel.tell("hello", {})

    with trio.fail_after(30):
        await ours.channel.run()


async def test_news_arrive_in_order() -> None:
    async with two() as (ours, theirs):
        for number in range(500):
            ours.channel.tell("number", {"number": number})
        theirs.answers["now"] = lambda: None
        await ours.channel.ask("now")

        assert [data["number"] for _, data, _ in theirs.news] == [*range(500)]


async def test_news_that_have_no_room_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NEWS", 3)
    monkeypatch.setattr(module, "MAX_NEWS_BYTES", 1_000)
    async with two() as (ours, theirs):
        ours.channel.tell("large", {"text": "x" * 1_000})
        for number in range(5):
            ours.channel.tell("small", {"number": number})
        theirs.answers["now"] = lambda: None
        await ours.channel.ask("now")

        assert ours.channel.dropped == 3
        assert len(theirs.news) == 3
        ours.channel.tell("small", {})
        assert ours.channel.dropped == 3, "there is room again"


async def test_what_is_too_long_is_refused_on_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (ours, theirs):
        theirs.answers["long"] = lambda **_: "x" * 1_000
        monkeypatch.setattr(module, "MAX_FRAME_BYTES", 500)

        with pytest.raises(Refused, match="too long"):
            await ours.channel.ask("long", {"text": "x" * 1_000})
        with pytest.raises(Refused, match="too long"):
            await ours.channel.ask("long")
        with pytest.raises(Refused, match="251 descriptors"):
            await ours.channel.ask("long", fds=[0] * 251)


async def test_many_megabytes_arrive_whole() -> None:
    async with two() as (ours, theirs):
        theirs.answers["same"] = lambda text: text
        text = "0123456789" * 600_000

        assert await ours.channel.ask("same", {"text": text}) == text


async def test_questions_beyond_the_limit_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUESTIONS", 2)
    async with two() as (ours, theirs):
        most = now = 0

        async def count() -> None:
            nonlocal most, now
            now += 1
            most = max(most, now)
            await trio.lowlevel.checkpoint()
            now -= 1

        theirs.answers["count"] = count
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ours.channel.ask, "count")

        assert most == 2


async def test_a_question_taken_back_is_never_sent() -> None:
    """The other side does not read, the socket is full: what waits behind it can still be taken back."""
    ours, theirs = (Side(sock) for sock in socket.socketpair())
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        await nursery.start(ours.channel.run)
        for number in range(3):
            nursery.start_soon(ours.channel.ask, "large", {"number": number, "text": "x" * 2_000_000})
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01):
            await ours.channel.ask("small", fds=[0])
        assert not opened_since(before)

        theirs.answers |= {"large": lambda number, text: number, "small": lambda **_: theirs.news.append(())}
        await nursery.start(theirs.channel.run)
        theirs.answers["now"] = lambda: None
        await ours.channel.ask("now")
        assert not theirs.news
        nursery.cancel_scope.cancel()


async def test_a_question_taken_back_at_once_leaves_the_channel_alone() -> None:
    """A worker that was asked with a time limit of next to nothing died of it."""
    async with two() as (ours, theirs):
        theirs.answers["double"] = lambda number: 2 * number
        for _ in range(20):  # the cancellation has to come in one of two orders
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.channel.ask, "double", {"number": 1})
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

        assert await ours.channel.ask("double", {"number": 21}) == 42


async def test_descriptors_travel_with_the_frame_that_names_them() -> None:
    async with two() as (ours, theirs):
        reads = []

        def read(fds: tuple[int, ...], name: str) -> str:
            texts = [os.read(fd, 10).decode() for fd in fds]
            for fd in fds:
                assert not os.get_inheritable(fd)
                os.close(fd)
            reads.append((name, texts))
            return name

        theirs.answers |= {"read": read, "plain": lambda: "plain"}
        pipes = [os.pipe() for _ in range(6)]
        for number, (_, write_end) in enumerate(pipes):
            os.write(write_end, b"pipe %d" % number)
        ends = [read_end for read_end, _ in pipes]
        async with trio.open_nursery() as nursery:
            for name, fds in (("a", ends[:1]), ("b", ends[1:4]), ("c", ends[4:])):
                nursery.start_soon(_ask_with, ours.channel, name, fds)
                nursery.start_soon(ours.channel.ask, "plain")
        ours.channel.tell("take", {}, fds=ends[:1])
        await ours.channel.ask("plain")

        assert sorted(reads) == [
            ("a", ["pipe 0"]),
            ("b", ["pipe 1", "pipe 2", "pipe 3"]),
            ("c", ["pipe 4", "pipe 5"]),
        ]
        ((what, _, taken),) = theirs.news
        assert (what, len(taken)) == ("take", 1)
        for fd in (*taken, *(end for pipe in pipes for end in pipe)):
            os.close(fd)


async def _ask_with(channel: Channel, name: str, fds: list[int]) -> None:
    await channel.ask("read", {"name": name}, fds=fds)


async def test_a_descriptor_may_be_closed_before_the_turn_of_its_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_QUESTIONS", 1)
    async with two() as (ours, theirs):
        before = open_descriptors()
        goes_on = trio.Event()
        theirs.answers |= {
            "wait": goes_on.wait,
            "close": lambda fds: [os.close(fd) for fd in fds] and len(fds),
        }
        read_end, write_end = os.pipe()
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await ours.channel.ask("close", fds=[read_end, write_end]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.channel.ask, "wait")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            os.close(read_end)
            os.close(write_end)
            with trio.move_on_after(0.01):
                await ours.channel.ask("close", fds=[0])
            goes_on.set()

        assert answers == [2]
        assert not opened_since(before)


async def test_a_descriptor_that_is_none_is_refused() -> None:
    async with two() as (ours, _):
        before = open_descriptors()
        with pytest.raises(Refused, match="Bad file descriptor"):
            await ours.channel.ask("take", fds=[0, 9_999])

        ours.channel.tell("take", {}, fds=[0, 9_999])

        assert ours.channel.dropped == 1
        assert not opened_since(before)


async def test_who_is_cancelled_is_not_told_of_descriptors_that_are_closed_by_then() -> None:
    """Whoever cancels an upgrade because of a SIGTERM closes the listening sockets in the same breath."""
    async with two() as (ours, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.channel.ask("take", fds=[9_999])

        assert scope.cancelled_caught


async def test_descriptors_get_lost_where_there_is_no_room_and_nothing_else_does() -> None:
    """Out of descriptors, the kernel hands over as many as fit. The question fails; the next one finds its own."""
    ours, theirs = (Side(sock) for sock in socket.socketpair())
    theirs.answers["count"] = lambda fds=(): [os.close(fd) for fd in fds] and len(fds)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with trio.open_nursery() as nursery:
        await nursery.start(ours.channel.run)
        nursery.start_soon(_fail_for_want_of_descriptors, ours.channel)
        await trio.testing.wait_all_tasks_blocked()
        before = open_descriptors()
        resource.setrlimit(resource.RLIMIT_NOFILE, (_first_free() + 1, hard))
        try:
            await nursery.start(theirs.channel.run)
            await trio.testing.wait_all_tasks_blocked()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert await ours.channel.ask("count", fds=[0, 1]) == 2
        assert not opened_since(before)
        nursery.cancel_scope.cancel()


async def _fail_for_want_of_descriptors(channel: Channel) -> None:
    with pytest.raises(Refused, match="too many open files"):
        await channel.ask("count", fds=[0, 1, 2])


def _first_free() -> int:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd


async def test_descriptors_that_nobody_took_are_closed() -> None:
    before = open_descriptors()
    ours, theirs = (Side(sock) for sock in socket.socketpair())
    ours.channel.tell("first", {}, fds=[0, 1])
    ours.channel.tell("second", {}, fds=[2])
    ours.channel.close()
    theirs.channel.close()

    assert not opened_since(before)
