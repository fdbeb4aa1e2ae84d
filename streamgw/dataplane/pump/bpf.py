"""bpf(2) as far as `sockmap` needs it: three maps, one program, and no library.

Everything here is a thin, typed skin over the system call, which has no wrapper in C either. What the maps mean is told in
`sockmap`; the program is below.

Source:
  bpf(2), linux/bpf.h, kernel Documentation/bpf/{map_sockmap,ringbuf}.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Iterator

SLOTS = 65_536
"""Connections that may be in the maps: one for each value of the last 16 bits of a socket's cookie."""
STATE_BYTES = 64
BELL_BYTES = 64 * 1024
"""Of the ring buffer: a power of two, at least a page."""

_BPF = 321
"""Number of the system call on x86-64; the program's 64-bit loads and stores are single instructions there."""
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD, _PROG_ATTACH = 0, 2, 3, 5, 8
_ARRAY, _SOCKMAP, _RINGBUF = 2, 15, 27
_MMAPABLE = 1 << 10
_SK_SKB, _SK_SKB_VERDICT = 14, 38
_NO_EXIST = 1
_LOG_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """This kernel, or this process, cannot do it. The message says for a person why."""


class Map:
    """A map, as a descriptor. Keys are 32-bit numbers."""

    def __init__(self, kind: int, *, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> None:
        attributes = struct.pack("=5I", kind, key_bytes, value_bytes, entries, flags)
        self.fd = _bpf(_MAP_CREATE, attributes, what="cannot make a map")

    def insert(self, key: int, value: int) -> None:
        """Put a number under a key that has none yet.

        Raises:
          OSError: it has one, or the value (a socket) cannot be in the map.
        """
        with _pointed_at(struct.pack("=I", key)) as at_key, _pointed_at(struct.pack("=I", value)) as at_value:
            _call(_MAP_UPDATE, struct.pack("=IIQQQ", self.fd, 0, at_key, at_value, _NO_EXIST))

    def delete(self, key: int) -> None:
        """Take out what is under a key, if anything is."""
        with _pointed_at(struct.pack("=I", key)) as at_key, contextlib.suppress(OSError):
            _call(_MAP_DELETE, struct.pack("=IIQQQ", self.fd, 0, at_key, 0, 0))

    def close(self) -> None:
        """Give the descriptor back. The map goes with the last thing that uses it."""
        os.close(self.fd)


class StateMap(Map):
    """An array of `SLOTS` records of 64-bit words, seen from here and from the program at once."""

    def __init__(self) -> None:
        super().__init__(_ARRAY, key_bytes=4, value_bytes=STATE_BYTES, entries=SLOTS, flags=_MMAPABLE)
        try:
            self._memory = mmap.mmap(self.fd, SLOTS * STATE_BYTES)
        except OSError as error:
            super().close()
            raise Unavailable(f"cannot map the state: {os.strerror(error.errno or 0)}") from None
        self.words = memoryview(self._memory).cast("Q")
        """Aligned, so that CPython reads and writes each with one instruction."""

    def close(self) -> None:
        """See `Map.close`."""
        with contextlib.suppress(BufferError):  # a traceback may still hold a piece: it is unmapped with that
            self.words.release()
            self._memory.close()
        super().close()


class Bell(Map):
    """A ring buffer: the numbers of slots, in the order in which the program has put them there. Readable when there are any."""

    def __init__(self) -> None:
        super().__init__(_RINGBUF, key_bytes=0, value_bytes=0, entries=BELL_BYTES)
        page = mmap.PAGESIZE
        try:
            self._consumer = mmap.mmap(self.fd, page)
            self._producer = mmap.mmap(self.fd, page + 2 * BELL_BYTES, prot=mmap.PROT_READ, offset=page)
        except OSError as error:
            super().close()
            raise Unavailable(f"cannot map the bell: {os.strerror(error.errno or 0)}") from None

    def rung(self) -> Iterator[int]:
        """Take what is there. A record: its length and two flags (32 bits), where it stands (32), a slot (64)."""
        (at,) = _WORD.unpack_from(self._consumer)
        (end,) = _WORD.unpack_from(self._producer)
        while at < end:
            start = mmap.PAGESIZE + at % BELL_BYTES
            length, _, slot = _RECORD.unpack_from(self._producer, start)
            if length & _BUSY:
                return  # still being written: its writer wakes us
            at += _RECORD.size
            _WORD.pack_into(self._consumer, 0, at)
            yield slot
            (end,) = _WORD.unpack_from(self._producer)

    def close(self) -> None:
        """See `Map.close`."""
        self._consumer.close()
        self._producer.close()
        super().close()


_WORD = struct.Struct("=Q")
_RECORD = struct.Struct("=IIQ")
_BUSY = 1 << 31


class Maps:
    """The maps, with the program attached.

    Raises:
      Unavailable: the kernel, the machine or the privileges do not allow it.

    Resource handling:
      `close` gives everything back; sockets that are still in the maps are plain ones again.
    """

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise Unavailable(f"it was made for x86-64, and this is {platform.machine()}")
        with contextlib.ExitStack() as stack:
            self.state = StateMap()
            stack.callback(self.state.close)
            self.peers = Map(_SOCKMAP, key_bytes=4, value_bytes=4, entries=SLOTS)
            stack.callback(self.peers.close)
            self.bell = Bell()
            stack.callback(self.bell.close)
            program = _load(_verdict(self.state.fd, self.peers.fd, self.bell.fd))
            try:
                attributes = struct.pack("=4I", self.peers.fd, program, _SK_SKB_VERDICT, 0)
                _bpf(_PROG_ATTACH, attributes, what="cannot attach the program")
            finally:
                os.close(program)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()


# The program

R0, R1, R2, R3, R4 = range(5)
CONTEXT, COOKIE, STATE, SLOT, FRAME = 6, 7, 8, 9, 10
"""What registers hold. From CONTEXT on they survive calls."""
_DROP, _PASS = 0, 1
_MAP_LOOKUP, _SOCKET_COOKIE, _REDIRECT, _RINGBUF_OUTPUT = 1, 46, 52, 130
_FORCE_WAKEUP = 2

COOKIE_WORD, SEEN_WORD, RELEASE_WORD, MOVED_WORD, LIMIT_WORD = range(5)
"""Of a record of the state: whose it is; bytes passed up since it began, and 1; the value of `seen` under which bytes may be
redirected; how many were; how many may be."""


class _Assembler:
    """Instructions (linux/bpf.h), with labels that may be jumped to before they stand somewhere."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def copy(self, to: int, source: int) -> None:
        self._add(0xBF, to, source)

    def number(self, to: int, value: int) -> None:
        self._add(0xB7, to, 0, 0, value)

    def map(self, to: int, fd: int) -> None:
        self._add(0x18, to, 1, 0, fd)
        self._add(0)

    def and_number(self, to: int, value: int) -> None:
        self._add(0x57, to, 0, 0, value)

    def add(self, to: int, source: int) -> None:
        self._add(0x0F, to, source)

    def add_number(self, to: int, value: int) -> None:
        self._add(0x07, to, 0, 0, value)

    def load(self, to: int, base: int, word: int) -> None:
        self._add(0x79, to, base, 8 * word)

    def load32(self, to: int, base: int) -> None:
        self._add(0x61, to, base)

    def store(self, base: int, word: int, source: int) -> None:
        self._add(0x7B, base, source, 8 * word)

    def store32(self, base: int, offset: int, source: int) -> None:
        self._add(0x63, base, source, offset)

    def if_zero(self, register: int, label: str) -> None:
        self._jump(label, 0x15, register)

    def if_unequal(self, register: int, other: int, label: str) -> None:
        self._jump(label, 0x5D, register, other)

    def if_greater(self, register: int, other: int, label: str) -> None:
        self._jump(label, 0x2D, register, other)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def call(self, helper: int) -> None:
        self._add(0x85, 0, 0, 0, helper)

    def exit(self) -> None:
        self._add(0x95)

    def exit_with(self, value: int) -> None:
        self.number(R0, value)
        self.exit()

    def assembled(self) -> bytes:
        for at, label in self._jumps:
            code, to, source, _, value = self._code[at]
            self._code[at] = code, to, source, self._labels[label] - at - 1, value
        return b"".join(
            struct.pack("=BBhi", code, source << 4 | to, offset, value)
            for code, to, source, offset, value in self._code
        )

    def _add(self, code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> None:
        self._code.append((code, to, source, offset, value))

    def _jump(self, label: str, code: int, to: int, source: int = 0) -> None:
        self._jumps.append((len(self._code), label))
        self._add(code, to, source)


def _verdict(state_fd: int, peers_fd: int, bell_fd: int) -> bytes:
    """What becomes of each segment that a socket in `peers` receives: to its peer, up to us, or (a FIN) nowhere.

    A FIN comes as a segment without bytes. Redirected, the peer would take it for a broken pipe; dropped here, the socket
    still says RDHUP and reads as EOF.
    """
    it = _Assembler()
    it.copy(CONTEXT, R1)
    it.call(_SOCKET_COOKIE)
    it.copy(COOKIE, R0)
    it.and_number(R0, SLOTS - 1)
    it.copy(SLOT, R0)
    it.store32(FRAME, -4, R0)
    it.map(R1, state_fd)
    it.copy(R2, FRAME)
    it.add_number(R2, -4)
    it.call(_MAP_LOOKUP)
    it.if_zero(R0, "pass")
    it.copy(STATE, R0)
    it.load(R1, STATE, COOKIE_WORD)
    it.if_unequal(R1, COOKIE, "pass")  # the slot is another connection's
    it.load32(R3, CONTEXT)  # its length
    it.if_zero(R3, "drop")
    it.load(R1, STATE, SEEN_WORD)
    it.load(R2, STATE, RELEASE_WORD)
    it.if_unequal(R1, R2, "count")  # not leased
    it.load(R4, STATE, MOVED_WORD)
    it.add(R4, R3)
    it.load(R2, STATE, LIMIT_WORD)
    it.if_greater(R4, R2, "ring")  # its credit is spent
    it.store(STATE, MOVED_WORD, R4)
    it.copy(R1, CONTEXT)
    it.map(R2, peers_fd)
    it.copy(R3, SLOT)
    it.number(R4, 0)
    it.call(_REDIRECT)
    it.exit()

    it.label("ring")
    it.add(R1, R3)
    it.store(STATE, SEEN_WORD, R1)  # no longer leased: whatever follows comes up behind this
    it.store(FRAME, -2, SLOT)
    it.map(R1, bell_fd)
    it.copy(R2, FRAME)
    it.add_number(R2, -16)
    it.number(R3, 8)
    it.number(R4, _FORCE_WAKEUP)
    it.call(_RINGBUF_OUTPUT)
    it.exit_with(_PASS)

    it.label("count")
    it.add(R1, R3)
    it.store(STATE, SEEN_WORD, R1)
    it.label("pass")
    it.exit_with(_PASS)
    it.label("drop")
    it.exit_with(_DROP)
    return it.assembled()


def _load(code: bytes) -> int:
    """Load the program. The verifier's last words, if it refuses, are in the error."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    with _pointed_at(code) as at_code, _pointed_at(b"GPL\0") as at_license:
        attributes = struct.pack(
            "=IIQQIIQ", _SK_SKB, len(code) // 8, at_code, at_license, 1, _LOG_BYTES, ctypes.addressof(log)
        )
        try:
            return _call(_PROG_LOAD, attributes)
        except OSError as error:
            words = [line for line in log.value.decode(errors="replace").splitlines() if line]
            verifier = f"; the verifier says: {' / '.join(words[-4:])}" if words else ""
            raise Unavailable(f"cannot load the program: {_words_for(error)}{verifier}") from None


# The system call


@contextlib.contextmanager
def _pointed_at(data: bytes) -> Iterator[int]:
    """The address of these bytes, for as long as the block lasts."""
    kept = ctypes.create_string_buffer(data, len(data))
    yield ctypes.addressof(kept)


def _bpf(command: int, attributes: bytes, *, what: str) -> int:
    try:
        return _call(command, attributes)
    except OSError as error:
        raise Unavailable(f"{what}: {_words_for(error)}") from None


def _call(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(_BPF, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _words_for(error: OSError) -> str:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return "the process needs CAP_BPF and CAP_NET_ADMIN"
    return (error.strerror or "").lower()
