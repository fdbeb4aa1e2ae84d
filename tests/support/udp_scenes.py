"""A gateway's UDP half on real sockets: listeners bound as the process binds them, clients and nodes that are sockets."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from streamgw.core.model import ClientCertificate, DatagramRules, Listener, Outcome
from streamgw.core.snapshot import Snapshot
from streamgw.core.udp_sessions import Drop
from streamgw.dataplane.dialer import Dialer
from streamgw.dataplane.listener import Listeners
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Sessions
from streamgw.dataplane.udp import UDPSessions
from streamgw.process.sockets import Sockets
from tests.support.scenes import FakeNames, route, snapshot, sync, upstream

TIMEOUT_S = 30.0
BIGGEST = 65_507
"""Bytes of a datagram over IPv4."""


def udp_listener(host: str = "127.0.0.1", port: int = 0, **settings: Any) -> Listener:
    """On a port of the kernel's choice."""
    return Listener("udp", host, port, **settings)


def udp_sessions(current: Callable[[], Snapshot], pump: SocketPump, **settings: Any) -> UDPSessions:
    """Sessions of whatever snapshot is current; a bug is an error of the test."""

    def on_bug(_: UDPSession, error: Exception) -> None:
        raise error

    defaults: dict[str, Any] = {
        "pool": UpstreamPool(FakeNames(), rng=random.Random(1)),
        "on_bug": on_bug,
        "on_outcome": lambda _: None,
        "on_drops": lambda *_: None,
        "on_trouble": lambda _: None,
        "wall_clock": lambda: 1_700_000_000.0,
        "id_prefix": "t-",
    }
    return UDPSessions(datagrams=pump.datagrams, get_snapshot=current, **defaults | settings)


class Peer:
    """A client's or a node's socket. What comes is waited for, never longer than `TIMEOUT_S`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host, port))
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.address: Any = self.sock.getsockname()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @property
    def place(self) -> str:
        """As a node is written in a test: `127.0.0.1:1995`."""
        host, port = self.address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def say(self, payload: bytes, to: Any) -> None:
        await self.sock.sendto(payload, to)

    async def hear(self) -> tuple[bytes, Any]:
        """The next datagram, and who sent it."""
        with trio.fail_after(TIMEOUT_S):
            return await self.sock.recvfrom(1 << 16)

    async def hears_nothing_more(self) -> bool:
        """For as long as a datagram on the loopback device could need, and more."""
        with trio.move_on_after(0.05):
            await self.sock.recvfrom(1 << 16)
            return False
        return True


@attrs.define
class UDPGateway:
    """What a test drives and looks at."""

    current: Snapshot
    names: FakeNames = attrs.Factory(FakeNames)
    pump: SocketPump = attrs.Factory(SocketPump)
    sockets: Sockets = attrs.Factory(Sockets)
    outcomes: list[Outcome] = attrs.Factory(list)
    bugs: list[Exception] = attrs.Factory(list)
    dropped: list[tuple[str, dict[Drop, int]]] = attrs.Factory(list)
    troubles: list[str] = attrs.Factory(list)
    pool: UpstreamPool = attrs.field(init=False)
    udp: UDPSessions = attrs.field(init=False)
    listeners: Listeners = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = UpstreamPool(self.names, rng=random.Random(1))
        self.udp = udp_sessions(
            lambda: self.current,
            self.pump,
            pool=self.pool,
            on_outcome=self.outcomes.append,
            on_bug=lambda _, error: self.bugs.append(error),
            on_drops=self._on_drops,
            on_trouble=self.troubles.append,
        )
        sessions = Sessions(
            pump=self.pump,
            dialer=Dialer(self.pump, self.pool),
            get_snapshot=lambda: self.current,
            on_outcome=self.outcomes.append,
            on_bug=lambda _, error: self.bugs.append(error),
            wall_clock=lambda: 0.0,
            read_certificate=lambda der: ClientCertificate(der.decode(), (), "", ""),
        )
        self.listeners = Listeners(self.pump, sessions, self.udp)
        self.swap(self.current)

    def _on_drops(self, listener: str, drops: Mapping[Drop, int]) -> None:
        self.dropped.append((listener, dict(drops)))

    def swap(self, new: Snapshot) -> None:
        """A reload."""
        self.current = new
        sync(self.pool, *new.upstreams.values())
        self.udp.sync(new.upstreams)

    def listen(self, *listeners: Listener) -> list[Any]:
        """A change of listeners, as the worker does it. Where clients send to."""
        self.listeners.make_way(listeners)
        finish = self.sockets.replace(listeners, let_go=self._let_go)
        self.listeners.sync(self.sockets.bound())
        finish()
        return [sock.getsockname() for sock in self.sockets.bound().values()]

    def _let_go(self, gone: Sequence[Listener]) -> None:
        bound = self.sockets.bound().items()
        self.listeners.sync({listener: sock for listener, sock in bound if listener not in gone})
        self.listeners.make_way(gone)

    async def until(self, look: Callable[[], object]) -> None:
        """Wait for a state that nothing announces."""
        with trio.fail_after(TIMEOUT_S):
            while not look():
                await trio.sleep(0.002)

    async def outcome(self, number: int = 1) -> Outcome:
        """The last of so many."""
        await self.until(lambda: len(self.outcomes) >= number)
        return self.outcomes[number - 1]

    def drops(self) -> dict[Drop, int]:
        """By reason, over all listeners."""
        found: dict[Drop, int] = {}
        for reception in self.udp.receptions:
            for drop, count in reception.sessions.drops.items():
                found[drop] = found.get(drop, 0) + count
        return found


@asynccontextmanager
async def udp_gateway(current: Snapshot, names: FakeNames | None = None) -> AsyncIterator[UDPGateway]:
    """A gateway that runs. Whatever it left behind when it ends is an error: sessions, sockets."""
    gateway = UDPGateway(current, names or FakeNames())
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.pump.run)
        await nursery.start(gateway.udp.sweep)
        async with trio.open_nursery() as inner:
            await inner.start(gateway.listeners.run)
            try:
                yield gateway
            finally:
                gateway.listeners.drain(trio.current_time())
                gateway.sockets.close_all()
        assert not gateway.udp.live
        assert not gateway.udp.receptions
        assert not gateway.pump.datagrams.sides
        nursery.cancel_scope.cancel()


def to(*nodes: Peer | str, **rules: Any) -> Snapshot:
    """A snapshot with one route to these nodes, and its rules for UDP."""
    places = [node if isinstance(node, str) else node.place for node in nodes]
    return snapshot(route("1", upstream(*places), udp=DatagramRules(**rules)))


async def exchange(client: Peer, node: Peer, at: Any, question: bytes = b"?", answer: bytes = b"!") -> Any:
    """One question and its answer, and who asked the node."""
    await client.say(question, at)
    heard, session = await node.hear()
    assert heard == question
    await node.say(answer, session)
    assert await client.hear() == (answer, at)
    return session
