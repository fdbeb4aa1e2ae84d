"""`streamgw demo`: the gateway with small upstreams of its own, so that there is something to talk to.

The upstreams listen where the shipped routes.d (and APISIX's own examples) point: 127.0.0.1:1995, 1996 and 5991, over TCP
and UDP.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from streamgw.process.supervisor import run_gateway

if TYPE_CHECKING:
    from streamgw.process.supervisor import Supervisor

UPSTREAM_PORTS = (1995, 1996, 5991)
LINE_LIMIT = 8_192
_IDLE_S = 600.0
_LOOK_AGAIN_S = 0.2

_TRY = """\

streamgw demo is running. Three things to try in another terminal:

  nc 127.0.0.1 9100                        type a line; the upstream on port 1995 answers
  curl http://127.0.0.1:9100/              the same upstream speaks enough HTTP for curl
  sed -i s/1995/1996/ {file}   then again: the next connection goes to port 1996

Ctrl-C ends it.
"""


def run_demo(config: Path, routes: Path) -> int:
    """Run the gateway on this configuration with the embedded upstreams beside it. Returns its exit code."""

    async def beside(supervisor: Supervisor) -> None:
        async with trio.open_nursery() as nursery:
            for serve in (serve_upstreams, serve_datagrams):
                await start_upstreams(nursery, serve, waits=supervisor.is_successor)
            print(_TRY.format(file=routes / "hello.yaml"), flush=True)  # noqa: T201  this is the demo's purpose

    return run_gateway(config, routes, beside=beside)


async def start_upstreams(
    nursery: trio.Nursery, serve: Callable[..., Awaitable[object]], *, waits: bool
) -> None:
    """Start some; `waits`: as soon as their ports are free.

    After `streamgw upgrade` the upstreams of the old gateway answer until its last session has ended.

    Raises:
      OSError: a port is taken, and it does not wait.
    """
    while True:
        try:
            await nursery.start(serve)
            return
        except OSError:
            if not waits:
                raise
        await trio.sleep(_LOOK_AGAIN_S)


async def serve_upstreams(
    ports: tuple[int, ...] = UPSTREAM_PORTS,
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one upstream per port on 127.0.0.1. Ends only by cancellation.

    Raises:
      OSError: a port is taken.
    """
    listeners: list[trio.SocketListener] = []
    for port in ports:
        listeners += await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, _answer, listeners)
        task_status.started(listeners)


async def serve_datagrams(
    ports: tuple[int, ...] = UPSTREAM_PORTS,
    *,
    task_status: trio.TaskStatus[list[int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The same over UDP: each datagram comes back with the port in front. Tells the ports. Ends only by cancellation.

    Raises:
      OSError: a port is taken.
    """
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(trio.socket.socket(type=trio.socket.SOCK_DGRAM)) for _ in ports]
        for sock, port in zip(socks, ports, strict=True):
            await sock.bind(("127.0.0.1", port))
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(_answer_datagrams, sock)
            task_status.started([sock.getsockname()[1] for sock in socks])


async def _answer_datagrams(sock: trio.socket.SocketType) -> None:
    port = sock.getsockname()[1]
    while True:
        payload, client = await sock.recvfrom(LINE_LIMIT)
        await sock.sendto(b"upstream %d: %s" % (port, payload), client)


async def _answer(stream: trio.SocketStream) -> None:
    """Answer each line with the own port in front; after an HTTP request's head, answer that instead and close."""
    port = stream.socket.getsockname()[1]
    buffer, is_http = b"", False
    with trio.move_on_after(_IDLE_S), contextlib.suppress(trio.BrokenResourceError):
        async for chunk in stream:
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in (line.rstrip(b"\r") for line in lines):
                is_http |= line.endswith((b" HTTP/1.1", b" HTTP/1.0"))
                if not is_http:
                    await stream.send_all(b"upstream %d: %s\n" % (port, line))
                elif not line:
                    await stream.send_all(_http_answer(port))
                    return
            if len(buffer) > LINE_LIMIT:
                return


def _http_answer(port: int) -> bytes:
    body = b"hello from the upstream on port %d\n" % port
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        % len(body)
    )
    return head + body
