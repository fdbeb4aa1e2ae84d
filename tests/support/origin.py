"""An upstream with a name: says it, then echoes. `python -m tests.support.origin PORT NAME SECONDS` runs one that thinks
for so long before.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import trio

from tests.support.child import Child, running
from tests.support.gateway import PLAIN

TIMEOUT_S = 20.0


@contextlib.contextmanager
def named_origin(
    directory: Path, port: int, name: str, *, thinks_s: float = 0, prefix: tuple[str, ...] = ()
) -> Iterator[Child]:
    """Run one as a child; ready when yielded."""
    command = [*prefix, sys.executable, "-m", "tests.support.origin", str(port), name, str(thinks_s)]
    with running(command, log=directory / f"{name}.log", name=f"origin {name}", env=PLAIN) as child:
        child.wait_for_line("listening")
        yield child


class Visitor:
    """A client's connection to a named origin through the gateway. A context manager; closes its socket."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((host, port), timeout=TIMEOUT_S)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def greeting(self) -> str:
        """The origin's name; empty when the gateway closed the connection without a word."""
        try:
            return self._file.readline().decode().strip()
        except ConnectionResetError:
            return ""

    def read(self, count: int) -> bytes:
        """Read so many bytes, fewer only at the end of the connection."""
        return self._file.read(count)

    def echo(self, text: str) -> str:
        """Say a line, return the line that comes back."""
        self._socket.sendall(f"{text}\n".encode())
        return self._file.readline().decode().strip()

    def is_over(self) -> bool:
        """Wait for the end of the connection; False when more bytes come instead."""
        try:
            return self._file.readline() == b""
        except ConnectionResetError:
            return True


def whom(port: int, host: str = "127.0.0.1") -> str:
    """Connect, and return the name of the origin that answers: empty when there is none."""
    with contextlib.suppress(ConnectionResetError), Visitor(port, host) as visitor:
        return visitor.greeting()
    return ""  # reset before connect(2) could say that it had connected


async def _serve(port: int, name: str, thinks_s: float) -> None:
    async def greet_and_echo(stream: trio.SocketStream) -> None:
        if thinks_s:
            await trio.sleep(thinks_s)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(f"{name}\n".encode())
            async for chunk in stream:
                await stream.send_all(chunk)
            await stream.aclose()

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=2048)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    await trio.serve_listeners(greet_and_echo, listeners)


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
