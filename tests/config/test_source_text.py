from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config import source_text
from streamgw.config.source_text import read_text
from streamgw.core.errors import ConfigError


def problems(raw: bytes, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_text("routes.d/a.yaml", raw, environ)
    return [str(problem) for problem in caught.value.problems]


def test_a_byte_order_mark_is_not_part_of_the_text() -> None:
    assert read_text("a.yaml", b"\xef\xbb\xbfid: 1", {}).text == "id: 1"


@pytest.mark.parametrize("raw", [b"", b" \t\r\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_blank_file_is_nobodys_wish(raw: bytes) -> None:
    """A copy onto a full disk left nothing of a file, and its routes were removed."""
    assert problems(raw) == [
        "routes.d/a.yaml:1:1: the file is empty, as if it had been cut off; if nothing is meant, write {}"
    ]


@pytest.mark.parametrize("text", ["# nothing yet\n", "{}", "---\n", "${{ROUTES:=}}"])
def test_nothing_may_be_meant(text: str) -> None:
    read_text("a.yaml", text.encode(), {})


def test_bytes_that_are_not_utf_8_have_a_place() -> None:
    assert problems("a: é\nb: ".encode() + b"\xff\xfe") == [
        "routes.d/a.yaml:2:4: not UTF-8: invalid start byte (byte 0xff)"
    ]


def test_a_file_that_is_no_configuration_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_text, "MAX_FILE_BYTES", 9)

    assert problems(b"0123456789") == ["routes.d/a.yaml: the file is too large (10 bytes, at most 9)"]


def test_variables_are_filled_in_before_anything_is_parsed() -> None:
    source = read_text("a.yaml", b"${{ HOST }}:${{PORT:=9100}}${{EMPTY:=}}", {"HOST": "db", "PORT": "1"})

    assert source.text == "db:1"


def test_the_default_counts_only_without_the_variable() -> None:
    assert read_text("a.yaml", b"[${{A:=1}}, ${{B:= 2 }}]", {"A": ""}).text == "[,  2]"


def test_every_missing_variable_is_named_with_its_place() -> None:
    assert problems(b"a: 1\nb: ${{ONE}} ${{TWO:=2}}\nc: [${{THREE}}]\n") == [
        "routes.d/a.yaml:2:4: can't find environment variable ONE",
        "routes.d/a.yaml:3:5: can't find environment variable THREE",
    ]


def test_a_variable_that_is_not_utf_8_is_named_with_its_place() -> None:
    """`check` ended with a traceback of libyaml's."""
    assert problems(b"a: 1\nb: ${{SITE}}\nc: ${{NONE}}", SITE=os.fsdecode(b"Pre\xdfburg")) == [
        "routes.d/a.yaml:2:4: environment variable SITE is not UTF-8",
        "routes.d/a.yaml:3:4: can't find environment variable NONE",
    ]


def test_a_comment_asks_for_no_variable() -> None:
    text = "# ${{NOT_SET}}\n  # - ${{NOT_SET}}\n"

    assert read_text("a.yaml", text.encode(), {}).text == text


@pytest.mark.parametrize("text", ["${NAME}", "${{}}", "${{1A}}", "$ {{A}}", "{{A}}", "${{A-B}}"])
def test_what_only_looks_like_a_variable_stays(text: str) -> None:
    assert read_text("a.yaml", text.encode(), {}).text == text


def test_places_survive_values_of_any_length_and_many_lines() -> None:
    source = read_text("a.yaml", b"a: ${{A}} x\nb: ${{B}} y\nz", {"A": "1\n2\n3", "B": ""})

    assert source.text == "a: 1\n2\n3 x\nb:  y\nz"
    assert source.place(source.text.index("3")) == (1, 4), "inside a value: where it was asked for"
    assert source.place(source.text.index("x")) == (1, 11)
    assert source.place(source.text.index("y")) == (2, 11)
    assert source.place(source.text.index("z")) == (3, 1)
    assert source.place(0) == (1, 1)


@given(st.lists(st.sampled_from(["ab", "\n", "é", "${{A}}", "${{B}}", " "])), st.text("x\n"), st.text("y\n"))
def test_whatever_is_filled_in_the_rest_keeps_its_place(pieces: list[str], a: str, b: str) -> None:
    pieces = ["ab", *pieces]
    original = "".join(pieces)
    source = read_text("a.yaml", original.encode(), {"A": a, "B": b})

    written = made = 0
    for piece in pieces:
        filled = {"${{A}}": a, "${{B}}": b}.get(piece, piece)
        before = original[:written]
        if filled:
            expected = before.count("\n") + 1, written - (before.rfind("\n") + 1) + 1
            assert source.place(made) == expected
        written += len(piece)
        made += len(filled)


def test_the_end_of_the_text_has_a_place() -> None:
    source = read_text("a.yaml", b"a\n", {})

    assert source.place(2) == (2, 1)


@pytest.mark.parametrize(
    "text", ["😀", "a😀b", "\\😀", "\\\\😀", "\\ud83d", "\ud83d".encode("utf-8", "replace").decode()]
)
def test_json_may_escape_characters_beyond_the_bmp_in_two_halves(text: str) -> None:
    raw = json.dumps(text, ensure_ascii=True).encode()

    source = read_text("a.json", raw, {})

    assert json.loads(source.text) == text
    assert read_text("A.JSON", raw, {}).text == source.text, "tools on other systems shout"
    assert read_text("a.yaml", raw, {}).text == raw.decode(), "YAML has no such escape"
