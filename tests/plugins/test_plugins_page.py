"""docs/plugins.md says what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from streamgw.config.plugins import MetaSpec
from streamgw.core.expression import _OPERATORS
from streamgw.core.variables import NAMES, ROUTE_VARIABLES
from streamgw.plugins import BUILT_IN
from streamgw.plugins.file_logger import FileMetadata
from streamgw.plugins.records import HTTPLoggerOptions, LoggerOptions

PAGE = (Path(__file__).parents[2] / "docs/plugins.md").read_text()


def cells(section: str) -> set[str]:
    """What stands in the first column of the tables below a heading."""
    text = PAGE.partition(f"\n{section}\n")[2]
    text = re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0]
    return {
        name
        for cell in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", cell)
    }


def test_every_plugin_is_listed_with_its_priority() -> None:
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(#[\w-]+\) \| (\d+) \|", PAGE, re.MULTILINE)

    assert [(name, int(priority)) for name, priority in rows] == [
        (name, plugin.priority) for name, plugin in BUILT_IN.items()
    ]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_is_described(name: str) -> None:
    options = {field.name for field in attrs.fields(BUILT_IN[name].options)}

    described = {re.split(r"[.\[]", option)[0] for option in cells(f"### {name}")} - {"…"}
    if issubclass(BUILT_IN[name].options, LoggerOptions):
        described |= cells("### What loggers share") & options

    assert described == options


def test_what_loggers_share_is_described() -> None:
    assert cells("### What loggers share") == {field.name for field in attrs.fields(HTTPLoggerOptions)}
    assert cells("## Metadata") == {field.name for field in attrs.fields(FileMetadata)}


def test_what_is_said_about_a_plugin_is_described() -> None:
    assert cells("## Where they stand") == {f"_meta.{field.name}" for field in attrs.fields(MetaSpec)}


def test_every_operator_and_variable_is_named() -> None:
    section = PAGE.partition("\n## Conditions\n")[2].partition("\n## ")[0]
    variables = set(re.findall(r"`(\w+)`", section.partition("Variables:")[2]))

    assert cells("## Conditions") == set(_OPERATORS)
    assert variables == {*NAMES, *ROUTE_VARIABLES, "hostname"}
