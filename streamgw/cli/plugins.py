"""`streamgw plugins`: what routes may name under `plugins:`."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from streamgw.cli.failure import show_problems
from streamgw.cli.options import read_settings, with_paths
from streamgw.cli.output import print_data, print_table
from streamgw.config.plugins import AnyPlugin
from streamgw.process.plugins import installed, plugin_set


@click.group()
def plugins() -> None:
    """Say which plugins there are."""


@plugins.command("list")
@with_paths
@click.option(
    *("-o", "--output"), type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True
)
def list_(config: Path, routes: Path, output: str) -> None:
    """Every installed plugin, in the order in which they run.

    The built-in ones, and those that other packages bring (entry points `streamgw.plugins`).
    """
    del routes  # every command takes both; what is installed does not depend on the routes
    found = plugin_set(read_settings(config))
    rows = [_row(plugin, found.enabled) for plugin in found.installed.values()]
    for line in show_problems(found.warnings, level="warning"):
        click.echo(line, err=True)
    if output == "table":
        cells = [
            [
                row.name,
                str(row.priority),
                "yes" if row.enabled else "no",
                row.version,
                row.origin,
                ", ".join(row.options),
            ]
            for row in rows
        ]
        print_table(["PLUGIN", "PRIORITY", "ENABLED", "VERSION", "FROM", "OPTIONS"], cells)
    else:
        print_data([attrs.asdict(row) for row in rows], output)


@attrs.frozen
class _Row:
    name: str
    priority: int
    enabled: bool
    version: str
    origin: str
    """`streamgw`, or the package that brought it."""
    options: list[str]


def _row(plugin: AnyPlugin, enabled: frozenset[str] | None) -> _Row:
    return _Row(
        name=plugin.name,
        priority=plugin.priority,
        enabled=enabled is None or plugin.name in enabled,
        version=plugin.version,
        origin=installed().origins.get(plugin.name, "streamgw"),
        options=[field.name for field in attrs.fields(plugin.options)] if attrs.has(plugin.options) else [],
    )
