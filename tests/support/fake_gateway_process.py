"""`tests.support.fake_admin` in a process of its own, for what blocks: a browser, a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from tests.support.child import Child, running


@attrs.frozen
class FakeGateway:
    """The process, and how it is told what happens."""

    port: int
    child: Child

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def page(self) -> str:
        return f"{self.url}/ui/"

    def do(self, method: str, *args: object, **words: object) -> Any:
        """Call a method of the FakeAdmin; return what it knows then."""
        body = json.dumps({"do": method, "args": args, "with": words}).encode()
        with urllib.request.urlopen(f"{self.url}/fake", body, timeout=30) as answer:
            return json.load(answer)


@contextlib.contextmanager
def fake_gateway(directory: Path, port: int = 0, *, key: str = "") -> Iterator[FakeGateway]:
    """Start it; port 0 asks the kernel for one."""
    command = [sys.executable, "-m", "tests.support.fake_admin", str(port), key]
    log = directory / "fake.log"
    log.write_text("")
    with running(command, log=log, name="fake gateway", cwd=Path(__file__).parents[2]) as child:
        line = child.wait_for_line("listening on")
        yield FakeGateway(int(line.split()[-1]), child)
