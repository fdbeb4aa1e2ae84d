"""What a reload need not make again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by what they were made of, for as long as each load asks for them. Not for two threads at once."""

    def __init__(self) -> None:
        self._old: dict[str, T] = {}
        self._used: dict[str, T] = {}

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The value from an earlier load, or a new one. What `make` raises is not kept."""
        if key not in self._used:
            self._used[key] = self._old[key] if key in self._old else make()
        return self._used[key]

    def finish(self, *, forget: bool) -> None:
        """A load is over: `forget` what it did not ask for. Not after a rejected one, which may not have come that far."""
        self._old = self._used if forget else {**self._old, **self._used}
        self._used = {}
