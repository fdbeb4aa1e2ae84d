"""`streamgw check`: everything that is wrong, without a gateway."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import attrs
import click

from streamgw.cli.failure import CONFIG, DATA, show_problems
from streamgw.cli.options import with_paths
from streamgw.cli.output import print_data
from streamgw.config.compile import Loader
from streamgw.config.settings import Settings, load_settings
from streamgw.config.store import Store
from streamgw.core.errors import ConfigError, Problem
from streamgw.process.plugins import plugin_set


@attrs.frozen
class Report:
    """What is wrong, and what is there if nothing is."""

    config_problems: tuple[Problem, ...] = ()
    route_problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    revision: str = ""
    summary: str = ""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All of them."""
        return self.config_problems + self.route_problems

    @property
    def exit_code(self) -> int:
        """A broken config.yaml weighs more: without it nothing starts."""
        return CONFIG if self.config_problems else DATA if self.route_problems else 0


@click.command()
@with_paths
@click.option(
    *("-o", "--output"),
    type=click.Choice(["human", "json", "github"]),
    default="human",
    show_default=True,
    help="github: annotations in a pull request.",
)
@click.pass_context
def check(ctx: click.Context, config: Path, routes: Path, output: str) -> None:
    """Say everything that is wrong with the settings and the routes.

    Needs no running gateway. Exits with 0, 65 (routes) or 78 (settings); warnings do not count.
    """
    report = examine(config, routes)
    if output == "json":
        print_data(
            {
                "ok": not report.problems,
                "problems": [problem.as_data() for problem in report.problems],
                "warnings": [problem.as_data() for problem in report.warnings],
                "revision": report.revision,
            },
            "json",
        )
    elif output == "github":
        for line in _annotations("error", report.problems) + _annotations("warning", report.warnings):
            click.echo(line)
    else:
        lines = show_problems(report.problems) + show_problems(report.warnings, level="warning")
        click.echo("\n".join([*lines, report.summary]))
    ctx.exit(report.exit_code)


def examine(config: Path, routes: Path) -> Report:
    """Read settings and routes, both to the end.

    Raises:
      StoreError: the directory cannot be read.
    """
    settings = Settings()
    config_problems: tuple[Problem, ...] = ()
    route_problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    summary = revision = ""
    try:
        settings = load_settings(config, environ=os.environ)
        warnings = settings.warnings
    except ConfigError as error:
        config_problems = error.problems
    try:
        found = Loader(
            Store(routes), environ=os.environ, tls=lambda: settings.tls, plugins=lambda: plugin_set(settings)
        ).load(settings.listeners)
    except ConfigError as error:
        route_problems = error.problems
    else:
        revision = found.snapshot.revision
        number = len(found.certificates)
        certificates = f", {_count(number, 'certificate')}" if number else ""
        summary = (
            f"ok: {_count(len(settings.listeners), 'listener')}, "
            f"{_count(len(found.snapshot.router.routes), 'route')}{certificates} (revision {revision[:8]}…)"
        )
        if not config_problems:  # else every route would be one to a port that nobody listens on
            warnings += found.warnings
    count = len(config_problems) + len(route_problems)
    if count:
        summary = f"{_count(count, 'problem')}, {_count(len(warnings), 'warning')}"
    return Report(config_problems, route_problems, warnings, revision, summary)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _annotations(level: str, problems: Sequence[Problem]) -> list[str]:
    """Workflow commands.

    Source:
      https://docs.github.com/actions, "Workflow commands for GitHub Actions"; escapes as in actions/toolkit `command.ts`.
    """
    lines = []
    for problem in problems:
        place = {"file": problem.file, "line": problem.line, "col": problem.column}
        fields = ",".join(f"{name}={_escape_field(str(value))}" for name, value in place.items() if value)
        message = f"{problem.pointer}: {problem.message}" if problem.pointer else problem.message
        lines.append(f"::{level} {fields}::{_escape(message)}")
    return lines


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_field(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")
