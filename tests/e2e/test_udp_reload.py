"""Ten thousand UDP sessions, and a hundred reloads."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.datagrams import TIMEOUT_S, datagram_origin
from tests.support.gateway import Gateway
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

SESSIONS = 10_000
RELOADS = 100
CLIENT_ADDRESSES = [f"127.0.1.{number}" for number in range(1, 5)]
"""One address may have 4,096 sessions (`max_udp_sessions_per_client`)."""
AT_ONCE = 100
"""Datagrams under way: more might not fit into a receive buffer, and be lost without anybody's fault."""


@pytest.fixture
def origins(tmp_path: Path, ports: Ports) -> Iterator[dict[str, int]]:
    found = {name: ports.take_for_udp() for name in ("alpha", "beta")}
    with contextlib.ExitStack() as stack:
        for name, port in found.items():
            stack.enter_context(datagram_origin(tmp_path, port, name))
        yield found


@contextlib.contextmanager
def clients(port: int) -> Iterator[list[socket.socket]]:
    """As many sockets as there shall be sessions."""
    with contextlib.ExitStack() as stack:
        socks = []
        for number in range(SESSIONS):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((CLIENT_ADDRESSES[number % len(CLIENT_ADDRESSES)], 0))
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
            socks.append(sock)
        yield socks


def ask_all(socks: Sequence[socket.socket], word: bytes, answer: bytes) -> None:
    """One datagram from each, and its answer."""
    for first in range(0, len(socks), AT_ONCE):
        waiting = {sock.fileno(): sock for sock in socks[first : first + AT_ONCE]}
        poll = select.poll()
        for fd, sock in waiting.items():
            poll.register(fd, select.POLLIN)
            sock.send(word)
        while waiting:
            ready = poll.poll(TIMEOUT_S * 1000)
            assert ready, f"{len(waiting)} of {len(socks)} sessions are silent"
            for fd, _ in ready:
                assert waiting.pop(fd).recv(100) == answer
                poll.unregister(fd)


def test_ten_thousand_sessions_outlive_a_hundred_reloads_and_leave_nothing(
    gateway: Gateway, ports: Ports, origins: dict[str, int]
) -> None:
    port = ports.take_for_udp()
    gateway.write_settings([], [f"127.0.0.1:{port}"])

    def route(label: str, to: str, **udp: object) -> None:
        """The route that everybody has, in a file that says something else each time."""
        upstream = {"id": "u", "nodes": {f"127.0.0.1:{origins[to]}": 1}}
        mine = {"id": "1", "upstream_id": "u", "udp": {"idle_timeout": 600, **udp}}
        gateway.write_routes(
            "route.yaml", mine, {"id": label, "priority": -1, "upstream_id": "u"}, upstreams=[upstream]
        )

    route("first", "alpha")
    with gateway.running() as child, clients(port) as socks:
        descriptors = Path(f"/proc/{child.pid}/fd")
        before = len(list(descriptors.iterdir()))

        ask_all(socks, b"hello", b"alpha hello")
        for number in range(RELOADS):
            route(f"reload-{number}", "alpha")
            gateway.wait_for_objects("1", f"reload-{number}")
            ask_all(socks[number::RELOADS], b"now", b"alpha now")
        ask_all(socks, b"after", b"alpha after")

        status = gateway.status()
        assert status["sessions"]["total"] == status["sessions"]["active"] == SESSIONS, (
            "none ended, none is new"
        )
        assert gateway.access_lines() == []

        # Their node goes away, and whoever replaces it answers once: every session, old and new, is over.
        route("last", "beta", responses=1)
        gateway.wait_for_objects("1", "last")
        ask_all(socks, b"there", b"beta there")
        status = gateway.wait_for_status(lambda status: status["sessions"]["active"] == 0, what="no session")

        assert status["sessions"]["by_reason"] == {"closed": SESSIONS, "moved": SESSIONS}
        child.wait_until(
            lambda: len(list(descriptors.iterdir())) <= before, what="no descriptor more than before"
        )
