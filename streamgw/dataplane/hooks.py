"""The hooks of one session as it goes, TCP or UDP alike; and the tasks that hooks want beside the sessions.

A session whose route has no hooks has none of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import NoReturn, ParamSpec

import trio

from streamgw.core.bucket import Bucket, Gate
from streamgw.core.errors import ParseError, Rejected
from streamgw.core.hooks import Cut, Decision, Delay, Hook, Hooks, Look, Shape, UseUpstream
from streamgw.core.model import Facts, Outcome
from streamgw.core.wire import NeedMore

HOOK_TIMEOUT_S = 30.0
"""What an async hook may take. One that takes longer is a bug: it holds a client, and a kill does not reach it."""
RESTART_S = 1.0
"""Until a background task that ended or raised is started again."""

P = ParamSpec("P")

_DECISIONS = (Delay, UseUpstream, Shape, Cut, Facts, NoneType)
_NO_BUGS = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)
"""What passes through a plugin, though it is no Exception: others want something to end."""

Looks = Callable[[Look, Facts], Awaitable[Facts]]
"""Shows a plugin the client's first bytes, and brings the facts with what it saw."""
Waits = Callable[[float], Awaitable[None]]
"""Lets seconds pass for a session. May raise a SessionError when it ends meanwhile."""


class Backgrounds:
    """The tasks that hooks want beside the sessions (`Hooks.background`): one for each record of hooks that is in use.

    In use are the hooks of the current routes, and those that a live session began with.
    """

    def __init__(self, on_bug: Callable[[Exception], None]) -> None:
        self._on_bug = on_bug
        self._nursery: trio.Nursery | None = None
        self._wanted: frozenset[Hooks] = frozenset()
        self._sessions: Counter[Hooks] = Counter()
        self._running: dict[Hooks, trio.CancelScope] = {}

    def sync(self, wanted: Sequence[Hooks]) -> None:
        """Follow a new snapshot: start what is new, stop what nobody has any more. At once, without waiting."""
        self._wanted = frozenset(wanted)
        for hooks in wanted:
            self._start(hooks)
        for hooks in tuple(self._running):
            self._stop_unless_used(hooks)

    def enter(self, hooks: Hooks) -> None:
        """A session has these hooks."""
        self._sessions[hooks] += 1
        self._start(hooks)

    def leave(self, hooks: Hooks) -> None:
        """It has ended, and its `on_close` has been told."""
        self._sessions[hooks] -= 1
        if not self._sessions[hooks]:
            del self._sessions[hooks]
            self._stop_unless_used(hooks)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Hold the tasks. Ends only by cancellation, which ends them too."""
        async with trio.open_nursery() as self._nursery:
            for hooks in self._wanted:
                self._start(hooks)
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("only cancellation ends this")

    def _start(self, hooks: Hooks) -> None:
        if self._nursery is not None and hooks not in self._running:
            scope = self._running[hooks] = trio.CancelScope()
            self._nursery.start_soon(self._keep_running, hooks, scope)

    def _stop_unless_used(self, hooks: Hooks) -> None:
        if hooks in self._running and hooks not in self._wanted and hooks not in self._sessions:
            self._running.pop(hooks).cancel()

    async def _keep_running(self, hooks: Hooks, scope: trio.CancelScope) -> None:
        assert hooks.background is not None, "only those are asked for"
        try:
            with scope:
                while True:
                    try:
                        with _speaking_for(hooks):
                            await hooks.background()
                    except Exception as error:  # noqa: BLE001  a plugin's bug must not end the data plane
                        self._on_bug(error)
                    await trio.sleep(RESTART_S)
        except* Exception as errors:  # noqa: BLE001  it broke while it was cancelled: nobody wants it any more
            self._on_bug(errors)


class HookRun:
    """One session's way through the hooks of its route.

    Raises of `accept` and `preread`:
      Rejected: a plugin refuses the client. Its message begins with the name of the plugin.
      SessionError: what looking at the first bytes brings.
      Any other exception is a bug of the plugin, which a note on it names.

    Cancellation:
      A hook under way is cancelled, and counts as one that never began. What it raises beside Cancelled (it has a
      nursery) is for `tell_bugs`.
    """

    __slots__ = ("_backgrounds", "_entered", "_hooks", "_out", "_wait", "_ways", "upstream_key")

    def __init__(self, hooks: Sequence[Hooks], backgrounds: Backgrounds, *, wait: Waits = trio.sleep) -> None:
        self._hooks = hooks
        self._backgrounds = backgrounds
        self._wait = wait
        for each in hooks:
            if each.background is not None:
                backgrounds.enter(each)
        self._entered: dict[Hooks, Facts] = {}
        """Those of which a phase has returned, and what its last phase was given."""
        self._out: set[Hooks] = set()
        """Those whose filter said no."""
        self.upstream_key = ""
        """Of the upstream that a plugin has chosen (`Snapshot.upstreams`)."""
        self._ways: tuple[_Way, _Way] | None = None
        """Up and down; None: no plugin has said anything about them."""

    def gates(self) -> tuple[Gate | None, Gate | None]:
        """What the bytes of the session have to pass, up and down. New ones each time."""
        return (None, None) if self._ways is None else (self._ways[0].gate(), self._ways[1].gate())

    async def accept(self, facts: Facts) -> Facts:
        """Run what only needs addresses and names. Returns what is known now."""
        for hooks in self._hooks:
            if hooks.on_accept is not None and self._applies(hooks, facts):
                facts = await self._ask(hooks, hooks.on_accept, facts)
        return facts

    async def preread(self, facts: Facts, look: Looks) -> Facts:
        """Run what may need the client's first bytes, and every fact of a handshake. Returns what is known now."""
        for hooks in self._hooks:
            if (hooks.look is None and hooks.on_preread is None) or not self._applies(hooks, facts):
                continue
            if hooks.look is not None:
                with _speaking_for(hooks):
                    seen = await look(hooks.look, facts)
                self._entered[hooks] = facts
                facts = seen
            if hooks.on_preread is not None:
                facts = await self._ask(hooks, hooks.on_preread, facts)
        return facts

    def close(self, outcome: Outcome, on_bug: Callable[[Exception], None]) -> None:
        """Tell the hooks that the session has ended, in reverse order. To be called once; never raises."""
        for hooks in reversed(self._hooks):
            try:
                with _speaking_for(hooks):
                    self._close(hooks, outcome)
            except Exception as error:  # noqa: BLE001  one plugin's bug must not keep the others from hearing of the end
                on_bug(error)
            if hooks.background is not None:
                self._backgrounds.leave(hooks)

    def _close(self, hooks: Hooks, outcome: Outcome) -> None:
        if hooks.on_close is None:
            return
        if hooks in self._entered:
            hooks.on_close(self._entered[hooks], outcome)
        elif _only_closes(hooks) and self._applies(hooks, outcome.facts):
            hooks.on_close(outcome.facts, outcome)

    def _applies(self, hooks: Hooks, facts: Facts) -> bool:
        if hooks.applies is None or hooks in self._entered:
            return True
        if hooks in self._out:
            return False
        with _speaking_for(hooks):
            applies = hooks.applies(facts)
        if not applies:
            self._out.add(hooks)
        return applies

    async def _ask(self, hooks: Hooks, hook: Hook, facts: Facts) -> Facts:
        with _speaking_for(hooks):
            decisions = hook(facts, trio.current_time())
            if isinstance(decisions, Awaitable):
                with trio.fail_after(HOOK_TIMEOUT_S):
                    decisions = await decisions
            if not isinstance(decisions, tuple):
                decisions = (decisions,)
            for decision in decisions:
                if not isinstance(decision, _DECISIONS):
                    raise TypeError(f"a hook decided {decision!r}")
        self._entered[hooks] = facts
        for decision in decisions:
            facts = await self._follow(hooks, decision, facts)
        return facts

    async def _follow(self, hooks: Hooks, decision: Decision, facts: Facts) -> Facts:
        if isinstance(decision, Facts):
            return decision
        if isinstance(decision, Delay):
            await self._wait(decision.seconds)
        elif isinstance(decision, UseUpstream):
            self.upstream_key = decision.key
        elif isinstance(decision, Shape | Cut):
            if self._ways is None:
                self._ways = (_Way("up"), _Way("down"))
            for way, said in zip(self._ways, (decision.up, decision.down), strict=True):
                way.note(hooks.plugin, said)
        return facts


