from __future__ import annotations

import json
import math
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config import yaml_reader
from streamgw.config.source_text import read_text
from streamgw.config.yaml_reader import locate, pointer_of, read_yaml
from streamgw.core.errors import ConfigError


def read(text: str, name: str = "a.yaml") -> object:
    return read_yaml(read_text(name, text.encode(), {})).data


def problems(text: str, name: str = "a.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, name)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "written",
    [
        "no", "No", "on", "off", "yes", "y", "n", "22:22", "1:30:00", "0123", "-07", "0o17", "0x1f", "0b1", "1_000",
        "2020-01-01", "2001-12-14t21:59:43.10-05:00", ".inf", ".nan", "+", ".", "e3", "1e", "=", "1.2.3", "1,5",
        "9" * 301,
    ],
)  # fmt: skip
def test_what_yaml_1_1_would_convert_stays_text(written: str) -> None:
    assert read(f"a: {written}") == {"a": written}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True), ("True", True), ("TRUE", True), ("false", False), ("False", False), ("null", None),
        ("~", None), ("", None), ("0", 0), ("-0", 0), ("+7", 7), ("65536", 65536), ("1.5", 1.5), ("-.5", -0.5),
        ("1.", 1.0), ("1e3", 1000.0), ("2.5E-1", 0.25), ("1e999", math.inf), ("9" * 300, int("9" * 300)),
    ],
)  # fmt: skip
def test_what_every_reader_agrees_on_is_converted(written: str, value: object) -> None:
    data = read(f"a: {written}")

    assert data == {"a": value}
    assert type(data["a"]) is type(value)


@pytest.mark.parametrize("written", ["'80'", '"80"', "!!str 80", "! 80", "|-\n  80", ">-\n  80"])
def test_quoted_numbers_are_text(written: str) -> None:
    assert read(f"a: {written}") == {"a": "80"}


def test_keys_are_the_text_they_are_written_as() -> None:
    assert read("1: a\nno: b\n1.50: c\n'x': d\n~: e\n127.0.0.1:80: f\n!!str 7: g") == {
        "1": "a",
        "no": "b",
        "1.50": "c",
        "x": "d",
        "~": "e",
        "127.0.0.1:80": "f",
        "7": "g",
    }


@pytest.mark.parametrize("text", ["# nothing\n", "---\n", "%YAML 1.1\n---\n", "#END\n"])
def test_an_empty_file_is_none(text: str) -> None:
    assert read(text) is None


def test_an_empty_text_is_none() -> None:
    """A file would be refused; a default of the environment may be empty."""
    assert read("${{NOTHING:=}}") is None


@pytest.mark.parametrize("text", ["- 1\n- [2]", "[1, [2]]"])
def test_the_root_may_be_a_list(text: str) -> None:
    assert read(text) == [1, [2]]


def test_apisix_marks_the_end_with_a_comment() -> None:
    assert read("a: 1\n#END\n") == {"a": 1}


def test_the_items_of_a_collection_know_their_lines() -> None:
    source = read_text(
        "a.yaml", b"x: ${{A}}\nr:\n\n  - 1\n  - a: 2\n    b: [3]\n  - [4]\ns: [1,\n 2]\n", {"A": "'\n\n'"}
    )

    reading = read_yaml(source)

    assert reading.item_lines == {"r": (4, 5, 7), "s": (8, 9)}


def test_duplicate_keys_are_all_named_with_both_places() -> None:
    assert problems("a: 1\nb:\n  c: 1\n  d: {e: 1, 'e': 2, e: 3}\na: 2\n? [x]\n: y\n") == [
        "a.yaml:4:13 b.d.e: duplicate key, the first is at line 4",
        "a.yaml:4:21 b.d.e: duplicate key, the first is at line 4",
        "a.yaml:5:1 a: duplicate key, the first is at line 1",
    ]


def test_what_is_broken_behind_a_duplicate_key_is_named_too() -> None:
    assert problems("a: 1\na: 2\nb: c: d") == [
        "a.yaml:2:1 a: duplicate key, the first is at line 1",
        "a.yaml:3:5: not YAML: mapping values are not allowed in this context",
    ]


