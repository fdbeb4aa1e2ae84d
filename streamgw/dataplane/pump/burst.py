"""Datagrams that go the same way and are of one size leave in one system call: the kernel cuts the buffer up again.

That is UDP GSO (udp(7), `UDP_SEGMENT`, Linux 4.18). Whoever receives them sees each by itself, in their order. Sending is
what a datagram costs most, and nearly all of that is the way through the kernel, which they then go together: 0.5 instead
of 2.9 µs each, of 32 that were sent one after the other over loopback.

A turn of reading puts datagrams one behind the other into the buffer. A *run* is a stretch of them that may leave together.
"""

from __future__ import annotations

import errno
import functools
import socket
import struct
from collections.abc import Callable, Iterator

MAX_DATAGRAM_BYTES = 64 * 1024
"""Larger than any datagram can be (65,507 bytes over IPv4, 65,527 over IPv6)."""
MAX_RUN_BYTES = 64_000
"""What is cut up must itself be no longer than one datagram may be."""
BUFFER_BYTES = MAX_RUN_BYTES + 2 * MAX_DATAGRAM_BYTES
"""A run, the datagram that proves that it is over, and room for the next."""

_UNCUTTABLE = frozenset({errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EMSGSIZE})
"""The datagrams are too long for the path (they would have to be fragmented), no checksum can be offloaded, IPsec is in the
way, or the kernel is too old. One by one they pass."""
_SOL_UDP = socket.IPPROTO_UDP
_UDP_SEGMENT = 103
"""linux/udp.h; Python has no name for it."""


@functools.lru_cache(maxsize=256)
def cut(size: int) -> tuple[int, int, bytes]:
    """The control message that makes datagrams of so many bytes out of a buffer."""
    return _SOL_UDP, _UDP_SEGMENT, struct.pack("=H", size)


class Way:
    """What is known of sending runs one way: to the clients of a listener, or to their nodes."""

    __slots__ = ("uncut_from",)

    def __init__(self) -> None:
        self.uncut_from = MAX_RUN_BYTES
        """The kernel did not cut datagrams of this size. Neither does it longer ones, so nobody tries."""

    def takes(self, size: int, count: int) -> bool:
        """Whether so many datagrams of this size are worth one call."""
        return count > 1 and 0 < size < self.uncut_from

    def failed(self, size: int, error: OSError) -> bool:
        """A run was not taken. False: that has nothing to do with its being a run."""
        if error.errno in _UNCUTTABLE:
            self.uncut_from = size
            return True
        return False


class Burst:
    """The datagrams of one turn.

    Args:
      view: of a buffer of `BUFFER_BYTES`. Nobody else uses it during the turn.
      leave: given each run, the size of its datagrams and how many they are, when it is over. It is gone afterwards.
    """

    __slots__ = ("_count", "_end", "_leave", "_size", "_start", "_view", "room")

    def __init__(self, view: memoryview, leave: Callable[[memoryview, int, int], None]) -> None:
        self._view = self.room = view
        """`room` is where the next datagram is to be received."""
        self._leave = leave
        self._start = self._end = self._size = self._count = 0

    def add(self, size: int) -> None:
        """A datagram was received into `room`."""
        if self._count and (size != self._size or self._end + size - self._start > MAX_RUN_BYTES):
            self._let_go()
        self._size = size
        self._count += 1
        self._end += size
        if self._end > MAX_RUN_BYTES + MAX_DATAGRAM_BYTES:
            self._let_go()
            self._start = self._end = 0
        self.room = self._view[self._end :]

    def leave(self) -> None:
        """The run is over: the next datagram, which may be in `room` already, goes another way; or there is none."""
        if self._count:
            self._let_go()

    def _let_go(self) -> None:
        run, size, count = self._view[self._start : self._end], self._size, self._count
        self._start, self._count = self._end, 0
        self._leave(run, size, count)


def pieces(run: memoryview, size: int, count: int) -> Iterator[memoryview]:
    """The datagrams of a run."""
    for number in range(count):
        yield run[number * size : (number + 1) * size]
