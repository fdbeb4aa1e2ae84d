"""What `streamgw top` knows, without a gateway and without a terminal."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from streamgw.cli.top.model import CLOSES_KEPT, NODES_KEPT, SESSIONS_KEPT, Group, Model, Pace, plain
from tests.support.fake_admin import Row, session_row
from tests.support.status_endpoint import STATUS


def status(**sessions: int) -> Row:
    answer: Row = copy.deepcopy(dict(STATUS))
    answer["sessions"] |= sessions
    return answer


def opened(number: int, **fields: object) -> Row:
    return {"kind": "session_opened", "at": 0.0, **session_row(number, **fields)}


def closed(number: int, **fields: object) -> Row:
    end = {"reason": "closed", "fault": "none", "detail": "", "duration_s": 1.0}
    return {"kind": "session_closed", "at": 0.0, **session_row(number), **end, **fields}


def clients(model: Model, *args: Any, **words: Any) -> list[str]:
    return [each.client for each in model.listed(*args, now=100.0, **words)]


@pytest.fixture
def model() -> Model:
    return Model()


def test_what_changed_between_two_looks_is_the_pace(model: Model) -> None:
    model.take_status(status(total=10, bytes_up=1000, bytes_down=0), now=10.0)
    model.take_status(status(total=14, bytes_up=5000, bytes_down=800), now=12.0)

    assert model.pace == Pace(opened=2.0, bytes_up=2000.0, bytes_down=400.0)


def test_after_a_restart_there_is_no_pace_and_no_session_of_before(model: Model) -> None:
    model.take_status(status(total=10), now=10.0)
    model.take_sessions([session_row(1)], 1, now=10.0)

    model.take_status({**status(total=3), "uptime_s": 0.1}, now=12.0)

    assert model.pace == Pace()
    assert model.sessions == {}


def test_two_answers_at_once_change_no_pace(model: Model) -> None:
    model.take_status(status(total=10), now=10.0)
    model.take_status(status(total=20), now=10.0)

    assert model.pace == Pace()


def test_a_rate_follows_what_flowed_and_fades(model: Model) -> None:
    rates = []
    for now, bytes_down in ((0.0, 0), (2.0, 2000), (4.0, 4000), (6.0, 4000), (6.0, 4000)):
        model.take_sessions([session_row(1, bytes_up=0, bytes_down=bytes_down)], 1, now=now)
        (session,) = model.sessions.values()
        rates.append(round(session.rate))

    assert rates == [0, 600, 840, 336, 336]


def test_a_session_that_has_just_come_is_not_measured_yet(model: Model) -> None:
    model.take_event(opened(1, bytes_up=0, bytes_down=0), now=10.0)
    rates = []
    for now in (10.01, 10.4, 11.0):
        model.take_sessions([session_row(1, bytes_up=5000, bytes_down=0)], 1, now=now)
        rates.append(round(model.sessions["00000001"].rate))

    assert rates == [0, 0, 3000]


def test_less_than_a_byte_a_second_is_nothing(model: Model) -> None:
    for now, bytes_up in ((0.0, 0), (10.0, 1)):
        model.take_sessions([session_row(1, bytes_up=bytes_up, bytes_down=0)], 1, now=now)

    assert model.sessions["00000001"].rate == 0.0


def test_sessions_come_and_go_with_the_feed(model: Model) -> None:
    model.take_sessions([session_row(1)], 7, now=0.0)

    model.take_event(opened(2), now=1.0)
    model.take_event(opened(2), now=1.0)
    model.take_event(closed(1), now=2.0)
    model.take_event(closed(99), now=2.0)

    assert list(model.sessions) == ["00000002"]
    assert model.total == 7
    assert model.closed == 2


def test_who_ended_while_the_answer_was_on_its_way_does_not_come_back(model: Model) -> None:
    model.begin_sessions()
    model.take_event(closed(1), now=0.0)
    model.take_sessions([session_row(1), session_row(2)], 2, now=0.0)

    assert list(model.sessions) == ["00000002"]


def test_a_storm_of_sessions_fills_no_memory(model: Model) -> None:
    for number in range(SESSIONS_KEPT + 10):
        model.take_event(opened(number), now=0.0)
    for number in range(CLOSES_KEPT + 10):
        model.take_event(closed(number + 20_000), now=0.0)
    for number in range(NODES_KEPT + 10):
        model.take_event(closed(number + 30_000, fault="upstream", node=f"n{number}", route=""), now=0.0)

    assert len(model.sessions) == SESSIONS_KEPT
    assert model.total == SESSIONS_KEPT + 10
    assert len(model.closes) == CLOSES_KEPT
    assert sum(1 for group in model.nodes() if group.failures) == NODES_KEPT


def test_losses_are_counted_and_unknown_kinds_passed_over(model: Model) -> None:
    for event in ({"kind": "lost", "count": 3}, {"kind": "lost", "count": 4}, {"kind": "ping"}, {}):
        model.take_event(event, now=0.0)

    assert model.lost == 7


def test_the_latest_close_comes_first_with_its_reason(model: Model) -> None:
    model.take_event(closed(1), now=0.0)
    model.take_event(closed(2, reason="connect_failed", fault="upstream", detail=None), now=0.0)

    latest, _ = model.closes
    assert (latest.client, latest.reason, latest.fault, latest.detail) == (
        "10.0.0.2:40002",
        "connect_failed",
        "upstream",
        "",
    )


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("up", "ABC"),
        ("down", "CAB"),
        ("age", "BCA"),
        ("client", "ABC"),
        ("route", "BAC"),
        ("node", "CBA"),
        ("rate", "BCA"),
    ],
)
def test_figures_sort_from_the_largest_and_names_from_a(model: Model, sort: str, order: str) -> None:
    model.take_sessions(
        [
            session_row(1, client="A", bytes_up=30, bytes_down=2, age_s=1, route="m", node="z"),
            session_row(2, client="B", bytes_up=20, bytes_down=1, age_s=3, route="a", node="y"),
            session_row(3, client="C", bytes_up=10, bytes_down=3, age_s=2, route="z", node="x"),
        ],
        3,
        now=0.0,
    )

    assert clients(model, sort) == list(order)
    if sort != "rate":  # all equal: the oldest first, either way
        assert clients(model, sort, backwards=True) == list(reversed(order))


def test_every_word_of_the_filter_has_to_be_there(model: Model) -> None:
    model.take_sessions(
        [session_row(1, server_name="Db.Test"), session_row(2), session_row(3, route="redis")], 3, now=0.0
    )

    assert clients(model, "client", words="DB.test mysql") == ["10.0.0.1:40001"]
    assert clients(model, "client", words="redis db.test") == []


def test_routes_and_nodes_are_summed_the_busiest_first(model: Model) -> None:
    rows = [
        session_row(1),
        session_row(2),
        session_row(3, route="redis", node=""),
        session_row(4, route="", node=""),
    ]
    model.take_sessions(rows, 4, now=0.0)
    model.take_event(closed(9, fault="upstream", route="redis", node="10.9.9.9:1"), now=0.0)

    assert model.routes() == [Group("mysql", 2, 0), Group("redis", 1, 0, failures=1)]
    assert model.nodes() == [Group("127.0.0.1:3306", 2, 0), Group("10.9.9.9:1", 0, 0, failures=1)]


def test_problems_are_those_of_what_was_rejected(model: Model) -> None:
    assert model.problems() == []
    answer = status()
    answer["settings"] |= {"state": "rejected", "problems": [{"file": "conf/config.yaml"}]}

    model.take_status(answer, now=0.0)

    assert model.problems() == [("settings", [{"file": "conf/config.yaml"}])]


def test_a_session_is_never_younger_than_nothing(model: Model) -> None:
    model.take_sessions([session_row(1, age_s=2.0)], 1, now=10.0)
    (session,) = model.sessions.values()

    assert (session.age_s(13.0), session.age_s(0.0)) == (5.0, 0.0)


def test_what_a_client_calls_itself_cannot_steer_the_terminal() -> None:
    assert plain("a.test") == "a.test"
    assert plain(None) == ""
    assert plain("\x1b]0;owned\x07é") == "�]0;owned�é"
