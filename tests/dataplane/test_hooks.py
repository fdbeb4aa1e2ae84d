from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import NoReturn

import attrs
import pytest
import trio
import trio.testing

from streamgw.core.bucket import Bucket
from streamgw.core.errors import ParseError, Rejected
from streamgw.core.hooks import Cut, Decision, Decisions, Delay, Hook, Hooks, Look, Shape, UseUpstream
from streamgw.core.model import Facts, Outcome
from streamgw.core.wire import NeedMore
from streamgw.dataplane.hooks import (
    HOOK_TIMEOUT_S,
    RESTART_S,
    Backgrounds,
    HookRun,
    shows_datagram,
    tell_bugs,
)
from tests.support.plugins import break_when_cancelled
from tests.support.scenes import facts, outcome

NOBODY = Backgrounds(lambda error: pytest.fail(str(error)))
CLIENT = facts()
NAMED = attrs.evolve(CLIENT, mqtt_client_id="sensor-1")


@attrs.define
class Diary:
    """Plugins that write down when they run."""

    lines: list[str] = attrs.Factory(list)
    bugs: list[Exception] = attrs.Factory(list)

    def hook(self, line: str, decision: Decisions = None, *, error: Exception | None = None) -> Hook:
        def write(_: Facts, __: float) -> Decisions:
            self.lines.append(line)
            if error is not None:
                raise error
            return decision

        return write

    def hooks(self, name: str, *phases: str, decision: Decisions = None, **settings: object) -> Hooks:
        return Hooks(
            plugin=name,
            on_accept=self.hook(f"{name} accepts", decision) if "accept" in phases else None,
            on_preread=self.hook(f"{name} prereads", decision) if "preread" in phases else None,
            on_close=(lambda _, __: self.lines.append(f"{name} closes")) if "close" in phases else None,
            **settings,
        )

    async def play(
        self, *hooks: Hooks, first_bytes: bytes = b"", backgrounds: Backgrounds = NOBODY
    ) -> HookRun:
        run = HookRun(hooks, backgrounds)
        known = CLIENT
        try:
            known = await run.accept(known)
            known = await run.preread(known, shows_datagram(first_bytes))
        finally:
            run.close(outcome(known), self.bugs.append)
        return run


async def test_each_phase_runs_in_order_and_the_close_in_reverse() -> None:
    diary = Diary()

    await diary.play(
        diary.hooks("a", "accept", "close"),
        diary.hooks("b", "accept", "preread", "close"),
        diary.hooks("c", "preread"),
    )

    assert diary.lines == ["a accepts", "b accepts", "b prereads", "c prereads", "b closes", "a closes"]


async def test_a_refusal_names_the_plugin_and_keeps_the_others_from_running() -> None:
    diary = Diary()
    refusing = Hooks(
        plugin="doorman",
        on_accept=diary.hook("doorman accepts", error=Rejected("not you", status=503, reset=True)),
        on_close=lambda _, __: pytest.fail("it has not let anybody in"),
    )

    with pytest.raises(Rejected, match="doorman: not you") as refused:
        await diary.play(diary.hooks("a", "accept", "close"), refusing, diary.hooks("b", "accept", "close"))

    assert (refused.value.status, refused.value.reset) == (503, True)
    assert diary.lines == ["a accepts", "doorman accepts", "a closes"]


async def test_who_has_only_a_close_hears_of_every_session() -> None:
    diary = Diary()
    refusing = Hooks(plugin="doorman", on_accept=diary.hook("doorman accepts", error=Rejected("not you")))

    with pytest.raises(Rejected):
        await diary.play(refusing, diary.hooks("log", "close"))

    assert diary.lines == ["doorman accepts", "log closes"]


async def test_facts_grow_from_plugin_to_plugin_and_a_close_gets_those_of_its_own_phase() -> None:
    given: list[Facts] = []
    teller = Hooks(on_preread=lambda _, __: NAMED, on_close=lambda known, _: given.append(known))
    listener = Hooks(on_preread=lambda known, _: given.append(known))

    await Diary().play(teller, listener)

    assert given == [NAMED, CLIENT]


async def test_the_last_word_on_the_upstream_counts() -> None:
    diary = Diary()

    run = await diary.play(
        diary.hooks("a", "accept", decision=UseUpstream("upstreams/1")),
        diary.hooks("b", "preread", decision=UseUpstream("upstreams/2")),
        diary.hooks("c", "preread"),
    )

    assert run.upstream_key == "upstreams/2"


