"""`python -m streamgw.process.child FD`: one worker of several, a process of its own. Its supervisor starts it.

```
trio.run
└─ nursery
   ├─ channel      the supervisor is gone → cut every session, and end
   ├─ events       tells the supervisor what it listens to
   └─ worker       everything that serves clients
```

Signals are the supervisor's business. Whoever sends one to a whole group of processes (a terminal, a service manager) means
it too, and it will drain its workers: here all of them are ignored.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import random
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import structlog
import trio

from streamgw.config.compile import FileTree
from streamgw.core.errors import StreamgwError
from streamgw.core.health import Change
from streamgw.core.model import Listener, Upstream
from streamgw.dataplane.pool import UpstreamPool
from streamgw.process.answers import Answers
from streamgw.process.channel import Channel
from streamgw.process.handed import HandedSockets
from streamgw.process.health import RemoteHealth
from streamgw.process.ledger import SharedLedger
from streamgw.process.log import configure_logging
from streamgw.process.members import Here
from streamgw.process.slots import unpacked
from streamgw.process.sockets import BindError
from streamgw.process.stderr import take_over_stderr
from streamgw.process.worker import Surroundings, Worker, settle

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FAREWELL_S = 5.0
"""For the last lines of the access log."""
TELL_EVERY_S = 10.0
"""That the ledger is full."""


def main() -> None:
    """Run until the supervisor says so, or is gone."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    take_over_stderr()
    sock = socket.socket(fileno=int(sys.argv[1]))  # noqa: TID251  made by the supervisor
    sock.set_inheritable(False)
    trio.run(Child(sock).run, strict_exception_groups=True)


class Child:
    """The worker's process, as told by the supervisor."""

    def __init__(self, sock: socket.socket) -> None:  # noqa: TID251  a type
        self.channel = Channel(sock, answer=self._answer, heard=self._heard)
        self._sockets = HandedSockets()
        self._worker: Worker | None = None
        self._answers: Answers | None = None
        self._told_at = -math.inf
        """When it was last said that the ledger is full."""
        self._nursery: trio.Nursery | None = None

    @property
    def worker(self) -> Worker:
        """The one there is, after `start`."""
        assert self._worker is not None, "start comes first"
        return self._worker

    async def run(self) -> None:
        """Do what is asked, until the worker has drained or the supervisor is gone.

        Cancellation:
          Sessions are cut, their log lines written, and every copy of a socket closed.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self.channel.run()
                if self._worker is not None:
                    # Nobody is left to say how long sessions may take. Draining is how their log lines get written.
                    self._worker.drain(trio.current_time())
                    with trio.move_on_after(FAREWELL_S):
                        await self._worker.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._sockets.close_all()

    async def _answer(self, what: str, arguments: Mapping[str, object]) -> object:
        match what:
            case "start":
                await self._start(arguments)
            case "take":
                self._take(cast("Sequence[str]", arguments["names"]), cast("Sequence[int]", arguments["fds"]))
            case "follow":
                self._follow(arguments)
            case "make_way":
                wanted = unpacked(arguments["settings"]).listeners
                self._make_way(cast("Sequence[str]", arguments["names"]), wanted)
            case "drain":
                deadline = trio.current_time() + float(str(arguments["within_s"]))
                self.worker.drain(deadline, is_succeeded=bool(arguments["is_succeeded"]))
            case "reopen_logs":
                self.worker.access_log.reopen()
            case "ping":
                await trio.lowlevel.checkpoint()
            case _ if self._answers is not None and what in self._answers.handlers:
                return await self._answers.handlers[what](arguments)
            case _:
                raise StreamgwError(f"not a question to a worker: {what}")
        return None

    def _heard(self, what: str, _: Mapping[str, object], fds: tuple[int, ...]) -> None:
        assert not fds, "the supervisor tells of none"
        if self._answers is not None:
            self._answers.heard(what)

    async def _start(self, arguments: Mapping[str, object]) -> None:
        """Load everything. Raises ConfigError; StreamgwError: a log file cannot be opened."""
        assert self._nursery is not None, "questions come while it runs"
        ledger, *rest = cast("Sequence[int]", arguments["fds"])
        first = _tree_in(rest[0]) if rest else None
        settings, number = unpacked(arguments["settings"]), int(str(arguments["number"]))
        configure_logging(settings.log, worker=number)
        if settings.has_cpu_affinity:
            _stay_on_one_cpu(number)
        self._worker = worker = Worker(
            settings,
            Path(str(arguments["routes"])),
            self._sockets,
            Surroundings(
                number=number,
                ledger=self._ledger(ledger, int(str(arguments["seat"]))),
                make_health=self._health,
                first=first,
                is_one_of_several=True,
            ),
        )
        health = worker.prober
        assert isinstance(health, RemoteHealth)
        self._answers = Answers(worker, Here(worker, os.getpid()), health)
        try:
            await self._nursery.start(self._serve, worker)
        except (ExceptionGroup, StreamgwError, OSError) as group:
            error = _first(group)
            if isinstance(error, OSError):
                raise StreamgwError(str(error)) from error
            raise error from None
        if first is not None:
            worker.reloader.poke()
        self._nursery.start_soon(self._answers.tell_events, self.channel)
        settle()

    def _ledger(self, fd: int, seat: int) -> SharedLedger:
        try:
            return SharedLedger(fd, seat, on_full=self._on_full_ledger)
        finally:
            os.close(fd)

    def _on_full_ledger(self) -> None:
        now = trio.current_time()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            structlog.get_logger().error("ledger_full")

    def _health(
        self,
        pool: UpstreamPool,
        *,
        rng: random.Random,
        on_change: Callable[[Upstream, Change], None],
        on_bug: Callable[[Exception], None],
    ) -> RemoteHealth:
        return RemoteHealth(pool, rng=rng, on_change=on_change, on_bug=on_bug, tell=self._tell_results)

    async def _tell_results(self, results: Sequence[Sequence[object]]) -> None:
        await self.channel.ask("results", {"results": results})

    async def _serve(
        self, worker: Worker, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        assert self._nursery is not None, "as above"
        await worker.run(task_status=task_status)
        if self._answers is not None:
            with contextlib.suppress(StreamgwError):
                await self._answers.farewell(self.channel)
        self._nursery.cancel_scope.cancel()

    def _take(self, names: Sequence[str], fds: Sequence[int]) -> None:
        for name, fd in zip(names, fds, strict=True):
            if self.worker.draining:
                os.close(fd)
            else:
                self._sockets.take(name, fd)

    def _follow(self, arguments: Mapping[str, object]) -> None:
        """One that drains has closed its sockets. What is overtaken by that has nobody to fail for."""
        if self.worker.draining:
            return
        settings = unpacked(arguments["settings"])
        configure_logging(settings.log, worker=self.worker.number)
        try:
            self.worker.apply(settings)
        except BindError as error:
            raise StreamgwError(str(error)) from error

    def _make_way(self, names: Sequence[str], wanted: Sequence[Listener]) -> None:
        self.worker.listeners.make_way(wanted)
        self.worker.let_go(self._sockets.named(names))
        self._sockets.let_go(names)


def _stay_on_one_cpu(number: int) -> None:
    """Of those it may use, the next for each worker. Threads begin where who starts them is, so all of them stay there."""
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[number % len(cpus)]
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        structlog.get_logger().warning("cpu_affinity_failed", cpu=cpu, error=error.strerror)


def _tree_in(fd: int) -> FileTree:
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        tree: FileTree = pickle.load(file)  # noqa: S301  from our own parent, in memory that only we have
    return tree


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
