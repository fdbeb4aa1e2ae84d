"""Several workers, each a process of its own: started, told, replaced when they die, replaced one by one when they must be.

```
ManyWorkers.run
├─ office                 what the gateway has once
└─ two tasks per process
   ├─ Process.run         the program, and the channel to it
   └─ Office.attend       health, events, counts
```

One change at a time (`_changing`): new settings, new sockets and new processes wait for each other, so that every worker goes by
the same ones. A process that does not do what it is told is killed; what replaces it begins with what is right by then.

More than 400 lines: whatever may happen to a slot stands on one page, since each has to leave it right for all the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import structlog
import trio

from streamgw.config.compile import FileTree
from streamgw.config.settings import Settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import StreamgwError
from streamgw.process.central import Central
from streamgw.process.channel import ChannelClosed
from streamgw.process.crew import MakeFleet
from streamgw.process.fleet import WorkerFleet
from streamgw.process.ledger import LedgerMemory, NoSeat
from streamgw.process.limits import share
from streamgw.process.office import Office
from streamgw.process.slots import FAREWELL_S, Process
from streamgw.process.sockets import BindError, Sockets

YOUNG_S = 10.0
"""A worker that dies within this time of its start died of it."""
MAX_YOUNG_DEATHS = 5
"""Of one slot, one after the other. Then the gateway ends: whoever started it may know better."""
MAX_LONELY_FAILURES = 5
"""Of starts in one slot, one after the other, while no other worker serves. Then the gateway ends, too."""
BACKOFF_S = 0.2
"""Before the second attempt; twice as long before each one after that."""
MAX_BACKOFF_S = 5.0
LOAD_S = 300.0
"""A worker that has not loaded by then never will: it is killed, and the next one tries."""
MAX_GENERATIONS = 2
"""Processes of one slot that still drain, besides the one that serves. One more ends the oldest."""


class CrashLoop(StreamgwError):
    """A worker dies whenever it is started; or none can be started."""


class _Died(StreamgwError):
    """A process, before it served anybody."""

    def __init__(self, process: Process) -> None:
        super().__init__(f"worker {process.number} (pid {process.pid}) died at once")
        self.process = process


@attrs.define(eq=False)
class _Slot:
    """A place for one worker that serves."""

    number: int
    current: Process | None = None
    """None: it is about to be replaced."""
    leaving: list[Process] = attrs.Factory(list)
    """Its predecessors that still have sessions, oldest first."""
    young_deaths: int = 0
    """In a row."""
    turn: trio.Lock = attrs.Factory(trio.Lock)
    """Of whoever puts a process into it."""

    def has_died(self, process: Process) -> None:
        """Count that, or begin anew if it had lived long enough."""
        is_young = trio.current_time() - process.started_at < YOUNG_S
        self.young_deaths = self.young_deaths + 1 if is_young else 0


class ManyWorkers:
    """`workers: 2` and more: a `Crew` of child processes.

    Resource handling:
      `sockets` belongs to the caller, who closes it after `run` has returned.
    """

    def __init__(self, settings: Settings, routes: Path, sockets: Sockets) -> None:
        self.settings = settings
        self.sockets = sockets
        self.ended = trio.Event()
        self.office = Office(settings, routes, sockets)
        self.central: Central = self.office
        self.fleet: MakeFleet = partial(
            WorkerFleet, self.office, lambda: self.office.members, self.office.books, slots=settings.workers
        )
        self._routes = routes
        self._ledger = LedgerMemory()
        self._slots = [_Slot(number) for number in range(settings.workers)]
        self._changing = trio.Lock()
        self._replacing = trio.Lock()
        self._superseded = trio.Event()
        """Of whoever replaces them: by somebody who does so too."""
        self._nursery: trio.Nursery | None = None
        self._deadline: tuple[float, bool] | None = None
        """Once it drains: by when, and whether it is succeeded."""
        self._log = structlog.get_logger()

    @property
    def draining(self) -> bool:
        """See `Crew`."""
        return self.office.draining

    @property
    def processes(self) -> Sequence[Process]:
        """Everyone who is alive, by slot; those that drain first."""
        return [
            process
            for slot in self._slots
            for process in (*slot.leaving, *([slot.current] if slot.current else []))
        ]

    @property
    def live_sessions(self) -> int:
        """See `Crew`."""
        return self.office.books.status().active

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Crew.run`.

        Raises:
          CrashLoop: also later.

        Cancellation:
          Every worker cuts its sessions and ends; who does not is killed.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                async with trio.open_nursery() as starting:
                    starting.start_soon(nursery.start, self.office.run)
                    for slot in self._slots:
                        starting.start_soon(self._fill_first, slot)
                task_status.started()
                await self.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._ledger.close()
            self.ended.set()

    async def listen(self) -> None:
        """See `Crew.listen`."""
        async with self._changing:
            await self._each(self._hand_down)

    async def apply(self, settings: Settings) -> None:
        """See `Crew.apply`. What a worker has for good makes it be replaced, which goes on afterwards."""
        async with self._changing:
            before = self.settings
            await self._make_way(settings)
            if self.draining:
                return  # in the meantime
            try:
                finish = self.sockets.replace(settings.listeners)
            except BindError:
                await self._each(self._hand_down)
                raise
            self.settings = settings
            await self._each(self._hand_down)
            finish()
            self.office.apply(settings)
        if _for_good(before) != _for_good(settings):
            self.replace_soon()

    def replace_soon(self) -> None:
        """Put a new process into every slot, one after the other: nobody is refused. Whatever else does so gives up."""
        self._superseded.set()
        self._superseded = trio.Event()
        if self._nursery is not None and not self.draining:
            self._nursery.start_soon(self._replace_all, self._superseded)

    def drain(self, deadline: float) -> None:
        """See `Crew.drain`."""
        self._begin_to_drain(deadline, is_succeeded=False)
        if self._nursery is not None:
            self._nursery.start_soon(self._drain_all)

    async def step_back(self, deadline: float) -> None:
        """See `Crew.step_back`."""
        self._begin_to_drain(deadline, is_succeeded=True)
        await self._drain_all()

    def _begin_to_drain(self, deadline: float, *, is_succeeded: bool) -> None:
        self.office.draining = True
        self._deadline = (deadline, is_succeeded or (self._deadline is not None and self._deadline[1]))
        self.sockets.close_all()

    def poke(self) -> None:
        """See `Crew.poke`."""
        self.office.reloader.poke()
        for process in self.processes:
            process.member.look()

    def reopen_logs(self) -> None:
        """See `Crew.reopen_logs`."""
        if self._nursery is not None:
            self._nursery.start_soon(self._each, Process.reopen_logs)

    def publish_reload(self, what: str, status: ReloadStatus) -> None:
        """See `Crew.publish_reload`."""
        self.office.publish_reload(what, status)

    def needs_start(self, old: Settings, new: Settings) -> Mapping[str, bool]:
        """See `Crew.needs_start`. All other settings of workers make them be replaced."""
        return {"streamgw.workers": old.workers != new.workers}

    async def kill(self, number: int) -> None:
        """Kill the worker that serves in this slot: what replaces it is new."""
        process = self._slots[number].current
        if process is not None:
            process.kill()
            await process.ended.wait()

    # Starting

    async def _fill_first(self, slot: _Slot) -> None:
        slot.current = await self._start(slot)

    async def _start(self, slot: _Slot, tree: FileTree | None = None) -> Process:
        """A process that has loaded. It is in no slot yet, and accepts nobody.

        Raises:
          StreamgwError: it could not load, or died of it.
          OSError: there cannot be one.
        """
        assert self._nursery is not None, "it runs"
        seat = await self._free_seat()
        try:
            process = Process(slot.number, self._share(slot.number), self._answer, self._heard, seat)
        except OSError:
            self._ledger.clear(seat)
            raise
        await self._nursery.start(self._mind, slot, process)
        try:
            with trio.fail_after(LOAD_S):
                await process.load(self._routes, self._ledger.fd, tree)
            attended = trio.Event()
            self._nursery.start_soon(self._attend, process, attended)
            await attended.wait()
        except trio.TooSlowError:
            process.kill()
            why = f"worker {slot.number} (pid {process.pid}) had not loaded after {LOAD_S:g} s"
            raise StreamgwError(why) from None
        except ChannelClosed:
            process.kill()
            raise _Died(process) from None
        except BaseException:
            process.kill()
            raise
        if process.ended.is_set():
            raise _Died(process)
        self._log.info("worker_started", worker=slot.number, pid=process.pid)
        return process

    async def _free_seat(self) -> int:
        """In the ledger. Where all are taken, the process that drains for longest ends now. Raises NoSeat: none does."""
        while True:
            try:
                return self._ledger.take_seat()
            except NoSeat:
                leaving = [process for slot in self._slots for process in slot.leaving]
                if not leaving:
                    raise
                oldest = min(leaving, key=lambda process: process.started_at)
                await self._drain(oldest, trio.current_time(), is_succeeded=True)
                with trio.move_on_after(FAREWELL_S):
                    await oldest.ended.wait()
                oldest.kill()
                await oldest.ended.wait()

    async def _attend(self, process: Process, attended: trio.Event) -> None:
        """Until it dies."""
        try:
            with process.attended:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell, process, partial(self._watch, process))
                    await nursery.start(self.office.attend, process.member)
                    attended.set()
        finally:
            attended.set()

    async def _watch(self, process: Process) -> None:
        """Have it killed when it is stuck. What replaces it takes the clients that wait for it."""
        await process.until_stuck()
        raise StreamgwError("it says nothing any more")

    async def _answer(self, process: Process, what: str, arguments: Mapping[str, object]) -> object:
        return await self.office.answer(process.member, what, arguments)

    def _heard(self, _: Process, what: str, data: Mapping[str, object]) -> None:
        self.office.heard(what, data)

    async def _mind(
        self, slot: _Slot, process: Process, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be there while a process lives, and see that another one takes its place."""
        try:
            await process.run(task_status=task_status)
        finally:
            process.attended.cancel()
            self._ledger.clear(process.seat)
        lived_s = round(trio.current_time() - process.started_at, 3)
        if process in slot.leaving:
            slot.leaving.remove(process)
            self._log.info("worker_ended", worker=slot.number, pid=process.pid, lived_s=lived_s)
        elif process is slot.current:
            slot.current = None
            if not self.draining:
                self._log.error(
                    "worker_died",
                    worker=slot.number,
                    pid=process.pid,
                    exit_code=process.exit_code,
                    lived_s=lived_s,
                )
                slot.has_died(process)
                await self._fill_again(slot)
        if self.draining and not self.processes:
            self.ended.set()

    async def _fill_again(self, slot: _Slot) -> None:
        """Put a new process where one died. One that cannot be started is tried again for ever while others serve.

        Raises:
          CrashLoop
        """
        attempt = lonely = 0
        why = ""
        async with slot.turn:
            while slot.current is None and not self.draining:
                if slot.young_deaths > MAX_YOUNG_DEATHS:
                    raise CrashLoop(
                        f"worker {slot.number} died {slot.young_deaths} times in a row, each time within "
                        f"{YOUNG_S:g} s of its start"
                    )
                if lonely > MAX_LONELY_FAILURES:
                    raise CrashLoop(
                        f"worker {slot.number} could not be started {lonely} times in a row, and no other one "
                        f"serves: {why}"
                    )
                await trio.sleep(_backoff_s(max(attempt, slot.young_deaths - 1)))
                try:
                    await self._try_to_fill(slot)
                except (StreamgwError, OSError) as error:
                    if isinstance(error, _Died):
                        slot.has_died(error.process)
                    attempt, why = attempt + 1, str(error)
                    lonely = 0 if self._serves() else lonely + 1
                    self._log.error("worker_start_failed", worker=slot.number, attempt=attempt, error=why)

    def _serves(self) -> bool:
        return any(slot.current is not None for slot in self._slots)

    async def _try_to_fill(self, slot: _Slot) -> None:
        process = await self._start(slot, self._good_tree())
        async with self._changing:
            await self._seat(slot, process)

    def _good_tree(self) -> FileTree | None:
        """What is on the disk may have a problem by now. What the other workers run has none."""
        is_rejected = self.office.reloader.status.state == "rejected"
        return self.office.followed.good if is_rejected else None

    async def _seat(self, slot: _Slot, process: Process) -> None:
        """Have it serve. Raises StreamgwError: it will not."""
        try:
            if self._deadline is None:
                await self._follow(process)
        except ChannelClosed:
            process.kill()
            raise _Died(process) from None
        except StreamgwError:
            process.kill()
            raise
        if process.ended.is_set():
            raise _Died(process)
        slot.current = process
        if self._deadline is not None:
            await self._drain_all()

    # Telling

    def _share(self, number: int) -> Settings:
        return share(self.settings, number, len(self._slots))

    async def _follow(self, process: Process) -> None:
        await process.follow(self._share(process.number), self.sockets.of_slot(process.number))

    async def _hand_down(self, process: Process) -> None:
        if process.member.state != "draining":
            await self._unless_it_drains(process, self._follow(process))

    async def _unless_it_drains(self, process: Process, told: Awaitable[None]) -> None:
        """Whether one that drains by now, or is about to, has done what it was told is all the same: it may end in its own
        time.
        """
        try:
            await told
        except StreamgwError:
            if process.member.state != "draining" and not self.draining:
                raise

    async def _make_way(self, settings: Settings) -> None:
        """Have everybody let go of what new listeners need."""
        names = self.sockets.all()
        new = [listener for listener in settings.listeners if listener.name not in names]
        gone = [listener.name for listener in self.sockets.in_the_way(settings.listeners)]
        if new:
            await self._each(lambda process: self._unless_it_drains(process, process.make_way(gone, new)))

    async def _each(self, tell: Callable[[Process], Awaitable[None]]) -> None:
        """Tell everybody at the same time. Who does not follow is killed."""
        async with trio.open_nursery() as nursery:
            for process in self.processes:
                nursery.start_soon(self._tell, process, partial(tell, process))

    async def _tell(self, process: Process, tell: Callable[[], Awaitable[None]]) -> None:
        try:
            await tell()
        except ChannelClosed:
            return  # it has died: `_mind` sees to that
        except StreamgwError as error:
            self._log.error("worker_stuck", worker=process.number, pid=process.pid, error=str(error))
            process.kill()

    # Replacing and ending

    async def _replace_all(self, superseded: trio.Event) -> None:
        async with self._replacing:
            for slot in self._slots:
                if not await self._replace_at_last(slot, superseded):
                    return
            self._log.info("workers_replaced", workers=len(self._slots))

    async def _replace_at_last(self, slot: _Slot, superseded: trio.Event) -> bool:
        """Try until it is done. Returns False if it need not be any more."""
        attempt = 0
        while not self.draining and not superseded.is_set():
            try:
                await self._replace(slot)
            except (StreamgwError, OSError) as error:
                attempt += 1
                self._log.error(
                    "worker_replace_failed", worker=slot.number, attempt=attempt, error=str(error)
                )
                with trio.move_on_after(_backoff_s(attempt)):
                    await superseded.wait()
            else:
                return True
        return False

    async def _replace(self, slot: _Slot) -> None:
        """The old one serves until the new one has loaded; for the moment in between clients wait in the kernel's queue.

        Raises:
          StreamgwError, OSError: there is no new one; the old one goes on.
        """
        async with slot.turn:
            process = await self._start(slot, self._good_tree())
            async with self._changing:
                await self._retire(slot)
                try:
                    await self._seat(slot, process)
                except StreamgwError as error:
                    self._log.error("worker_start_failed", worker=slot.number, error=str(error))
                    assert self._nursery is not None, "it runs"
                    self._nursery.start_soon(self._fill_again, slot)

    async def _retire(self, slot: _Slot) -> None:
        """Have the one that serves drain; those that have been draining for longest end now, if there are too many."""
        now = trio.current_time()
        for process in slot.leaving[: len(slot.leaving) - MAX_GENERATIONS + 1]:
            await self._drain(process, now, is_succeeded=True)
        old, slot.current = slot.current, None
        if old is not None:
            slot.leaving.append(old)
            await self._drain(old, now + self.settings.drain_timeout_s, is_succeeded=True)

    async def _drain_all(self) -> None:
        assert self._deadline is not None, "set by drain()"
        deadline, is_succeeded = self._deadline
        async with trio.open_nursery() as nursery:
            for process in self.processes:
                nursery.start_soon(partial(self._drain, process, deadline, is_succeeded=is_succeeded))
        if not self.processes:
            self.ended.set()

    async def _drain(self, process: Process, deadline: float, *, is_succeeded: bool) -> None:
        within_s = deadline - trio.current_time()
        await self._tell(process, lambda: process.drain(max(0.0, within_s), is_succeeded=is_succeeded))


def _backoff_s(failures: int) -> float:
    """Before the next attempt."""
    doublings = min(failures - 1, 16)  # beyond that it is the longest one anyway
    return min(MAX_BACKOFF_S, BACKOFF_S * 2**doublings) if failures > 0 else 0.0


def _for_good(settings: Settings) -> tuple[object, ...]:
    """What a worker has from its start on."""
    return settings.relay, settings.resolver, settings.reload, settings.has_cpu_affinity
