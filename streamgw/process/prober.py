"""Keeps the health of every upstream that has checks: sends the probes, hears of the sessions, tells the pool.

Once per gateway. Each node has one task, which asks, notes and sleeps; nothing here is on a session's path but two
dictionary look-ups per connect. The first probe goes out when the configuration is loaded, not with the first client.
An edit restarts probes that it changes and forgets nothing: a node keeps its state as long as it is listed.
"""

from __future__ import annotations

import math
import random
import ssl
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

import attrs
import structlog
import trio

from streamgw.core.errors import ConnectFailed, Fault
from streamgw.core.health import Change, UpstreamHealth
from streamgw.core.model import Address, Upstream
from streamgw.core.probe import ActiveCheck, Checks, Finding, Probe, Result
from streamgw.dataplane.pool import UpstreamPool
from streamgw.process.probes import Target, run_probe

MAX_PROBES = 256
"""Under way at a time, of all upstreams: each is a descriptor."""
JITTER = 0.1
"""Intervals are this much shorter or longer, so that the probes of many nodes do not march in step."""
FIRST_WITHIN_S = 0.5
"""Probes of a configuration that is loaded begin at odd moments of this time."""

Run = Callable[[Probe, Target, ssl.SSLContext | None], Awaitable[Finding]]


@attrs.define(eq=False)
class Checker:
    """One upstream that has checks."""

    upstream: Upstream
    checks: Checks
    health: UpstreamHealth
    limiter: trio.CapacityLimiter
    names: Mapping[Address, str] = attrs.Factory(dict)
    """Each node, and its host as it is written."""
    scopes: dict[Address, trio.CancelScope] = attrs.Factory(dict)
    """Of the tasks that probe."""
    results: defaultdict[Address, Counter[str]] = attrs.Factory(lambda: defaultdict(Counter))
    """Probes that ended, by node and result."""
    is_all_down: bool = False


