"""Objects as text: readable, and read back as what they were by every kind of YAML."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.layout import is_same, read_layout
from streamgw.config.render import render_block, render_file, render_flow, render_json, render_scalar

ROUTE = {
    "upstream": {
        "type": "roundrobin",
        "nodes": [{"priority": 1, "weight": 2, "port": 3306, "host": "10.0.0.5"}],
        "timeout": {"read": 1, "send": 1.5, "connect": 2},
    },
    "server_port": 3306,
    "remote_addrs": ["10.0.0.0/8", "::1"],
    "status": 1,
    "plugins": {},
    "desc": "the main database",
    "id": "mysql",
    "priority": 5,
}


def test_a_file_looks_as_a_person_would_have_written_it() -> None:
    text = render_file(("stream_routes", "mysql"), ROUTE)

    assert text == (
        "stream_routes:\n"
        "  - id: mysql\n"
        "    desc: the main database\n"
        "    status: 1\n"
        "    priority: 5\n"
        "    remote_addrs:\n"
        "      - 10.0.0.0/8\n"
        '      - "::1"\n'
        "    server_port: 3306\n"
        "    plugins: {}\n"
        "    upstream:\n"
        "      nodes:\n"
        "        - host: 10.0.0.5\n"
        "          port: 3306\n"
        "          weight: 2\n"
        "          priority: 1\n"
        "      type: roundrobin\n"
        "      timeout:\n"
        "        connect: 2\n"
        "        send: 1.5\n"
        "        read: 1\n"
    )


def test_a_certificate_stays_readable() -> None:
    text = render_block({"cert": "-----BEGIN\nMII=\n-----END\n", "key": "a\nb", "desc": "a\n\nb"}, indent=0)

    assert text == 'desc: "a\\n\\nb"\ncert: |\n  -----BEGIN\n  MII=\n  -----END\nkey: |-\n  a\n  b'


@pytest.mark.parametrize(
    "word",
    [
        *(
            "no",
            "Yes",
            "on",
            "y",
            "N",
            "true",
            "null",
            "~",
            "",
            "22:22",
            "0123",
            "0x1f",
            "0o17",
            "1_000",
            "1e3",
            "1.5",
        ),
        *(
            ".5",
            "2026-11-21",
            ".inf",
            "-",
            "- a",
            "? a",
            "a: b",
            "a #b",
            "#a",
            "[a",
            "{a",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
        ),
        *(
            "`a",
            "'a'",
            '"a"',
            " a",
            "a ",
            "a\tb",
            "<<",
            "=",
            "---",
            "...",
            "a,b",
            "a]",
            "\x7f",
            "\u2028",
            "\ufeff",
        ),
    ],
)
def test_a_string_that_could_be_something_else_is_quoted(word: str) -> None:
    shown = render_scalar(word)

    assert shown.startswith('"')
    assert yaml.safe_load(f"[{shown}]") == [word]


@pytest.mark.parametrize(
    "word", ["mysql", "10.0.0.0/8", "10.0.0.5", "a b (c)", "über", "3-4", "100%", "1.2.3", "${{A}}"]
)
def test_a_string_that_is_nothing_else_is_not_quoted(word: str) -> None:
    assert render_scalar(word) == word


def test_other_values_are_read_back_by_yaml_1_1_too() -> None:
    values = [True, False, None, 0, -5, 1.5, 1e16, 1e-7, 2.5e30]

    assert yaml.safe_load(render_flow(values)) == values


def test_json_is_json() -> None:
    data = {"b": {"host": "no", "x": []}, "a": [1, {"y": None}], "id": "\u00e9\x7f\u2028"}

    assert json.loads(render_flow(data, as_json=True)) == data
    assert json.loads(render_json(data, margin="\t", step="\t")) == data
    assert render_json({"a": {"b": 1}}, margin="  ", step=" ") == '{\n   "a": {\n    "b": 1\n   }\n  }'


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT.filter(lambda key: key != "<<"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(value=VALUES)
def test_whatever_is_rendered_is_read_back(value: object) -> None:
    shown = [
        render_block({"v": value}, indent=0),
        render_flow({"v": value}),
        render_flow({"v": value}, as_json=True),
        render_json({"v": value}, margin="", step="  "),
    ]

    assert all(is_same(read_layout(text).data, {"v": value}) for text in shown), shown
