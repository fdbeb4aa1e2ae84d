"""What tests of processes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ports import Ports


@pytest.fixture
def ports() -> Iterator[Ports]:
    with Ports() as ports:
        yield ports
