"""What is known of the nodes of one upstream, on a clock that stands still until it is set."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.load import DECAY_S, FAILURE_S, MAX_FIRST_BYTE_S, SLOW_START_FLOOR, UpstreamLoad
from streamgw.core.model import Address, Node

A, B, C = (Node(f"10.0.0.{number}", 80) for number in (1, 2, 3))


def at(node: Node) -> Address:
    return Address(node.host, node.port)


@attrs.define
class Scene:
    """A clock to turn, and the load of an upstream with nodes a and b."""

    now: float = 1000.0
    load: UpstreamLoad = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.load = UpstreamLoad(lambda: self.now)
        self.load.keep([A, B])


@pytest.fixture
def scene() -> Scene:
    return Scene()


# ── Sessions ─────────────────────────────────────────────────────────────────────────────────────


def test_a_session_counts_until_its_lease_is_closed(scene: Scene) -> None:
    lease = scene.load.lease(at(A))
    with scene.load.lease(at(A)):
        assert scene.load.active(A) == 2
        assert scene.load.active(B) == 0
    lease.close()
    lease.close()

    assert scene.load.active(A) == 0


def test_a_session_that_leaves_makes_room_once(scene: Scene) -> None:
    told: list[str] = []
    scene.load.on_room = lambda: told.append("room")
    lease = scene.load.lease(at(A))

    lease.close()
    lease.close()

    assert told == ["room"]


def test_sessions_of_a_node_that_was_removed_still_count_when_it_comes_back(scene: Scene) -> None:
    lease = scene.load.lease(at(A))

    scene.load.keep([B])
    scene.load.keep([A, B])

    assert scene.load.active(A) == 1
    assert scene.load.has_sessions()
    lease.close()
    assert not scene.load.has_sessions()


def test_a_node_that_is_gone_is_forgotten_with_its_last_session(scene: Scene) -> None:
    for node in (A, B):
        scene.load.answered(at(node), 0.5)
    scene.load.keep([B])
    scene.load.keep([A, B])

    assert scene.load.latency_s(A) == 0.0
    assert scene.load.latency_s(B) == 0.5


# ── Latency ──────────────────────────────────────────────────────────────────────────────────────


def test_the_first_connect_is_the_latency_and_later_ones_weigh_by_their_age(scene: Scene) -> None:
    scene.load.answered(at(A), 0.5)
    assert scene.load.latency_s(A) == 0.5

    scene.now += DECAY_S
    scene.load.answered(at(A), 0.1)

    kept = math.exp(-1)
    assert scene.load.latency_s(A) == pytest.approx(0.5 * kept + 0.1 * (1 - kept))


def test_a_node_that_nobody_asks_is_forgiven(scene: Scene) -> None:
    scene.load.answered(at(A), 2.0)
    scene.now += 10 * DECAY_S

    assert scene.load.latency_s(A) < 0.001


def test_a_refusal_is_no_sign_of_speed(scene: Scene) -> None:
    scene.load.failed(at(A), "connection refused")

    assert scene.load.latency_s(A) == FAILURE_S


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 10)), min_size=1))
def test_the_latency_stays_between_zero_and_the_slowest_connect(history: list[tuple[float, float]]) -> None:
    scene = Scene()
    for pause_s, connect_s in history:
        scene.now += pause_s
        scene.load.answered(at(A), connect_s)

    slowest = max(connect_s for _, connect_s in history)
    assert 0 <= scene.load.latency_s(A) <= slowest * 1.000001


def test_connect_and_first_byte_are_averages_of_their_own_and_count_together(scene: Scene) -> None:
    """A session's two times come right after each other: in one average the second would hardly count."""
    scene.load.answered(at(A), 0.001)
    scene.load.first_byte(at(A), 0.2)
    assert scene.load.latency_s(A) == pytest.approx(0.201)

    scene.now += DECAY_S
    scene.load.answered(at(A), 0.001)
    scene.load.first_byte(at(A), 0.4)

    kept = math.exp(-1)
    assert scene.load.latency_s(A) == pytest.approx(0.001 + 0.2 * kept + 0.4 * (1 - kept))


def test_an_answer_that_takes_an_hour_is_one_that_takes_a_second(scene: Scene) -> None:
    scene.load.first_byte(at(A), 3600.0)

    assert scene.load.latency_s(A) == MAX_FIRST_BYTE_S <= FAILURE_S


def test_a_node_that_gets_sessions_is_not_forgiven_before_it_answers_them(scene: Scene) -> None:
    """One that hangs still accepts connections. It must not look quicker and quicker meanwhile."""
    scene.load.answered(at(A), 0.001)
    scene.load.first_byte(at(A), 0.2)

    for _ in range(100):
        scene.now += DECAY_S / 10
        scene.load.lease(at(A))
        scene.load.answered(at(A), 0.001)

    assert scene.load.latency_s(A) == pytest.approx(0.201)


