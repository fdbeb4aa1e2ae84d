"""The health of nodes where the prober runs in the supervisor and the sessions in workers: states go out, results come back.

A node that is up and spotless is nothing to talk about. Of every other the supervisor holds a `State`, and each worker is told
what it does not know yet, until it has said that it knows: after a change, after a restart, after a question that got lost,
what counts is the difference. Sessions that could not be connected are told to the supervisor at once, those that were only of
nodes that have a spot: a success changes nothing of a node that is well.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, TypeAlias, cast

import attrs
import trio

from streamgw.core.errors import ConnectFailed, Fault, StreamgwError
from streamgw.core.health import Change, Status
from streamgw.core.model import Address, Upstream
from streamgw.dataplane.pool import UpstreamPool
from streamgw.process.prober import Checker, Prober

AT_ONCE = 1000
"""States or results in one message."""
MAX_RESULTS = 1000
"""Of sessions, waiting to be told. The oldest make way: by then the newer ones say the same."""
RETRY_S = 1.0
"""After a question that was not answered."""

Tell: TypeAlias = Callable[[Sequence[Sequence[object]]], Awaitable[None]]
"""One message to the other side. May raise StreamgwError."""
_Place: TypeAlias = tuple[str, Address]
"""Key of the upstream, and its node."""


@attrs.frozen
class State:
    """What a worker has to know of a node."""

    is_up: bool = True
    has_spot: bool = False
    """It failed of late: a success counts."""
    why: str = ""
    """It is down."""


SPOTLESS = State()


class NodeStates:
    """In the supervisor: what every worker has to know."""

    def __init__(self) -> None:
        self._prober: Prober | None = None
        self._states: dict[_Place, State] = {}
        """But those that are SPOTLESS."""
        self._changed = trio.Event()

    def follow(self, prober: Prober) -> None:
        """From now on."""
        self._prober = prober
        prober.on_note = self.look

    def look(self, key: str, node: Address) -> None:
        """Something about a node may be different now."""
        state = self._state_of(key, node)
        if state == self._states.get((key, node), SPOTLESS):
            return
        if state == SPOTLESS:
            del self._states[key, node]
        else:
            self._states[key, node] = state
        self._changed.set()
        self._changed = trio.Event()

    async def keep_telling(
        self, tell: Tell, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Tell one worker, from its start until its end. Has started when it knows what there was to know then."""
        told: dict[_Place, State] = {}
        has_started = False
        while True:
            changed, news = self._changed, self._news(told)
            try:
                for start in range(0, len(news), AT_ONCE):
                    some = news[start : start + AT_ONCE]
                    await tell(
                        [[key, *attrs.astuple(node), *attrs.astuple(state)] for (key, node), state in some]
                    )
                    told.update(some)
            except StreamgwError:
                # Gone, which somebody else will notice; or busy.
                await trio.sleep(RETRY_S)
                continue
            for place in [place for place, state in told.items() if state == SPOTLESS]:
                del told[place]
            if not has_started:
                has_started = True
                task_status.started()
            await changed.wait()

    def heard(self, results: Sequence[Sequence[object]]) -> None:
        """What sessions of a worker found out: answers to `RemoteHealth`."""
        assert self._prober is not None, "somebody follows"
        for each in results:
            key, host, port, why = cast("tuple[str, str, int, str | None]", tuple(each))
            if why is None:
                self._prober.answered(key, Address(host, port))
            else:
                self._prober.failed(key, Address(host, port), ConnectFailed(why))

    def _news(self, told: Mapping[_Place, State]) -> list[tuple[_Place, State]]:
        news = [(place, state) for place, state in self._states.items() if told.get(place) != state]
        gone = [(place, SPOTLESS) for place in told if place not in self._states]
        return news + gone

    def _state_of(self, key: str, node: Address) -> State:
        assert self._prober is not None, "somebody follows"
        checker = self._prober.checkers.get(key)
        health = None if checker is None else checker.health.nodes.get(node)
        if health is None or health.is_spotless:
            return SPOTLESS
        return State(health.is_up, has_spot=True, why="" if health.is_up else health.why)