async def test_a_delay_passes_before_the_next_plugin_is_asked(autojump_clock: trio.testing.MockClock) -> None:
    began_at = trio.current_time()
    asked_at: list[float] = []
    after = Hooks(on_accept=lambda _, now: asked_at.append(now - began_at))

    await Diary().play(Hooks(on_accept=lambda _, __: Delay(1.5)), after)

    assert asked_at == [1.5]


async def test_a_hook_may_be_async() -> None:
    async def look_up(_: Facts, __: float) -> Decision:
        await trio.lowlevel.checkpoint()
        return UseUpstream("upstreams/3")

    assert (await Diary().play(Hooks(on_accept=look_up))).upstream_key == "upstreams/3"


async def test_a_hook_that_does_not_come_back_is_a_bug(autojump_clock: trio.testing.MockClock) -> None:
    async def hang(_: Facts, __: float) -> Decision:
        await trio.sleep_forever()

    began_at = trio.current_time()
    with pytest.raises(trio.TooSlowError) as bug:
        await Diary().play(Hooks(plugin="slow", on_accept=hang))

    assert trio.current_time() - began_at == HOOK_TIMEOUT_S
    assert bug.value.__notes__ == ["in plugin slow"]


async def test_an_answer_that_is_no_decision_is_a_bug() -> None:
    with pytest.raises(TypeError, match="a hook decided 'yes'") as bug:
        await Diary().play(Hooks(plugin="odd", on_accept=lambda _, __: "yes"))

    assert bug.value.__notes__ == ["in plugin odd"]


@pytest.mark.parametrize("phases", [("accept", "close"), ("preread", "close"), ("close",)])
async def test_a_filter_keeps_every_phase_from_running(phases: tuple[str, ...]) -> None:
    diary = Diary()

    await diary.play(diary.hooks("a", *phases, applies=lambda _: False), diary.hooks("b", *phases))

    assert not [line for line in diary.lines if line.startswith("a")]
    assert diary.lines


async def test_a_filter_is_asked_once() -> None:
    asked: list[Facts] = []
    diary = Diary()

    def applies(known: Facts) -> bool:
        asked.append(known)
        return len(asked) == 1

    await diary.play(diary.hooks("a", "accept", "preread", "close", applies=applies))
    await diary.play(diary.hooks("b", "accept", "preread", "close", applies=applies))

    assert diary.lines == ["a accepts", "a prereads", "a closes"]
    assert len(asked) == 2


async def test_a_bug_in_a_filter_names_the_plugin() -> None:
    with pytest.raises(ZeroDivisionError) as bug:
        await Diary().play(Hooks(plugin="odd", on_accept=lambda _, __: None, applies=lambda _: bool(1 / 0)))

    assert bug.value.__notes__ == ["in plugin odd"]


async def test_a_plugin_that_wants_to_exit_has_a_bug() -> None:
    """Users noticed that a library's `sys.exit`, in a plugin, ended the gateway."""

    def leave(_: Facts, __: float) -> Decision:
        sys.exit("no such option")

    with pytest.raises(RuntimeError, match=r"raised SystemExit\('no such option'\)") as raised:
        await HookRun([Hooks(plugin="odd", on_accept=leave)], NOBODY).accept(CLIENT)

    assert raised.value.__notes__ == ["in plugin odd"]


