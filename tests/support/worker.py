"""A worker in this process, with two upstreams behind it: real sockets, real files, one Trio run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
import yaml

from streamgw.config.settings import AccessLogSettings, ReloadSettings, Settings
from streamgw.core.model import Listener
from streamgw.process.demo import serve_upstreams
from streamgw.process.sockets import Sockets
from streamgw.process.worker import Worker
from tests.support.gateway import write_atomically

ANY = Listener("tcp", "127.0.0.1", 0)


@attrs.define
class Scene:
    """A worker on one free port, with two upstreams that answer each line with their own port in front."""

    worker: Worker
    routes: Path
    upstream_ports: tuple[int, int]
    access_log: Path
    cancel: Callable[[], None]
    """End `Worker.run` as whoever runs it would."""

    @property
    def ports(self) -> list[int]:
        return [listener.port for listener in self.worker.sockets.bound()]

    def write_route(self, upstream_port: int, **match: object) -> None:
        write_routes(self.routes, upstream_port, **match)

    async def connect(self, port: int | None = None) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", port or self.ports[0])

    async def until(self, look: Callable[[], bool]) -> None:
        with trio.fail_after(30):
            while not look():
                await trio.sleep(0.005)


def write_routes(routes: Path, upstream_port: int, **match: object) -> None:
    route: Mapping[str, object] = {
        "id": "echo",
        **match,
        "upstream": {"nodes": {f"127.0.0.1:{upstream_port}": 1}},
    }
    write_atomically(routes / "echo.yaml", yaml.safe_dump({"stream_routes": [route]}))


async def says(stream: trio.SocketStream, line: bytes = b"hi") -> bytes:
    await stream.send_all(line + b"\n")
    answer = b""
    with trio.fail_after(30):
        while not answer.endswith(b"\n"):
            answer += await stream.receive_some()
    return answer.rstrip()


@asynccontextmanager
async def worker_on(tmp_path: Path, **settings: object) -> AsyncIterator[Scene]:
    routes, access_log = tmp_path / "routes.d", tmp_path / "access.log"
    routes.mkdir()
    sockets = Sockets()
    fixed = {
        "listeners": (ANY,),
        "access_log": AccessLogSettings(path=str(access_log)),
        "reload": ReloadSettings(settle_ms=10),
    }
    worker = Worker(Settings(**(fixed | settings)), routes, sockets)
    try:
        sockets.replace(worker.settings.listeners)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(serve_upstreams, (0, 0)))
            ports = tuple(listener.socket.getsockname()[1] for listener in listeners)
            write_routes(routes, ports[0])
            running = await nursery.start(_run, worker)
            worker.listen()
            yield Scene(worker, routes, ports, access_log, running.cancel)
            worker.drain(trio.current_time())
            await worker.ended.wait()
            nursery.cancel_scope.cancel()
    finally:
        sockets.close_all()


async def _run(worker: Worker, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            task_status.started(scope)
