"""Clients that call, talk and hang up, over and over: whoever is refused, cut off or answered wrongly is counted.

`python -m tests.support.callers PORT COUNT SEED` runs COUNT of them against a `named_origin` until a line comes in.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from tests.support.child import Child, running
from tests.support.gateway import PLAIN

PATIENCE_S = 30.0
"""A call that takes longer has hung."""


@attrs.frozen
class CallReport:
    """What became of the calls."""

    calls: int
    intact: int
    failures: dict[str, int]
    """`refused`, `cut off`, `wrong bytes`, `hung`: how often."""


@contextlib.contextmanager
def callers(directory: Path, port: int, count: int, seed: int) -> Iterator[Child]:
    """Run them; yielded when each has called once."""
    command = [sys.executable, "-m", "tests.support.callers", str(port), str(count), str(seed)]
    with running(command, log=directory / "callers.log", name="callers", env=PLAIN, talk=True) as child:
        child.wait_for_line("calling", timeout_s=120)
        yield child


def hang_up(child: Child) -> CallReport:
    """Let calls end; what became of all."""
    child.tell("stop\n")
    line = child.wait_for_line("report ", timeout_s=120)
    return CallReport(**json.loads(line.removeprefix("report ")))


class _Callers:
    def __init__(self, port: int, count: int, seed: int) -> None:
        self._port = port
        self._count = count
        self._rng = random.Random(seed)
        self._stop = False
        self._intact = 0
        self._failures: collections.Counter[str] = collections.Counter()
        self._first = trio.CapacityLimiter(1)
        self._have_called = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._count):
                nursery.start_soon(self._keep_calling, random.Random(self._rng.random() + number))
            await trio.to_thread.run_sync(sys.stdin.readline)
            self._stop = True
        calls = self._intact + self._failures.total()
        _say(f"report {json.dumps(attrs.asdict(CallReport(calls, self._intact, dict(self._failures))))}")

    async def _keep_calling(self, rng: random.Random) -> None:
        is_first = True
        while not self._stop:
            became = await self._call(rng)
            if became:
                self._failures[became] += 1
            else:
                self._intact += 1
            if is_first:
                is_first = False
                self._have_called += 1
                if self._have_called == self._count:
                    _say("calling")
            await trio.sleep(rng.uniform(0, 0.05))

    async def _call(self, rng: random.Random) -> str:
        """What went wrong; empty: nothing."""
        try:
            with trio.fail_after(PATIENCE_S):
                stream = await trio.open_tcp_stream("127.0.0.1", self._port)
                async with stream:
                    return await _converse(stream, rng.randbytes(rng.choice([100, 20_000, 300_000])))
        except trio.TooSlowError:
            return "hung"
        except trio.BrokenResourceError:
            return "cut off"
        except OSError as error:
            errnos = {getattr(each, "errno", 0) for each in (error, error.__cause__)}
            if errno.ECONNRESET in errnos:
                return "cut off"  # it was let in, and the reset came before connect(2) could say so
            return "refused" if errno.ECONNREFUSED in errnos else str(error)


async def _converse(stream: trio.SocketStream, payload: bytes) -> str:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    heard = bytearray()
    is_cut = False

    async def say() -> None:
        await stream.send_all(payload)
        await stream.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            async for chunk in stream:
                heard += chunk
    except* trio.BrokenResourceError:
        is_cut = True
    greeting, _, echo = bytes(heard).partition(b"\n")
    if echo == payload and greeting and not is_cut:
        return ""
    return "cut off" if payload.startswith(echo) else "wrong bytes"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(_Callers(*map(int, sys.argv[1:])).run)
