"""Sessions that last for days in real life: they outlive every edit of the files."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from tests.support.child import find_program, run, running
from tests.support.edits import Edits
from tests.support.gateway import Gateway
from tests.support.ports import Ports
from tests.support.servers import Server, SSHServer

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_EDITS = 100


def test_an_idle_redis_subscriber_hears_what_is_published_after_a_hundred_edits(
    gateway: Gateway, ports: Ports, tmp_path: Path, redis_server: Server, seed: int
) -> None:
    redis_cli = find_program("redis-cli", package="redis-tools")
    port = ports.take()
    edits = Edits(gateway, port, ports.take(), [redis_server.port, ports.take()], random.Random(seed))
    subscribe = [redis_cli, "-h", "127.0.0.1", "-p", str(port), "SUBSCRIBE", "news"]

    with contextlib.ExitStack() as stack:
        stack.enter_context(gateway.running())
        subscriber = stack.enter_context(running(subscribe, log=tmp_path / "subscriber.log"))
        subscriber.wait_for_line("subscribe")

        edits.make(_EDITS)

        run([redis_cli, "-h", "127.0.0.1", "-p", str(redis_server.port), "PUBLISH", "news", "late but whole"])
        subscriber.wait_for_line("late but whole")


def test_a_shell_over_ssh_goes_on_through_a_hundred_edits(
    gateway: Gateway, ports: Ports, tmp_path: Path, ssh_server: SSHServer, seed: int
) -> None:
    port = ports.take()
    edits = Edits(gateway, port, ports.take(), [ssh_server.port, ports.take()], random.Random(seed))
    loop = 'while read -r line; do echo "heard $line"; done; echo bye'

    with contextlib.ExitStack() as stack:
        stack.enter_context(gateway.running())
        command = ssh_server.client(loop, port=port)
        shell = stack.enter_context(running(command, log=tmp_path / "ssh.log", name="ssh", talk=True))
        for number in range(10):
            shell.tell(f"before edit {number}\n")
            shell.wait_for_line(f"heard before edit {number}")
            edits.make(_EDITS // 10)

        shell.tell("the last\n")
        shell.wait_for_line("heard the last")
        shell.end_input()
        shell.wait_for_line("bye")
        assert shell.wait() == 0
