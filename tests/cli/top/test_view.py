"""Keys."""

from __future__ import annotations

import pytest

from streamgw.cli.top.model import Model
from streamgw.cli.top.view import FILTER_LIMIT, PAGE, View, Wish, keys_of
from tests.support.fake_admin import session_row


@pytest.fixture
def model() -> Model:
    model = Model()
    model.take_sessions([session_row(number, age_s=100 - number) for number in range(1, 31)], 30, now=0.0)
    return model


@pytest.fixture
def view() -> View:
    return View(sort="age")


def press(view: View, model: Model, *keys: str) -> list[Wish]:
    return [wish for key in keys if (wish := view.press(key, model, 0.0))]


def chosen(view: View, model: Model) -> int:
    return [each.id for each in view.shown(model, 0.0)].index(view.chosen)


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"sq", ["s", "q"]),
        (b"\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        (b"\x1b[5~\x1b[6~\x1b[H", ["page up", "page down", "home"]),
        (b"\x1b", ["escape"]),
        (b"\x1bq", ["escape", "q"]),
        (b"\r\x7f\x15\x03", ["enter", "backspace", "clear", "interrupt"]),
        ("é日".encode(), ["é", "日"]),
        (b"\xff\xfe", []),
        (b"\x1b[1;5C\x1b[15~\x1bOP\x1a\x00", []),
        (b"", []),
    ],
)
def test_bytes_of_a_terminal_are_keys(data: bytes, keys: list[str]) -> None:
    assert keys_of(data) == keys


@pytest.mark.parametrize("key", ["q", "interrupt"])
def test_q_and_ctrl_c_end_it(view: View, model: Model, key: str) -> None:
    assert press(view, model, key) == ["quit"]


def test_s_goes_through_the_columns_and_r_turns_round(view: View, model: Model) -> None:
    sorts = []
    for _ in range(7):
        press(view, model, "s")
        sorts.append(view.sort)

    assert sorts == ["up", "down", "client", "route", "node", "rate", "age"]
    press(view, model, "r")
    assert view.shown(model, 0.0)[0].id == f"{30:08x}"


def test_a_filter_is_typed_taken_or_dropped(view: View, model: Model) -> None:
    press(view, model, "/", *"10.0.0.31", "backspace", "enter")
    assert [each.client for each in view.shown(model, 0.0)] == ["10.0.0.3:40003", "10.0.0.30:40030"]

    press(view, model, "/", "clear", *"qk")
    assert (view.words, view.prompt) == ("qk", "filter")
    press(view, model, "up", "escape")
    assert (view.words, view.prompt) == ("10.0.0.3", "")

    press(view, model, "escape")
    assert len(view.shown(model, 0.0)) == 30


def test_a_filter_has_a_limit(view: View, model: Model) -> None:
    press(view, model, "/", *"x" * (FILTER_LIMIT + 5))

    assert len(view.words) == FILTER_LIMIT


def test_ctrl_c_ends_it_in_the_middle_of_a_filter_too(view: View, model: Model) -> None:
    assert press(view, model, "/", "a", "interrupt") == ["quit"]


def test_arrows_choose_and_stop_at_the_ends(view: View, model: Model) -> None:
    places = []
    for key in ("down", "down", "up", "up", "page down", "page down", "page down", "down", "page up", "home"):
        press(view, model, key)
        places.append(chosen(view, model))

    assert places == [0, 1, 0, 0, PAGE, 2 * PAGE, 29, 29, 29 - PAGE, 0]


def test_with_nothing_in_the_list_arrows_choose_nothing(view: View) -> None:
    press(view, Model(), "down")

    assert view.chosen == ""


def test_a_pause_holds_the_list_still(view: View, model: Model) -> None:
    press(view, model, "p")
    model.take_sessions([], 0, now=0.0)
    assert len(view.shown(model, 0.0)) == 30

    press(view, model, " ")
    assert view.shown(model, 0.0) == []


def test_killing_takes_a_choice_and_a_yes(view: View, model: Model) -> None:
    assert press(view, model, "k") == []
    assert "arrow" in view.message

    assert press(view, model, "down", "k", "n") == []
    assert press(view, model, "k", "enter") == []
    assert press(view, model, "k", "y") == ["kill"]
    assert view.victim is not None
    assert view.victim.client == "10.0.0.1:40001"


def test_keys_that_mean_nothing_do_nothing(view: View, model: Model) -> None:
    before = view.shown(model, 0.0)

    assert press(view, model, "x", "enter", "backspace", "z") == []

    assert view.shown(model, 0.0) == before
