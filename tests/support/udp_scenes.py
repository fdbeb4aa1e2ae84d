"""A gateway's UDP half on real sockets: listeners bound as the process binds them, clients and nodes that are sockets."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from streamgw.core.model import Listener, Outcome, Upstream
from streamgw.core.snapshot import Snapshot
from streamgw.core.udp_sessions import Drop
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump.loop import SocketPump
from streamgw.dataplane.reception import Reception, UDPSession
from streamgw.dataplane.udp import UDPSessions
from streamgw.process.sockets import Sockets
from tests.support.scenes import FakeNames, route, snapshot, sync, upstream


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
