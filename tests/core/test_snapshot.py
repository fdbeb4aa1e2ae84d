from __future__ import annotations

import attrs
import pytest

from streamgw.core.model import Match, Node, Revision, Route, Source, Upstream
from streamgw.core.router import Router
from streamgw.core.snapshot import Snapshot
from streamgw.core.sni import SNIIndex

MYSQL = Upstream("upstreams/mysql", (Node("10.0.0.5", 3306),))


def snapshot(revision: str) -> Snapshot:
    route = Route("mysql", Match(), MYSQL, Source("routes.d/mysql.yaml", 2))
    return Snapshot(
        revision=Revision(revision),
        router=Router([route]),
        upstreams={MYSQL.key: MYSQL},
        certificates=SNIIndex((), one_label=True),
        sources={("stream_routes", "mysql"): "d1", ("upstreams", "mysql"): "d2"},
    )


def test_a_session_that_pinned_a_snapshot_is_not_touched_by_the_next() -> None:
    pinned = current = snapshot("1")

    current = snapshot("2")

    assert pinned.revision == "1"
    assert pinned.router.routes[0].upstream is pinned.upstreams["upstreams/mysql"]
    assert current.revision == "2"


def test_nothing_in_a_snapshot_can_be_exchanged() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        snapshot("1").router = Router([])  # type: ignore[misc]  # what must not work
