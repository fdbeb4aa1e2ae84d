"""A real pump between real sockets: every client of one port is relayed to one upstream port, endings are kept.

`open_bridge` starts it; `Bridge.connect` gives the two outer sockets of one session. On leaving, whatever the test did,
the pump must have given back every descriptor it ever took: that is checked here, once, for all tests.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import attrs
import pytest
import trio

from streamgw.core.errors import SessionError
from streamgw.core.model import Address
from streamgw.dataplane.pump import End, Ending, Limits, Meter, OnFirstByte, TLSInfo
from streamgw.dataplane.pump.bpf import Unavailable
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.pump.sockmap_trial import open_maps
from tests.support.descriptors import open_descriptors
from tests.support.tls_talker import CLIENT, NAME, SERVER, TLSTalker

SHAKES_QUICKLY = True
"""Whether the pump takes on the handshakes of clients by itself; else they go through threads. Tests of both set it."""
TIMEOUT_S = 20.0
HOST = "127.0.0.1"


@attrs.frozen
class Way:
    """What the ends of a session are, and how its bytes move."""

    splice_after: int | None = 4
    client_tls: bool = False
    upstream_tls: bool = False
    in_kernel: bool = False
    """Small messages are passed on by the kernel (`sockmap`), from the first one on."""

    @property
    def is_plain(self) -> bool:
        return not (self.client_tls or self.upstream_tls)

    @property
    def splices(self) -> bool:
        """Bulk moves without being copied."""
        return self.is_plain and self.splice_after is not None


def skip_unless_possible(way: Way) -> Way:
    """The way, where this kernel and these privileges allow it. Elsewhere the test is skipped, and says why."""
    if way.in_kernel and (reason := _why_not_in_kernel()):
        pytest.skip(f"the kernel passes no bytes on here: {reason}")
    return way


@functools.cache
def _why_not_in_kernel() -> str:
    try:
        open_maps().close()
    except Unavailable as error:
        return str(error)
    return ""


Talker: TypeAlias = trio.socket.SocketType | TLSTalker
"""An outer end of a session."""


@attrs.define(eq=False)
class RelayedSession:
    """What the gateway's side of one session saw."""

    end: Any  # the pump's own class: a test may look inside
    client: Address
    server: Address
    told: list[float] = attrs.Factory(list)
    """What `Meter.on_connected` was told."""
    is_timed: bool = False
    """Somebody wants to know of the upstream's first byte."""
    first_bytes: list[float] = attrs.Factory(list)
    """What was told about that."""
    meter: Meter = attrs.Factory(lambda self: Meter(on_connected=self.on_connected), takes_self=True)
    limits: Limits = Limits()
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    ended: trio.Event = attrs.Factory(trio.Event)
    ending: Ending | None = None
    error: SessionError | None = None
    upstream: Any = None
    info: TLSInfo | None = None

    def on_connected(self, at: float) -> OnFirstByte | None:
        """See `Meter.on_connected`."""
        self.told.append(at)
        return self.first_bytes.append if self.is_timed else None

    async def wait_ended(self) -> Ending:
        """How the relay ended. Fails when it ended in an error, or by cancellation."""
        with trio.fail_after(TIMEOUT_S):
            await self.ended.wait()
        assert self.error is None, self.error
        assert self.ending is not None, "cancelled"
        return self.ending