def test_a_node_that_was_slow_is_tried_by_one_session_not_by_a_crowd(scene: Scene) -> None:
    scene.load.first_byte(at(A), 0.5)
    scene.now += 10 * DECAY_S
    assert scene.load.latency_s(A) < 0.001

    scene.load.lease(at(A))
    assert scene.load.latency_s(A) == 0.5

    scene.load.first_byte(at(A), 0.01)
    assert scene.load.latency_s(A) == pytest.approx(0.01, rel=0.01)


def test_a_node_that_never_said_a_word_is_not_quick_where_others_do(scene: Scene) -> None:
    scene.load.answered(at(A), 0.001)
    lease = scene.load.lease(at(A))
    assert scene.load.latency_s(A) == 0.001, "nobody says a word there: a log collector"

    scene.load.first_byte(at(B), 0.2)
    assert scene.load.latency_s(A) == pytest.approx(FAILURE_S, rel=0.01)

    lease.close()
    assert scene.load.latency_s(A) == 0.001, "it may be tried"
    scene.load.lease(at(A))
    scene.load.first_byte(at(A), 0.1)
    assert scene.load.latency_s(A) == pytest.approx(0.101)


# ── Up and down ──────────────────────────────────────────────────────────────────────────────────


def test_a_node_is_up_until_somebody_says_otherwise(scene: Scene) -> None:
    assert scene.load.is_steady
    assert scene.load.set_up(at(A), False)
    assert not scene.load.set_up(at(A), False), "no news"

    assert (scene.load.is_up(A), scene.load.is_up(B)) == (False, True)
    assert not scene.load.is_steady

    assert scene.load.set_up(at(A), True)
    assert scene.load.is_up(A)
    assert scene.load.is_steady


def test_when_all_are_down_all_are_used_or_none_by_choice(scene: Scene) -> None:
    for node in (A, B):
        scene.load.set_up(at(node), False)

    assert scene.load.is_up(A)
    assert not scene.load.is_all_down
    scene.load.fails_open = False
    assert not scene.load.is_up(A)
    assert scene.load.is_all_down


def test_the_last_one_up_may_be_removed(scene: Scene) -> None:
    scene.load.set_up(at(A), False)
    assert not scene.load.is_up(A)

    scene.load.keep([A])

    assert scene.load.is_up(A), "all that are left are down"


def test_what_is_known_before_the_first_session_is_kept() -> None:
    load = UpstreamLoad(lambda: 0.0)
    load.set_up(at(A), False)

    load.keep([A, B])

    assert not load.is_up(A)


def test_a_node_that_is_gone_is_not_down_any_more(scene: Scene) -> None:
    scene.load.set_up(at(A), False)

    scene.load.keep([B])

    assert scene.load.is_steady


# ── Slow start ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("age_s", "share"), [(0, SLOW_START_FLOOR), (1, 0.1), (3, 0.3), (5, 0.5), (9.5, 0.95), (10, 1), (99, 1)]
)
def test_the_weight_of_a_node_that_came_up_grows_with_time(scene: Scene, age_s: float, share: float) -> None:
    scene.load.slow_start_s = 10
    scene.load.set_up(at(A), False)
    scene.load.set_up(at(A), True)

    scene.now += age_s

    assert scene.load.share(A) == pytest.approx(share)
    assert scene.load.share(B) == 1.0
    assert scene.load.is_steady is (share == 1)


@pytest.mark.parametrize("before", [0, 5])
def test_a_longer_slow_start_counts_for_a_node_that_is_at_it(scene: Scene, before: float) -> None:
    """An operator raised it because a node drowned; when the time of before was over the node got its whole weight at once."""
    scene.load.slow_start_s = before
    scene.load.set_up(at(A), False)
    scene.load.set_up(at(A), True)
    assert scene.load.is_steady is (before == 0)

    scene.load.slow_start_s = 10

    scene.now += 5
    assert not scene.load.is_steady
    scene.now += 5
    assert scene.load.is_steady


def test_nobody_starts_slowly_on_the_first_day(scene: Scene) -> None:
    scene.load.slow_start_s = 10

    assert scene.load.share(A) == 1.0
    assert scene.load.is_steady


def test_a_node_that_was_added_starts_slowly(scene: Scene) -> None:
    scene.load.slow_start_s = 10

    scene.load.keep([A, B, C])

    assert [scene.load.share(node) for node in (A, B, C)] == [1, 1, SLOW_START_FLOOR]


def test_without_slow_start_a_node_has_its_weight_at_once(scene: Scene) -> None:
    scene.load.keep([A, B, C])

    assert scene.load.share(C) == 1.0
    assert scene.load.is_steady