class _Way:
    """What plugins have said about one direction of a session."""

    __slots__ = ("_buckets", "_ends_after", "_name", "_why")

    def __init__(self, name: str) -> None:
        self._name = name
        self._buckets: list[Bucket] = []
        self._ends_after: int | None = None
        self._why = ""

    def note(self, plugin: str, said: tuple[Bucket, ...] | int | None) -> None:
        """What one plugin says: buckets, or after how many bytes it ends."""
        if isinstance(said, tuple):
            self._buckets += said
        elif said is not None and (self._ends_after is None or said < self._ends_after):
            self._ends_after = said
            self._why = f"{plugin}: cut off after {said} bytes {self._name}"

    def gate(self) -> Gate | None:
        """None: whatever comes passes at once."""
        if not self._buckets and self._ends_after is None:
            return None
        return Gate(self._buckets, ends_after=self._ends_after, why=self._why)


def guarded(
    on_bug: Callable[[Exception], None], step: Callable[P, None], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Take one step of a session's end: behind its boundary there is nobody but the listener, with all its sessions."""
    try:
        step(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  the boundary of a session
        on_bug(error)


def tell_bugs(group: BaseExceptionGroup, on_bug: Callable[[Exception], None]) -> BaseException:
    """Tell what a hook raised in a nursery while it was cancelled.

    Returns:
      What goes on: Cancelled alone (or KeyboardInterrupt), as whoever cancelled the session must not meet the bug of a
      plugin. Everything, and nothing is told, if nobody cancelled it: that is for the boundary of the session.
    """
    bugs, rest = group.split(Exception)
    if rest is None:
        return group
    if bugs is not None:
        on_bug(bugs)
    return rest


def shows_datagram(datagram: bytes) -> Looks:
    """What a UDP session gives to `HookRun.preread`: its first datagram, which is all there is to see."""

    async def show(look: Look, facts: Facts) -> Facts:
        found = look.parse(facts, datagram)
        if isinstance(found, NeedMore):
            raise ParseError(f"the datagram ends before {look.what} does")
        return found

    return show


def _only_closes(hooks: Hooks) -> bool:
    return hooks.on_accept is None and hooks.look is None and hooks.on_preread is None


@contextmanager
def _speaking_for(hooks: Hooks) -> Iterator[None]:
    """Put the plugin's name where a person will read it: in a refusal, or behind a traceback."""
    try:
        yield
    except Rejected as error:
        raise Rejected(f"{hooks.plugin}: {error}", status=error.status, reset=error.reset) from None
    except _NO_BUGS:
        raise
    except BaseException as error:
        bug = _kept_from_ending_all(error)
        bug.add_note(f"in plugin {hooks.plugin}")  # the parts of a group keep it
        if bug is error:
            raise
        raise bug from error


def _kept_from_ending_all(error: BaseException) -> BaseException:
    """What is raised in its place: a RuntimeError for SystemExit and the like, alone or among others in a group.

    A library that a plugin uses has no say in whether the gateway goes on.
    """
    if isinstance(error, Exception):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return RuntimeError(f"raised {error!r}")
    ends_all, others = error.split(
        lambda each: not isinstance(each, (Exception, BaseExceptionGroup, *_NO_BUGS))
    )
    if ends_all is None:
        return error
    bug = RuntimeError(f"raised {ends_all!r}")
    return bug if others is None else others.derive([*others.exceptions, bug])
