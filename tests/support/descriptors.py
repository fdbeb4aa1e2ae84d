"""What a process has open. The tests' own may close something of an earlier test meanwhile, in a thread: look at what is new."""

from __future__ import annotations

import contextlib
import resource
import select
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def open_descriptors(process: int | str = "self") -> frozenset[tuple[int, str]]:
    """Every descriptor of a process, with what it is."""
    found = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            found.add((int(entry.name), str(entry.readlink())))
    return frozenset(found)


def opened_since(before: frozenset[tuple[int, str]]) -> Counter[str]:
    """What this process has open more often than then. A socket that was exchanged for a copy of it is none of that."""
    return Counter(what for _, what in open_descriptors()) - Counter(what for _, what in before)


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """For this process: what it has stays, and it gets none on top."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def is_ready(fd: int, events: int) -> bool:
    """Whether poll(2) says so now. Not select(2), which ends at descriptor 1,024: the ports of e2e tests are held to the end."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))
