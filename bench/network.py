"""A network namespace of its own: no port is taken, and the congestion control is ours to choose."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

_MARK = "STREAMGW_BENCH_IN_NAMESPACE"
DESCRIPTORS = 1 << 16
_SYSCTL = Path("/proc/sys/net/ipv4")


def enter_private_network(module: str) -> str:
    """Run this program again in a fresh network namespace, unless it is that run already.

    Args:
      module: what `python -m` runs: `bench`.

    Returns:
      The congestion control in effect there. `reno`: BBR paces even loopback, which hides every difference between
      proxies (direct bulk 2 to 3 GiB/s instead of 7 to 11).
    """
    if os.environ.get(_MARK) != "1":
        unshare = shutil.which("unshare")
        if unshare is None:
            sys.exit("bench: unshare is not installed: apt-get install util-linux")
        flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
        command = [unshare, *flags, "--kill-child", "--", sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(unshare, command, {**os.environ, _MARK: "1"})
    return _set_up()


def raise_descriptor_limit() -> None:
    """Ten thousand connections are twice as many descriptors in a proxy, and root may have them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, DESCRIPTORS)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_up() -> str:
    ip = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if ip is None:
        sys.exit("bench: ip is not installed: apt-get install iproute2")
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)
    # Ten thousand connections a second use up the default 28,000 source ports before TIME_WAIT (60 s) gives any back.
    # Listeners stay below the range.
    _write("ip_local_port_range", "10000 65535")
    _write("tcp_tw_reuse", "1")
    _write("tcp_congestion_control", "reno")
    return (_SYSCTL / "tcp_congestion_control").read_text().strip()


def _write(name: str, value: str) -> None:
    try:
        (_SYSCTL / name).write_text(value)
    except OSError as error:
        print(f"bench: {name} stays as it is: {error.strerror}", file=sys.stderr)
