"""Which records go together and when, and what becomes of them: no clock but the test's."""

from __future__ import annotations

import math
import random
import secrets

import pytest

from streamgw.core.batch import (
    Batches,
    BatchPolicy,
    Collector,
    Destination,
    OverHTTP,
    OverTCP,
    OverUDP,
    ToFile,
)


def test_an_empty_queue_has_nothing_due() -> None:
    assert Batches(BatchPolicy()).due_at == math.inf


def test_records_are_due_when_nothing_was_added_for_a_while() -> None:
    batches = Batches(BatchPolicy(inactive_s=5, buffer_s=60))

    batches.add(b"a", 100.0)
    batches.add(b"b", 103.0)

    assert batches.due_at == 108.0
    assert batches.take() == (b"a", b"b")


def test_a_steady_trickle_is_due_when_its_oldest_record_is_old_enough() -> None:
    batches = Batches(BatchPolicy(inactive_s=5, buffer_s=60))

    for second in range(59):
        batches.add(b"x", float(second))

    assert batches.due_at == 60.0


def test_a_full_batch_is_due_at_once_and_the_rest_waits_for_its_own_time() -> None:
    batches = Batches(BatchPolicy(max_records=2, inactive_s=5))

    for record in (b"a", b"b", b"c"):
        batches.add(record, 7.0)

    assert batches.due_at == 7.0
    assert batches.take() == (b"a", b"b")
    batches.succeeded()
    assert len(batches) == 1
    assert batches.due_at == 12.0


def test_a_batch_that_failed_is_tried_again_without_what_came_meanwhile() -> None:
    batches = Batches(BatchPolicy(max_retries=1, retry_delay_s=3))
    batches.add(b"a", 0.0)
    assert batches.take() == (b"a",)
    batches.add(b"b", 1.0)

    assert batches.failed(10.0) == 0

    assert batches.due_at == 13.0
    assert batches.take() == (b"a",)
    assert batches.failed(14.0) == 1, "given up"
    assert batches.take() == (b"b",)
    assert batches.failed(15.0) == 0, "with a count of its own"


@pytest.mark.parametrize(
    ("policy", "fitting"),
    [
        (BatchPolicy(max_pending=3), 3),
        (BatchPolicy(pending_limit_bytes=25), 2),
        (BatchPolicy(record_limit_bytes=9), 0),
    ],
)
def test_what_has_no_room_is_refused(policy: BatchPolicy, fitting: int) -> None:
    batches = Batches(policy)

    assert [batches.add(b"0123456789", 0.0) for _ in range(5)] == [True] * fitting + [False] * (5 - fitting)


def test_what_is_under_way_takes_room_until_it_is_delivered() -> None:
    batches = Batches(BatchPolicy(max_pending=1, pending_limit_bytes=1))
    batches.add(b"a", 0.0)
    batches.take()
    assert not batches.add(b"b", 0.0)

    batches.succeeded()

    assert batches.add(b"b", 0.0)


def test_every_record_is_delivered_once_or_given_up_in_the_order_it_came() -> None:
    """A simulation: collectors that fail at random, records that come at random."""
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")  # noqa: T201  a failure shows it
    rng = random.Random(seed)
    for _ in range(100):
        policy = BatchPolicy(
            max_records=rng.randint(1, 5),
            inactive_s=rng.uniform(1, 5),
            buffer_s=rng.uniform(5, 20),
            max_retries=rng.randint(0, 2),
            retry_delay_s=rng.uniform(0, 3),
            max_pending=rng.randint(1, 20),
        )
        batches, now, arrived, taken, lost = Batches(policy), 0.0, [], 0, 0
        for number in range(100):
            now += rng.expovariate(2)
            taken += batches.add(b"%d" % number, now)
            assert len(batches) <= policy.max_pending
            while batches.due_at <= now:
                batch = batches.take()
                assert 1 <= len(batch) <= policy.max_records
                if rng.random() < 0.5:
                    arrived += map(int, batch)
                    batches.succeeded()
                else:
                    lost += batches.failed(now)
        assert arrived == sorted(set(arrived))
        assert len(arrived) + lost + len(batches) == taken


@pytest.mark.parametrize(
    ("to", "name"),
    [
        (OverUDP(host="192.0.2.1", port=514), "udp://192.0.2.1:514"),
        (OverTCP(host="::1", port=514), "tcp://[::1]:514"),
        (OverTCP(host="logs.test", port=6514, tls=True), "tls://logs.test:6514"),
        (OverHTTP(host="logs.test", port=80), "http://logs.test:80"),
        (ToFile(path="/var/log/sessions.json"), "file:/var/log/sessions.json"),
    ],
)
def test_a_collector_has_a_name_for_people(to: Destination, name: str) -> None:
    assert str(Collector(to=to)) == name


def test_what_may_be_a_secret_is_not_in_the_name() -> None:
    to = OverHTTP(host="logs.test", port=443, tls=True, target="/in/TOKEN", authorization="Bearer TOKEN")

    assert str(Collector(to=to)) == "https://logs.test:443"
    assert "TOKEN" not in repr(Collector(to=to))
