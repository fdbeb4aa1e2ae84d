from __future__ import annotations

import attrs
import pytest

from streamgw.core.model import Revision
from streamgw.core.router import Router
from streamgw.core.snapshot import Snapshot


def test_nothing_in_a_snapshot_can_be_replaced() -> None:
    snapshot = Snapshot(Revision("1f"), Router(()), upstreams={}, sources={})

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        snapshot.revision = Revision("2a")  # type: ignore[misc]  # that is the point
