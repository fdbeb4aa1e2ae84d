from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.errors import Fault, Reason
from streamgw.core.model import Address, Facts, Outcome
from streamgw.core.tally import CONNECT_BOUNDS_S, Cell, Histogram, Tally

NODE = Address("10.0.0.1", 80)
OUTCOME = Outcome(
    session_id="1",
    facts=Facts("tcp", "tcp *:9100", Address("192.0.2.7", 1), Address("127.0.0.1", 9100)),
    peer=Address("192.0.2.7", 1),
    reason=Reason.CLOSED,
    fault=Fault.NONE,
    phase="relay",
    started_at=0.0,
    duration_s=2.0,
    connect_s=0.004,
    bytes_up=10,
    bytes_down=20,
    node=NODE,
)


def test_sessions_that_ended_alike_are_added_up() -> None:
    tally = Tally()

    tally.count(OUTCOME)
    tally.count(OUTCOME)
    tally.count(attrs.evolve(OUTCOME, reason=Reason.NO_ROUTE, node=None, connect_s=None))

    assert tally.cells() == (
        Cell("tcp *:9100", "closed", 200, NODE, 2, 20, 40),
        Cell("tcp *:9100", "no_route", 403, None, 1, 10, 20),
    )
    assert sum(tally.duration.counts) == 3
    assert sum(tally.connect.counts) == 2


def test_what_was_told_stays_as_it_was_told() -> None:
    tally = Tally()
    tally.count(OUTCOME)

    told = tally.cells()
    tally.count(OUTCOME)

    assert told[0].sessions == 1


def test_a_bound_belongs_to_what_is_below() -> None:
    histogram = Histogram((1.0, 2.0))

    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.count(value)

    assert (histogram.counts, histogram.sum) == ([2, 1, 1], 6.0)
    assert list(CONNECT_BOUNDS_S) == sorted(CONNECT_BOUNDS_S)


def test_the_nodes_seen_longest_ago_are_forgotten_but_not_their_sessions() -> None:
    tally = Tally(max_cells=4)

    for port in (1, 2, 3, 4, 1, 5):
        tally.count(attrs.evolve(OUTCOME, node=Address("10.0.0.1", port)))

    by_node = {cell.node: cell.sessions for cell in tally.cells()}
    assert by_node == {None: 3, Address("10.0.0.1", 1): 2, Address("10.0.0.1", 5): 1}


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(list(Reason)), st.booleans())))
def test_nothing_counted_is_lost_and_memory_is_bounded(history: list[tuple[int, Reason, bool]]) -> None:
    tally = Tally(max_cells=8)

    for port, reason, has_node in history:
        node = Address("10.0.0.1", port) if has_node else None
        tally.count(attrs.evolve(OUTCOME, reason=reason, node=node))

    cells = tally.cells()
    assert sum(cell.sessions for cell in cells) == len(history)
    assert sum(cell.bytes_up for cell in cells) == 10 * len(history)
    # Cells without a node are as many as there are listeners and reasons.
    assert len([cell for cell in cells if cell.node]) <= 8
    for reason in Reason:
        counted = sum(cell.sessions for cell in cells if cell.reason == reason)
        assert counted == sum(1 for _, each, _ in history if each == reason)
