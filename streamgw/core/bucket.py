"""How many bytes may pass, and when: token buckets that sessions may share, and the gate of one direction of one session.

Pure: every method that needs the time is given `now`, in seconds that never go back. `dataplane/pump/throttle.py` moves
bytes through gates and parks a direction until its gate opens; UDP asks its gate of each datagram.

Theory of operation. Whoever finds a bucket empty takes a share of what is yet to come, in advance, and is told when that
will have come. So each of those who wait has one place in a line, the next share goes to the back of it, and nobody is
woken in vain. A share is `SHARE_S` worth of the rate, divided among those who wait: a line of many moves in small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

SHARE_S = 0.02
"""How much of a rate is taken in advance, if nobody else waits: as seldom as somebody who looks at the bytes may notice."""
SMALLEST_SHARE_S = 0.25
"""However many wait, nobody is woken for less than that, or than a segment: a wake costs as much as a megabyte spliced."""
SEGMENT_BYTES = 1460
LARGEST_SHARE_BYTES = 1 << 20
"""What one splice takes: no more is held for somebody who may not want it."""
BURST_S = 0.1
"""What may pass at once after a pause, where nobody says."""


class Bucket:
    """So many bytes a second. What is not used is saved, up to the burst; what is taken in advance is owed.

    Args:
      rate: bytes a second, > 0.
      burst: bytes. Never less than what passes in `SHARE_S`, or the rate could not be reached. None: `BURST_S` worth.
    """

    __slots__ = ("_at", "_burst", "_rate", "_saved", "waiting")

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = max(rate * BURST_S if burst is None else burst, rate * SHARE_S, 1.0)
        self._saved = self._burst
        """Negative: owed."""
        self._at = -math.inf
        """When that was."""
        self.waiting = 0
        """How many have taken in advance what has not come yet."""

    @property
    def share(self) -> int:
        """How many bytes somebody who waits is woken for."""
        fair = self._rate * SHARE_S / (1 + self.waiting)
        least = min(SEGMENT_BYTES, self._rate * SMALLEST_SHARE_S)
        return max(1, int(min(max(fair, least), self._burst, LARGEST_SHARE_BYTES)))

    @property
    def turn_s(self) -> float:
        """How long it takes, in seconds, until somebody who waits in a line has his next turn. 0: there is no line."""
        return (1 + self.waiting) * self.share / self._rate if self.waiting else 0.0

    def share_for(self, turn_s: float) -> int:
        """How many bytes somebody is woken for who has another bucket too, where his turn comes once in so many seconds.

        What comes here in that time is his, even if it is more than a share: with a small share of a slow bucket at each
        of his turns in a long line he would get next to nothing.
        """
        return max(self.share, min(int(turn_s * self._rate / (1 + self.waiting)), LARGEST_SHARE_BYTES))

    def room(self, now: float) -> int:
        """How many bytes may pass at once."""
        self._settle(now)
        return max(0, int(self._saved))

    def take(self, count: int, now: float) -> float:
        """Take so many bytes, in advance if need be. Returns when they will have come."""
        self._settle(now)
        self._saved -= count
        return now - min(0.0, self._saved) / self._rate

    def give_back(self, count: int, now: float) -> None:
        """Bytes that were taken have not passed, and will not."""
        self._settle(now)
        self._saved = min(self._burst, self._saved + count)

    def _settle(self, now: float) -> None:
        self._saved = min(self._burst, self._saved + (now - self._at) * self._rate)
        self._at = now


class BookedBucket(Bucket):
    """The same, of all processes of a gateway together: what each of them has to give was booked with all.

    Args:
      rate: bytes a second, > 0.
      book: see `hooks.Ledger.book`: (now, how long it takes, how far in the future it may be) → how far it is; None: too far.
    """

    __slots__ = ("_book",)

    def __init__(self, rate: float, book: Callable[[float, float, float], float | None]) -> None:
        super().__init__(rate)
        self._saved = 0.0
        """Booked, and not taken yet. Never negative."""
        self._book = book

    def room(self, now: float) -> int:
        """See `Bucket.room`. One more share, if nobody is before us."""
        if self._saved < self.share and self._book(now, self.share / self._rate, 0.0) is not None:
            self._saved += self.share
        return int(self._saved)

    def take(self, count: int, now: float) -> float:
        """See `Bucket.take`."""
        booked = max(0.0, count - self._saved)
        self._saved = max(0.0, self._saved - count)
        return now + (self._book(now, booked / self._rate, math.inf) or 0.0) if booked else now

    def _settle(self, now: float) -> None:
        """Nothing comes by itself."""


class Gate:
    """One direction of one session: as fast as all its buckets allow, and no further than it is to go.

    Args:
      buckets: every one of which counts. Others may have them too.
      ends_after: bytes, after which nothing passes any more.
      why: for a person, why it ends there.

    Resource handling:
      `close` gives back what was taken in advance, when the session ends.
    """

    __slots__ = ("_buckets", "_granted", "_left", "opens_at", "waits", "why")

    def __init__(
        self, buckets: Sequence[Bucket] = (), *, ends_after: int | None = None, why: str = ""
    ) -> None:
        self._buckets = tuple(buckets)
        self._left = ends_after
        self._granted = 0
        """Taken from the buckets, and not passed yet."""
        self.why = why
        self.waits = False
        """What is granted has not come yet."""
        self.opens_at = 0.0
        """While it waits: when it will have come."""

    @property
    def is_spent(self) -> bool:
        """It has gone as far as it was to go: it never opens again."""
        return self._left == 0

    def take(self, most: int, now: float) -> int:
        """How many bytes may pass now, `most` at most; they are taken. 0: it is spent, or waits until `opens_at`."""
        if self._left is not None:
            most = min(most, self._left)
            if not most:
                return 0
        if self.waits:
            if now < self.opens_at:
                return 0
            self._wait_no_more()
        elif not self._granted and not self._ask(most, now):
            return 0
        count = min(most, self._granted)
        self._granted -= count
        if self._left is not None:
            self._left -= count
        return count

    def give_back(self, count: int, now: float) -> None:
        """So many of the bytes taken last have not passed, because there are no more: whatever is granted is others'."""
        if self._left is not None:
            self._left += count
        unused, self._granted = self._granted + count, 0
        if unused:
            for bucket in self._buckets:
                bucket.give_back(unused, now)

    def lets_pass(self, count: int, now: float) -> bool:
        """Whether a datagram of so many bytes may pass, as a whole and now: if anything is saved. The rest is owed."""
        if any(not bucket.room(now) for bucket in self._buckets):
            return False
        for bucket in self._buckets:
            bucket.take(count, now)
        return True

    def close(self, now: float) -> None:
        """The session has ended. Closing twice is fine."""
        if self.waits:
            self._wait_no_more()
        self.give_back(0, now)

    def _ask(self, most: int, now: float) -> bool:
        """Have something granted: at once if there is enough and nobody waits for it. False: it waits."""
        room, share, is_contended = most, most, False
        turn_s = max((bucket.turn_s for bucket in self._buckets), default=0.0)
        for bucket in self._buckets:
            room = min(room, bucket.room(now))
            share = min(share, bucket.share_for(turn_s))
            is_contended = is_contended or bucket.waiting > 0
        if room >= share and not is_contended:
            share = room
        opens_at = now
        for bucket in self._buckets:
            opens_at = max(opens_at, bucket.take(share, now))
        self._granted = share
        if opens_at == now and not is_contended:
            return True
        self.waits, self.opens_at = True, opens_at
        for bucket in self._buckets:
            bucket.waiting += 1
        return False

    def _wait_no_more(self) -> None:
        self.waits = False
        for bucket in self._buckets:
            bucket.waiting -= 1
