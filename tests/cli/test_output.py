"""Tables and data."""

from __future__ import annotations

import sys

import pytest

from streamgw.cli.output import print_data, print_table, shown_duration, shown_size


def test_a_pipe_gets_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["ID", "TO"], [["a", "1.2.3.4:5"], ["long-name", ""]])

    assert capsys.readouterr().out == "ID         TO\na          1.2.3.4:5\nlong-name\n"


def test_nothing_is_printed_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["ID"], [])

    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    print_table(["ID", "TO"], [["a", "[red]1.2.3.4[/red]"]])

    shown = capsys.readouterr().out
    assert "[red]1.2.3.4[/red]" in shown, "what stands in a file is no markup"
    assert "─" in shown


def test_rows_have_colours_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_table(["ID"], [["a"], ["b"]], styles=["red", ""])
    piped = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["ID"], [["a"], ["b"]], styles=["red", ""])
    on_terminal = capsys.readouterr().out

    assert piped == "ID\na\nb\n"
    assert "\x1b[31ma" in on_terminal
    assert "\x1b[31mb" not in on_terminal


def test_data_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    print_data([{"id": "ü", "port": 1}], "json")
    print_data([{"port": 1, "id": "no"}], "yaml")

    assert capsys.readouterr().out == '[\n  {\n    "id": "ü",\n    "port": 1\n  }\n]\n- id: "no"\n  port: 1\n'


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0 s"), (59.9, "59 s"), (60, "1 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_a_duration_in_its_largest_unit(seconds: float, shown: str) -> None:
    assert shown_duration(seconds) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**4, "3.0 TiB"), (2e15, "1819.0 TiB")],
)
def test_a_size_in_its_largest_unit(size: float, shown: str) -> None:
    assert shown_size(size) == shown
