"""A status endpoint over real HTTP, for the command line: it says what the test wants it to say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STATUS: Mapping[str, Any] = {
    "version": "0.1.0",
    "pid": 4711,
    "uptime_s": 7300.5,
    "ready": True,
    "draining": False,
    "config": {
        "revision": "3f2a9b0c1d2e3f40",
        "state": "applied",
        "applied_at": "2026-11-21T10:00:00+00:00",
        "problems": [],
        "warnings": [],
        "reloads": 1,
        "rejected": 0,
    },
    "settings": {
        "revision": "00112233445566778",
        "state": "applied",
        "applied_at": "2026-11-21T10:00:00+00:00",
        "problems": [],
        "warnings": [],
        "reloads": 0,
        "rejected": 0,
    },
    "listeners": [{"name": "tcp *:9100", "state": "listening", "sessions": 2, "accepted": 10}],
    "sessions": {
        "active": 2,
        "total": 10,
        "by_reason": {"closed": 7, "reset": 0, "no_route": 1},
        "bytes_up": 512,
        "bytes_down": 3 * 1024**4,
    },
    "objects": {"stream_routes": {"mysql": "0123"}},
}


@contextlib.contextmanager
def serving(answer: Callable[[], object], *, code: int = 200) -> Iterator[str]:
    """Answer every request with what `answer` returns, as JSON (bytes: as they are). Yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = answer()
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(1) as thread:
        thread.submit(server.serve_forever, 0.01)
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
