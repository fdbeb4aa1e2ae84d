"""A pump without sockets: ends are scripts, time is trio's (mock) clock. Sessions and the dialer cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from streamgw.core.errors import (
    ConnectFailed,
    Exhausted,
    Killed,
    NoPortLeft,
    PeerReset,
    Reason,
    TLSFailed,
    UpstreamTLSFailed,
)
from streamgw.core.model import Address
from streamgw.dataplane.pump import Ending, Limits, Meter, OnAccept, TLSInfo


@attrs.define(eq=False)
class FakeEnd:
    """A client with a script, or an upstream that was dialled."""

    address: Address | None = None
    preface: bytes = b""
    deadline: float = math.inf
    received: bytes = b""
    """A client: what waits in its receive buffer."""
    says_later: list[tuple[float, bytes]] = attrs.Factory(list)
    """A client: (trio time, bytes) that arrive later."""
    eof: bool = False
    resets: bool = False
    closed: str = ""
    secured_by: object = None
    """The context of the handshake."""
    server_name: str = ""
    """An upstream: the name that was sent to it."""
    last_words: bytes = b""
    shakes_s: float = 0.0
    """A client: how long its part of the handshake takes."""
    shake_fails: str = ""
    shook_quickly: bool = False
    certificate: bytes = b""
    """A client: what it presents."""
    aborted: Reason | None = None
    changed: trio.Event = attrs.Factory(trio.Event)


@attrs.define
class Dialled:
    """How one node behaves. `ending` None: the relay goes on until it is aborted, cancelled, or runs into a limit."""

    refuses: str = ""
    exhausted: bool = False
    portless: bool = False
    """Every local port towards it is taken."""
    takes_s: float = 0.0
    tls_fails: str = ""
    first_byte_s: float | None = None
    """How long its first byte takes; None: it says nothing."""
    ending: Ending | None = Ending(Reason.CLOSED)
    moves: tuple[int, int] = (0, 0)


@attrs.define(eq=False)
class FakeAccepting:
    on_accept: OnAccept
    paused: bool = False
    closed: bool = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def connect(self, client: Address = Address("192.0.2.9", 40000), end: FakeEnd | None = None) -> FakeEnd:
        """A client arrives."""
        assert not self.paused, "the backlog is the queue: nobody is accepted while paused"
        assert not self.closed
        end = end or FakeEnd()
        self.on_accept(end, client, Address("127.0.0.1", 9100))
        return end


@attrs.define
class FakePump:
    """Answers `dial` by a table of nodes; whatever is not in the table refuses the connection."""

    nodes: dict[str, Dialled] = attrs.Factory(dict)
    dialled: list[FakeEnd] = attrs.Factory(list)
    accepting: dict[object, FakeAccepting] = attrs.Factory(dict)
    before_relay: Callable[[], None] = lambda: None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        task_status.started()
        await trio.sleep_forever()

    def listen(self, sock: object, on_accept: OnAccept) -> FakeAccepting:
        accepting = self.accepting[sock] = FakeAccepting(on_accept)
        return accepting

    async def peek(self, end: FakeEnd, at_least: int, *, deadline: float) -> bytes:
        while len(end.received) < at_least and end.says_later and end.says_later[0][0] <= deadline:
            at, data = end.says_later.pop(0)
            await trio.sleep_until(at)
            end.received += data
        if end.resets:
            raise PeerReset("connection reset by peer")
        if len(end.received) < at_least and not end.eof:
            with trio.move_on_at(deadline):
                await end.changed.wait()
        await trio.lowlevel.checkpoint()
        self._raise_if_aborted(end)
        return end.received

    def consume(self, end: FakeEnd, count: int) -> None:
        assert count <= len(end.received)
        end.received = end.received[count:]

    def dial(self, node: Address, *, preface: bytes, deadline: float) -> FakeEnd:
        script = self.nodes.get(str(node), Dialled(refuses="connection refused"))
        if script.exhausted:
            raise Exhausted("too many open files")
        if script.portless:
            raise NoPortLeft("no local port left to connect from")
        end = FakeEnd(address=node, preface=preface, deadline=deadline)
        self.dialled.append(end)
        return end

    async def connected(self, upstream: FakeEnd) -> None:
        await self._connect(upstream)
        self._raise_if_aborted(upstream)

    async def handshake(
        self,
        end: FakeEnd,
        context: object,
        *,
        server_side: bool,
        server_name: str = "",
        deadline: float,
        is_quick: bool = False,
    ) -> TLSInfo:
        end.shook_quickly = is_quick
        end.secured_by, end.server_name = context, server_name
        fails = end.shake_fails if server_side else self._script(end).tls_fails
        began_at = trio.current_time()
        with trio.move_on_at(min(deadline, began_at + end.shakes_s)):
            await end.changed.wait()
        self._raise_if_aborted(end)
        if began_at + end.shakes_s > deadline:
            fails = f"no handshake within {deadline - began_at:g} s"
        if fails:
            raise (TLSFailed if server_side else UpstreamTLSFailed)(fails)
        return TLSInfo(
            "TLSv1.3", "TLS_AES_256_GCM_SHA384", "", resumed=False, peer_certificate=end.certificate
        )

    def _raise_if_aborted(self, end: FakeEnd) -> None:
        if end.aborted is not None:
            raise Killed(f"ended before the relay: {end.aborted}")

    def say_last(self, end: FakeEnd, words: bytes) -> None:
        end.last_words = words

    async def relay(self, client: FakeEnd, upstream: FakeEnd, meter: Meter, limits: Limits) -> Ending:
        assert not client.closed, "a closed end was relayed"
        self.before_relay()
        script = self._script(upstream)
        try:
            if upstream.secured_by is None:
                await self._connect(upstream)
            else:
                await trio.lowlevel.checkpoint()
            meter.connected_at = trio.current_time()
            if meter.on_connected is not None:
                on_first_byte = meter.on_connected(meter.connected_at)
                if on_first_byte is not None and script.first_byte_s is not None:
                    await trio.sleep(script.first_byte_s)
                    on_first_byte(script.first_byte_s)
            meter.bytes_up, meter.bytes_down = script.moves
            ending = script.ending or await self._until_cut(client, limits)
        except trio.Cancelled:
            client.closed = upstream.closed = "reset"
            raise
        client.closed = upstream.closed = "fin" if ending.reason is Reason.CLOSED else "reset"
        return ending

    def abort(self, end: FakeEnd, reason: Reason) -> None:
        end.aborted = reason
        end.changed.set()

    def close(self, end: FakeEnd, *, reset: bool = False) -> None:
        end.closed = end.closed or ("reset" if reset else "fin")

    def _script(self, upstream: FakeEnd) -> Dialled:
        return self.nodes.get(str(upstream.address), Dialled(refuses="connection refused"))

    async def _connect(self, upstream: FakeEnd) -> None:
        script = self._script(upstream)
        with trio.move_on_at(min(trio.current_time() + script.takes_s, upstream.deadline)):
            await upstream.changed.wait()
        if script.takes_s and trio.current_time() >= upstream.deadline:
            upstream.closed = "reset"
            raise ConnectFailed("timed out")
        if script.refuses:
            upstream.closed = "fin"
            raise ConnectFailed(script.refuses)

    async def _until_cut(self, client: FakeEnd, limits: Limits) -> Ending:
        idle_at = trio.current_time() + limits.idle_s
        with trio.move_on_at(min(idle_at, limits.ends_at)):
            await client.changed.wait()
            assert client.aborted is not None
            return Ending(client.aborted)
        return Ending(Reason.IDLE_TIMEOUT if idle_at < limits.ends_at else Reason.MAX_DURATION)
