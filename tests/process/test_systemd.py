"""What a service manager sees and gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from streamgw.process import systemd


def test_readiness_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)

        systemd.notify("READY=1", {"NOTIFY_SOCKET": path})

        assert manager.recv(100) == b"READY=1"


def test_an_abstract_address_is_understood() -> None:
    name = f"streamgw-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)

        systemd.notify("STOPPING=1", {"NOTIFY_SOCKET": "@" + name})

        assert manager.recv(100) == b"STOPPING=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    systemd.notify("READY=1", {})
    systemd.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_sockets_of_another_process_are_not_ours() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "KEPT": "yes"}

    assert systemd.inherited_sockets(environ) == ()
    assert environ == {"KEPT": "yes"}


PROGRAM = """
import os, socket, sys
from streamgw.process import systemd
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3"}
socks = systemd.inherited_sockets(environ)
print(*(f"{sock.type.name}:{sock.getsockname()[1]}" for sock in socks))
print(any(os.get_inheritable(sock.fileno()) or sock.getblocking() for sock in socks))
"""


def test_sockets_that_listen_are_taken_over() -> None:
    """They arrive as descriptors 3 and 4; the one at 5, which is bound nowhere, is left alone."""
    with (
        socket.socket() as listening,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound,
    ):
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        datagram.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in (listening, datagram)]
        fds = [sock.fileno() for sock in (listening, datagram, unbound)]
        shell = f'exec 3<&{fds[0]} 4<&{fds[1]} 5<&{fds[2]}; exec "$@"'

        done = subprocess.run(
            ["bash", "-c", shell, "-", sys.executable, "-c", PROGRAM],
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=True,
        )

    assert done.stdout.split() == [f"SOCK_STREAM:{ports[0]}", f"SOCK_DGRAM:{ports[1]}", "False"]
