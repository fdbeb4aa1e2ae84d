"""Runs of datagrams: what leaves together, and that it is what came."""

from __future__ import annotations

import errno

from hypothesis import given
from hypothesis import strategies as st

from streamgw.dataplane.pump.burst import (
    BUFFER_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_RUN_BYTES,
    Burst,
    Way,
    cut,
    pieces,
)


class Scene:
    """A burst, and what has left."""

    def __init__(self) -> None:
        self.runs: list[list[bytes]] = []
        self.burst = Burst(memoryview(bytearray(BUFFER_BYTES)), self._leave)

    def receive(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.burst.room[: len(payload)] = payload
            self.burst.add(len(payload))

    def _leave(self, run: memoryview, size: int, count: int) -> None:
        assert len(run) == size * count <= max(MAX_RUN_BYTES, size)
        self.runs.append([bytes(payload) for payload in pieces(run, size, count)])


def test_datagrams_of_one_size_leave_together() -> None:
    scene = Scene()

    scene.receive(b"aa", b"bb", b"cc")
    assert scene.runs == []
    scene.burst.leave()

    assert scene.runs == [[b"aa", b"bb", b"cc"]]


def test_another_size_begins_another_run() -> None:
    scene = Scene()

    scene.receive(b"aa", b"bb", b"c", b"", b"", b"dd")
    scene.burst.leave()

    assert scene.runs == [[b"aa", b"bb"], [b"c"], [b"", b""], [b"dd"]]


def test_what_lies_in_the_room_already_is_not_touched_when_a_run_leaves() -> None:
    scene = Scene()
    scene.receive(b"one's")
    scene.burst.room[:7] = b"other's"

    scene.burst.leave()
    scene.burst.add(7)
    scene.burst.leave()

    assert scene.runs == [[b"one's"], [b"other's"]]


def test_there_is_nothing_to_leave_where_nothing_came() -> None:
    scene = Scene()

    scene.burst.leave()

    assert scene.runs == []


sizes = st.one_of(st.integers(0, 5), st.integers(1100, 1102), st.integers(0, 65_527))


@given(st.lists(st.tuples(sizes, st.integers(1, 40), st.booleans()), max_size=12))
def test_everything_leaves_once_and_in_order(stretches: list[tuple[int, int, bool]]) -> None:
    scene = Scene()
    said = []
    for number, (size, count, goes_elsewhere_then) in enumerate(stretches):
        payloads = [bytes([number * 40 + each & 0xFF]) * size for each in range(count)]
        for payload in payloads:
            assert len(scene.burst.room) >= MAX_DATAGRAM_BYTES, "nothing is ever cut off"
            scene.receive(payload)
        said += payloads
        if goes_elsewhere_then:
            scene.burst.leave()
    scene.burst.leave()

    assert [payload for run in scene.runs for payload in run] == said


def test_the_size_is_told_in_the_order_of_the_machine() -> None:
    level, kind, data = cut(1200)

    assert (level, kind) == (17, 103)
    assert memoryview(data).cast("H").tolist() == [1200]


def test_one_datagram_is_no_run_and_neither_are_empty_ones() -> None:
    way = Way()

    assert way.takes(1200, 2)
    assert not way.takes(1200, 1)
    assert not way.takes(0, 2)


def test_what_the_kernel_did_not_cut_it_is_not_asked_to_cut_again() -> None:
    way = Way()

    assert way.failed(1400, OSError(errno.EINVAL, ""))

    assert not way.takes(1400, 2)
    assert not way.takes(1401, 2)
    assert way.takes(1399, 2), "it may fit"


def test_having_no_room_says_nothing_about_runs() -> None:
    way = Way()

    assert not way.failed(1400, OSError(errno.ENOBUFS, ""))

    assert way.takes(1400, 2)
