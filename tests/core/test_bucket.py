"""Buckets and gates against a clock that a test turns: who passes when, how much of a line each gets, and never too much."""

from __future__ import annotations

import heapq
import itertools
import math

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamgw.core.bucket import (
    BURST_S,
    LARGEST_SHARE_BYTES,
    SEGMENT_BYTES,
    SHARE_S,
    BookedBucket,
    Bucket,
    Gate,
)

MOST = 1 << 20
RATE, BURST, SHARE = 100_000, 10_000, 2_000


@attrs.define
class Book:
    """Stands for the ledger: moments follow each other, for whoever asks."""

    free_at: float = 0.0

    def __call__(self, now: float, interval_s: float, ahead_s: float) -> float | None:
        at = max(self.free_at, now)
        if at - now > ahead_s:
            return None
        self.free_at = at + interval_s
        return at - now


# One bucket


def test_a_burst_passes_at_once_and_then_the_rate() -> None:
    gate = Gate([Bucket(RATE, BURST)])

    assert gate.take(MOST, 50.0) == BURST
    assert gate.take(MOST, 50.0) == 0
    assert gate.opens_at == pytest.approx(50.0 + SHARE_S)
    assert gate.take(MOST, 50.019) == 0
    assert gate.take(MOST, 50.021) == SHARE


def test_without_a_word_about_it_the_burst_is_a_tenth_of_a_second() -> None:
    assert Gate([Bucket(RATE)]).take(MOST, 0.0) == RATE * BURST_S


def test_a_burst_is_never_so_small_that_the_rate_cannot_be_reached() -> None:
    assert Gate([Bucket(RATE, 1)]).take(MOST, 0.0) == SHARE


def test_what_is_not_used_is_saved_up_to_the_burst() -> None:
    gate = Gate([Bucket(RATE, BURST)])
    assert gate.take(MOST, 0.0) == BURST

    assert gate.take(MOST, 0.05) == BURST / 2
    assert gate.take(MOST, 60.0) == BURST


def test_small_messages_pass_at_once_while_something_is_saved() -> None:
    gate = Gate([Bucket(RATE, BURST)])

    passed = []
    for _ in range(10):
        most = gate.take(MOST, 0.0)
        if most:
            gate.give_back(most - 1000, 0.0)
        passed.append(most)

    assert passed == [10_000, 9000, 8000, 7000, 6000, 5000, 4000, 3000, 2000, 0]


def test_what_is_granted_may_be_taken_in_pieces() -> None:
    gate = Gate([Bucket(1_000_000, 50_000)])

    assert [gate.take(20_000, 0.0) for _ in range(3)] == [20_000, 20_000, 0]
    assert gate.opens_at == pytest.approx(0.01), "of the share of 20,000, half was saved"
    assert gate.take(15_000, 0.01) == 15_000
    assert gate.take(15_000, 0.01) == 5_000, "what is left of the grant"


@pytest.mark.parametrize(
    ("rate", "waiting", "share"),
    [
        (1_000_000, 0, 20_000),
        (1_000_000, 3, 5_000),
        (1_000_000, 999, SEGMENT_BYTES),
        (1_000, 999, 100),
        (1, 0, 1),
        (1e12, 0, LARGEST_SHARE_BYTES),
    ],
)
def test_a_share_is_as_small_as_the_line_is_long_within_reason(rate: float, waiting: int, share: int) -> None:
    bucket = Bucket(rate)
    bucket.waiting = waiting

    assert bucket.share == share


# Several buckets, several gates


def test_of_several_buckets_the_slowest_counts() -> None:
    slow, fast = Bucket(RATE, BURST), Bucket(10 * RATE, 10 * BURST)
    gate = Gate([fast, slow])

    assert gate.take(MOST, 0.0) == BURST
    assert gate.take(MOST, 0.0) == 0
    assert gate.take(MOST, 0.021) == SHARE


