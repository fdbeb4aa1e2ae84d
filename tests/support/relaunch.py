"""A gateway that is killed and started again in no time: everything is imported once, and each start is a fork.

`python -m tests.support.relaunch CONFIG ROUTES LOG`: one line on standard input starts it (what ran before has to be dead);
its process id is printed. It dies with this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys
from pathlib import Path

from streamgw.process.supervisor import run_gateway

_PR_SET_PDEATHSIG = 1
# What a start would import when it first needs it.
_LATER = ("streamgw.process.servers", "hypercorn.trio", "hypercorn.protocol.h11", "watchfiles", "dns.message")


def _start(config: Path, routes: Path, log: Path) -> int:
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os._exit(run_gateway(config, routes))
    return pid


def main(config: str, routes: str, log: str) -> None:
    """Start one for every line, until the input ends."""
    for name in _LATER:
        importlib.import_module(name)
    pid = 0
    for _ in sys.stdin:
        if pid:
            os.waitpid(pid, 0)
        pid = _start(Path(config), Path(routes), Path(log))
        sys.stdout.write(f"started {pid}\n")
        sys.stdout.flush()
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
