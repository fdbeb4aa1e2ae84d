"""A gateway with several workers, as a test drives it and looks at it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.child import wait_until
from tests.support.gateway import Gateway, Status

SLOW_S = 60.0
"""A process has to start, on a machine that is busy."""


def with_workers(count: int, **sections: Any) -> dict[str, Any]:
    """Sections for `Gateway.write_settings`."""
    ours = sections.pop("streamgw", {})
    return {**sections, "streamgw": {**ours, "workers": count}}


def pids(status: Status) -> dict[int, int]:
    """Of the workers that serve, by slot."""
    return {row["worker"]: row["pid"] for row in status["workers"] if row["state"] == "serving"}


def wait_for_workers(
    gateway: Gateway, count: int, *, instead_of: Mapping[int, int] | None = None
) -> dict[int, int]:
    """Wait until so many serve; with `instead_of`, all of them others than those."""
    old = set((instead_of or {}).values())

    def look() -> dict[int, int] | None:
        found = pids(gateway.status())
        return found if len(found) == count and not old & set(found.values()) else None

    return wait_until(look, what=f"{count} workers serve", timeout_s=SLOW_S)


def wait_for_death(*processes: int) -> None:
    """Wait until none of these is there any more."""
    wait_until(lambda: not any(map(is_alive, processes)), what=f"{processes} are gone", timeout_s=SLOW_S)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: it went between opening and reading
        return False


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):  # a thread has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def sessions(gateway: Gateway) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{gateway.control_port}/v1/sessions?limit=10000"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["sessions"]
    return found
