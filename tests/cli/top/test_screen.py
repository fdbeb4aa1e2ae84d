"""Frames, drawn into a text."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from streamgw.cli.top.model import Model
from streamgw.cli.top.screen import draw
from streamgw.cli.top.view import View
from tests.support.fake_admin import Row, session_row
from tests.support.status_endpoint import STATUS


@pytest.fixture
def status() -> Row:
    return copy.deepcopy(dict(STATUS))


@pytest.fixture
def model(status: Row) -> Model:
    model = Model()
    model.take_status(status, now=0.0)
    model.take_sessions([session_row(number, bytes_down=2048) for number in range(1, 31)], 30, now=0.0)
    return model


def frame(model: Model, view: View, *, width: int = 140, height: int = 40, **words: Any) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(draw(model, view, now=0.0, size=(width, height), link=words.pop("link", "live"), **words))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_head_says_how_the_gateway_is(model: Model) -> None:
    lines = frame(model, View())

    assert lines[:2] == [
        "streamgw 0.1.0  ready  up 2 h  revision 3f2a9b0c  live",
        "2 sessions, 0.0/s new  up 0 B/s  down 0 B/s  ended: 7 closed, 1 no_route",
    ]


@pytest.mark.parametrize(
    ("said", "shown"), [({"draining": True}, "draining"), ({"ready": False}, "not ready"), ({}, "ready")]
)
def test_states(status: Row, said: Row, shown: str) -> None:
    model = Model()
    model.take_status({**status, **said, "sessions": {**status["sessions"], "by_reason": {}}}, now=0.0)

    first, second, *_ = frame(model, View(), link="trying again")

    assert first == f"streamgw 0.1.0  {shown}  up 2 h  revision 3f2a9b0c  trying again"
    assert "ended" not in second


def test_before_the_first_answer_there_is_only_the_link() -> None:
    assert frame(Model(), View(), link="asking")[0] == "streamgw  asking"


def test_sessions_stand_in_columns_with_the_sorted_one_marked(model: Model) -> None:
    lines = frame(model, View(sort="down"))

    assert lines[3].split() == ["CLIENT", "LISTENER", "ROUTE", "NODE", "NAME", "AGE", "UP", "DOWN↓", "RATE"]
    assert lines[4].split() == [
        "10.0.0.1:40001",
        "tcp",
        "*:9100",
        "mysql",
        "127.0.0.1:3306",
        "12",
        "s",
        "1000",
        "B",
        "2.0",
        "KiB",
        "-",
    ]


@pytest.mark.parametrize(
    ("view", "heading"),
    [
        (View(sort="client"), "CLIENT↑"),
        (View(sort="client", backwards=True), "CLIENT↓"),
        (View(sort="age", backwards=True), "AGE↑"),
    ],
)
def test_the_arrow_shows_the_direction(model: Model, view: View, heading: str) -> None:
    assert heading in frame(model, view)[3].split()


@pytest.mark.parametrize("height", [8, 12, 16, 20, 26, 40, 80])
def test_a_frame_fits_the_screen(model: Model, height: int) -> None:
    for number in range(40, 60):
        model.take_event(closed(number), now=0.0)

    assert len(frame(model, View(), height=height)) <= max(height, 8)


def test_a_narrow_screen_cuts_cells_instead_of_wrapping(model: Model) -> None:
    lines = frame(model, View(), width=60, height=24)

    assert len(lines) <= 24
    assert max(map(len, lines)) <= 60


def test_the_list_follows_the_cursor(model: Model) -> None:
    view = View(sort="client")
    view.chosen = view.shown(model, 0.0)[25].id

    lines = frame(model, view, height=20)

    assert any(line.startswith(view.shown(model, 0.0)[25].client) for line in lines)


def test_a_session_without_a_route_or_node_shows_how_far_it_got() -> None:
    model = Model()
    rows = [session_row(1, route="", node="", phase="preread"), session_row(2, node="", phase="connect")]
    model.take_sessions(rows, 2, now=0.0)

    text = "\n".join(frame(model, View(sort="client")))

    assert "preread…" in text
    assert "connect…" in text


def closed(number: int, **fields: object) -> Row:
    end = {
        "reason": "connect_failed",
        "fault": "upstream",
        "detail": "connection refused",
        "duration_s": 0.25,
    }
    return {"kind": "session_closed", "at": 0.0, **session_row(number), **end, **fields}


def test_routes_nodes_and_closes_follow(model: Model) -> None:
    model.take_event(closed(99), now=0.0)
    model.take_event(closed(98, duration_s=90.0, fault="none", reason="closed"), now=0.0)

    text = "\n".join(frame(model, View()))

    assert "FAILED" in text
    assert "connect_failed" in text
    assert "250 ms" in text
    assert "1 min" in text
    assert "connection refused" in text


def test_a_rejected_change_stands_above_everything(model: Model, status: Row) -> None:
    problem = {
        "file": "routes.d/a.yaml",
        "line": 3,
        "column": 5,
        "pointer": "x",
        "message": "\x1b[31m[bold]unknown",
    }
    status["config"] |= {"state": "rejected", "problems": [problem] * 5}
    model.take_status(status, now=1.0)

    lines = frame(model, View())

    assert lines[2:7] == [
        "routes: REJECTED, what ran before still runs",
        *["  routes.d/a.yaml:3:5 x: �[31m[bold]unknown"] * 3,
        "  and 2 more: streamgw status",
    ]


def test_the_caption_says_what_is_not_there(model: Model) -> None:
    model.take_sessions([session_row(1), session_row(2, server_name="[red]x")], 5000, now=0.0)
    view = View(words="[red]")
    view.frozen = tuple(model.listed("age", now=0.0, words="[red]"))

    text = "\n".join(frame(model, view))

    assert "1 of 1 session with '[red]'; the gateway has 4,998 younger ones, paused" in text


def test_the_last_line_is_the_prompt(model: Model) -> None:
    view = View()
    assert frame(model, view)[-1].startswith("s sort")
    assert "s sort" not in "\n".join(frame(model, view, keys=False))

    view.press("down", model, 0.0)
    view.press("k", model, 0.0)
    assert frame(model, view)[-1] == "kill the session of 10.0.0.1:40001? y/n"
    view.press("n", model, 0.0)
    view.press("/", model, 0.0)
    view.press("a", model, 0.0)
    assert frame(model, view)[-1] == "filter: a▏"
    view.press("escape", model, 0.0)
    view.message = "no session"
    assert frame(model, view)[-1] == "no session"
