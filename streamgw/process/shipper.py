"""Sends what plugins log: one task for each collector, batches out of a bounded queue.

The connection is made for each batch. One that is kept open would take a batch that nobody reads, when the collector went away
meanwhile, and say nothing; this way the end of the connection says that the collector has read it all.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NoReturn

import attrs
import structlog
import trio

from streamgw.core.batch import Batches, Collector

LINGER_S = 60.0
"""After which the task of a collector that gets nothing any more ends."""
FAREWELL_S = 1.0
"""What a collector has for closing the connection after us. One that keeps it open is believed to have read everything."""
PATIENCE_S = 2.0
"""For everything that is left when the gateway ends."""

_TROUBLES = (OSError, ValueError, trio.BrokenResourceError, trio.TooSlowError)
"""What a collector can do to us. A name that cannot even be looked up is a ValueError."""


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
        self._trusted = trusted
        self._queues: dict[Collector, _Queue] = {}
        self._nursery: trio.Nursery | None = None
        self._log = structlog.get_logger()
        self.dropped: Counter[str] = Counter()
        """Records that never arrived, by collector."""

    def __len__(self) -> int:
        """Collectors that have a task."""
        return len(self._queues)

    def ship(self, collector: Collector, record: bytes) -> None:
        """See `Shipping.ship`."""
        now = trio.current_time()
        queue = self._queues.get(collector) or self._open(collector)
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
          What is queued is still sent, within PATIENCE_S, each batch once. The rest is dropped and counted.
        """
        async with trio.open_nursery() as self._nursery:
            for queue in self._queues.values():
                self._nursery.start_soon(self._serve, queue)
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("only cancellation ends this")

    def _open(self, collector: Collector) -> _Queue:
        queue = self._queues[collector] = _Queue(collector, Batches(collector.policy))
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, queue)
        return queue

    async def _serve(self, queue: _Queue) -> None:
        try:
            await self._deliver_when_due(queue)
        except trio.Cancelled:
            with trio.move_on_after(PATIENCE_S, shield=True):
                while queue.batches and await self._deliver(queue):
                    pass
            self._lose(queue, len(queue.batches))
            raise
        finally:
            del self._queues[queue.collector]

    async def _deliver_when_due(self, queue: _Queue) -> None:
        """Until nothing has come for LINGER_S."""
        while True:
            queue.woken = trio.Event()
            with trio.move_on_at(queue.batches.due_at if queue.batches else trio.current_time() + LINGER_S):
                await queue.woken.wait()
            if not queue.batches:
                return
            if queue.batches.due_at <= trio.current_time():
                await self._deliver(queue)

    async def _deliver(self, queue: _Queue) -> bool:
        """Try the next batch; whether it arrived."""
        try:
            await self._send(queue.collector, queue.batches.take())
        except _TROUBLES as error:
            self._lose(queue, queue.batches.failed(trio.current_time()))
            if not queue.is_failing:
                queue.is_failing = True
                self._log.warning("collector_failed", collector=str(queue.collector), error=_said(error))
            return False
        queue.batches.succeeded()
        if queue.is_failing or queue.is_full:
            queue.is_failing = queue.is_full = False
            name = str(queue.collector)
            self._log.info("collector_back", collector=name, dropped=self.dropped[name])
        return True

    def _lose(self, queue: _Queue, records: int) -> None:
        if records:
            self.dropped[str(queue.collector)] += records

    async def _send(self, collector: Collector, records: Sequence[bytes]) -> None:
        if collector.transport == "udp":
            with trio.fail_after(collector.timeout_s):
                await _send_datagrams(collector, records)
            return
        context = None
        if collector.tls:
            context = await trio.to_thread.run_sync(_client_context, self._trusted(), collector.verify)
        with trio.fail_after(collector.timeout_s) as deadline:
            await _send_lines(collector, records, context, deadline)


async def _send_datagrams(collector: Collector, records: Sequence[bytes]) -> None:
    """One for each record. RFC 5426 and its like: no newline."""
    (family, _, _, _, address), *_ = await trio.socket.getaddrinfo(
        collector.host, collector.port, type=trio.socket.SOCK_DGRAM
    )
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(address)
        for record in records:
            await sock.send(record)


async def _send_lines(
    collector: Collector, records: Sequence[bytes], context: ssl.SSLContext | None, deadline: trio.CancelScope
) -> None:
    """Connect, send one line for each record, and see the collector close.

    `deadline` is moved once the last byte is sent: that the collector is slow to close is no failure.
    """
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    stream = socket_stream = await trio.open_tcp_stream(collector.host, collector.port)
    try:
        if context is not None:
            stream = trio.SSLStream(socket_stream, context, server_hostname=collector.host)
        await stream.send_all(b"\n".join((*records, b"")))
        deadline.deadline = trio.current_time() + 2 * FAREWELL_S
        with trio.move_on_after(FAREWELL_S):
            # Closing while bytes of theirs are unread (TLS session tickets) would be a reset, which destroys ours on the way.
            if isinstance(stream, trio.SSLStream):
                await stream.aclose()
            else:
                await stream.send_eof()
                while await stream.receive_some(4096):
                    pass
    finally:
        await trio.aclose_forcefully(socket_stream)


def _client_context(trusted: str, verify: bool) -> ssl.SSLContext:
    """Reads files: for a thread."""
    context = ssl.create_default_context(cafile=None if trusted == "system" else trusted)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _said(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    return str(error.__cause__ or error) or type(error).__name__
