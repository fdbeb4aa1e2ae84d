"""The waits before a relay that are not a look: until a node has answered, until a handshake is done.

A handshake whose steps are short is taken on by the pump itself (`steps`). Every step of another one runs in a thread;
OpenSSL lets go of the GIL. Measured with 32 clients in a storm of full TLS 1.3 handshakes and one ping-pong through the
same gateway (2 cores shared with the clients, 4 s each, P-256 / RSA-2048 / RSA-4096): round trips of the ping-pong

    in the loop, at once    p50 11 / 19 / - ms,     p99 56 / 32 / - ms,       1200 / 1340 / -    handshakes a second
    in the loop, one a turn p50 0.6 / 0.5 / 3.7 ms, p99 4 / 2-9 / 20 ms,      630-750 / 550-1180 / 160
    in threads              p50 0.5 / 0.4 / 0.2 ms, p99 3-6 / 3-4 / 14 ms,    570-750 / 600-700 / 150

(medians of short runs; on cores that were shared with more than the clients, single stalls were ten times as long, either
way). With a long key each message waits in the loop for at least one signature; with threads it waits for none, and a
gateway with more cores uses them.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

import trio

from streamgw.core.errors import ConnectFailed
from streamgw.dataplane.pump import TLSInfo
from streamgw.dataplane.pump.end import Socket, words_for
from streamgw.dataplane.pump.peek import Peeks, raise_if_aborted
from streamgw.dataplane.pump.steps import Steps, failure_of, receive, send
from streamgw.dataplane.pump.tls import Shaking, TLSBroken, TLSLayer


class Handshakes:
    """Handshakes under way, and connects that they wait for.

    Args:
      peeks: parks the tasks that wait.
      say_last: sends an alert so that closing does not destroy it.
      hear: sees to it that the first step of an end is taken, if it has something to read.
    """

    def __init__(
        self,
        peeks: Peeks,
        say_last: Callable[[Socket, bytes], None],
        hear: Callable[[Socket], None],
    ) -> None:
        self._peeks = peeks
        self._say_last = say_last
        self._hear = hear
        self.steps = Steps(say_last, peeks.wake)
        self._threads = trio.CapacityLimiter(max(2, os.cpu_count() or 1))

    async def connected(self, upstream: Socket) -> None:
        """See `Pump.connected`. Closes nothing."""
        await trio.lowlevel.checkpoint()
        while True:
            raise_if_aborted(upstream)
            number = upstream.error() if upstream.broken else 0
            if number:
                raise ConnectFailed(words_for(number))
            if upstream.writable and _send_preface(upstream):
                upstream.deadline = float("inf")
                return
            if trio.current_time() >= upstream.deadline:
                raise ConnectFailed(f"timed out after {upstream.deadline - upstream.dialed_at:.1f} s")
            await self._peeks.park(upstream, upstream.deadline)

    async def shake(
        self,
        end: Socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str,
        deadline: float,
        is_quick: bool = False,
    ) -> TLSInfo:
        """See `Pump.handshake`. Closes nothing."""
        try:
            layer = TLSLayer(context, server_side=server_side, server_name=server_name)
        except ValueError as error:
            raise failure_of(end, f"server name {server_name!r}: {error}") from None
        wait = _Wait(self._peeks, end, deadline)
        if is_quick and server_side:
            await self._shake_in_steps(end, layer, wait)
        else:
            await self._shake_in_threads(end, layer, wait, waits_first=server_side)
        return layer.info()

    async def _shake_in_steps(self, end: Socket, layer: TLSLayer, wait: _Wait) -> None:
        """The pump does the work, and the task sleeps meanwhile."""
        raise_if_aborted(end)
        shaking = end.shaking = Shaking(layer)
        self._hear(end)
        try:
            while not shaking.over:
                await wait()
                raise_if_aborted(end)
        finally:
            end.shaking = None
        if shaking.failure is not None:
            raise shaking.failure

    async def _shake_in_threads(
        self, end: Socket, layer: TLSLayer, wait: _Wait, *, waits_first: bool
    ) -> None:
        """The task goes to a thread and back for each step."""
        done, received = False, b""
        if waits_first:
            received = await _receive(end, wait)
        while True:
            try:
                done = await trio.to_thread.run_sync(layer.step, received, limiter=self._threads)
            except TLSBroken as error:
                if end.fd >= 0:
                    self._say_last(end, layer.replies())
                raise failure_of(end, str(error.strerror)) from None
            if layer.has_replies:
                await _send(end, layer.replies(), wait)
            if done:
                break
            received = await _receive(end, wait)
        raise_if_aborted(end)
        end.tls = layer
        # Bytes may have come with the end of the handshake, and their edge with them.
        end.ready = end.thorough = True


class _Wait:
    """Waiting for news of an end, until the handshake has taken too long. Awaiting a call of it is one wait."""

    def __init__(self, peeks: Peeks, end: Socket, deadline: float) -> None:
        self._peeks, self._end, self._deadline = peeks, end, deadline
        self._began_at = trio.current_time()

    async def __call__(self) -> None:
        if trio.current_time() >= self._deadline:
            raise failure_of(self._end, f"no handshake within {self._deadline - self._began_at:.3g} s")
        await self._peeks.park(self._end, self._deadline)


async def _receive(end: Socket, wait: _Wait) -> bytes:
    while True:
        raise_if_aborted(end)
        received = receive(end)
        if received is not None:
            return received
        await wait()


async def _send(end: Socket, words: bytes, wait: _Wait) -> None:
    left = memoryview(words)
    while True:
        raise_if_aborted(end)
        left = send(end, left)
        if not left:
            return
        await wait()


def _send_preface(upstream: Socket) -> bool:
    """Send what is left of the preface. True: nothing is."""
    if upstream.preface:
        try:
            sent = upstream.sock.send(upstream.preface)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConnectFailed(words_for(error.errno or 0)) from None
        upstream.preface = upstream.preface[sent:]
    return not upstream.preface
