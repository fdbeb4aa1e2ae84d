"""A thousand connections that check every byte, for as long as they are told to.

`python -m tests.support.storm origin PORT NAME` and `… clients PORT COUNT SEED` are the two ends; both directions of a
connection are independent seeded streams, so that one lost, doubled, reordered or foreign byte is seen.

    origin → client   16 bytes: its name, padded
    client → origin   8 bytes: the seed of this connection; then the up stream until EOF
    origin → client   frames: 4 bytes length, payload of the down stream; length 0 ends it, followed by the count
                      (8 bytes) and SHA-256 (32) of the up stream it received; then EOF
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from tests.support.child import Child, running
from tests.support.gateway import PLAIN

_NAME_BYTES = 16
_LENGTH = struct.Struct("!I")
_SEED = struct.Struct("!Q")
_COUNT = struct.Struct("!Q")
_BULK_EVERY = 50
"""One connection in so many sends large chunks with hardly a pause, so that the gateway's splice path takes part."""
_CONNECTING_AT_ONCE = 50


@attrs.frozen
class StormReport:
    """What the clients saw."""

    connections: int
    intact: int
    """Ended with EOF both ways, every byte compared, the origin's digest agrees."""
    bytes_up: int
    bytes_down: int
    failures: dict[str, int]
    """What happened to the others: how often."""


@contextlib.contextmanager
def storm_origin(directory: Path, port: int, name: str) -> Iterator[Child]:
    """Run an origin; ready when yielded."""
    command = [sys.executable, "-m", "tests.support.storm", "origin", str(port), name]
    with running(command, log=directory / f"{name}.log", name=f"origin {name}", env=PLAIN) as child:
        child.wait_for_line("listening")
        yield child


@contextlib.contextmanager
def storm_clients(directory: Path, port: int, count: int, seed: int) -> Iterator[Child]:
    """Run the clients; yielded when every connection has moved data both ways."""
    command = [sys.executable, "-m", "tests.support.storm", "clients", str(port), str(count), str(seed)]
    with running(command, log=directory / "clients.log", name="clients", env=PLAIN, talk=True) as child:
        child.wait_for_line(f"connected {count}", timeout_s=120)
        yield child


def finish(clients: Child) -> StormReport:
    """Tell the clients to end their streams; return what they saw."""
    clients.tell("stop\n")
    line = clients.wait_for_line("report ", timeout_s=120)
    return StormReport(**json.loads(line.removeprefix("report ")))


async def read_name(stream: trio.SocketStream) -> str:
    """The name of the origin that answers."""
    return (await _exactly(stream, _NAME_BYTES)).decode().rstrip()


def _pace(rng: random.Random, seed: int) -> tuple[int, float]:
    """Size of the next chunk, and the pause after it in seconds."""
    if seed % _BULK_EVERY == 0:
        return 65_536, rng.uniform(0, 0.02)
    return rng.randint(1, 8_192), rng.uniform(0, 0.5)


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    """Read so many bytes; EOFError when the stream ends before."""
    found = bytearray()
    while len(found) < count:
        chunk = await stream.receive_some(count - len(found))
        if not chunk:
            raise EOFError
        found += chunk
    return bytes(found)


# The origin


async def _serve(port: int, name: str) -> None:
    async def converse(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await stream.send_all(name.ljust(_NAME_BYTES).encode())
                (seed,) = _SEED.unpack(await _exactly(stream, _SEED.size))
                await _send_down(stream, seed)
        except* (trio.BrokenResourceError, EOFError):
            pass  # what became of it, the client tells

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=2048)
    _say("listening")
    await trio.serve_listeners(converse, listeners)


