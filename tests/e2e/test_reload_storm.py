"""A thousand connections move data while a hundred edits happen: nothing may be lost, wrong or reset."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from tests.support.edits import Edits
from tests.support.gateway import Gateway
from tests.support.origin import Visitor
from tests.support.ports import Ports
from tests.support.storm import finish, storm_clients, storm_origin

pytestmark = pytest.mark.slow

_CONNECTIONS = 1_000
_EDITS = 100


def test_a_hundred_edits_touch_no_byte_of_a_thousand_connections(
    gateway: Gateway, ports: Ports, tmp_path: Path, seed: int
) -> None:
    port, origins = ports.take(), {ports.take(): "alpha", ports.take(): "beta"}
    rng = random.Random(seed)
    edits = Edits(gateway, port, ports.take(), list(origins), rng)

    with contextlib.ExitStack() as stack:
        for origin_port, name in origins.items():
            stack.enter_context(storm_origin(tmp_path, origin_port, name))
        stack.enter_context(gateway.running())
        clients = stack.enter_context(storm_clients(tmp_path, port, _CONNECTIONS, seed))
        for _ in range(_EDITS):
            edits.make(1)
            with Visitor(port) as visitor:
                assert visitor.read(16).decode().strip() == origins[edits.target], edits.made
        active = gateway.status()["sessions"]["active"]
        report = finish(clients)
        status = gateway.wait_for_status(
            lambda status: status["sessions"]["active"] == 0, what="no session is left"
        )

    assert active >= _CONNECTIONS
    assert report.failures == {}, edits.made
    assert report.intact == _CONNECTIONS
    assert min(report.bytes_up, report.bytes_down) > 100_000_000, "that was no load"
    assert status["sessions"]["by_reason"].get("bug", 0) == 0