def test_a_deep_nest_behind_a_duplicate_key_does_no_harm() -> None:
    assert problems("a: 1\na: 2\nb: " + "[" * 500 + "]" * 500) == [
        "a.yaml:2:1 a: duplicate key, the first is at line 1"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\t- b", "a.yaml:2:1: not YAML: a tab cannot indent; use spaces"),
        ("a: b: c", "a.yaml:1:5: not YAML: mapping values are not allowed in this context"),
        ("a: 'b", "a.yaml:1:6: not YAML: found unexpected end of stream while scanning a quoted scalar"),
        ("é: \x01", "a.yaml:1:4: not text: control characters are not allowed (U+0001)"),
        ("a: 1\n---\nb: 2", "a.yaml:2:1: a second document begins here; a file has one"),
        ("a: !!int 5", "a.yaml:1:4: unsupported tag 'tag:yaml.org,2002:int'"),
        ("a: !!python/object:os.system []", "unsupported tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("!!binary a: 1", "a.yaml:1:1: unsupported tag 'tag:yaml.org,2002:binary'"),
        ("a: !x {}", "a.yaml:1:4: unsupported tag '!x'"),
        ("? [b]\n: c", "a.yaml:1:3: a key must be text"),
        ("a: *b", "a.yaml:1:4: alias to an unknown anchor 'b'"),
        ("a: &x [*x]", "a.yaml:1:8: alias to an unknown anchor 'x'"),
        ("a: {<<: 1}", "a.yaml:1:9: '<<' takes a mapping or a list of mappings"),
        ("a: {<<: [{}, 1]}", "a.yaml:1:9: '<<' takes a mapping or a list of mappings"),
        ("a: " + "[" * 65, "a.yaml:1:68: nested deeper than 64 levels"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str, said: str) -> None:
    (problem,) = problems(text)

    assert said in problem


def test_aliases_are_the_same_value_again() -> None:
    assert read("a: &n {x: [1, &s two]}\nb: *n\nc: [*s, *n]\n&k d: 1\ne: *k\nf: &l [1]\ng: *l") == {
        "a": {"x": [1, "two"]},
        "b": {"x": [1, "two"]},
        "c": ["two", {"x": [1, "two"]}],
        "d": 1,
        "e": "d",
        "f": [1],
        "g": [1],
    }


def test_merged_keys_yield_to_written_ones_and_earlier_to_later() -> None:
    text = """
    one: &one {a: 1, b: 1}
    two: &two {b: 2, c: 2}
    written: {<<: *one, a: 0}
    both: {d: 3, <<: [*one, *two]}
    text: {'<<': 1}
    """

    data = read(text)

    assert data["written"] == {"a": 0, "b": 1}
    assert data["both"] == {"d": 3, "a": 1, "b": 1, "c": 2}
    assert data["text"] == {"<<": 1}


def test_a_billion_laughs_is_refused_before_it_is_told() -> None:
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]

    (problem,) = problems("\n".join(lines))

    assert problem.endswith("aliases expand to more than 200000 values")


def test_json_is_read_the_same_way() -> None:
    text = json.dumps({"a": [1, 2.5, None, True, "no", 'é😀"\\/\n'], "b": {}}, indent="\t")

    assert read(text, "a.json") == json.loads(text)
    assert problems('{\n  "a": 1,\n  "a": 2\n}', "a.json") == [
        "a.json:3:3 a: duplicate key, the first is at line 2"
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcno01:. "), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read_back(value: object) -> None:
    assert read(json.dumps(value), "a.json") == value


def _looks_like_a_number(value: object) -> bool:
    """To YAML 1.2 and JSON `0E0` is a number; YAML 1.1 and so PyYAML want more of a point and a sign, and leave the text unquoted."""
    if isinstance(value, dict):
        return any(map(_looks_like_a_number, [*value, *value.values()]))
    if isinstance(value, list):
        return any(map(_looks_like_a_number, value))
    return isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", value) is not None


@given(VALUES.filter(lambda value: not _looks_like_a_number(value)), st.booleans())
def test_what_yaml_writes_is_read_back(value: object, flow: bool) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow)

    # PyYAML quotes what YAML 1.1 would misread, so plain text differs in no other case we convert.
    assert read(text) == value


@given(st.text("ab:-[]{}&*#!|>'\"%@` \n\t,?<1", max_size=40))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        read(text)
    except ConfigError as error:
        for problem in error.problems:
            assert problem.line >= 1
            assert problem.column >= 1


TEXT = """\
a:
  - x: 1
    y: {z: [1, 2]}
  - &same {w: 1}
  - *same
? [odd]
: {}
"""


def test_values_and_keys_are_found_again() -> None:
    source = read_text("a.yaml", TEXT.encode(), {})
    paths = [("a", 0, "y", "z", 1), ("a", 1), ("a", 2, "w"), ("a", 0, "missing"), ("nothing",)]

    places = locate(source, paths)

    assert places.of_value(("a", 0, "y", "z", 1)) == (3, 16)
    assert places.of_key(("a", 0, "y", "z", 1)) == (3, 16), "an item has no key of its own"
    assert places.of_key(("a", 0, "y", "z")) == (3, 9)
    assert places.of_value(("a", 1)) == (4, 5)
    assert places.of_value(("a", 2, "w")) == (5, 5), "an aliased value: where the alias stands"
    assert places.of_value(("a", 0, "missing")) == (2, 5), "what is not there: what it should be in"
    assert places.of_value(("nothing",)) == (1, 1)


def test_an_empty_file_has_no_places() -> None:
    assert locate(read_text("a.yaml", b"#", {}), [()]).of_value(()) == (0, 0)


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ((), ""),
        (
            ("stream_routes", 0, "upstream", "nodes", "127.0.0.1:80"),
            "stream_routes[0].upstream.nodes['127.0.0.1:80']",
        ),
        (("plugins", "ip-restriction"), "plugins.ip-restriction"),
        ((3,), "[3]"),
        (("",), "['']"),
    ],
)
def test_pointers_read_as_people_write_them(path: yaml_reader.Path, pointer: str) -> None:
    assert pointer_of(path) == pointer
