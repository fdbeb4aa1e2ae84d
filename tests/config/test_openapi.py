from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from streamgw import __version__
from streamgw.config.openapi import BASE, document
from streamgw.config.schema import COLLECTIONS, HTTP_COLLECTIONS

DOCUMENT: dict[str, Any] = dict(document())
METHODS = ("get", "head", "put", "post", "patch", "delete")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        yield from ((path, method, item[method]) for method in METHODS if method in item)


def found(reference: str) -> Any:
    part: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        part = part[step]
    return part


def test_the_description_is_json_with_a_version() -> None:
    assert json.loads(json.dumps(DOCUMENT))["openapi"] == "3.1.1"
    assert DOCUMENT["info"]["version"] == __version__


def test_every_reference_leads_somewhere() -> None:
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(DOCUMENT)))

    assert references
    for reference in references:
        assert found(reference), reference


def test_every_collection_has_its_paths() -> None:
    for collection in COLLECTIONS:
        assert {"get", "put", "post"} <= DOCUMENT["paths"][f"{BASE}/{collection}"].keys()
        assert {"get", "put", "patch", "delete"} <= DOCUMENT["paths"][f"{BASE}/{collection}/{{id}}"].keys()
    for collection in HTTP_COLLECTIONS:
        item = DOCUMENT["paths"][f"{BASE}/{collection}"]
        assert "200" not in item["post"]["responses"]


def test_whatever_has_a_name_in_its_path_may_be_no_path_at_all() -> None:
    """schemathesis noticed: a line break in an id was answered 404, which was said of some methods only."""
    for path, method, operation in operations():
        assert "{" not in path or "404" in operation["responses"], (path, method)


@pytest.mark.parametrize(("path", "method", "operation"), list(operations()))
def test_an_operation_says_what_it_takes_and_answers(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    parameters = [*DOCUMENT["paths"][path].get("parameters", ()), *operation.get("parameters", ())]
    resolved = [found(each["$ref"]) if "$ref" in each else each for each in parameters]

    assert {each["name"] for each in resolved if each["in"] == "path"} == set(re.findall(r"\{(\w+)\}", path))
    assert operation["summary"]
    assert all(re.fullmatch("[1-5][0-9]{2}", status) for status in operation["responses"])
    assert ("401" in operation["responses"]) == ("security" not in operation)
    assert method in {"put", "post", "patch"} or "requestBody" not in operation


def test_nobody_is_asked_for_a_key_where_a_client_looks_for_the_version() -> None:
    assert [(path, method) for path, method, operation in operations() if "security" in operation] == [
        (BASE, "head")
    ]


def test_metadata_of_plugins_is_written_under_the_name_of_its_plugin() -> None:
    assert "405" in DOCUMENT["paths"][f"{BASE}/plugin_metadata"]["post"]["responses"]
    assert "405" in DOCUMENT["paths"][f"{BASE}/plugin_metadata/{{id}}"]["patch"]["responses"]
