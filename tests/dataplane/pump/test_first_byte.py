"""When a node could begin to answer, and when it did. With real sockets: tests/conformance/test_pump.py."""

from __future__ import annotations

from streamgw.dataplane.pump import Meter
from streamgw.dataplane.pump.first_byte import FirstByte


def test_a_node_that_speaks_first_is_timed_from_the_connect() -> None:
    told: list[float] = []
    first_byte, meter = FirstByte(told.append, 100.0), Meter()
    assert not first_byte.has_come(meter, 100.5)

    meter.bytes_down = 1

    assert first_byte.has_come(meter, 101.0)
    assert told == [1.0]


def test_a_node_that_is_asked_first_is_timed_from_the_first_bytes_of_the_client() -> None:
    told: list[float] = []
    first_byte, meter = FirstByte(told.append, 100.0), Meter()
    for bytes_up, now in ((0, 3600.0), (1, 3700.0), (1, 3700.5), (99, 3701.0)):
        meter.bytes_up = bytes_up
        assert not first_byte.has_come(meter, now)

    meter.bytes_down = 1

    assert first_byte.has_come(meter, 3702.0)
    assert told == [2.0]
