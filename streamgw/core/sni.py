"""Server names and their wildcards: exact first, then the longest wildcard.

A pattern is a name (`db.example`), or `*` and the end of one: `*.example` is any depth below `example` but not
`example` itself, `*example` is `example` too (and `myexample`), `*` is every name.

So it is for routes. A certificate's wildcard stands for one label at most (`one_label`): `*.example` covers
`db.example`, not `a.db.example`; `*` alone is still every name.

Source:
  APISIX, `stream/router/ip_port.lua` for routes, `ssl/router/radixtree_sni.lua` for certificates. There a certificate
  whose longest wildcard fails by its depth is the last one asked; here the next shorter wildcard gets its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def matches_name(pattern: str, name: str, *, one_label: bool = False) -> bool:
    """Whether one pattern covers a name. Both in lower case, without a trailing dot."""
    if not pattern.startswith("*"):
        return name == pattern
    if not name.endswith(pattern[1:]):
        return False
    return not one_label or pattern == "*" or "." not in name[: len(name) - len(pattern) + 1]


class SNIIndex(Generic[T]):
    """Patterns to values. A lookup costs one dictionary access per distinct wildcard length, not per pattern.

    Args:
      entries: of several with the same pattern the first counts.
      one_label: `*` covers no dot, as in a certificate.
    """

    def __init__(self, entries: Iterable[tuple[str, T]], *, one_label: bool = False) -> None:
        self._exact: dict[str, T] = {}
        self._by_suffix: dict[str, T] = {}
        self._one_label = one_label
        for pattern, value in entries:
            if pattern.startswith("*"):
                self._by_suffix.setdefault(pattern[1:], value)
            else:
                self._exact.setdefault(pattern, value)
        self._lengths = tuple(sorted({len(suffix) for suffix in self._by_suffix}, reverse=True))

    def values(self) -> Iterator[T]:
        """Every value, as often as it has patterns."""
        yield from self._exact.values()
        yield from self._by_suffix.values()

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
                if self._one_label and length and "." in name[: len(name) - length]:
                    continue
                if suffix in self._by_suffix:
                    yield self._by_suffix[suffix]
