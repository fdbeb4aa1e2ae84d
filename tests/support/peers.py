"""Both outer ends of thousands of sessions, in a process of their own, comparing every byte.

`python -m tests.support.peers SEED CONNECTIONS CONCURRENT TLS` starts an origin, prints its port, reads the gateway's port
from its standard input, and runs the plan. What each side does in session N follows from SEED and N alone, so the
origin needs only N (sent first) to know what to say and what to expect, and a failure can be replayed. TLS names the
sides that speak it: `none`, `client`, `upstream`, `client+upstream`.

Prints one line of JSON: how many sessions of each kind went well, and what did not.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import random
import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from typing import NoReturn

import attrs
import trio

from tests.support.tls_talker import CARELESS, TLSTalker

Sock = trio.socket.SocketType | TLSTalker
KINDS = ("duplex", "client first", "upstream first", "lock-step", "client resets", "upstream resets")
BIG_EVERY = 1500
PATIENCE_S = 200.0
_PERIOD = 1_000_003  # a prime: no buffer size divides it, so a piece out of place is a piece that differs
_NUMBER = struct.Struct("!Q")


class Mismatch(Exception):
    """Bytes arrived that were not the next ones, or too few, or too many."""


@attrs.frozen
class Plan:
    """What happens in one session."""

    kind: str
    up_bytes: int
    down_bytes: int
    rounds: tuple[tuple[int, int], ...]
    """Of lock-step: (bytes up, bytes down)."""
    cut_at: float
    """Which part of its bytes the side that resets sends before."""


def plan_for(seed: int, number: int) -> Plan:
    """The plan of session `number`."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choice(KINDS)
    if number % BIG_EVERY == BIG_EVERY - 1:
        return Plan(KINDS[number // BIG_EVERY % 3], rng.randrange(20_000_000, 40_000_000), 5_000_000, (), 0.5)
    rounds = tuple((rng.randint(1, 2000), rng.randint(1, 2000)) for _ in range(rng.randint(1, 20)))
    return Plan(kind, _size(rng), _size(rng), rounds, rng.random())


def _size(rng: random.Random) -> int:
    return int(math.exp(rng.uniform(0, math.log(300_000))))


class Speech:
    """The bytes one side says in one session, in order, as one side says and the other checks them."""

    def __init__(self, noise: memoryview, number: int, *, down: bool) -> None:
        self._noise = noise
        self._at = (number * 7919 + down * 500_009) % _PERIOD

    def next(self, most: int) -> memoryview:
        """The next bytes, at most so many."""
        piece = self._noise[self._at : self._at + most]
        self._at = (self._at + len(piece)) % _PERIOD
        return piece

    def check(self, chunk: memoryview) -> None:
        """These must be the next ones."""
        while chunk:
            expected = self.next(len(chunk))
            if expected != chunk[: len(expected)]:
                raise Mismatch("wrong bytes")
            chunk = chunk[len(expected) :]


@attrs.define
class Talker:
    """One side of one session."""

    sock: Sock
    mine: Speech
    theirs: Speech

    async def say(self, count: int) -> None:
        """Send the next so many bytes."""
        while count:
            piece = self.mine.next(min(count, 1 << 18))
            count -= len(piece)
            while piece:
                piece = piece[await self.sock.send(piece) :]

    async def say_all(self, count: int) -> None:
        """Send so many bytes, and EOF."""
        await self.say(count)
        self.sock.shutdown(socket.SHUT_WR)

    async def hear(self, count: int) -> None:
        """Exactly so many bytes of what the other side says."""
        while count:
            chunk = await self.sock.recv(min(count, 1 << 18))
            if not chunk:
                raise Mismatch(f"EOF {count} bytes early")
            self.theirs.check(memoryview(chunk))
            count -= len(chunk)

    async def hear_all(self, count: int) -> None:
        """Exactly so many bytes, and EOF."""
        await self.hear(count)
        if await self.sock.recv(1):
            raise Mismatch("more bytes than were sent")

    def reset(self) -> None:
        """Close by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


async def act(plan: Plan, talker: Talker, *, client: bool) -> None:
    """One side's part of a plan."""
    mine, theirs = (plan.up_bytes, plan.down_bytes) if client else (plan.down_bytes, plan.up_bytes)
    match plan.kind:
        case "duplex":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talker.say_all, mine)
                nursery.start_soon(talker.hear_all, theirs)
        case "client first" | "upstream first":
            if client == (plan.kind == "client first"):
                await talker.say_all(mine)
                await talker.hear_all(theirs)
            else:
                await talker.hear_all(theirs)
                await talker.say_all(mine)
        case "lock-step":
            for up, down in plan.rounds:
                if client:
                    await talker.say(up)
                    await talker.hear(down)
                else:
                    await talker.hear(up)
                    await talker.say(down)
            talker.sock.shutdown(socket.SHUT_WR)
            await talker.hear_all(0)
        case _ if client == (plan.kind == "client resets"):
            await talker.say(int(mine * plan.cut_at))
            talker.reset()
        case _:
            await _suffer_reset(talker, mine)


async def _suffer_reset(talker: Talker, mine: int) -> None:
    """Hear a beginning of what the other side says and then a reset, never EOF; speak meanwhile."""
    was_reset = False

    async def say() -> None:
        nonlocal was_reset
        try:
            await talker.say(mine)
        except ConnectionError:
            was_reset = True  # the kernel tells it once: the other task reads EOF from now on

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        try:
            while chunk := await talker.sock.recv(1 << 18):
                talker.theirs.check(memoryview(chunk))
        except (ConnectionResetError, ssl.SSLEOFError):
            was_reset = True  # the second, when the kernel told the other task: no close_notify came
    if not was_reset:
        raise Mismatch("a cut stream looked complete")


class Peers:
    """The origin and all clients."""

    def __init__(self, seed: int, connections: int, concurrent: int, tls: str) -> None:
        self._client_tls, self._upstream_tls = "client" in tls, "upstream" in tls
        self._seed, self._connections = seed, connections
        self._room = trio.CapacityLimiter(concurrent)
        noise = random.Random(seed).randbytes(_PERIOD)
        self._noise = memoryview(noise)
        self.well: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.nameless = 0
        """Upstream connections that were reset before their first byte."""

    async def run(self) -> None:
        """Everything; ends when every session on both sides has."""
        with trio.socket.socket() as listening:
            await listening.bind(("127.0.0.1", 0))
            listening.listen(1024)
            print(listening.getsockname()[1], flush=True)  # noqa: T201  how it talks to its parent
            gateway_port = int(await trio.to_thread.run_sync(sys.stdin.readline))
            async with trio.open_nursery() as answers, trio.open_nursery() as serving:
                serving.start_soon(self._serve, listening, answers)
                async with trio.open_nursery() as visits:
                    for number in range(self._connections):
                        await self._room.acquire_on_behalf_of(number)
                        visits.start_soon(self._visit, number, gateway_port)
                # Who resets during the handshake has no upstream: nobody else will come.
                serving.cancel_scope.cancel()
        print(json.dumps({"well": self.well, "failures": self.failures, "nameless": self.nameless}))  # noqa: T201  the same

    async def _serve(self, listening: trio.socket.SocketType, nursery: trio.Nursery) -> NoReturn:
        while True:
            sock, _ = await listening.accept()
            nursery.start_soon(self._answer, sock)

    async def _visit(self, number: int, gateway_port: int) -> None:
        sock = trio.socket.socket()
        with self._noted(f"client {number}"), sock:
            await sock.connect(("127.0.0.1", gateway_port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            talker = await self._secured(sock, client=True)
            await talker.send(_NUMBER.pack(number))
            await self._act(number, talker, client=True)
        self._room.release_on_behalf_of(number)

    async def _answer(self, sock: Sock) -> None:
        with self._noted("upstream of an unknown session"), sock:
            try:
                talker = await self._secured(sock, client=False)
                (number,) = _NUMBER.unpack(await talker.recv(_NUMBER.size))
            except (ConnectionResetError, ssl.SSLEOFError):
                self.nameless += 1  # its client reset before it was connected: its number was cut off
                return
            with self._noted(f"upstream {number}"):
                await self._act(number, talker, client=False)

    async def _secured(self, sock: Sock, *, client: bool) -> Sock:
        """After the handshake, if this side has one. The gateway has another process's authority: nobody is verified."""
        if not (self._client_tls if client else self._upstream_tls):
            return sock
        talker = TLSTalker(sock, server_side=not client, context=CARELESS if client else None)
        return await talker.handshake()

    async def _act(self, number: int, sock: Sock, *, client: bool) -> None:
        plan = plan_for(self._seed, number)
        up, down = Speech(self._noise, number, down=False), Speech(self._noise, number, down=True)
        talker = Talker(sock, up, down) if client else Talker(sock, down, up)
        await act(plan, talker, client=client)
        if client:
            self.well[plan.kind] += 1

    @contextlib.contextmanager
    def _noted(self, who: str) -> Iterator[None]:
        try:
            with trio.fail_after(PATIENCE_S):
                yield
        except* (OSError, Mismatch, struct.error, trio.TooSlowError) as group:
            self.failures += [f"{who}: {error!r}" for error in group.exceptions]


if __name__ == "__main__":
    trio.run(Peers(*map(int, sys.argv[1:4]), sys.argv[4]).run)
