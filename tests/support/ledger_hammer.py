"""A process that enters and leaves as fast as it can: `ledger_hammer.py FD SEAT LIMIT WITNESS SEED`.

Says that it is ready, and begins when its standard input ends, so that several are at it together. When it has been let in
often enough it says how often it was refused, and the most that it ever saw inside.
"""

from __future__ import annotations

import fcntl
import os
import random
import sys

from streamgw.process.ledger import SharedLedger

ADMISSIONS = 1_000
"""For each place, after which it is done. Not after so many attempts: whoever keeps the others out may be put to sleep inside."""


def counted(witness: int, change: int) -> int:
    """How many are inside, one more or less; by a lock, and by nothing of the ledger's."""
    fcntl.flock(witness, fcntl.LOCK_EX)
    try:
        inside = int.from_bytes(os.pread(witness, 8, 0)) + change
        os.pwrite(witness, inside.to_bytes(8), 0)
        os.pwrite(witness, max(inside, most_ever(witness)).to_bytes(8), 8)
    finally:
        fcntl.flock(witness, fcntl.LOCK_UN)
    return inside


def most_ever(witness: int) -> int:
    """How many have been inside at once."""
    return int.from_bytes(os.pread(witness, 8, 8))


def main(fd: int, seat: int, limit: int, path: str, seed: int) -> None:
    ledger, rng = SharedLedger(fd, seat), random.Random(seed + seat)
    witness = os.open(path, os.O_RDWR)
    admitted = refused = most = 0
    print("ready", flush=True)  # noqa: T201  so that nobody begins alone
    sys.stdin.read()
    while admitted < ADMISSIONS * limit:
        if ledger.enter("hammer", "x") > limit:
            ledger.leave("hammer", "x")
            refused += 1
            continue
        admitted += 1
        most = max(most, counted(witness, 1))
        while most_ever(witness) < limit:  # the first ones stay until nobody else may come
            os.sched_yield()
        for _ in range(rng.randrange(20)):
            pass
        counted(witness, -1)
        ledger.leave("hammer", "x")
    print(refused, most)  # noqa: T201  that is what it is for


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
