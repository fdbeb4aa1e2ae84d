"""Sends what plugins log: one task for each collector, batches out of a bounded queue.

The queues are the process's, not the configuration's: a reload does not touch them. A collector that no route names any more
gets what was meant for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NoReturn

import attrs
import structlog
import trio

from streamgw.core.batch import Batches, Collector
from streamgw.process.names import Names
from streamgw.process.senders import TROUBLES, Senders

LINGER_S = 60.0
"""After which the task of a collector that gets nothing any more ends."""
PATIENCE_S = 2.0
"""For everything that is left when the gateway ends."""


@attrs.define(eq=False)
class _Queue:
    collector: Collector
    batches: Batches
    woken: trio.Event = attrs.field(factory=trio.Event)
    is_failing: bool = False
    """The last batch did not arrive. Told once."""
    is_full: bool = False
    """Since then records have been dropped for want of room. Told once."""


class Shipper:
    """`core.hooks.Shipping` of a process that runs sessions.

    Args:
      trusted: what collectors are verified with: `system`, or the path of a PEM file.
    """

    def __init__(self, trusted: Callable[[], str]) -> None:
        self._senders = Senders(trusted)
        self._queues: dict[Collector, _Queue] = {}
        self._nursery: trio.Nursery | None = None
        self._ending = trio.Event()
        self._log = structlog.get_logger()
        self.dropped: Counter[str] = Counter()
        """Records that never arrived, by collector."""

    def __len__(self) -> int:
        """Collectors that have a task."""
        return len(self._queues)

    def ship(self, collector: Collector, record: bytes) -> None:
        """See `Shipping.ship`."""
        now = trio.current_time()
        queue = self._queues.get(collector)
        if queue is None:
            if self._ending.is_set():  # its task would find nobody to hold it
                self._lose_late(collector)
                return
            queue = self._open(collector)
        was_empty = not queue.batches
        if queue.batches.add(record, now):
            if was_empty or queue.batches.due_at <= now:
                queue.woken.set()
            return
        self.dropped[str(collector)] += 1
        if not queue.is_full:
            queue.is_full = True
            self._log.warning("records_dropped", collector=str(collector), pending=len(queue.batches))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Hold the tasks. Ends only by cancellation.

        Cancellation:
          What is queued is still sent, within PATIENCE_S, up to the first batch that fails; one that is on its way is not
          begun again, for its collector may have it. The rest is dropped and counted, and so is what comes for a collector
          that has no queue by then.
        """
        trio.socket.set_custom_hostname_resolver(Names())
        patience = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            # Not `start`: cancelled meanwhile, it would wait for the end of a task that waits for `_ending`.
            nursery.start_soon(self._hold, patience)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                patience.deadline = trio.current_time() + PATIENCE_S
                self._ending.set()
                for queue in self._queues.values():
                    queue.woken.set()
        raise AssertionError("only cancellation ends this")

    async def _hold(self, patience: trio.CancelScope) -> None:
        """Hold the tasks until all has been sent at the end, or the deadline of `patience`."""
        with patience:
            async with trio.open_nursery() as self._nursery:
                for queue in self._queues.values():
                    self._nursery.start_soon(self._serve, queue)
                await self._ending.wait()

    def _open(self, collector: Collector) -> _Queue:
        queue = self._queues[collector] = _Queue(collector, Batches(collector.policy))
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, queue)
        return queue

    async def _serve(self, queue: _Queue) -> None:
        try:
            await self._deliver_when_due(queue)
            while queue.batches and await self._deliver(queue):  # the gateway ends
                pass
        finally:
            del self._queues[queue.collector]
            if left := len(queue.batches):
                self._lose(queue, left)
                self._log.warning("records_dropped", collector=str(queue.collector), pending=left)

    async def _deliver_when_due(self, queue: _Queue) -> None:
        """Until nothing has come for LINGER_S, or the gateway ends."""
        while not self._ending.is_set():
            queue.woken = trio.Event()
            with trio.move_on_at(queue.batches.due_at if queue.batches else trio.current_time() + LINGER_S):
                await queue.woken.wait()
            if not queue.batches:
                return
            if queue.batches.due_at <= trio.current_time():
                await self._deliver(queue)

    async def _deliver(self, queue: _Queue) -> bool:
        """Try the next batch; whether it arrived."""
        records = queue.batches.take()
        in_haste = self._ending.is_set() and len(queue.batches) > len(records)
        has_arrived = False

        def on_arrived() -> None:
            nonlocal has_arrived
            has_arrived = True
            self._note_arrival(queue)

        try:
            await self._senders.send(queue.collector, records, on_arrived, in_haste=in_haste)
        except TROUBLES as error:
            if has_arrived:  # its time was over in that moment
                return True
            self._lose(queue, queue.batches.failed(trio.current_time()))
            if not queue.is_failing:
                queue.is_failing = True
                self._log.warning("collector_failed", collector=str(queue.collector), error=_said(error))
            return False
        return True

    def _note_arrival(self, queue: _Queue) -> None:
        queue.batches.succeeded()
        if queue.is_failing or queue.is_full:
            queue.is_failing = queue.is_full = False
            name = str(queue.collector)
            self._log.info("collector_back", collector=name, dropped=self.dropped[name])

    def _lose_late(self, collector: Collector) -> None:
        name = str(collector)
        if not self.dropped[name]:
            self._log.warning("records_dropped", collector=name, pending=0)
        self.dropped[name] += 1

    def _lose(self, queue: _Queue, records: int) -> None:
        if records:
            self.dropped[str(queue.collector)] += records


def _said(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    cause = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):  # of the addresses of a name: the last one is as good as any
        cause = cause.exceptions[-1]
    return str(cause) or type(cause).__name__
