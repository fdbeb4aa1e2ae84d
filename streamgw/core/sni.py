"""Server names and their wildcards: exact first, then the longest wildcard.

A pattern is a name (`db.example`), or `*` and the end of one: `*.example` is any depth below `example` but not
`example` itself, `*example` is `example` too (and `myexample`), `*` is every name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def matches_name(pattern: str, name: str) -> bool:
    """Whether one pattern covers a name. Both in lower case, without a trailing dot.

    Source:
      APISIX `stream/router/ip_port.lua`: a route's `*.x.com` reaches any depth (a certificate's only one).
    """
    return name.endswith(pattern[1:]) if pattern.startswith("*") else name == pattern


class SNIIndex(Generic[T]):
    """Patterns to values. A lookup costs one dictionary access per distinct wildcard length, not per pattern."""

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._exact: dict[str, T] = {}
        self._by_suffix: dict[str, T] = {}
        for pattern, value in entries:
            if pattern.startswith("*"):
                self._by_suffix[pattern[1:]] = value
            else:
                self._exact[pattern] = value
        self._lengths = tuple(sorted({len(suffix) for suffix in self._by_suffix}, reverse=True))

    def candidates(self, name: str) -> Iterator[T]:
        """Every value whose pattern covers the name, the most precise first.

        More than one, because the best name may still fail on its addresses: then the next wildcard gets its turn.
        """
        if name in self._exact:
            yield self._exact[name]
        for length in self._lengths:
            # A suffix longer than the name would slice to the whole name and match what it must not.
            if length <= len(name):
                suffix = name[len(name) - length :]
                if suffix in self._by_suffix:
                    yield self._by_suffix[suffix]
