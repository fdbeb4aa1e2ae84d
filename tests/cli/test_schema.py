"""streamgw schema"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from streamgw.cli.schema import KINDS
from tests.cli.conftest import Desk


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_schema(desk: Desk, kind: str) -> None:
    result = desk.run("schema", "--kind", kind)

    assert result.exit_code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(result.stdout))


def test_an_editor_gets_them_all(desk: Desk) -> None:
    result = desk.run("schema", "-o", "a/b")

    paths = [desk.directory / line for line in result.stdout.splitlines()]
    assert [path.name.removesuffix(".schema.json") for path in paths] == list(KINDS)
    assert paths[0].read_text() == desk.run("schema").stdout, "routes is what one gets without --kind"
    assert desk.run("schema", "-o", "a/b").exit_code == 0, "again, after an update"


def test_the_plugins_that_are_installed_have_their_options(desk: Desk) -> None:
    schema = json.loads(desk.run("schema", "--kind", "stream_route").stdout)
    route = jsonschema.Draft202012Validator(schema)

    assert route.is_valid({"plugins": {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}}})
    assert not route.is_valid({"plugins": {"ip-restriction": {"whitelist": ["ten"]}}})
    assert not route.is_valid({"plugins": {"ip-restrictions": {}}})


def test_a_directory_that_cannot_be_written_is_named(desk: Desk) -> None:
    Path("file").touch()

    result = desk.run("schema", "-o", "file/b")

    assert result.exit_code == 74
    assert result.stderr.startswith("error: file/b: Not a directory")