def test_who_shares_a_bucket_gets_as_much_as_the_others() -> None:
    bucket = Bucket(100_000, 2000)
    crowd = [Gate([bucket]) for _ in range(5)]

    passed = run(crowd, until_s=10.0)

    assert sum(passed) == pytest.approx(1_000_000, rel=0.01)
    assert max(passed) - min(passed) <= 2 * 2000


def test_who_has_a_limit_of_his_own_leaves_the_rest_to_the_others() -> None:
    shared = Bucket(100_000, 2000)
    slow, fast = Gate([shared, Bucket(10_000, 1000)]), Gate([shared])

    passed = run([slow, fast], until_s=10.0)

    assert passed[0] == pytest.approx(100_000, rel=0.05)
    assert passed[1] == pytest.approx(900_000, rel=0.05)


def test_who_comes_while_others_wait_goes_behind_them_even_if_something_is_saved() -> None:
    bucket = Bucket(RATE, BURST)
    first, second = Gate([bucket]), Gate([bucket])
    assert first.take(MOST, 0.0) == BURST
    assert first.take(MOST, 0.0) == 0

    assert second.take(MOST, 0.5) == 0, (
        "the first is late, and what has come since is not a latecomer's alone"
    )
    assert second.opens_at == 0.5

    assert first.take(MOST, 0.5) == SHARE
    assert second.take(MOST, 0.5) > 0


def test_who_ends_while_waiting_leaves_his_place_to_the_others() -> None:
    bucket = Bucket(RATE, BURST)
    gone, other = Gate([bucket]), Gate([bucket])
    assert gone.take(MOST, 0.0) == BURST
    assert gone.take(MOST, 0.0) == 0

    gone.close(0.0)
    gone.close(0.0)

    assert bucket.waiting == 0
    assert other.take(MOST, 0.021) == 2100


def test_who_ends_gives_back_what_he_has_not_used() -> None:
    bucket = Bucket(RATE, BURST)
    gone, other = Gate([bucket]), Gate([bucket])
    assert gone.take(3000, 0.0) == 3000

    gone.close(0.0)

    assert other.take(MOST, 0.0) == BURST - 3000


def test_a_gate_without_buckets_is_open() -> None:
    assert Gate().take(MOST, 0.0) == MOST


# To the end and no further


def test_a_gate_that_ends_is_spent_after_exactly_that_many_bytes() -> None:
    gate = Gate(ends_after=100, why="on purpose")

    assert gate.take(60, 0.0) == 60
    assert not gate.is_spent
    assert gate.take(60, 0.0) == 40
    assert gate.is_spent
    assert gate.take(60, 0.0) == 0
    assert gate.why == "on purpose"


def test_bytes_that_there_were_not_do_not_count() -> None:
    gate = Gate([Bucket(1000, 200)], ends_after=100)
    assert gate.take(MOST, 0.0) == 100

    gate.give_back(70, 0.0)

    assert gate.take(MOST, 0.0) == 70


# Datagrams


def test_a_datagram_passes_as_a_whole_if_anything_is_saved_and_is_owed() -> None:
    gate = Gate([Bucket(RATE, BURST)])

    assert gate.lets_pass(60_000, 0.0)
    assert not gate.lets_pass(1, 0.49)
    assert gate.lets_pass(1, 0.51)


def test_a_datagram_that_one_bucket_stops_costs_the_others_nothing() -> None:
    slow, fast = Bucket(RATE, BURST), Bucket(RATE, BURST)
    Gate([slow]).lets_pass(60_000, 0.0)

    assert not Gate([fast, slow]).lets_pass(10, 0.0)

    assert fast.room(0.0) == BURST


# Booked


def test_what_one_process_books_another_has_to_wait_for() -> None:
    book = Book()
    here, there = (Gate([BookedBucket(RATE, book)]) for _ in range(2))

    assert here.take(MOST, 0.0) == SHARE
    assert there.take(MOST, 0.0) == 0
    assert there.opens_at == pytest.approx(0.02)
    assert here.take(MOST, 0.0) == 0
    assert here.opens_at == pytest.approx(0.04)
    assert there.take(MOST, 0.021) == SHARE


