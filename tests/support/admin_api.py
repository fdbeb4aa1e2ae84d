"""The Admin API of a gateway that runs, and clients of it: over real HTTP, and by curl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx

from tests.support.child import find_program, run

KEY = "edd1c9f034335f136f87ad84b625c8f1"
"""The one that every example of APISIX's documentation sends."""
VIEWER_KEY = "4054f7cf07e344346cd3f287985e76a2"
BASE = "/apisix/admin"
TIMEOUT_S = 30.0


def admin_settings(port: int, **fields: object) -> dict[str, object]:
    """The section `deployment`, with both roles."""
    keys = [
        {"name": "admin", "key": KEY, "role": "admin"},
        {"name": "viewer", "key": VIEWER_KEY, "role": "viewer"},
    ]
    return {"admin": {"admin_key": keys, "admin_listen": {"ip": "127.0.0.1", "port": port}, **fields}}


@contextmanager
def api_client(port: int, *, key: str = KEY, prefix: str = BASE) -> Iterator[httpx.Client]:
    """A client on a connection that is kept; paths are relative to `prefix`. Knows of no proxy."""
    headers = {"X-API-KEY": key} if key else {}
    url = f"http://127.0.0.1:{port}{prefix}"
    kept = httpx.Limits(keepalive_expiry=2.0)  # the gateway closes it after 5 s; a request must not meet that
    with httpx.Client(
        base_url=url, headers=headers, timeout=TIMEOUT_S, limits=kept, trust_env=False
    ) as client:
        yield client


def to(upstream_port: int, **fields: object) -> dict[str, object]:
    """The body of a stream route to one node on 127.0.0.1."""
    return {**fields, "upstream": {"type": "roundrobin", "nodes": {f"127.0.0.1:{upstream_port}": 1}}}


def stored(answer: httpx.Response, *, status: int = 200) -> Mapping[str, Any]:
    """The object in an answer that should have this status."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    value: Mapping[str, Any] = answer.json()["value"]
    return value


def without_times(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object as somebody may have sent it."""
    return {name: field for name, field in value.items() if name not in {"create_time", "update_time"}}


@attrs.frozen
class Printed:
    """What a curl command printed: status, headers in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


class Curl:
    """curl, as it stands in examples. What they do not say is said in a `.curlrc`.

    Args:
      home: a directory for that file.
    """

    def __init__(self, home: Path) -> None:
        self._program = find_program("curl", package="curl")
        self._home = home
        options = ["silent", "show-error", "max-time = 30", 'noproxy = "*"', f'dump-header = "{home}/head"']
        (home / ".curlrc").write_text("\n".join([*options, f'output = "{home}/body"', ""]))

    def __call__(self, *arguments: str, url: str) -> Printed:
        """Run it with these arguments."""
        return self._run([self._program, *arguments, url])

    def shell(self, command: str) -> Printed:
        """Run a command as it was copied to a shell."""
        assert command.startswith("curl ")
        return self._run(["sh", "-c", command])

    def _run(self, command: Sequence[str]) -> Printed:
        (self._home / "body").write_bytes(b"")
        run(command, env={"CURL_HOME": str(self._home), "HOME": str(self._home)})
        # With `Expect: 100-continue` there is a head for that, too: the last one is the answer's.
        head = (self._home / "head").read_text().strip().split("\n\n")[-1].splitlines()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        return Printed(int(head[0].split()[1]), headers, (self._home / "body").read_text())
