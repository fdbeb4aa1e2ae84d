"""Counts and moments that all processes of a gateway share: memory with one writer per seat, which anyone may read.

Theory of operation. The supervisor makes the memory, gives each process a seat, and clears the seat of one that died. A
process writes nowhere but in its seat. There are no locks: whoever is stopped or killed at any point holds up nobody.

*Counting* (`enter`): first add one in the own seat, then a fence, then add up all seats. Of two processes that enter at the
same time at least one sees the other (Dekker): the sum may be too high for a moment, when somebody is about to step back; it is
never too low. Whoever finds it over a limit steps back, so a limit is never exceeded.

*Booking* (`book`): each seat holds the moment from which its next session may come; the latest of all seats is the gateway's.
Who books writes the one after it, then a fence, then looks again: moments that others have booked meanwhile go before.

*Tables.* A seat has one table for counts and one for moments. The hash of a key says in which two sets of WAYS places it may be;
it takes one in the emptier set and stays there, so that a reader needs no more than two looks. A place is free when its count is 0,
or its moment is past. The hash is keyed, so that no client can choose names that crowd one set. Where both sets are full, a count
is refused, loudly (`on_full`); of moments the nearest one is forgotten. Neither happens before two thirds of all places are taken.

A value is one aligned word, which CPython reads and writes with one instruction; a key is written before its first value. A
reader who comes in between may take the new value for the old key's: too high, for a moment.

Do not compact, move or evict counts: a reader between the two places would miss one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from streamgw.core.errors import Rejected, StreamgwError
from streamgw.core.hooks import ROUNDING_S

WAYS: Final = 8
SETS: Final = 8192
"""Of one table: 65,536 keys, 1.5 MiB when all are in use. Pages that nobody wrote take no memory. At least 2."""
SEATS: Final = 64
"""Processes at a time, those that drain among them; and the bits of a word."""

_MAGIC: Final = 0x7374_7265_616D_0001
_WORD: Final = 8
_KEY_BYTES: Final = 16
_NAMES_BYTES: Final = WAYS * _KEY_BYTES
_SET_BYTES: Final = _NAMES_BYTES + WAYS * _WORD
_HEADER_BYTES: Final = mmap.PAGESIZE
"""Its words: _MAGIC, sets, a bit for each seat that a process has, the hash's key (two words)."""
_SETS_WORD, _TAKEN_WORD, _KEY_WORD = 1, 2, 3
_F_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_MEMBARRIER = 324 if platform.machine() == "x86_64" else 283
"""Number of the system call; that of include/uapi/asm-generic/unistd.h where it is not x86."""
_GLOBAL_EXPEDITED: Final = 2


class NoSeat(StreamgwError):
    """As many processes as there may be: the ones that drain have to end first."""


