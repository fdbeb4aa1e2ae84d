"""Where everything stands in a text."""

from __future__ import annotations

import json

import pytest

from streamgw.config.layout import NotYAML, is_same, read_layout

TEXT = """\
a: &x
  - id: 1   # one

  - text: |
      two
       three


# four
b: {c: *x, "d": [], e: }
"""


def test_every_value_has_its_span() -> None:
    root = read_layout(TEXT).root

    a, b = root.field("a")[1], root.field("b")[1]
    one, two = a.children
    assert TEXT[one.start : one.end] == "id: 1"
    assert (one.line, one.column) == (2, 4)
    assert TEXT[two.start : two.end] == "text: |\n      two\n       three"
    assert [TEXT[start:end] for start, end in a.spans()] == ["id: 1", "text: |\n      two\n       three"]
    assert [TEXT[start:end] for start, end in b.spans()][:2] == ["c: *x", '"d": []']
    assert a.end == two.end
    assert TEXT[b.start : b.end] == '{c: *x, "d": [], e: }'


def test_an_alias_stands_where_it_is_written() -> None:
    alias = read_layout(TEXT).root.field("b")[1].field("c")[1]

    assert (alias.kind, TEXT[alias.start : alias.end], alias.flow) == ("alias", "*x", True)


def test_a_field_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        read_layout("a: 1").root.field("b")


def test_json_is_told_from_flow_style() -> None:
    assert read_layout('{"a": 1, "b": {}}').root.is_json
    assert not read_layout('{"a": 1, b: 2}').root.is_json
    assert not read_layout('"a": 1').root.is_json


def test_variables_stay_and_do_not_move_anything() -> None:
    text = 'a: ${{A:=[1, "x"]}}\nb: {c: ${{C}}, d: "${{D}}s"}\n'

    layout = read_layout(text)

    assert layout.data == {"a": '${{A:=[1, "x"]}}', "b": {"c": "${{C}}", "d": "${{D}}s"}}
    c = layout.root.field("b")[1].field("c")[1]
    assert text[c.start : c.end] == c.value == "${{C}}"


def test_characters_that_json_writes_in_two_halves_are_whole() -> None:
    text = json.dumps({"a": "\U0001f600 \\ud83d", "b": "\U0010ffff"})

    layout = read_layout(text)

    assert layout.data == {"a": "\U0001f600 \\ud83d", "b": "\U0010ffff"}
    b = layout.root.field("b")[1]
    assert text[b.start : b.end] == r'"\udbff\udfff"'


def test_halves_outside_of_double_quotes_are_what_they_look_like() -> None:
    text = "a: \\ud83d\\uDE00\nb: '\\ud83d\\ude00'\nc: \"\\\\ud83d\"\n"

    assert read_layout(text).data == {"a": "\\ud83d\\uDE00", "b": "\\ud83d\\ude00", "c": "\\ud83d"}


@pytest.mark.parametrize(
    "written", ["\ue000", '"\\ue000"', '"\\U0000E000"', "\ue800\uec00", "\ue000 ${{A:={}}}"]
)
def test_characters_for_private_use_are_the_users(written: str) -> None:
    """Icons of many fonts: one of them was read as a brace, and two in a row as another character."""
    text = f"a: {written}\nb: ${{{{B:=[]}}}}\n"

    layout = read_layout(text)

    expected = "\ue000" if written.startswith('"') else written
    assert layout.data == {"a": expected, "b": "${{B:=[]}}"}
    assert layout.root.field("a")[1].value == expected


def test_somebody_who_uses_all_of_them_is_told() -> None:
    text = "a: " + "".join(map(chr, range(0xE000, 0xF900)))

    with pytest.raises(NotYAML, match="private use"):
        read_layout(text)


def test_an_empty_text_has_no_fields() -> None:
    for text in ("", "# nothing\n", "---\n"):
        layout = read_layout(text)
        assert (layout.data, layout.root.children) == ({}, [])


@pytest.mark.parametrize("text", ["- 1", "a", "a: [", "a: 1\na: 2", "a: 1\n---\nb: 1", "a: \x00"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(NotYAML):
        read_layout(text)


def test_types_count_when_values_are_compared() -> None:
    assert is_same({"a": [1, "x"], "b": None}, {"b": None, "a": (1, "x")})
    for one, other in [
        (1, True),
        (1, 1.0),
        ("1", 1),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        ({}, []),
        (None, 0),
    ]:
        assert not is_same(one, other)
