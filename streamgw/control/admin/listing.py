"""Lists: which objects, in which order, on which page; and what of an object a client may see.

Source:
  APISIX `apisix/admin/v3_adapter.lua`: filters, then the total, then the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from urllib.parse import parse_qsl

from streamgw.config.hidden import without_keys
from streamgw.config.survey import Located
from streamgw.control.admin.replies import PlainTextError, bad

MAX_PATTERN = 128
"""Characters of a `name` to look for."""
_INTEGER = re.compile(r"-?[0-9]{1,30}")
_REPEATS = re.compile(r"[*+{]")
MAX_REPEATS = 2
"""Of something in a `name`. Python's regular expressions hold the interpreter, and more of these can take it minutes."""

Shown = Mapping[str, object]
"""One object as a client sees it: key, value, createdIndex, modifiedIndex."""


def show(located: Located) -> Shown:
    """An object with its indexes, which APISIX has from etcd.

    Here a file is all there is. So `createdIndex` is the `create_time`, in milliseconds, or 1 for what was written by hand:
    it was there before. `modifiedIndex` is when its file was changed, in milliseconds.
    """
    created = located.data.get("create_time")
    modified_ms = located.entry.modified_ns // 1_000_000
    created_ms = min(created * 1000, modified_ms) if type(created) is int else 1
    return {
        **show_value(located.key, located.data),
        "createdIndex": created_ms,
        "modifiedIndex": modified_ms,
    }


def show_value(key: tuple[str, str], data: Mapping[str, object]) -> dict[str, object]:
    """An object without the keys in it. Nobody needs to read them, and the viewer's role must not."""
    value = {**without_keys(key[0], data), "id": key[1]}
    return {"key": f"/apisix/{key[0]}/{key[1]}", "value": value}


def list_objects(found: Sequence[Located], query: Mapping[str, str]) -> Mapping[str, object]:
    """The answer to a GET of a collection.

    Raises:
      RequestError: 400, a page or a pattern makes no sense.
    """
    wanted = [located for located in found if all(test(located.data) for test in _tests(query))]
    shown = sorted(map(show, wanted), key=_created)
    return {"list": _page(shown, query), "total": len(shown)}


def _created(shown: Shown) -> int:
    index = shown["createdIndex"]
    assert isinstance(index, int), "we have just made it"
    return index


def _tests(query: Mapping[str, str]) -> list[Callable[[Mapping[str, object]], bool]]:
    tests: list[Callable[[Mapping[str, object]], bool]] = []
    if name := query.get("name"):
        pattern = _pattern(name)
        tests.append(lambda data: pattern.search(str(data.get("name", ""))) is not None)
    if label := query.get("label"):
        tests.append(lambda data: label in _labels(data))
    for field, value in parse_qsl(query.get("filter", ""), max_num_fields=10):
        tests.append(lambda data, field=field, value=value: str(data.get(field, "")) == value)  # type: ignore[misc]  # bound now
    return tests


def _labels(data: Mapping[str, object]) -> Mapping[str, object]:
    labels = data.get("labels")
    return labels if isinstance(labels, Mapping) else {}


def _pattern(name: str) -> re.Pattern[str]:
    if len(name) > MAX_PATTERN or len(_REPEATS.findall(name)) > MAX_REPEATS or re.search(r"\)[*+{?]", name):
        return re.compile(re.escape(name))
    try:
        return re.compile(name)
    except (re.error, OverflowError, RecursionError) as error:
        raise bad(f"invalid argument name: {error}") from error


def _page(shown: Sequence[Shown], query: Mapping[str, str]) -> Sequence[Shown]:
    size, page = query.get("page_size"), query.get("page")
    if size is not None and not (_INTEGER.fullmatch(size) and 10 <= int(size) <= 500):
        raise PlainTextError(HTTPStatus.BAD_REQUEST, "page_size must be between 10 and 500")
    if page is not None and not _INTEGER.fullmatch(page):
        raise bad("invalid argument page: should be a number")
    if size is None or page is None:
        return shown
    start = (max(int(page), 1) - 1) * int(size)
    return shown[start : start + int(size)]
