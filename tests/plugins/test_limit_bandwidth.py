from __future__ import annotations

import pytest

from streamgw.core.bucket import Bucket, Gate
from streamgw.core.hooks import Hooks, LocalLedger, PluginServices, Shape
from streamgw.plugins.limit_bandwidth import PLUGIN, SharedBuckets
from tests.support.plugins import built, close, decide, refusals, warnings
from tests.support.scenes import facts

OTHER = facts("192.0.2.10")
MOST = 1 << 20


def shape(hooks: Hooks, *told: object) -> Shape:
    decision = decide(hooks, *told)
    assert isinstance(decision, Shape)
    return decision


def passed(buckets: tuple[Bucket, ...], now: float = 0.0) -> int:
    """How much a new session gets at once."""
    return Gate(buckets).take(MOST, now)


def test_the_sessions_of_a_key_share_what_there_is() -> None:
    hooks = built(PLUGIN, down=100_000)

    first, second, other = shape(hooks), shape(hooks), shape(hooks, OTHER)

    assert passed(first.down) == 2000
    assert passed(second.down) == 0
    assert passed(other.down) == 2000, "another key has its own"
    assert first.up == ()


def test_each_session_has_a_limit_of_its_own() -> None:
    hooks = built(PLUGIN, session_up="100kB", session_down="1MB")

    first, second = shape(hooks), shape(hooks)

    assert [passed(each.up) for each in (first, second)] == [10_000, 10_000]
    assert [passed(each.down) for each in (first, second)] == [100_000, 100_000]


def test_both_limits_count() -> None:
    decision = shape(built(PLUGIN, up=1000, session_up=500, session_burst="1k"))

    assert len(decision.up) == 2
    assert passed(decision.up) == 100, "of the key"
    assert passed(decision.up[1:]) == 1024 - 100


def test_the_ledger_knows_what_was_booked_elsewhere_and_before_an_edit() -> None:
    services = PluginServices(ledger=LocalLedger())
    before = built(PLUGIN, services, up=100_000)
    after = built(PLUGIN, services, up=100_000, session_down=1)

    assert passed(shape(before).up) == 2000
    assert passed(shape(after).up) == 0


@pytest.mark.parametrize(("before", "after"), [(100_000, 10_000_000), (10_000_000, 100_000)])
def test_sessions_of_before_another_rate_have_a_line_of_their_own(before: int, after: int) -> None:
    """A key's rate was raised a hundredfold, and new sessions stayed slow: each share of an old one took the time
    of a hundred new ones in the line that they had in common.
    """
    services = PluginServices(ledger=LocalLedger())
    old, other_old = (Gate(shape(built(PLUGIN, services, up=before)).up) for _ in range(2))
    new, other_new = (Gate(shape(built(PLUGIN, services, up=after)).up) for _ in range(2))

    assert old.take(MOST, 0.0) == before // 50, "20 ms of the whole rate"
    assert other_old.take(MOST, 0.0) == 0
    assert new.take(MOST, 0.0) == after // 50, "20 ms of the whole rate"
    assert other_new.take(MOST, 0.0) == 0


def test_up_and_down_are_two_things() -> None:
    decision = shape(built(PLUGIN, up=100_000, down=100_000))

    assert passed(decision.up) == 2000
    assert passed(decision.down) == 2000


def test_a_key_of_which_nobody_is_left_is_forgotten() -> None:
    shared = SharedBuckets(lambda key: Shape())
    first = shared.enter("a")
    assert shared.enter("a") is first
    shared.enter("b")

    shared.leave("a")
    assert len(shared) == 2
    shared.leave("a")
    assert len(shared) == 1
    assert shared.enter("a") is not first


def test_who_ends_leaves_his_key() -> None:
    hooks = built(PLUGIN, up=100_000)
    first = shape(hooks)
    assert shape(hooks).up == first.up

    close(hooks)
    close(hooks)

    assert shape(hooks).up != first.up


def test_what_has_no_effect_is_named() -> None:
    assert warnings(PLUGIN, up=1, key="arg_x", session_burst=1) == [
        "key: no variable 'arg_x' at layer 4: it never has a value",
        "session_burst: does nothing without 'session_up' or 'session_down'",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "expected one of 'up', 'down', 'session_up' and 'session_down'"),
        ({"up": 0}, "up: expected a number of bytes like 65536, 512k or 10MiB, got 0"),
        ({"up": "fast"}, "up: expected a number of bytes like 65536, 512k or 10MiB, got 'fast'"),
    ],
)
def test_what_it_may_not_be_told(options: dict[str, object], said: str) -> None:
    assert refusals(PLUGIN, **options) == [said]