@attrs.define(eq=False)
class Bridge:
    """A pump, a listening socket in front of it and one behind."""

    pump: SocketPump
    pump_scope: trio.CancelScope
    nursery: trio.Nursery
    listening: socket.socket
    origin: trio.socket.SocketType
    node: Address
    """Where sessions are relayed to: the origin, unless a test says otherwise."""
    sessions: list[RelayedSession] = attrs.Factory(list)
    preface: bytes = b""
    limits: Limits = Limits()
    connect_timeout_s: float = math.inf
    handshake_timeout_s: float = TIMEOUT_S
    way: Way = Way()
    times_first_bytes: bool = False
    server_context: ssl.SSLContext = SERVER
    client_context: ssl.SSLContext = CLIENT
    """Of the gateway, towards its upstream."""
    shakes_quickly: bool = attrs.Factory(lambda: SHAKES_QUICKLY)
    before_dial: Callable[[RelayedSession], Awaitable[None]] | None = None

    def on_accept(self, end: End, client: Address, server: Address) -> None:
        """Start a session's task, as the listener does."""
        session = RelayedSession(end, client, server, limits=self.limits, is_timed=self.times_first_bytes)
        self.sessions.append(session)
        self.nursery.start_soon(self._run, session)

    async def _run(self, session: RelayedSession) -> None:
        with session.scope:
            try:
                if self.way.client_tls:
                    await self._terminate(session)
                if self.before_dial is not None:
                    await self.before_dial(session)
                session.upstream = self.pump.dial(
                    self.node, preface=self.preface, deadline=trio.current_time() + self.connect_timeout_s
                )
                if self.way.upstream_tls:
                    await self._secure(session.upstream)
                session.ending = await self.pump.relay(
                    session.end, session.upstream, session.meter, session.limits
                )
            except SessionError as error:
                session.error = error
                self.pump.close(session.end)
            finally:
                session.ended.set()

    async def _terminate(self, session: RelayedSession) -> None:
        session.info = await self.pump.handshake(
            session.end,
            self.server_context,
            server_side=True,
            deadline=trio.current_time() + self.handshake_timeout_s,
            is_quick=self.shakes_quickly,
        )

    async def _secure(self, upstream: Any) -> None:
        try:
            await self.pump.connected(upstream)
            await self.pump.handshake(
                upstream,
                self.client_context,
                server_side=False,
                server_name=NAME,
                deadline=trio.current_time() + self.handshake_timeout_s,
            )
        except BaseException:
            self.pump.close(upstream, reset=True)
            raise

    async def dial(self, *, receive_buffer: int = 0) -> Talker:
        """A client's connection, after its handshake."""
        client = await self.dial_plain(receive_buffer=receive_buffer)
        if not self.way.client_tls:
            return client
        with trio.fail_after(TIMEOUT_S):
            return await TLSTalker(client, server_side=False).handshake()

    async def dial_plain(self, *, receive_buffer: int = 0) -> trio.socket.SocketType:
        """A client's connection, nothing said."""
        client = trio.socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with trio.fail_after(TIMEOUT_S):
            await client.connect(self.listening.getsockname())
        return client

    async def connect(self, *, receive_buffer: int = 0) -> tuple[Talker, Talker]:
        """The outer ends of a new session: (client, upstream)."""
        client = await self.dial(receive_buffer=receive_buffer)
        return client, await self.accept()

    async def accept(self) -> Talker:
        """The upstream's side of a session, after its handshake."""
        with trio.fail_after(TIMEOUT_S):
            upstream, _ = await self.origin.accept()
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self.way.upstream_tls:
                return upstream
            return await TLSTalker(upstream, server_side=True).handshake()

    async def only_session(self) -> RelayedSession:
        """The one session there is, as soon as it is."""
        await until(lambda: bool(self.sessions))
        (session,) = self.sessions
        return session


def _raise(error: Exception) -> None:
    raise error


@contextlib.asynccontextmanager
async def open_pump(
    *,
    splice_after: int | None = 4,
    on_trouble: Callable[[str], None] = print,
    on_bug: Callable[[Exception], None] = _raise,
    scope: trio.CancelScope | None = None,
    in_kernel: bool = False,
) -> AsyncIterator[SocketPump]:
    """A running pump that lets no bug pass; checks that it leaves no descriptor behind."""
    before = open_descriptors()
    maps = open_maps() if in_kernel else None
    pump = SocketPump(on_trouble=on_trouble, on_bug=on_bug, splice_after=splice_after, maps=maps)
    if pump.kernel is not None:
        pump.kernel.promote_after = 1
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope or trio.CancelScope():
                await pump.run(task_status=task_status)

        await nursery.start(run)
        yield pump
        nursery.cancel_scope.cancel()
    leaked = open_descriptors() - before
    assert not leaked, f"descriptors left behind: {leaked}"


