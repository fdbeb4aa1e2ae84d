"""Editing one object of a file: what changes, and that nothing else does."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.edit import NotEditable, decode, encode, find_items, new_file, remove_item, replace_item
from streamgw.config.layout import is_same, read_layout

ROUTE = ("stream_routes", "mysql")

HAND_WRITTEN = """\
# Databases. Ask Ann before you touch this.
stream_routes: # in order of importance

  # the main one
  - id: mysql   # since 2019
    status: 1        # on
    # the port of the old server
    server_port: 3306
    upstream:
      nodes:
        "10.0.0.5:3306": 1 # db1
      type: roundrobin
  # Redis is next
  - id: redis
    server_port: 6379
    upstream_id: 1
upstreams: [{id: 1, nodes: {"10.0.0.9:6379": 1}}, {id: 2, nodes: {}}]   # shared
#END
"""


def data_of(text: str, key: tuple[str, str]) -> dict[str, object]:
    return dict(next(item.data for item in find_items(text) if item.key == key))


def lines_changed(before: str, after: str) -> tuple[list[str], list[str]]:
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return [line for line in old if line not in new], [line for line in new if line not in old]


def test_items_are_found_with_their_place() -> None:
    items = find_items(HAND_WRITTEN)

    assert [(item.key, item.position, item.line) for item in items] == [
        (("stream_routes", "mysql"), 0, 5),
        (("stream_routes", "redis"), 1, 14),
        (("upstreams", "1"), 0, 17),
        (("upstreams", "2"), 1, 17),
    ]
    assert HAND_WRITTEN[items[2].start : items[2].end] == '{id: 1, nodes: {"10.0.0.9:6379": 1}}'


def test_items_without_an_id_and_things_that_are_no_items_are_passed_over() -> None:
    text = "stream_routes: [{server_port: 1}, 5]\nupstreams: 3\nservices:\nssls: &s [{id: 1}]\nprotos: *s\n"

    assert [item.key for item in find_items(text)] == [("ssls", "1")]


def test_switching_a_route_off_changes_one_character() -> None:
    data = data_of(HAND_WRITTEN, ROUTE) | {"status": 0}

    edited = replace_item(HAND_WRITTEN, ROUTE, data)

    assert edited == HAND_WRITTEN.replace("status: 1        # on", "status: 0        # on")


def test_a_field_that_is_added_stands_where_a_person_would_put_it() -> None:
    data = data_of(HAND_WRITTEN, ROUTE) | {"desc": "the main database", "remote_addrs": ["10.0.0.0/8", "::1"]}

    edited = replace_item(HAND_WRITTEN, ROUTE, data)

    assert lines_changed(HAND_WRITTEN, edited) == (
        [],
        ["    desc: the main database\n", "    remote_addrs:\n", "      - 10.0.0.0/8\n", '      - "::1"\n'],
    )
    assert "since 2019\n    desc: the main database\n    status: 1" in edited


def test_a_field_that_is_removed_takes_its_line_along() -> None:
    data = data_of(HAND_WRITTEN, ROUTE)
    del data["server_port"]

    edited = replace_item(HAND_WRITTEN, ROUTE, data)

    assert edited == HAND_WRITTEN.replace("    server_port: 3306\n", "")


def test_a_change_deep_inside_leaves_the_comments_around_it() -> None:
    data = data_of(HAND_WRITTEN, ROUTE)
    data["upstream"] = {"nodes": {"10.0.0.5:3306": 2, "10.0.0.6:3306": 1}, "type": "roundrobin"}

    edited = replace_item(HAND_WRITTEN, ROUTE, data)

    assert edited == HAND_WRITTEN.replace(
        '"10.0.0.5:3306": 1 # db1', '"10.0.0.5:3306": 2 # db1\n        "10.0.0.6:3306": 1'
    )


def test_an_object_in_flow_style_stays_in_flow_style() -> None:
    edited = replace_item(HAND_WRITTEN, ("upstreams", "1"), {"nodes": {"10.0.0.9:6379": 3}, "desc": "cache"})

    assert edited == HAND_WRITTEN.replace(
        '{id: 1, nodes: {"10.0.0.9:6379": 1}}', '{id: 1, desc: cache, nodes: {"10.0.0.9:6379": 3}}'
    )


def test_an_id_stays_as_it_is_written() -> None:
    edited = replace_item("upstreams:\n- {id: 1, desc: a}\n", ("upstreams", "1"), {"id": "1", "desc": "b"})

    assert edited == "upstreams:\n- {id: 1, desc: b}\n"


@pytest.mark.parametrize(
    ("before", "data", "after"),
    [
        ("- id: x\n  a: 1", {"a": {"b": 1}}, "- id: x\n  a:\n    b: 1"),
        ("- id: x\n  a:\n  b: 1", {"a": 5, "b": 1}, "- id: x\n  a: 5\n  b: 1"),
        ("- id: x\n  a:\n    b: 1\n  c: 2", {"a": 5, "c": 2}, "- id: x\n  a: 5\n  c: 2"),
        ("- id: x\n  a: [1, 2] # two", {"a": [3]}, "- id: x\n  a: [3] # two"),
        ("- id: x\n  a:\n  - 1\n  - 2 # two", {"a": [3]}, "- id: x\n  a:\n  - 3 # two"),
        ("- id: x\n  a:\n  - 1\n", {"a": {"b": 1}}, "- id: x\n  a:\n    b: 1\n"),
        ("- id: x\n  a:\n  - 1\n", {"a": []}, "- id: x\n  a: []\n"),
        ("- id: x\n  a: |\n    one\n    two\n\n  b: 1", {"a": "three", "b": 1}, "- id: x\n  a: three\n\n  b: 1"),
        ("- id: x\n  a: 1\n", {"a": "one\ntwo\n"}, "- id: x\n  a: |\n    one\n    two\n"),
        ("- id: x\n  a: 1 # c", {"a": "one\ntwo\n"}, '- {id: x, a: "one\\ntwo\\n"} # c'),
        ("- id: x\n  a: {b: 1, c: 2}", {"a": {"d": 4}}, "- id: x\n  a: {d: 4}"),
        ("- id: x\n  a:\n    b: 1\n", {"a": {"d": 4}}, "- id: x\n  a:\n    d: 4\n"),
        ("- {id: x, a: }", {"a": 1}, "- {id: x, a: 1}"),
        ("- {a: 1, id: x}", {"name": "n1"}, "- {id: x, name: n1}"),
        ("- a: 1 # gone\n  id: x", {"b": 1}, "- id: x\n  b: 1"),
        ("- upstream: {}\n  id: x", {"upstream": {}, "name": "n1"}, "- upstream: {}\n  id: x\n  name: n1"),
        ("-\n  # mine\n  id: x\n  a: 1", {"a": 2}, "-\n  # mine\n  id: x\n  a: 2"),
        ("- upstream_id: 1\n  id: &a x", {"upstream_id": 1, "name": "n1"}, "- upstream_id: 1\n  id: &a x\n  name: n1"),
        ("- {upstream_id: 1, id: x}", {"upstream_id": 1}, "- {upstream_id: 1, id: x}"),
        ("- id: x\n  a: ${{PORT}}", {"a": "${{PORT}}", "b": 1}, "- id: x\n  a: ${{PORT}}\n  b: 1"),
        ("- {id: x, a: ${{A:=[1]}}}", {"a": "${{A:=[1]}}", "b": 1}, "- {id: x, a: ${{A:=[1]}}, b: 1}"),
    ],
)  # fmt: skip
def test_layouts_of_one_field(before: str, data: Mapping[str, object], after: str) -> None:
    edited = replace_item(f"c:\n{before}", ("c", "x"), data)

    assert edited == f"c:\n{after}"


def test_a_field_before_all_others_goes_to_the_top() -> None:
    edited = replace_item("c:\n- upstream: {}\n  id: x\n", ("c", "x"), {"upstream": {}, "name": "n1"})
    assert edited == "c:\n- upstream: {}\n  id: x\n  name: n1\n"

    nested = replace_item(
        "c:\n- id: x\n  upstream:\n    type: t\n", ("c", "x"), {"upstream": {"type": "t", "nodes": {}}}
    )
    assert nested == "c:\n- id: x\n  upstream:\n    nodes: {}\n    type: t\n"

    flow = replace_item("c:\n- {id: x, u: {type: t}}\n", ("c", "x"), {"u": {"type": "t", "name": "n1"}})
    assert flow == "c:\n- {id: x, u: {name: n1, type: t}}\n"


def test_a_merge_key_makes_the_object_be_written_anew() -> None:
    text = "base: &base {a: 1}\nc:\n  - <<: *base\n    id: x # mine\n  - id: y\n"

    edited = replace_item(text, ("c", "x"), {"a": 2})

    assert edited == "base: &base {a: 1}\nc:\n  - id: x\n    a: 2 # mine\n  - id: y\n"


def test_an_alias_becomes_a_value_of_its_own() -> None:
    text = "base: &base {id: x, a: 1}\nc: [*base]\nd:\n  - id: y\n    u: *base\n"

    assert replace_item(text, ("c", "x"), {"a": 2}) == text.replace("[*base]", "[{id: x, a: 2}]")
    assert replace_item(text, ("d", "y"), {"u": 1}) == text.replace("u: *base", "u: 1")


def test_what_others_refer_to_cannot_be_taken_away() -> None:
    text = "c:\n  - &first\n    id: x\n    a: 1\n  - <<: *first\n    id: y\n"

    with pytest.raises(NotEditable, match=r"line 2: c x cannot be removed alone"):
        remove_item(text, ("c", "x"))
    with pytest.raises(NotEditable, match=r"line 2: c x cannot be changed in place"):
        replace_item(text, ("c", "x"), {"a": 2})


def test_a_list_with_an_anchor_of_its_own_keeps_its_first_item() -> None:
    with pytest.raises(NotEditable, match="cannot be removed"):
        remove_item("c: &c\n  - id: x\n  - id: y\nd: 1\n", ("c", "x"))


def test_a_comment_that_would_become_text_is_not_let_into_it() -> None:
    text = "c:\n- id: x\n  t: |\n    one\n- id: y\n    # deep\n"

    with pytest.raises(NotEditable, match="cannot be removed"):
        remove_item(text, ("c", "y"))


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "a: 1\n---\nb: 2\n", "a: 1\na: 2\n"])
def test_what_is_not_one_document_is_refused(text: str) -> None:
    with pytest.raises(NotEditable):
        find_items(text)


def test_an_object_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotEditable, match="no c y here"):
        replace_item("c:\n- id: x\n", ("c", "y"), {})
    with pytest.raises(NotEditable, match="no c y here"):
        remove_item("", ("c", "y"))


def test_values_that_yaml_cannot_hold_are_refused() -> None:
    assert new_file(("c", "x"), {"a": 1}) == "c:\n  - id: x\n    a: 1\n"
    with pytest.raises(NotEditable, match="cannot be written"):
        new_file(("c", "x"), {"a": float("inf")})


def test_a_byte_order_mark_comes_back_and_what_is_no_text_is_refused() -> None:
    for content in (b"\xef\xbb\xbfa: 1", b"a: 1"):
        assert encode(decode(content), content) == content
    with pytest.raises(NotEditable, match=r"not UTF-8: .* at byte 1"):
        decode(b"a\xff")
    for blank in (b"", b"\xef\xbb\xbf\n"):
        with pytest.raises(NotEditable, match="the file is empty, as if it had been cut off"):
            decode(blank)


# Removing


def test_comments_around_a_removed_object_stay() -> None:
    edited = remove_item(HAND_WRITTEN, ROUTE)

    start, end = HAND_WRITTEN.index("  - id: mysql"), HAND_WRITTEN.index("  # Redis")
    assert edited == HAND_WRITTEN[:start] + HAND_WRITTEN[end:]


def test_the_last_object_leaves_an_empty_list() -> None:
    edited = remove_item(
        "a: 1\nstream_routes:  # mine\n  # one\n  - id: x # x\n  # two\n#END", ("stream_routes", "x")
    )

    assert edited == "a: 1\nstream_routes: []  # mine\n  # one\n  # two\n#END"


@pytest.mark.parametrize(
    ("before", "removed", "after"),
    [
        ("[{id: x}, {id: y}]", "x", "[{id: y}]"),
        ("[{id: x}, {id: y}]", "y", "[{id: x}]"),
        ("[{id: x}, {id: y},]", "y", "[{id: x}, ]"),
        ("[{id: x}]", "x", "[]"),
        ("[\n  {id: x}, # one\n  {id: y} # two\n  ]", "x", "[\n  # one\n  {id: y} # two\n  ]"),
        ("[\n  {id: x}, # one\n  {id: y} # two\n  ]", "y", "[\n  {id: x} # one\n # two\n  ]"),
        ("[\n  {id: x} # one\n  , {id: y}\n  ]", "x", "[\n  # one\n   {id: y}\n  ]"),
        ("[\n  {id: x},\n  {id: y}\n  ]", "x", "[\n  {id: y}\n  ]"),
        ("[\n  {id: x},\n  {id: y}\n  ]", "y", "[\n  {id: x}\n  ]"),
    ],
)
def test_flow_sequences_lose_the_right_comma(before: str, removed: str, after: str) -> None:
    assert remove_item(f"c: {before}\n", ("c", removed)) == f"c: {after}\n"


# JSON

JSON = """\
{
\t"stream_routes": [
\t\t{
\t\t\t"id": "mysql",
\t\t\t"server_port": 3306
\t\t},
\t\t{"id": "redis"}
\t]
}
"""


def test_json_stays_json() -> None:
    changed = replace_item(
        JSON, ROUTE, {"server_port": 1, "upstream": {"nodes": {"h:1": 1}, "type": "roundrobin"}}
    )
    assert changed == JSON.replace(
        "3306",
        '1,\n\t\t\t"upstream": {\n\t\t\t\t"nodes": {\n\t\t\t\t\t"h:1": 1\n\t\t\t\t},\n'
        '\t\t\t\t"type": "roundrobin"\n\t\t\t}',
    )
    compact = replace_item(JSON, ("stream_routes", "redis"), {"desc": "no", "upstream": {}})
    assert compact == JSON.replace('{"id": "redis"}', '{"id": "redis", "desc": "no", "upstream": {}}')
    removed = remove_item(JSON, ("stream_routes", "redis"))
    assert json.loads(removed) == {"stream_routes": [{"id": "mysql", "server_port": 3306}]}
    anew = replace_item(
        changed, ROUTE, {"server_port": 1, "upstream": {"nodes": {"i:2": 1}, "type": "roundrobin"}}
    )
    assert anew == changed.replace('"h:1"', '"i:2"')


# Every layout


@st.composite
def pages(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]]]:
    """A file with objects in every way that people write them, and the keys of those objects."""
    comment = st.sampled_from(["", "  # why: {x} - [y]", "   #", "  # \u00fcber \U0001f600"])
    between = st.sampled_from(["", "\n", "# free\n", "\n  # two\n\n"])
    text = draw(st.sampled_from(["", "---\n", "# top\n", "%YAML 1.1\n---\n"]))
    keys = []
    for name in draw(
        st.lists(st.sampled_from(["stream_routes", "upstreams", "services"]), min_size=1, unique=True)
    ):
        ids = draw(
            st.lists(st.sampled_from(["a", "1", "b.c", "\u00e9", "no"]), min_size=1, max_size=4, unique=True)
        )
        keys += [(name, id_) for id_ in ids]
        style = draw(st.sampled_from(["block", "flow", "json", "lines"]))
        shown = [
            draw(st.sampled_from([id_, f'"{id_}"', f"'{id_}'"])) if style != "json" else json.dumps(id_)
            for id_ in ids
        ]
        if style in {"flow", "json"}:
            q = '"' if style == "json" else ""
            items = [
                f'{{{q}id{q}: {id_}, {q}server_port{q}: 1, {q}x{q}: [1, {{{q}y{q}: "z"}}]}}' for id_ in shown
            ]
            text += f"{name}: [{draw(st.sampled_from(['', ' ']))}{', '.join(items)}]{draw(comment)}\n"
        elif style == "lines":
            text += f"{name}: [{draw(comment)}\n"
            text += f",{draw(comment)}\n".join(f"   {{id: {id_}, server_port: 1}}" for id_ in shown)
            text += draw(st.sampled_from(["", ","])) + f"{draw(comment)}\n  ]\n"
        else:
            indent = " " * draw(st.integers(0, 4))
            gap = draw(st.sampled_from([" ", "   ", "\n" + indent + "   "]))
            inner = indent + (" " * (len(gap) + 1) if gap.strip("\n") == gap else " " * 3)
            text += f"{name}:{draw(comment)}\n"
            for id_ in shown:
                text += draw(between)
                fields = draw(
                    st.permutations(
                        [
                            f"id: {id_}{draw(comment)}",
                            f"server_port:   1{draw(comment)}",
                            f"upstream:{draw(comment)}\n{inner}  # in\n{inner}  nodes:\n{inner}  - host: h",
                            f"text: |\n{inner}  one\n{inner}    two\n",
                        ]
                    )
                )
                text += f"{indent}-{gap}" + f"\n{inner}".join(fields) + "\n"
            text += draw(between)
    text += draw(st.sampled_from(["", "#END", "#END\n", "\n\n"]))
    text = text.replace("\n", draw(st.sampled_from(["\n", "\r\n"])))
    return (text.rstrip("\r\n") if draw(st.booleans()) else text), keys


WANTED: list[Mapping[str, object]] = [
    {"server_port": 2},
    {"server_port": 1, "status": 0, "name": "n1"},
    {"upstream": {"nodes": [{"host": "h", "port": 5}], "type": "roundrobin"}},
    {"desc": "22:22", "text": "a\nb\n", "remote_addrs": ["::1", "10.0.0.0/8"]},
    {},
]


@given(page=pages(), data=st.data())
def test_whatever_the_layout_only_the_object_changes(
    page: tuple[str, list[tuple[str, str]]], data: st.DataObject
) -> None:
    text, keys = page
    key = data.draw(st.sampled_from(keys))
    wanted = data.draw(st.sampled_from(WANTED))
    item = next(item for item in find_items(text) if item.key == key)

    edited = replace_item(text, key, wanted)

    # Byte for byte: the text before the object, and the lines after it.
    assert edited.startswith(text[: item.start].rstrip(" "))
    assert edited.endswith("".join(text[item.end :].splitlines(keepends=True)[1:]))
    changed = next(item for item in find_items(edited) if item.key == key)
    assert is_same(changed.data, {**wanted, "id": item.data["id"]})


@given(page=pages(), data=st.data())
def test_whatever_the_layout_a_removal_leaves_every_line_of_the_others(
    page: tuple[str, list[tuple[str, str]]], data: st.DataObject
) -> None:
    text, keys = page
    while keys:
        key = data.draw(st.sampled_from(keys))
        keys = [other for other in keys if other != key]
        item = next(item for item in find_items(text) if item.key == key)
        others = {other.key: text[other.start : other.end] for other in find_items(text) if other.key != key}

        edited = remove_item(text, key)

        assert {other.key: edited[other.start : other.end] for other in find_items(edited)} == others
        own = text[: item.start].rpartition("\n")[2] + text[item.start : item.end]
        comments = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
        inside = [line.strip() for line in own.splitlines() if line.strip().startswith("#")]
        left = [line.strip() for line in edited.splitlines()]
        assert all(left.count(line) >= comments.count(line) - inside.count(line) for line in comments)
        text = edited
    assert all(not values for values in read_layout(text).data.values())


def test_objects_without_an_id_are_left_out_or_called_something() -> None:
    text = "stream_routes: [{id: a}, {server_port: 1}, null]"

    assert [item.key[1] for item in find_items(text)] == ["a"]
    assert [item.key[1] for item in find_items(text, name=lambda position: f"unnamed-{position}")] == [
        "a",
        "unnamed-1",
    ]
