from __future__ import annotations

from collections.abc import Mapping

import pytest

from streamgw.config.survey import Located
from streamgw.config.tree import Entry
from streamgw.control.admin.listing import list_objects, show
from streamgw.control.admin.replies import RequestError

MODIFIED_MS = 1_700_000_123_456


def located(id_: str, data: Mapping[str, object], *, collection: str = "stream_routes") -> Located:
    entry = Entry("a.yaml", "routes.d/a.yaml", 0, 0, 0, MODIFIED_MS * 1_000_000 + 789, 0)
    return Located(
        (collection, id_), "routes.d/a.yaml", 1, 0, 0, data, "digest", entry, position=0, is_named=True
    )


MANY = [located(f"{number:02}", {"id": f"{number:02}", "create_time": 1000 + number}) for number in range(25)]


def listed(found: list[Located], **query: str) -> list[str]:
    answer = list_objects(found, query)
    shown = answer["list"]
    assert isinstance(shown, list)
    return [item["key"].rpartition("/")[2] for item in shown]


def test_an_object_is_shown_with_its_indexes() -> None:
    assert show(located("a", {"id": "a", "desc": "x", "create_time": 1_700_000_000})) == {
        "key": "/apisix/stream_routes/a",
        "value": {"id": "a", "desc": "x", "create_time": 1_700_000_000},
        "createdIndex": 1_700_000_000_000,
        "modifiedIndex": MODIFIED_MS,
    }


@pytest.mark.parametrize(
    ("data", "index"),
    [({}, 1), ({"create_time": 1_900_000_000}, MODIFIED_MS), ({"create_time": "${{T}}"}, 1)],
    ids=["by hand", "in the future", "a variable"],
)
def test_what_a_person_wrote_has_indexes_too(data: dict[str, object], index: int) -> None:
    shown = show(located("a", data))

    assert shown["createdIndex"] == index
    assert shown["createdIndex"] <= shown["modifiedIndex"]  # type: ignore[operator]


def test_an_id_is_text() -> None:
    assert show(located("1", {"id": 1}))["value"] == {"id": "1"}


def test_keys_are_never_shown() -> None:
    data = {"tls": {"client_cert": "c", "client_key": "hush"}, "key": "remote_addr"}

    assert show(located("u", data, collection="upstreams"))["value"] == {
        "tls": {"client_cert": "c"},
        "key": "remote_addr",
        "id": "u",
    }


def test_an_empty_list_has_its_shape() -> None:
    assert list_objects([], {}) == {"list": [], "total": 0}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"page": "1", "page_size": "10"}, range(10)),
        ({"page": "3", "page_size": "10"}, range(20, 25)),
        ({"page": "4", "page_size": "10"}, []),
        ({"page": "0", "page_size": "10"}, range(10)),
        ({"page": "-1", "page_size": "10"}, range(10)),
        ({"page": "99999999999999999999", "page_size": "10"}, []),
        ({"page": "2"}, range(25)),
        ({"page_size": "10"}, range(25)),
    ],
)
def test_pages(query: dict[str, str], found: range) -> None:
    answer = list_objects(MANY, query)

    assert listed(MANY, **query) == [f"{number:02}" for number in found]
    assert answer["total"] == 25


@pytest.mark.parametrize("page", ["x", "", "1.5", "٣"])
def test_a_page_that_is_no_number_is_refused(page: str) -> None:
    with pytest.raises(RequestError, match="invalid argument page: should be a number"):
        list_objects(MANY, {"page": page})


@pytest.mark.parametrize("size", ["9", "501", "-10", "ten", "", "1e2", "99999999999"])
@pytest.mark.parametrize("others", [{}, {"page": "1"}])
def test_a_page_of_another_size_is_refused_in_plain_text(size: str, others: dict[str, str]) -> None:
    with pytest.raises(RequestError) as caught:
        list_objects(MANY, {**others, "page_size": size})

    reply = caught.value.reply()
    assert (reply.status_code, reply.body) == (400, b"page_size must be between 10 and 500")


FEW = [
    located("a", {"name": "db-1", "labels": {"team": "x"}, "service_id": "s"}),
    located("b", {"name": "db-2", "labels": {"owner": "y"}, "service_id": 7, "upstream_id": "u"}),
    located("c", {"labels": None}),
]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"name": "db"}, "ab"),
        ({"name": "2$"}, "b"),
        ({"name": "db-[12]"}, "ab"),
        ({"name": "^(a+)+$"}, ""),
        ({"name": ""}, "abc"),
        ({"label": "team"}, "a"),
        ({"label": "x"}, ""),
        ({"filter": "service_id=s"}, "a"),
        ({"filter": "service_id=7&upstream_id=u"}, "b"),
        ({"filter": "service_id=7&upstream_id=v"}, ""),
        ({"name": "db", "label": "owner"}, "b"),
    ],
)
def test_filters(query: dict[str, str], found: str) -> None:
    answer = list_objects(FEW, query)

    assert "".join(listed(FEW, **query)) == found
    assert answer["total"] == len(found)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match="invalid argument name: unterminated character set"):
        list_objects(FEW, {"name": "[a"})


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "a*a*a*a*b", "x" * 129])
def test_a_pattern_that_could_take_for_ever_is_taken_as_plain_text(pattern: str) -> None:
    found = [located("a", {"name": "a" * 256}), located("b", {"name": f"<{pattern}>"})]

    assert listed(found, name=pattern) == ["b"]


def test_a_list_is_in_the_order_of_creation() -> None:
    found = [located("b", {"create_time": 2}), located("hand", {}), located("a", {"create_time": 1})]

    assert listed(found) == ["hand", "a", "b"]
