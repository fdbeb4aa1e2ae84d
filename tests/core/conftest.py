"""The core is pure: a test here that opens a socket, or starts an event loop (which opens one), fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

_guard = {"on": False}


def _refuse_sockets(event: str, _args: tuple[object, ...]) -> None:
    if _guard["on"] and event == "socket.__new__":
        raise AssertionError("a test of the core must not open a socket")


# For the life of the process: an audit hook cannot be removed. Off, it costs nothing but in the tests below this folder.
sys.addaudithook(_refuse_sockets)


@pytest.fixture(autouse=True)
def no_sockets() -> Iterator[None]:
    _guard["on"] = True
    yield
    _guard["on"] = False
