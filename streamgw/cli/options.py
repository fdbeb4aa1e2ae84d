"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from streamgw.cli.failure import CONFIG, Failure, show_problems
from streamgw.config.settings import Settings, load_settings
from streamgw.core.errors import ConfigError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_paths(command: _Command) -> _Command:
    """`-c` and `-r`, which every command takes: parameters `config` and `routes`."""
    config = click.option(
        *("-c", "--config"),
        type=click.Path(path_type=Path),
        default="conf/config.yaml",
        show_default=True,
        envvar="STREAMGW_CONFIG",
        show_envvar=True,
        help="The settings of the process.",
    )
    routes = click.option(
        *("-r", "--routes"),
        type=click.Path(path_type=Path),
        default="routes.d",
        show_default=True,
        envvar="STREAMGW_ROUTES",
        show_envvar=True,
        help="The directory of routes.",
    )
    return config(routes(command))


def with_output(*, default: str) -> Callable[[_Command], _Command]:
    """`--output table|json|yaml`: parameter `output`."""
    return click.option(
        *("-o", "--output"),
        type=click.Choice(["table", "json", "yaml"]),
        default=default,
        show_default=True,
        help="How to print it.",
    )


def read_settings(config: Path) -> Settings:
    """The settings.

    Raises:
      Failure: with every problem, exit code 78.
    """
    try:
        return load_settings(config, environ=os.environ)
    except ConfigError as error:
        raise Failure(CONFIG, *show_problems(error.problems)) from error
