"""Names that libc looks up (getaddrinfo(3)), for collectors: one thread for each name at most.

Such a thread cannot be ended. With name servers that are silent it takes half a minute, and whoever asked has long given up
and asked again: a few collectors would soon have all threads of Trio, and with them reloads and the access log.
"""

from __future__ import annotations

import socket
from functools import partial
from socket import AddressFamily, SocketKind
from typing import Literal, TypeAlias

import trio

_IPv4: TypeAlias = tuple[Literal[AddressFamily.AF_INET], SocketKind, int, str, tuple[str, int]]
_IPv6: TypeAlias = tuple[
    Literal[AddressFamily.AF_INET6], SocketKind, int, str, tuple[str, int, int, int] | tuple[int, bytes]
]


class Names(trio.abc.HostnameResolver):
    """For `trio.socket.set_custom_hostname_resolver`."""

    def __init__(self) -> None:
        self._turns: dict[bytes | None, trio.CapacityLimiter] = {}
        """Of names that are being looked up, perhaps by a thread that was left alone with it."""

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002  as libc calls it
        proto: int = 0,
        flags: int = 0,
    ) -> list[_IPv4 | _IPv6]:
        """See socket.getaddrinfo.

        Cancellation:
          The thread is left alone. Until it comes back, whoever asks for the same name waits.
        """
        turn = self._turns.setdefault(host, trio.CapacityLimiter(1))
        try:
            return await trio.to_thread.run_sync(
                partial(socket.getaddrinfo, host, port, family, type, proto, flags),
                abandon_on_cancel=True,
                limiter=turn,
            )
        finally:
            if not (turn.borrowed_tokens or turn.statistics().tasks_waiting):
                self._turns.pop(host, None)

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        """Nobody asks for names of addresses."""
        raise NotImplementedError