@contextlib.asynccontextmanager
async def open_bridge(
    way: Way = Way(),
    *,
    preface: bytes = b"",
    limits: Limits = Limits(),
    upstream_receive_buffer: int = 0,
    on_trouble: Callable[[str], None] = print,
    on_bug: Callable[[Exception], None] = _raise,
) -> AsyncIterator[Bridge]:
    """A pump with a listener and an origin. The test closes the sockets it got from `connect`."""
    scope = trio.CancelScope()
    with socket.socket() as listening, trio.socket.socket() as origin:
        if upstream_receive_buffer:
            origin.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, upstream_receive_buffer)
        await origin.bind((HOST, 0))
        origin.listen(1024)
        listening.bind((HOST, 0))
        listening.listen(1024)
        async with (
            open_pump(
                splice_after=way.splice_after,
                on_trouble=on_trouble,
                on_bug=on_bug,
                scope=scope,
                in_kernel=way.in_kernel,
            ) as pump,
            trio.open_nursery() as nursery,
        ):
            node = Address(HOST, origin.getsockname()[1])
            bridge = Bridge(pump, scope, nursery, listening, origin, node, preface=preface, limits=limits)
            bridge.way = way
            accepting = pump.listen(listening, bridge.on_accept)
            yield bridge
            accepting.close()
            nursery.cancel_scope.cancel()


Accepted: TypeAlias = tuple[End, Address, Address]


@contextlib.asynccontextmanager
async def accepted_by(
    listening: socket.socket,
) -> AsyncIterator[tuple[SocketPump, trio.MemoryReceiveChannel[Accepted]]]:
    """A pump that accepts from a socket, and what it accepted, in order. The pump closes what the test does not."""
    send, receive = trio.open_memory_channel[Accepted](64)
    async with open_pump() as pump:
        accepting = pump.listen(listening, lambda *accepted: send.send_nowait(accepted))
        yield pump, receive
        accepting.close()


@contextlib.asynccontextmanager
async def open_client() -> AsyncIterator[tuple[SocketPump, Any, trio.socket.SocketType]]:
    """A pump, an end it has accepted, and the client at the other side of it."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen()
        async with accepted_by(listening) as (pump, accepted):
            with trio.socket.socket() as client:
                await client.connect(listening.getsockname())
                end, _, _ = await accepted.receive()
                yield pump, end, client


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process may open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(fd for fd, _ in open_descriptors())
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):  # EMFILE: the aim
            while True:
                stack.callback(os.close, os.dup(0))
        yield


@contextlib.contextmanager
def full_backlog() -> Iterator[Address]:
    """A node that does not answer: its accept queue is full, so the kernel drops every further SYN."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((HOST, 0))
        listening.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield Address(HOST, listening.getsockname()[1])


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state of this process that nothing announces."""
    with trio.fail_after(TIMEOUT_S):
        while not condition():
            await trio.sleep(0.002)


async def send_all(sock: Talker, data: bytes) -> None:
    """Send everything."""
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]


async def receive_exactly(sock: Talker, count: int) -> bytes:
    """So many bytes, or what came before EOF."""
    data = bytearray()
    with trio.fail_after(TIMEOUT_S):
        while len(data) < count and (chunk := await sock.recv(min(1 << 20, count - len(data)))):
            data += chunk
    return bytes(data)


async def receive_to_eof(sock: Talker) -> bytes:
    """Everything up to EOF. ConnectionResetError when it was cut."""
    return await receive_exactly(sock, 1 << 62)


def reset(sock: Talker | socket.socket) -> None:
    """Close by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