async def _send_down(stream: trio.SocketStream, seed: int) -> None:
    """Send frames until the client's EOF, then the count and digest of what came."""
    digest = hashlib.sha256()
    count = 0
    heard_all = trio.Event()

    async def listen() -> None:
        nonlocal count
        async for chunk in stream:
            digest.update(chunk)
            count += len(chunk)
        heard_all.set()

    rng, content = random.Random(~seed), random.Random(f"down {seed}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        while not heard_all.is_set():
            size, pause_s = _pace(rng, seed)
            await stream.send_all(_LENGTH.pack(size) + content.randbytes(size))
            with trio.move_on_after(pause_s):
                await heard_all.wait()
    await stream.send_all(_LENGTH.pack(0) + _COUNT.pack(count) + digest.digest())


# The clients


class _Clients:
    def __init__(self, port: int, count: int, seed: int) -> None:
        self._port = port
        self._count = count
        self._seed = seed
        self._stop = trio.Event()
        self._started = 0
        self._all_started = trio.Event()
        self._connecting = trio.Semaphore(_CONNECTING_AT_ONCE)
        self._failures: collections.Counter[str] = collections.Counter()
        self._intact = 0
        self._bytes_up = 0
        self._bytes_down = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._count):
                nursery.start_soon(self._converse, self._seed * 1_000_000 + number)
            await self._all_started.wait()
            _say(f"connected {self._count}")
            await trio.to_thread.run_sync(sys.stdin.readline)
            self._stop.set()
        report = StormReport(
            self._count, self._intact, self._bytes_up, self._bytes_down, dict(self._failures)
        )
        _say(f"report {json.dumps(attrs.asdict(report))}")

    async def _converse(self, seed: int) -> None:
        try:
            async with self._connecting:
                stream = await trio.open_tcp_stream("127.0.0.1", self._port)
            async with stream:
                await read_name(stream)
                await self._both_ways(stream, seed)
        except* (EOFError, trio.BrokenResourceError, OSError, _Wrong) as group:
            kind = _kind(group)
            self._failures[kind] += 1
            _say(f"connection {seed}: {kind}")
        else:
            self._intact += 1

    async def _both_ways(self, stream: trio.SocketStream, seed: int) -> None:
        await stream.send_all(_SEED.pack(seed))
        digest = hashlib.sha256()
        sent = 0

        async def send_up() -> None:
            nonlocal sent
            rng, content = random.Random(seed), random.Random(f"up {seed}")
            while not self._stop.is_set():
                size, pause_s = _pace(rng, seed)
                chunk = content.randbytes(size)
                await stream.send_all(chunk)
                digest.update(chunk)
                sent += size
                self._bytes_up += size
                with trio.move_on_after(pause_s):
                    await self._stop.wait()
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_up)
            trailer = await self._compare_down(stream, seed)
        if trailer != _COUNT.pack(sent) + digest.digest():
            raise _Wrong("the origin got other bytes than were sent")

    async def _compare_down(self, stream: trio.SocketStream, seed: int) -> bytes:
        """Compare the down stream with what it must be; return what follows it."""
        content = random.Random(f"down {seed}")
        is_first = True
        while True:
            (size,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
            if size == 0:
                trailer = await _exactly(stream, _COUNT.size + hashlib.sha256().digest_size)
                if await stream.receive_some(1):
                    raise _Wrong("bytes after the end")
                return trailer
            # The length itself may be wrong: never wait for more than the origin ever sends.
            if size > 65_536 or await _exactly(stream, size) != content.randbytes(size):
                raise _Wrong("wrong bytes came down")
            self._bytes_down += size
            if is_first:
                is_first = False
                self._count_start()

    def _count_start(self) -> None:
        self._started += 1
        if self._started == self._count:
            self._all_started.set()


class _Wrong(Exception):
    """A byte is not what it must be."""


def _kind(group: BaseExceptionGroup[Exception]) -> str:
    """What happened to a connection, from the first of the errors of its tasks."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, EOFError):
        return "ended early"
    return str(first) if isinstance(first, _Wrong) else "reset"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _main(kind: str, port: str, *rest: str) -> None:
    if kind == "origin":
        (name,) = rest
        trio.run(_serve, int(port), name)
    else:
        count, seed = map(int, rest)
        trio.run(_Clients(int(port), count, seed).run)


if __name__ == "__main__":
    _main(*sys.argv[1:])
