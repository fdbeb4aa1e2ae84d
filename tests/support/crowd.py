"""Clients that come, talk and go, so that a gateway looks alive. `python -m tests.support.crowd PLAN` runs them, PLAN in JSON.

Each of the plan's groups is `{"count", "port", "network", "rate", "name", "stay_s"}`: so many clients at a time, from
addresses of that network (`10.20.1.`), each sending about `rate` bytes a second; over TLS with a `name`.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
import sys
from typing import Any

import trio

SEED = 7
TICK_S = 0.25


async def _client(group: dict[str, Any], rng: random.Random, number: int) -> None:
    host = f"{group['network']}{number % 250 + 2}"
    while True:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        stream: trio.abc.Stream = trio.SocketStream(sock)
        try:
            async with trio.open_nursery() as nursery:
                await sock.bind((host, 0))
                await sock.connect(("127.0.0.1", group["port"]))
                if name := group.get("name"):
                    stream = trio.SSLStream(stream, _trusting_anybody(), server_hostname=name)
                nursery.start_soon(_read, stream, nursery.cancel_scope)
                with trio.move_on_after(group["stay_s"] * rng.uniform(0.4, 1.6)):
                    while True:
                        await stream.send_all(b"x" * int(group["rate"] * TICK_S * rng.uniform(0.2, 1.8) + 1))
                        await trio.sleep(TICK_S)
                nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream) if rng.random() < group.get("rudeness", 0) else await _part(
                stream
            )
        await trio.sleep(rng.uniform(0.1, 1.0))


async def _part(stream: trio.abc.Stream) -> None:
    with trio.move_on_after(1):
        await stream.aclose()


async def _read(stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
    while await stream.receive_some(65536):
        pass
    scope.cancel()


def _trusting_anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _run(plan: list[dict[str, Any]]) -> None:
    rng = random.Random(SEED)
    async with trio.open_nursery() as nursery:
        for group in plan:
            for number in range(group["count"]):
                nursery.start_soon(_client, group, random.Random(rng.random()), rng.randrange(250) + number)
        sys.stdout.write("here they come\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(_run, json.loads(sys.argv[1]))
