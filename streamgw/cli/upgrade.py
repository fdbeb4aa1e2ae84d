"""`streamgw upgrade`: the program as it is installed now takes over from the one that runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from streamgw.cli.client import fetch_status, status_url
from streamgw.cli.failure import DENIED, FAILED, TIMED_OUT, UNREACHABLE, Failure
from streamgw.cli.options import with_paths

POLL_S = 0.1


@click.command()
@with_paths
@click.option("--url", help="The status endpoint.  [default: from config.yaml]")
@click.option(
    "--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait for the new gateway."
)
def upgrade(config: Path, routes: Path, url: str | None, timeout_s: float) -> None:
    """Have a new process take over the gateway's sockets.

    For a new version of the program, and for settings that take effect at the start. Nobody is refused; sessions that live go on
    in the old process until they end, or until its drain deadline. If the new process does not come to be, everything stays as
    it was, and the reason is said.

    Sends SIGUSR2 to the process that the status endpoint names: on the same machine, by root or the gateway's own user.
    """
    del routes  # every command takes it; the new process has those of the old one
    url = url or status_url(config)
    before = fetch_status(url)
    try:
        os.kill(before["pid"], signal.SIGUSR2)
    except ProcessLookupError:
        raise Failure(UNREACHABLE, f"error: there is no process {before['pid']} on this machine") from None
    except PermissionError:
        raise Failure(DENIED, f"error: process {before['pid']} is another user's") from None
    after = _wait(url, before, timeout_s)
    click.echo(
        f"streamgw {after['version']} (pid {after['pid']}) has taken over from {before['version']} (pid {before['pid']})"
    )


def _wait(url: str, before: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
    """The status of the new gateway. Raises Failure."""
    deadline = time.monotonic() + timeout_s  # noqa: TID251  a command has no other clock
    known = _attempts(before)
    while time.monotonic() < deadline:  # noqa: TID251  as above
        time.sleep(POLL_S)
        try:
            now = fetch_status(url)
        except Failure:
            continue  # between the two
        if now["pid"] != before["pid"]:
            if now["ready"]:
                return now
            continue
        if failed := _attempts(now) - known:
            raise Failure(FAILED, *(f"error: {each}" for each in failed))
    raise Failure(TIMED_OUT, f"error: the new gateway was not ready within {timeout_s:g} s")


def _attempts(status: Mapping[str, Any]) -> frozenset[str]:
    """Those that failed, each with its number."""
    warnings = status["settings"]["warnings"]
    return frozenset(each["message"] for each in warnings if each["file"] == "streamgw upgrade")