class RemoteHealth:
    """In a worker: keeps its pool's idea of which nodes are up as the supervisor says, and tells it what sessions find out.

    Args:
      on_change: told of each node that went down or came up, after the pool was. Must not block or raise.
      tell: tells the supervisor results.
    """

    def __init__(
        self,
        pool: UpstreamPool,
        *,
        rng: random.Random,  # noqa: ARG002  as the prober, which has a use for it
        on_change: Callable[[Upstream, Change], None],
        on_bug: Callable[[Exception], None],  # noqa: ARG002  nothing here can have one
        tell: Tell,
    ) -> None:
        self._pool = pool
        self._on_change = on_change
        self._tell = tell
        self._upstreams: Mapping[str, Upstream] = {}
        self._is_on = True
        self._states: dict[_Place, State] = {}
        """As told."""
        self._failed_here: set[_Place] = set()
        """Since the last success here: the supervisor may not have said yet that there is a spot."""
        self._results: deque[tuple[str, str, int, str | None]] = deque(maxlen=MAX_RESULTS)
        self._has_results = trio.Event()
        self.checkers: dict[str, Checker] = {}
        """None: they are in the supervisor."""
        pool.on_answered, pool.on_failed = self.answered, self.failed

    def sync(self, upstreams: Mapping[str, Upstream], *, is_on: bool = True) -> None:
        """Follow a new snapshot; the pool has followed it already."""
        old, was_on, self._upstreams, self._is_on = self._upstreams, self._is_on, upstreams, is_on
        for key, upstream in upstreams.items():
            before, checks = old.get(key), upstream.checks
            if before is upstream and was_on is is_on:
                continue  # of 10,000 upstreams an edit leaves most as they were
            if checks is not None or (before is not None and before.checks is not None):
                self._pool.load(key).fails_open = checks is None or not is_on or checks.fails_open
        self._mark_again()

    def on_names_changed(self, name: str) -> None:
        """A name has other addresses now, or a service other nodes; the pool knows them already."""
        if any(upstream.is_from(name) for upstream in self._upstreams.values()):
            self._mark_again()

    async def mark(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Answer to the supervisor (`There.mark`): these nodes are in another state now."""
        for each in cast("Sequence[Sequence[object]]", arguments["states"]):
            key, host, port, *state = each
            self._mark(cast("str", key), Address(cast("str", host), cast("int", port)), _state(*state))
        await trio.lowlevel.checkpoint()
        return {}

    def answered(self, key: str, node: Address) -> None:
        """A session was connected to a node."""
        if (key, node) in self._states or (key, node) in self._failed_here:
            self._failed_here.discard((key, node))
            self._note(key, node, None)

    def failed(self, key: str, node: Address, error: ConnectFailed) -> None:
        """A session could not be connected to a node. That we have no port left for it says nothing of the node."""
        upstream = self._upstreams.get(key)
        if upstream is not None and upstream.checks is not None and error.fault is Fault.UPSTREAM:
            self._failed_here.add((key, node))
            self._note(key, node, str(error))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Tell the supervisor, as quickly as it listens.

        Cancellation:
          What was not told yet is lost.
        """
        task_status.started()
        while True:
            while not self._results:
                self._has_results = trio.Event()
                await self._has_results.wait()
            results = [self._results.popleft() for _ in range(min(len(self._results), AT_ONCE))]
            try:
                await self._tell(results)
            except StreamgwError:
                # They are old news by the time somebody listens again.
                await trio.sleep(RETRY_S)

    def _note(self, key: str, node: Address, why: str | None) -> None:
        self._results.append((key, node.host, node.port, why))
        self._has_results.set()

    def _mark(self, key: str, node: Address, state: State) -> None:
        told = self._states.pop((key, node), SPOTLESS)
        if state != SPOTLESS:
            self._states[key, node] = state
        upstream = self._upstreams.get(key)
        if upstream is None:
            # Of a snapshot that comes, or has gone. While sessions are left the pool remembers what it was told before.
            if state.is_up and not told.is_up:
                self._pool.set_up(key, node, is_up=True)
            return
        if self._pool.set_up(key, node, state.is_up):
            before, now = Status.HEALTHY, Status.UNHEALTHY
            if state.is_up:
                before, now = now, before
            change = Change(node, before, now, was_up=not state.is_up, is_up=state.is_up, why=state.why)
            self._on_change(upstream, change)

    def _mark_again(self) -> None:
        """The pool forgets nodes that are not there, and so what was said of them."""
        for (key, node), state in self._states.items():
            if not state.is_up and key in self._upstreams:
                self._pool.set_up(key, node, is_up=False)


def _state(*fields: object) -> State:
    is_up, has_spot, why = cast("tuple[bool, bool, str]", fields)
    return State(is_up, has_spot, why)
