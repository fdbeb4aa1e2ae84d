"""A disk that has no room for long."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_more_than_10_bytes() -> Iterator[None]:
    """In any file: as full a disk as a test can have. Python ignores SIGXFSZ. Not as a fixture: what pytest writes about the
    test may go to a file, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
