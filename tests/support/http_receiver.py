"""An HTTP or HTTPS server that keeps what it is posted. `python -m tests.support.http_receiver PORT FILE [CERT KEY]` runs one.

A process of its own, to be killed and stopped. A request is answered once its body is in the file: a line each.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from tests.support.child import Child, running
from tests.support.gateway import PLAIN
from tests.support.servers import ServerTLS


@attrs.frozen
class HTTPReceiver:
    """One that runs."""

    child: Child
    kept: Path
    kept_before: int = 0
    """Requests that are in the file of receivers before this one."""

    def bodies(self) -> list[Any]:
        """Of every request so far, parsed."""
        return [json.loads(line) for line in self.kept.read_text().splitlines()] if self.kept.exists() else []

    def has_answered(self) -> bool:
        """Whether everybody has been answered who posted so far: who is not told of it posts again."""
        answers = self.child.output().splitlines().count("answered")
        return len(self.bodies()) - self.kept_before == answers

    def records(self) -> list[Any]:
        """What was in them."""
        return [record for body in self.bodies() for record in (body if isinstance(body, list) else [body])]


@contextlib.contextmanager
def http_receiver(directory: Path, port: int, *, tls: ServerTLS | None = None) -> Iterator[HTTPReceiver]:
    """Run one as a child; ready when yielded. One that is started again goes on in the same file."""
    kept = directory / "posted"
    files = [] if tls is None else [tls.cert, tls.key]
    command = [sys.executable, "-m", "tests.support.http_receiver", str(port), kept, *files]
    log = directory / "receiver.log"
    log.unlink(missing_ok=True)
    with running(command, log=log, name="receiver", env=PLAIN) as child:
        child.wait_for_line("listening")
        receiver = HTTPReceiver(child, kept)
        yield attrs.evolve(receiver, kept_before=len(receiver.bodies()))


class _Handler(http.server.BaseHTTPRequestHandler):
    kept: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.kept.open("ab") as file:
            file.write(body.replace(b"\n", b" ") + b"\n")
        self.send_response(204)
        self.end_headers()
        print("answered", flush=True)  # noqa: T201  a program


def main() -> None:
    port, kept, *files = sys.argv[1:]
    _Handler.kept = Path(kept)
    server = http.server.HTTPServer(("127.0.0.1", int(port)), _Handler)
    if files:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*files)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print("listening", flush=True)  # noqa: T201  a program
    server.serve_forever()


if __name__ == "__main__":
    main()
