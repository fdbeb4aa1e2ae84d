from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.control.admin.patching import merge, replace_at
from streamgw.control.admin.replies import RequestError

OLD = {"id": "1", "labels": {"a": "1", "b": "2"}, "upstream": {"nodes": [1, 2], "retries": 1}}


@pytest.mark.parametrize(
    ("patch", "changed"),
    [
        ({"desc": "new"}, {"desc": "new"}),
        ({"labels": {"a": "3"}}, {"labels": {"a": "3", "b": "2"}}),
        ({"labels": {"a": None}}, {"labels": {"b": "2"}}),
        ({"labels": {"a": None, "b": None}}, {"labels": {}}),
        ({"upstream": {"nodes": [3]}}, {"upstream": {"nodes": [3], "retries": 1}}),
        ({"upstream": {"nodes": {"a:1": 1}}}, {"upstream": {"nodes": {"a:1": 1}, "retries": 1}}),
        ({"plugins": {"x": {"y": None, "z": 1}}}, {"plugins": {"x": {"z": 1}}}),
        ({"unknown": None}, {}),
        ({}, {}),
    ],
)
def test_objects_are_merged_and_everything_else_replaced(
    patch: dict[str, object], changed: dict[str, object]
) -> None:
    assert merge(OLD, patch) == {**OLD, **changed}


def test_what_was_there_is_not_touched() -> None:
    before = repr(OLD)

    merge(OLD, {"labels": {"a": "3"}, "upstream": None})
    replace_at(OLD, "labels/a", "3")

    assert repr(OLD) == before


_json = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)
_objects = st.dictionaries(st.sampled_from("abc"), _json, max_size=3)


@given(old=_objects, patch=_objects)
def test_merging_twice_is_merging_once(old: dict[str, object], patch: dict[str, object]) -> None:
    once = merge(old, patch)

    assert merge(once, patch) == once


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("desc", "new", {"desc": "new"}),
        ("upstream/nodes", {"a:1": 1}, {"upstream": {"nodes": {"a:1": 1}, "retries": 1}}),
        ("upstream//retries/", 2, {"upstream": {"nodes": [1, 2], "retries": 2}}),
        ("plugins/x/y", 1, {"plugins": {"x": {"y": 1}}}),
    ],
)
def test_a_part_is_replaced(path: str, value: object, changed: dict[str, object]) -> None:
    assert replace_at(OLD, path, value) == {**OLD, **changed}


@pytest.mark.parametrize(
    ("path", "said"),
    [("upstream/nodes/0", "/upstream/nodes"), ("id/a/b", "/id"), ("labels/a/b/c", "/labels/a")],
)
def test_a_path_through_what_is_no_object_is_refused(path: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        replace_at(OLD, path, 1)

    assert (caught.value.status, caught.value.content) == (400, {"error_msg": f"invalid sub-path: {said}"})
