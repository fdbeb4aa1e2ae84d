"""Where the lines go, and what may be said about it."""

from __future__ import annotations

import attrs
import pytest

from streamgw.core.batch import Collector, ToFile
from streamgw.core.hooks import Hooks, PluginServices
from streamgw.plugins.file_logger import PLUGIN, FileLogger, FileMetadata
from tests.support.plugins import Shelf, close, context, refusals, warnings


def hooks(shelf: Shelf, options: FileLogger, metadata: FileMetadata = FileMetadata()) -> Hooks:
    where = attrs.evolve(context(PLUGIN, PluginServices(shipping=shelf)), metadata=metadata)
    return PLUGIN.build(options, where)


@pytest.mark.parametrize(
    ("own", "shared", "path"),
    [
        ("/var/log/a.log", None, "/var/log/a.log"),
        (None, "b.log", "b.log"),
        ("/var/log/a.log", "b.log", "/var/log/a.log"),
    ],
)
def test_the_file_of_the_route_goes_before_the_shared_one(
    own: str | None, shared: str | None, path: str
) -> None:
    shelf = Shelf()

    close(hooks(shelf, FileLogger(path=own), FileMetadata(path=shared)))

    assert shelf.shipped[0][0] == Collector(to=ToFile(path=path), timeout_s=10)


def test_without_a_file_there_is_no_logger() -> None:
    with pytest.raises(ValueError, match="'path' is required, here or in the metadata"):
        hooks(Shelf(), FileLogger())


@pytest.mark.parametrize("path", ["", "/var/log/", "a\0b", "a" * 4096, 1])
def test_what_names_no_file_is_refused(path: object) -> None:
    (found,) = refusals(PLUGIN, path=path)

    assert found.startswith("path: expected the path of a file, got ")


@pytest.mark.parametrize("path", ["a", "../logs/a.log", "/dev/stdout", "/var/log/with space\n.log"])
def test_whatever_the_operator_writes_is_the_path(path: str) -> None:
    assert warnings(PLUGIN, path=path) == []


def test_what_has_no_effect_is_warned_of() -> None:
    assert warnings(PLUGIN, path="a", include_resp_body=True) == [
        "include_resp_body: does nothing at layer 4"
    ]