def test_what_was_booked_and_not_used_is_kept_for_the_next() -> None:
    gate = Gate([BookedBucket(RATE, Book())])
    assert gate.take(MOST, 0.0) == SHARE

    gate.give_back(1500, 0.0)

    assert gate.take(MOST, 0.0) == 0
    assert gate.opens_at == pytest.approx(0.02), "1,500 are there, 500 more are booked"
    assert gate.take(MOST, 0.02) == SHARE
    assert gate.take(MOST, 0.02) == 0
    assert gate.opens_at == pytest.approx(0.025)


def test_processes_with_a_line_each_pass_the_rate_together() -> None:
    book = Book()
    crowd = [Gate([bucket]) for bucket in [BookedBucket(100_000, book) for _ in range(3)] for _ in range(2)]

    passed = run(crowd, until_s=10.0)

    assert sum(passed) == pytest.approx(1_000_000, rel=0.01)
    assert min(passed) > 100_000


def test_a_booked_datagram_that_is_larger_than_what_there_is_is_booked_in_advance() -> None:
    gate = Gate([BookedBucket(RATE, Book())])

    assert gate.lets_pass(52_000, 0.0)
    assert not gate.lets_pass(1, 0.51)
    assert gate.lets_pass(1, 0.53)


# Whatever happens


def run(gates: list[Gate], *, until_s: float, wants: int = MOST) -> list[int]:
    """Everybody takes as much as he can get, as soon as he can; how much that was."""
    passed = [0] * len(gates)
    numbers = itertools.count()
    line = [(0.0, next(numbers), who) for who in range(len(gates))]
    while line:
        now, _, who = heapq.heappop(line)
        if now > until_s:
            continue
        count = gates[who].take(wants, now)
        passed[who] += count
        heapq.heappush(line, (now if count else max(now, gates[who].opens_at), next(numbers), who))
    return passed


@given(
    rate=st.floats(1, 1e9),
    burst=st.none() | st.floats(1, 1e9),
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0, 2), st.integers(1, 1 << 20), st.floats(0, 1)),
        max_size=60,
    ),
)
def test_no_stretch_of_time_passes_more_than_rate_and_burst(
    rate: float, burst: float | None, steps: list[tuple[int, float, int, float]]
) -> None:
    bucket = Bucket(rate, burst)
    gates = [Gate([bucket]) for _ in range(4)]
    saved = max(rate * BURST_S if burst is None else burst, rate * SHARE_S, 1.0)
    now, passed = 1000.0, []

    for who, pause_s, most, used in steps:
        now += pause_s
        count = gates[who].take(most, now)
        assert count <= most
        if count:
            kept = int(count * used)
            gates[who].give_back(count - kept, now)
            passed.append((now, kept))
        else:
            assert gates[who].waits
            assert now <= gates[who].opens_at < math.inf

    # What somebody was granted and takes late was saved for him: a share each.
    late = len(gates) * bucket.share + sum(min(saved, LARGEST_SHARE_BYTES) for _ in gates)
    for first, (begins_at, _) in enumerate(passed):
        for last in range(first, len(passed)):
            total = sum(count for _, count in passed[first : last + 1])
            assert total <= (passed[last][0] - begins_at) * rate + saved + late + 1


@given(
    st.lists(st.floats(10, 1e6), min_size=1, max_size=6),
    st.floats(100, 1e6),
)
@example([14_600.0] * 5 + [2_433.0], 14_600.0)
@example([1460.0, 1520.0, 1520.0, 382.0], 1527.0)
def test_nobody_starves_and_nothing_is_left_lying(own_rates: list[float], rate: float) -> None:
    shared = Bucket(rate)
    gates = [Gate([shared, Bucket(own)]) for own in own_rates]

    passed = run(gates, until_s=20.0)

    fair = rate * 20 / len(gates)
    for own, count in zip(own_rates, passed, strict=True):
        assert count >= 0.7 * min(fair, own * 20)
    assert sum(passed) <= rate * 20 + rate * BURST_S + len(gates) * shared.share
    for gate in gates:
        gate.close(20.0)
    assert shared.waiting == 0
