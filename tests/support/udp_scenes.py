"""A gateway's UDP half on real sockets: listeners bound as the process binds them, clients and nodes that are sockets."""

from __future__ import annotations

import random
from typing import Any

from streamgw.core.snapshot import Snapshot
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.udp import UDPSessions
from tests.support.scenes import FakeNames, sync


def udp_sessions(current: Snapshot, pump: SocketPump | None = None, **settings: Any) -> UDPSessions:
    """Sessions of one snapshot; a bug is an error of the test."""

    def on_bug(_: UDPSession, error: Exception) -> None:
        raise error

    pool = UpstreamPool(FakeNames(), rng=random.Random(1))
    sync(pool, *current.upstreams.values())
    settings = {"on_bug": on_bug, "on_outcome": lambda _: None, "on_drops": lambda *_: None} | settings
    settings = {"on_trouble": lambda _: None, "id_prefix": "t-"} | settings
    return UDPSessions(
        datagrams=(pump or SocketPump()).datagrams,
        pool=settings.pop("pool", pool),
        get_snapshot=lambda: current,
        wall_clock=lambda: 1_700_000_000.0,
        **settings,
    )