async def leave_from_a_task(*_: object) -> NoReturn:
    """What a plugin may wait for: a library that it uses in a task of its own wants to exit, at the latest when all is over."""

    async def leave() -> None:
        try:
            await trio.sleep(1)
        finally:
            sys.exit(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await trio.sleep_forever()
    raise AssertionError("somebody leaves")


async def test_a_plugin_that_wants_to_exit_in_a_task_of_its_own_has_a_bug(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Users noticed that `sys.exit` still ended the gateway where a nursery was around it."""
    with pytest.raises(RuntimeError, match=r"raised .*SystemExit\(3\)") as raised:
        await HookRun([Hooks(plugin="odd", on_accept=leave_from_a_task)], NOBODY).accept(CLIENT)

    assert raised.value.__notes__ == ["in plugin odd"]


async def test_a_bug_in_one_close_is_told_and_the_others_still_hear() -> None:
    diary = Diary()

    await diary.play(diary.hooks("a", "close"), Hooks(plugin="odd", on_close=lambda _, __: 1 / 0))

    assert diary.lines == ["a closes"]
    assert [type(bug) for bug in diary.bugs] == [ZeroDivisionError]
    assert diary.bugs[0].__notes__ == ["in plugin odd"]


def parse_name(known: Facts, buffer: bytes) -> Facts | NeedMore:
    if buffer.startswith(b"!"):
        raise Rejected("rude", status=503)
    if len(buffer) < 3:
        return NeedMore(3)
    return attrs.evolve(known, mqtt_client_id=buffer[:3].decode())


NAME = Look("a name", parse_name)


async def test_a_plugin_may_look_at_the_first_bytes_before_it_decides() -> None:
    told: list[str | None] = []
    hooks = Hooks(look=NAME, on_preread=lambda known, _: told.append(known.mqtt_client_id))

    await Diary().play(hooks, first_bytes=b"abcdef")

    assert told == ["abc"]


async def test_a_look_alone_is_a_phase() -> None:
    diary = Diary()

    await diary.play(diary.hooks("a", "close", look=NAME), first_bytes=b"abc")

    assert diary.lines == ["a closes"]


async def test_a_datagram_is_all_there_is_to_see() -> None:
    with pytest.raises(ParseError, match="ends before a name does"):
        await Diary().play(Hooks(look=NAME), first_bytes=b"ab")


async def test_a_look_may_refuse() -> None:
    with pytest.raises(Rejected, match="strict: rude"):
        await Diary().play(Hooks(plugin="strict", look=NAME), first_bytes=b"!")


# ── Tasks beside the sessions ────────────────────────────────────────────────────────────────────


@attrs.define
class Task:
    """What runs in the background of hooks."""

    running: int = 0
    runs: int = 0

    async def __call__(self) -> None:
        self.running += 1
        self.runs += 1
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1


async def test_a_background_task_lives_as_long_as_a_route_has_its_hooks(nursery: trio.Nursery) -> None:
    task, backgrounds = Task(), Backgrounds(lambda _: None)
    hooks = Hooks(background=task)
    await nursery.start(backgrounds.run)

    backgrounds.sync([hooks])
    await trio.testing.wait_all_tasks_blocked()
    backgrounds.sync([hooks])
    await trio.testing.wait_all_tasks_blocked()
    assert (task.running, task.runs) == (1, 1)

    backgrounds.sync([])
    await trio.testing.wait_all_tasks_blocked()
    assert task.running == 0


async def test_what_was_asked_for_before_the_start_runs_then(nursery: trio.Nursery) -> None:
    task, backgrounds = Task(), Backgrounds(lambda _: None)
    backgrounds.sync([Hooks(background=task)])

    await nursery.start(backgrounds.run)
    await trio.testing.wait_all_tasks_blocked()

    assert task.running == 1


async def test_a_session_keeps_the_tasks_of_the_hooks_it_began_with(nursery: trio.Nursery) -> None:
    task, backgrounds = Task(), Backgrounds(lambda _: None)
    hooks = Hooks(background=task)
    await nursery.start(backgrounds.run)
    backgrounds.sync([hooks])
    first, second = HookRun([hooks], backgrounds), HookRun([hooks], backgrounds)
    backgrounds.sync([])

    first.close(outcome(CLIENT), pytest.fail)
    await trio.testing.wait_all_tasks_blocked()
    assert task.running == 1

    second.close(outcome(CLIENT), pytest.fail)
    await trio.testing.wait_all_tasks_blocked()
    assert task.running == 0


async def test_a_task_that_breaks_is_told_and_begins_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bugs: list[Exception] = []

    async def break_down() -> None:
        raise ZeroDivisionError

    backgrounds = Backgrounds(bugs.append)
    await nursery.start(backgrounds.run)
    backgrounds.sync([Hooks(plugin="odd", background=break_down)])

    await trio.sleep(2.5 * RESTART_S)

    assert len(bugs) == 3
    assert bugs[0].__notes__ == ["in plugin odd"]


async def test_a_task_that_wants_to_exit_is_told_and_begins_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bugs: list[Exception] = []
    backgrounds = Backgrounds(bugs.append)
    await nursery.start(backgrounds.run)
    backgrounds.sync([Hooks(plugin="odd", background=leave_from_a_task)])

    await trio.sleep(2 * (1 + RESTART_S) + 0.5)

    assert [type(bug) for bug in bugs] == [RuntimeError, RuntimeError]
    assert bugs[0].__notes__ == ["in plugin odd"]


@pytest.mark.parametrize("how", ["its route is gone", "the gateway ends"])
async def test_a_task_that_breaks_while_it_is_cancelled_is_told_and_ends_nothing_else(how: str) -> None:
    """Users noticed that a reload without the plugin ended the gateway."""
    bugs: list[Exception] = []
    task, backgrounds = Task(), Backgrounds(bugs.append)
    other = Hooks(background=task)

    async with trio.open_nursery() as nursery:
        await nursery.start(backgrounds.run)
        backgrounds.sync([Hooks(plugin="odd", background=break_when_cancelled), other])
        await trio.testing.wait_all_tasks_blocked()

        if how == "its route is gone":
            backgrounds.sync([other])
            await trio.testing.wait_all_tasks_blocked()
            assert (task.running, len(bugs)) == (1, 1)
        nursery.cancel_scope.cancel()

    (bug,) = bugs
    assert isinstance(bug, ExceptionGroup)
    assert "in plugin odd" in "".join(traceback.format_exception(bug))
    assert bug.subgroup(OSError) is not None


@pytest.mark.parametrize("phase", ["on_accept", "on_preread"])
@pytest.mark.parametrize("hook", [break_when_cancelled, leave_from_a_task])
async def test_a_hook_that_breaks_while_it_is_cancelled_leaves_cancelled_behind(
    phase: str, hook: Callable[..., Awaitable[NoReturn]], autojump_clock: trio.testing.MockClock
) -> None:
    bugs: list[Exception] = []

    async def play() -> None:
        try:
            await Diary().play(Hooks(plugin="odd", **{phase: hook}))
        except BaseExceptionGroup as group:
            raise tell_bugs(group, bugs.append) from None

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

    assert scope.cancelled_caught
    (bug,) = bugs
    assert isinstance(bug, ExceptionGroup)
    assert "in plugin odd" in "".join(traceback.format_exception(bug))


def test_what_nobody_cancelled_is_for_the_boundary() -> None:
    group = ExceptionGroup("a hook's nursery", [OSError()])

    assert tell_bugs(group, pytest.fail) is group


def test_what_ends_the_process_has_no_bug_to_tell() -> None:
    group = BaseExceptionGroup("a hook's nursery", [KeyboardInterrupt()])

    told = tell_bugs(group, pytest.fail)

    assert isinstance(told, BaseExceptionGroup)
    assert [type(error) for error in told.exceptions] == [KeyboardInterrupt]


async def test_leaving_hooks_that_still_stand_in_a_route_stops_nothing(nursery: trio.Nursery) -> None:
    task, backgrounds = Task(), Backgrounds(lambda _: None)
    hooks = Hooks(background=task)
    await nursery.start(backgrounds.run)
    backgrounds.sync([hooks])

    HookRun([hooks], backgrounds).close(outcome(CLIENT), pytest.fail)
    await trio.testing.wait_all_tasks_blocked()

    assert task.running == 1


def test_an_outcome_is_what_a_close_gets() -> None:
    told: list[Outcome] = []
    run = HookRun([Hooks(on_close=lambda _, ended: told.append(ended))], NOBODY)

    run.close(outcome(CLIENT), pytest.fail)

    assert told == [outcome(CLIENT)]


async def test_limits_of_all_plugins_count() -> None:
    diary, slow, slower = Diary(), Bucket(1000, 500), Bucket(100, 50)

    run = await diary.play(
        diary.hooks("a", "accept", decision=Shape(up=(slow,))),
        diary.hooks("b", "preread", decision=(Shape(up=(slower,)), Cut(up=70, down=5))),
        diary.hooks("c", "preread", decision=Cut(up=60, down=9)),
    )
    up, down = run.gates()

    assert up is not None
    assert up.take(1000, 0.0) == 50
    assert up.take(1000, 1.0) == 10
    assert up.is_spent
    assert up.why == "c: cut off after 60 bytes up"
    assert down is not None
    assert down.take(1000, 0.0) == 5
    assert down.why == "b: cut off after 5 bytes down"


async def test_a_direction_of_which_nothing_was_said_is_free() -> None:
    diary = Diary()

    assert (await diary.play(diary.hooks("a", "accept"))).gates() == (None, None)
    up, down = (await diary.play(diary.hooks("a", "accept", decision=Cut(up=1)))).gates()

    assert up is not None
    assert down is None
