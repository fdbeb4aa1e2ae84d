"""A worker thread that compiles must not hold up the event loop."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

import attrs

FREEZE_FROM = 20_000
"""Objects that a thread leaves behind: fewer take the garbage collector a few milliseconds at most."""
SWITCH_INTERVAL_S = 0.0005
"""How long the thread may keep the interpreter to itself when the event loop wants it (CPython's default: 5 ms)."""


@attrs.define
class _Interpreter:
    """Its settings, which all threads share, as they were before the first of those who changed them."""

    users: int = 0
    switch_interval_s: float = 0.0
    collects: bool = True
    objects: int = 0
    """Young ones."""


_INTERPRETER = _Interpreter()


@contextlib.contextmanager
def polite_to_the_event_loop() -> Iterator[None]:
    """While a thread compiles, keep the data plane moving. Entered and left by the event loop, around waiting for it.

    The thread and the event loop share one interpreter lock. Longest wait of a task that sleeps 1 ms at a time, while all
    of 10,000 routes were changed (CPython 3.11, two cores): 179 ms; with what is done here 14 ms. Two things matter:

    * The cyclic garbage collector runs in whichever thread allocates and keeps the lock: a full collection of 10,000
      routes takes 150 ms, and building them triggers three. So it pauses during the load. At the end freeze(), which
      moves a pointer, takes what is there out of its sight; else the first collection afterwards makes up for it (99 ms,
      and in the event loop's thread). Reference counting still frees a snapshot that is replaced, frozen or not. Only
      cycles that are garbage at that very moment stay for ever: loading makes none (counted), and small loads do not
      freeze. A gateway that starts has the collector pause already: it is left so, and nothing is collected before.
    * A thread keeps the lock for a switch interval when the event loop wants it, at each of its wake-ups: 5 ms by default.

    Two may overlap, a reload and a check: the last one puts everything back.
    """
    if not _INTERPRETER.users:
        _INTERPRETER.switch_interval_s = sys.getswitchinterval()
        _INTERPRETER.collects = gc.isenabled()
        if _INTERPRETER.collects:
            gc.collect(1)  # the young only, a millisecond or two: not to freeze the garbage of the sessions
            gc.disable()
        _INTERPRETER.objects = gc.get_count()[0]
        sys.setswitchinterval(SWITCH_INTERVAL_S)
    _INTERPRETER.users += 1
    try:
        yield
    finally:
        _INTERPRETER.users -= 1
        if not _INTERPRETER.users:
            sys.setswitchinterval(_INTERPRETER.switch_interval_s)
            if gc.get_count()[0] - _INTERPRETER.objects >= FREEZE_FROM:
                gc.freeze()
            if _INTERPRETER.collects:
                gc.enable()