class LedgerMemory:
    """The memory, as its owner sees it: the supervisor.

    Resource handling:
      Holds the descriptor `fd`, which a child inherits, until `close`. The memory lives as long as a process uses it.
    """

    def __init__(self, *, sets: int = SETS) -> None:
        self.fd = os.memfd_create("streamgw-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._sets = sets
        os.ftruncate(self.fd, _start_of(SEATS, sets))
        # Whoever has it cannot cut it under the feet of the others: that would be SIGBUS.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _F_SEALS)
        self._memory = mmap.mmap(self.fd, 0)
        self._words = memoryview(self._memory).cast("Q")
        self._words[_SETS_WORD] = sets
        self._memory[_KEY_WORD * _WORD : _KEY_WORD * _WORD + _KEY_BYTES] = secrets.token_bytes(_KEY_BYTES)
        self._words[0] = _MAGIC

    def take_seat(self) -> int:
        """A seat for a process that is about to start.

        Raises:
          NoSeat: all are taken.
        """
        taken = self._words[_TAKEN_WORD]
        for seat in range(SEATS):
            if not taken >> seat & 1:
                self._words[_TAKEN_WORD] = taken | 1 << seat
                return seat
        raise NoSeat(f"{SEATS} processes live already")

    def clear(self, seat: int) -> None:
        """The process that had it is dead: nothing that it counted is there any more."""
        start, end = _start_of(seat, self._sets), _start_of(seat + 1, self._sets)
        self._memory.madvise(mmap.MADV_REMOVE, start, end - start)  # reads as zeros, and takes no memory
        self._words[_TAKEN_WORD] &= ~(1 << seat)

    def close(self) -> None:
        """Let go of it. May be called again."""
        if self.fd >= 0:
            self._words.release()
            self._memory.close()
            os.close(self.fd)
            self.fd = -1


class SharedLedger:
    """The ledger (`core.hooks.Ledger`) of one process among several.

    Args:
      fd: `LedgerMemory.fd`. Not closed.
      seat: of this process, and of no other.
      clock: one that goes alike in all processes, in seconds.
      on_full: told of each session that could not be counted. Must not block or raise.

    Resource handling:
      `close` lets go of the memory. What was counted stays until the seat is cleared.
    """

    def __init__(
        self,
        fd: int,
        seat: int,
        *,
        clock: Callable[[], float] = time.monotonic,  # noqa: TID251  Trio's has another origin in each process
        on_full: Callable[[], None] = lambda: None,
    ) -> None:
        self._memory = mmap.mmap(fd, 0)
        self._words = memoryview(self._memory).cast("Q")
        if self._words[0] != _MAGIC:
            raise StreamgwError("not a ledger of this version")
        self._sets = self._words[_SETS_WORD]
        self._key = self._memory[_KEY_WORD * _WORD : _KEY_WORD * _WORD + _KEY_BYTES]
        self._moments = memoryview(self._memory).cast("d")
        self._seat = seat
        self._start = _start_of(seat, self._sets)
        self._table_bytes = _table_bytes(self._sets)
        self._taken = 0
        self._others: tuple[int, ...] = ()
        """Where the seats of other processes begin, when they were `_taken`."""
        self._clock = clock
        self._on_full = on_full
        self._fence = make_fence()
        self._counted: dict[bytes, int] = {}
        """Keys in this seat's table of counts, and where their words are."""
        self._booked: dict[bytes, int] = {}
        self._bookers: dict[int, bytes] = {}
        """The same the other way round: a place whose moment is past may be taken by another key."""

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._moments.release()
        self._memory.close()

    def enter(self, scope: str, key: str) -> int:
        """See `Ledger.enter`."""
        name = self._name(scope, key)
        place = self._counted.get(name)
        if place is None:
            place = self._claim_count(name)
        self._words[place] += 1
        self._fence()
        return sum([self._words[there] for there in self._elsewhere(name, 0)], self._words[place])

    def leave(self, scope: str, key: str) -> None:
        """See `Ledger.leave`."""
        name = self._name(scope, key)
        place = self._counted[name]
        self._words[place] -= 1
        if not self._words[place]:
            del self._counted[name]

    def book(self, scope: str, key: str, now: float, *, interval_s: float, ahead_s: float) -> float | None:
        """See `Ledger.book`.

        Of several that book the same moment in several processes at once, more may be refused than needed, never fewer.
        """
        now = self._clock()  # the caller's has another origin in each process
        name = self._name(scope, key)
        place = self._booked.get(name)
        own = 0.0 if place is None else self._moments[place]
        at = max(own, now, *self._moments_elsewhere(name))
        if at - now > ahead_s + ROUNDING_S:
            return None
        if place is None:
            place = self._claim_moment(name, now)
        self._moments[place] = at + interval_s
        self._fence()
        rivals = [moment for moment in self._moments_elsewhere(name) if moment > at]
        if rivals:
            at += sum([moment - at for moment in rivals])  # as if each had come before, one after the other
            if at - now > ahead_s + ROUNDING_S:
                self._moments[place] = own
                return None
            self._moments[place] = at + interval_s
        return at - now

    def _name(self, scope: str, key: str) -> bytes:
        text = f"{scope}\0{key}".encode(errors="surrogatepass")
        return hashlib.blake2b(text, digest_size=_KEY_BYTES, key=self._key).digest()

    def _moments_elsewhere(self, name: bytes) -> list[float]:
        return [self._moments[there] for there in self._elsewhere(name, 1)]

    def _elsewhere(self, name: bytes, table: int) -> list[int]:
        """Where the words of a key are in the seats of others."""
        taken = self._words[_TAKEN_WORD]
        if taken != self._taken:
            others = [seat for seat in range(SEATS) if taken >> seat & 1 and seat != self._seat]
            self._others = tuple([_start_of(seat, self._sets) for seat in others])
            self._taken = taken
        first, second = self._sets_of(name, table)
        find, places = self._memory.find, []
        for seat in self._others:
            for start in (seat + first, seat + second):
                found = find(name, start, start + _NAMES_BYTES)
                if found >= 0:
                    places.append(_values_of(start) + (found - start) // _KEY_BYTES)
        return places

    def _sets_of(self, name: bytes, table: int) -> tuple[int, int]:
        """Where in a seat the two sets begin in which a key may be."""
        first = int.from_bytes(name[:4]) % self._sets
        second = (first + 1 + int.from_bytes(name[4:8]) % (self._sets - 1)) % self._sets  # another one
        base = table * self._table_bytes
        return base + first * _SET_BYTES, base + second * _SET_BYTES

    def _claim_count(self, name: bytes) -> int:
        """Put a key into the own table."""
        starts = [self._start + each for each in self._sets_of(name, 0)]
        counts = [self._words[_values_of(start) : _values_of(start) + WAYS].tolist() for start in starts]
        chosen = counts[1].count(0) > counts[0].count(0)
        if 0 not in counts[chosen]:
            self._on_full()
            raise Rejected("too many keys are being counted", status=503)
        place = self._counted[name] = self._write_name(name, starts[chosen], counts[chosen].index(0))
        return place

    def _claim_moment(self, name: bytes, now: float) -> int:
        """Put a key into the own table, in the place whose moment is furthest in the past, or nearest in the future."""
        starts = [self._start + each for each in self._sets_of(name, 1)]
        moments = [self._moments[_values_of(start) : _values_of(start) + WAYS].tolist() for start in starts]
        past = [sum([moment <= now for moment in each]) for each in moments]
        chosen = past[1] > past[0] if any(past) else min(moments[1]) < min(moments[0])
        place = self._write_name(name, starts[chosen], moments[chosen].index(min(moments[chosen])))
        if place in self._bookers:
            del self._booked[self._bookers[place]]
        self._bookers[place], self._booked[name] = name, place
        return place

    def _write_name(self, name: bytes, start: int, way: int) -> int:
        """Returns where its word is."""
        self._memory[start + way * _KEY_BYTES : start + (way + 1) * _KEY_BYTES] = name
        return _values_of(start) + way


def make_fence() -> Callable[[], object]:
    """What has to stand between writing one's own word and reading those of others.

    A processor may hold a write back in its store buffer while it already reads: two processes would both read the
    past, and both come in. CPython has no fence of its own.

    Raises:
      StreamgwError: this machine has none that can be reached.

    Source:
      x86: an instruction with a LOCK prefix is a full fence (Intel SDM 3A § 9.2.2), and taking an uncontended lock is one.
      Elsewhere: membarrier(2), MEMBARRIER_CMD_GLOBAL_EXPEDITED; nobody registers, so nobody else is interrupted, and the
      caller passes a full fence (kernel/sched/membarrier.c).
    """
    if platform.machine() in {"x86_64", "i686"}:
        return _fence_by_lock()
    return _fence_by_kernel()


def _fence_by_lock() -> Callable[[], object]:
    lock = threading.Lock()

    def fence() -> None:
        with lock:
            pass

    return fence


def _fence_by_kernel() -> Callable[[], object]:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    arguments = [ctypes.c_long(each) for each in (_MEMBARRIER, _GLOBAL_EXPEDITED, 0, 0)]
    if syscall(*arguments) != 0:
        why = os.strerror(ctypes.get_errno() or errno.ENOSYS)
        raise StreamgwError(f"several workers need membarrier(2), which says: {why}")

    def fence() -> None:
        syscall(*arguments)

    return fence


def _table_bytes(sets: int) -> int:
    return -(-sets * _SET_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE


def _start_of(seat: int, sets: int) -> int:
    """Of its table of counts; that of moments comes behind. Whole pages, so that they can be given back."""
    return _HEADER_BYTES + seat * 2 * _table_bytes(sets)


def _values_of(start: int) -> int:
    """The first word behind the keys of the set that begins there."""
    return (start + _NAMES_BYTES) // _WORD