class Prober:
    """All of them.

    Args:
      rng: for the jitter.
      on_change: told of each node whose state changed, after the pool was. Must not block or raise.
      on_bug: an exception that nobody expected of a probe.
      run: asks one node once.
    """

    def __init__(
        self,
        pool: UpstreamPool,
        *,
        rng: random.Random,
        on_change: Callable[[Upstream, Change], None] = lambda *_: None,
        on_bug: Callable[[Exception], None],
        run: Run = run_probe,
    ) -> None:
        self._pool = pool
        self._rng = rng
        self._on_change = on_change
        self._on_bug = on_bug
        self._run = run
        self._upstreams: Mapping[str, Upstream] = {}
        self._is_on = True
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._limiter = trio.CapacityLimiter(MAX_PROBES)
        self._nursery: trio.Nursery | None = None
        self._look_at_clock = trio.Event()
        self._log = structlog.get_logger()
        self.checkers: dict[str, Checker] = {}
        """By the upstream's key. To look at only."""
        self.on_note: Callable[[str, Address], None] = lambda *_: None
        """Told of each node of an upstream (its key) of which something was noted. Must not block or raise."""
        pool.on_answered, pool.on_failed = self.answered, self.failed

    def sync(self, upstreams: Mapping[str, Upstream], *, is_on: bool = True) -> None:
        """Follow a new snapshot; the pool has followed it already.

        Args:
          upstreams: all, by key.
          is_on: False: nobody is probed and every node is up (`apisix.disable_upstream_healthcheck`).
        """
        self._upstreams, self._is_on = upstreams, is_on
        wanted = {
            key: (upstream, upstream.checks)
            for key, upstream in upstreams.items()
            if is_on and upstream.checks is not None
        }
        for key in self.checkers.keys() - wanted.keys():
            self._dismiss(self.checkers.pop(key))
        for key, (upstream, checks) in wanted.items():
            checker = self.checkers.get(key)
            if checker is not None and checker.upstream is upstream:
                continue  # of 10,000 upstreams an edit leaves most as they were
            if checker is None:
                limiter = trio.CapacityLimiter(_concurrency(checks))
                checker = self.checkers[key] = Checker(upstream, checks, UpstreamHealth(checks), limiter)
            self._update(checker, upstream, checks)

    def on_names_changed(self, name: str) -> None:
        """A name has other addresses now, or a service other nodes; the pool knows them already."""
        for checker in self.checkers.values():
            if checker.upstream.is_from(name):
                self._keep_nodes(checker)

    def answered(self, key: str, node: Address) -> None:
        """A session was connected to a node."""
        checker = self.checkers.get(key)
        if checker is not None:
            self._note(checker, checker.health.answered(node))
            self.on_note(key, node)

    def failed(self, key: str, node: Address, error: ConnectFailed) -> None:
        """A session could not be connected to a node. That we have no port left for it says nothing of the node."""
        checker = self.checkers.get(key)
        if checker is not None and error.fault is Fault.UPSTREAM:
            # The words of the pump, and of the kernel (ETIMEDOUT).
            result = Result.TIMEOUT if "timed out" in str(error) else Result.TCP_FAILURE
            change = checker.health.failed(node, Finding(result, str(error)), trio.current_time())
            self._note(checker, change)
            self.on_note(key, node)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Probe, and let time outs end.

        Cancellation:
          Every probe ends with it. What is known stays readable.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for checker in self.checkers.values():
                    self._start_probes(checker)
                task_status.started()
                await self._keep_time()
        finally:
            self._nursery = None
        raise AssertionError("time does not end")

    async def _keep_time(self) -> NoReturn:
        while True:
            self._look_at_clock = trio.Event()
            due_at = min((each.health.due_at for each in self.checkers.values()), default=math.inf)
            with trio.move_on_at(due_at):
                await self._look_at_clock.wait()
            for checker in tuple(self.checkers.values()):
                for change in checker.health.tick(trio.current_time()):
                    self._note(checker, change)

    def _update(self, checker: Checker, upstream: Upstream, checks: Checks) -> None:
        is_other = checks != checker.checks or upstream.tls != checker.upstream.tls
        checker.upstream, checker.checks = upstream, checks
        if is_other:
            checker.health.obey(checks, trio.current_time())
            checker.limiter.total_tokens = _concurrency(checks)
            for scope in checker.scopes.values():
                scope.cancel()
            checker.scopes = {}
        self._pool.load(upstream.key).fails_open = checks.fails_open
        self._keep_nodes(checker)
        self._look_at_clock.set()

    def _keep_nodes(self, checker: Checker) -> None:
        key, before = checker.upstream.key, checker.health.nodes
        checker.names = self._pool.places(checker.upstream)
        checker.health.keep(checker.names)
        for node in before.keys() - checker.names.keys():
            if (scope := checker.scopes.pop(node, None)) is not None:
                scope.cancel()
            checker.results.pop(node, None)
            # If it comes back it is new, and healthy.
            if not before[node].is_up:
                self._pool.set_up(key, node, is_up=True)
            self.on_note(key, node)
        self._start_probes(checker)
        self._look_at_all(checker)

    def _start_probes(self, checker: Checker) -> None:
        active = checker.checks.active
        if active is None or self._nursery is None:
            return
        for node in checker.names.keys() - checker.scopes.keys():
            checker.scopes[node] = scope = trio.CancelScope()
            self._nursery.start_soon(
                self._keep_probing,
                checker,
                node,
                active,
                scope,
                name=f"probe {node} of {checker.upstream.key}",
            )

    def _dismiss(self, checker: Checker) -> None:
        for scope in checker.scopes.values():
            scope.cancel()
        for node, health in checker.health.nodes.items():
            if not health.is_up:
                self._pool.set_up(checker.upstream.key, node, is_up=True)
            self.on_note(checker.upstream.key, node)
        if checker.upstream.key in self._upstreams:
            self._pool.load(checker.upstream.key).fails_open = True

    async def _keep_probing(
        self, checker: Checker, node: Address, active: ActiveCheck, scope: trio.CancelScope
    ) -> None:
        with scope:
            await trio.sleep(self._rng.uniform(0, min(FIRST_WITHIN_S, active.healthy_interval_s)))
            while True:
                async with checker.limiter, self._limiter:
                    finding = await self._probe(checker, node, active.probe)
                # Cancelled since it was answered: the node is gone, or is probed in another way now.
                await trio.lowlevel.checkpoint_if_cancelled()
                checker.results[node][finding.result.name.lower()] += 1
                self._note(checker, checker.health.probed(node, finding, trio.current_time()))
                is_up = checker.health.nodes[node].is_up
                interval_s = active.healthy_interval_s if is_up else active.unhealthy_interval_s
                await trio.sleep(interval_s * self._rng.uniform(1 - JITTER, 1 + JITTER))

    async def _probe(self, checker: Checker, node: Address, probe: Probe) -> Finding:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            target = Target(node, checker.names[node])
            return await self._run(probe, target, await self._context(probe, checker.upstream))
        except Exception as error:  # noqa: BLE001  a bug in a probe says nothing of the node, and ends no session
            self._on_bug(error)
            return Finding(Result.NEITHER, "bug")

    async def _context(self, probe: Probe, upstream: Upstream) -> ssl.SSLContext | None:
        if probe.kind not in {"tls", "https"}:
            return None
        if probe.kind == "tls" and upstream.tls is not None:
            return upstream.tls.context  # as the sessions do it
        if probe.verify not in self._contexts:
            # Reading the machine's CAs takes 20 ms.
            made = await trio.to_thread.run_sync(make_context, probe.verify)
            self._contexts[probe.verify] = made
        return self._contexts[probe.verify]

    def _note(self, checker: Checker, change: Change | None) -> None:
        if change is None:
            return
        upstream = checker.upstream
        self._look_at_clock.set()
        if change.is_up is not change.was_up:
            self._pool.set_up(upstream.key, change.node, change.is_up)
            tell = self._log.info if change.is_up else self._log.warning
            tell(
                "node_up" if change.is_up else "node_down",
                upstream=upstream.key,
                node=str(change.node),
                why=change.why,
            )
        self._on_change(upstream, change)
        self.on_note(upstream.key, change.node)
        self._look_at_all(checker)

    def _look_at_all(self, checker: Checker) -> None:
        """Say it once when the last node went down, and once when one is back."""
        is_all_down = checker.health.is_all_down
        if is_all_down is checker.is_all_down:
            return
        checker.is_all_down = is_all_down
        if is_all_down:
            then = "every one is used" if checker.checks.fails_open else "no session is connected"
            self._log.error("all_nodes_down", upstream=checker.upstream.key, then=then)
        else:
            self._log.info("not_all_nodes_down", upstream=checker.upstream.key)


def _concurrency(checks: Checks) -> int:
    return 1 if checks.active is None else checks.active.concurrency


def make_context(verify: bool) -> ssl.SSLContext:
    """For probes of nodes whose upstream has no TLS of its own. Blocks: it reads the machine's CAs."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
