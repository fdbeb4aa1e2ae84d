"""Ports that nobody else gets while a test holds them."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from types import TracebackType
from typing import Self


class Ports:
    """Hands out free loopback ports, assigned by the kernel and kept until the block is left.

    A port that was only looked up and released may become the source port of any connection a moment later. Here a
    bound socket that never listens stays on it: a server that sets SO_REUSEADDR (all do) can still bind and listen,
    the kernel gives the port to no outgoing connection, and until a server listens, connecting is refused.
    """

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()

    def take(self, host: str = "127.0.0.1") -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        held = socket.socket(family, socket.SOCK_STREAM)
        self._held.enter_context(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, 0))
        port: int = held.getsockname()[1]
        return port

    def take_for_udp(self, host: str = "127.0.0.1") -> int:
        """A port number that is free over UDP, and held as above over TCP, so that a server may have it in both.

        A held UDP socket would be in the way of a server without SO_REUSEADDR. So the number is taken from below those
        that the kernel gives to sockets without one; what is held over TCP keeps other tests off it.
        """
        return self._take_row(1, host, is_for_udp=True)

    def take_row(self, count: int) -> int:
        """The first of so many ports in a row, all held: from below those that the kernel gives, which come one by one."""
        return self._take_row(count, "127.0.0.1")

    def _take_row(self, count: int, host: str, *, is_for_udp: bool = False) -> int:
        first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        while True:
            first = random.randrange(10_000, first_given - count)
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                for port in range(first, first + count):
                    held = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    held.bind((host, port))  # alone: whoever else holds it is in the way
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if is_for_udp:
                        with socket.socket(family, socket.SOCK_DGRAM) as probe:
                            probe.bind((host, port))
                self._held.enter_context(stack.pop_all())
                return first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()
