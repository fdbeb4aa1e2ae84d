"""Sockets that do what they are told, for what no real socket can be brought to do at a given moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from streamgw.dataplane.pump import Ending, Limits, Meter
from streamgw.dataplane.pump.end import Relay, Socket


@attrs.define(eq=False)
class ScriptedSocket:
    """Reads and writes come from lists; an exception in a list is raised. An empty list would block (EAGAIN)."""

    reads: list[bytes | OSError] = attrs.Factory(list)
    endless: bytes = b""
    """Read forever, once `reads` is empty."""
    takes: list[int | OSError] = attrs.Factory(list)
    """How much each send takes; everything once the list is empty."""
    shutdown_error: OSError | None = None
    pending_error: int = 0
    sent: bytearray = attrs.Factory(bytearray)
    log: list[str] = attrs.Factory(list)
    number: int = 0

    def fileno(self) -> int:
        return self.number

    def recv_into(self, buffer: bytearray) -> int:
        self.log.append("recv")
        data = self.reads.pop(0) if self.reads else self.endless
        if isinstance(data, OSError):
            raise data
        if not data and not self.log.count("eof"):
            raise BlockingIOError
        buffer[: len(data)] = data
        return len(data)

    def recv(self, most: int) -> bytes:
        buffer = bytearray(1 << 16)
        count = self.recv_into(buffer)
        assert count <= most
        return bytes(buffer[:count])

    def send(self, data: bytes | memoryview) -> int:
        take = self.takes.pop(0) if self.takes else len(data)
        if isinstance(take, OSError):
            raise take
        if not take:
            raise BlockingIOError
        self.sent += data[:take]
        return take

    def shutdown(self, _how: int) -> None:
        self.log.append("shutdown")
        if self.shutdown_error is not None:
            raise self.shutdown_error

    def getsockopt(self, _level: int, _name: int) -> int:
        number, self.pending_error = self.pending_error, 0
        return number

    def reach_eof(self) -> None:
        """From now on reads that have nothing else to return say EOF."""
        self.log.append("eof")


@attrs.define
class Finished:
    """Stands for the pump: keeps how relays ended, and takes their ends apart as the pump would."""

    endings: list[Ending] = attrs.Factory(list)

    def __call__(self, relay: Relay, ending: Ending) -> None:
        relay.ending = ending
        self.endings.append(ending)
        for end in (relay.client, relay.upstream):
            end.relay = end.peer = None


def joined(client: ScriptedSocket, upstream: ScriptedSocket) -> tuple[Socket, Socket]:
    """Two ends that are being relayed, both in full flow."""
    sockets: Iterable[Any] = (client, upstream)
    ends = tuple(Socket(sock, is_client=sock is client) for sock in sockets)
    relay = Relay(ends[0], ends[1], Meter(), Limits(), Finished())
    relay.connecting = False
    for end, peer in (ends, ends[::-1]):
        end.peer, end.relay = peer, relay
    ends[0].refresh()
    return ends[0], ends[1]
