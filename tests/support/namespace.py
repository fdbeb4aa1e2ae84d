"""A private network namespace: every port is free, so that examples run exactly as they are written."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.child import find_program, run, running

_CAP_SYS_ADMIN = 21
"""capabilities(7)"""


@contextlib.contextmanager
def private_network(directory: Path) -> Iterator[tuple[str, ...]]:
    """Make a network that holds nothing but a loopback interface; yield the words to put before a command.

    Without root a user namespace gives the right to make one, where the kernel's settings allow that to everybody. Where
    nobody may (most containers, a chroot), the machine's own loopback has to do, and the ports have to be free.
    """
    unshare = find_program("unshare", package="util-linux")
    nsenter = find_program("nsenter", package="util-linux")
    ip = find_program("ip", package="iproute2")
    new, enter = _flags()
    if not may_make_networks():
        yield ()
        return

    # Ports below 1024 are for everybody in here: who is not root stays who they are, as servers look at that.
    any_port = "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start"
    # One process keeps the namespace alive; it says so once the interface is up.
    script = f"{ip} link set lo up && {any_port} && echo ready && exec sleep infinity"
    keeper = [unshare, *new, "sh", "-c", script]
    with running(keeper, log=directory / "network.log", name="private network") as child:
        child.wait_for_line("ready")
        yield (nsenter, "--target", str(child.pid), *enter, "--net", "--")


def need_networks() -> None:
    """Skip a test that cannot do without networks of its own where the kernel refuses them.

    Fail it where they have to be had, so that it is never left out without a word: with `CI` set, and for a root with
    the right to make them.
    """
    if may_make_networks():
        return
    why = "needs networks of its own, which this kernel refuses"
    if os.environ.get("CI") or _has_the_right():
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def may_make_networks() -> bool:
    """Whether the kernel lets us."""
    unshare = find_program("unshare", package="util-linux")
    return run([unshare, *_flags()[0], "true"], check=False).returncode == 0


def run_with_few_ports(program: str, *, ports: str = "40000 40003") -> str:
    """Run Python in a network of its own that has no other local ports, and no IPv6. Returns what it printed.

    Args:
      ports: from which one to which one the kernel chooses.
    """
    need_networks()
    unshare = find_program("unshare", package="util-linux")
    ip = find_program("ip", package="iproute2")
    few_ports = f"echo {ports} > /proc/sys/net/ipv4/ip_local_port_range"
    no_ipv6 = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    script = f'{ip} link set lo up && {few_ports} && {no_ipv6} && exec "$@"'
    return run([unshare, *_flags()[0], "sh", "-c", script, "sh", sys.executable, "-c", program]).stdout


def _has_the_right() -> bool:
    """Root outside of containers has; of what else may stand in the way, nothing is expected."""
    rights = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert rights is not None, "proc(5)"
    return os.geteuid() == 0 and bool(int(rights[1], 16) >> _CAP_SYS_ADMIN & 1)


def _flags() -> tuple[list[str], list[str]]:
    """For making a network, and for entering it."""
    if os.geteuid() == 0:
        return ["--net"], []
    return ["--user", "--map-current-user", "--keep-caps", "--net"], ["--user", "--preserve-credentials"]


def is_listening(port: int, *, prefix: tuple[str, ...] = ()) -> bool:
    """Whether something accepts TCP connections on a port of any local address (asked of the kernel, not by connecting)."""
    ss = find_program("ss", package="iproute2")
    return bool(run([*prefix, ss, "-Hltn", f"sport = :{port}"]).stdout.strip())


def has_clients(port: int) -> bool:
    """Whether whoever listens on a TCP port has a connection there that it has not closed."""
    ss = find_program("ss", package="iproute2")
    states = ["state", "established", "state", "close-wait"]
    return bool(run([ss, "-Htn", *states, f"sport = :{port}"]).stdout.strip())
