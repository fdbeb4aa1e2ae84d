"""The `streamgw` command.

A command's module is imported when that command is asked for, so that `--help` needs nothing but Click.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from streamgw import __version__
from streamgw.cli.failure import EXIT_CODES, Failure, translate
from streamgw.core.errors import StreamgwError

COMMANDS: Final = {
    "run": "Run the gateway until a signal ends it.",
    "demo": "Run the gateway with small upstreams inside, to try it out.",
    "check": "Say everything that is wrong with the settings and the routes.",
    "explain": "Say which route a client gets, and for every other one why not.",
    "status": "Ask the running gateway what it runs.",
    "upgrade": "Have a new process take over the gateway's sockets.",
    "top": "Show what the running gateway does, as it does it.",
    "route": "Add, list, change and remove routes.",
    "upstream": "Add, list and remove upstreams that several routes share.",
    "plugins": "Say which plugins there are.",
    "ssl": "Add, list, renew, check and remove certificates.",
    "schema": "Print the JSON Schema of a file, for editors.",
    "completion": "Print the script that completes commands and ids.",
}
"""Each is the function of its name in the module of its name; the text is the first line of its help."""

_EPILOG: Final = "\b\nExit codes:\n" + "\n".join(
    f"  {code:2}  {meaning}" for code, meaning in EXIT_CODES.items()
)


class Commands(click.Group):
    """Imports its commands late, and turns what the layers below raise into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table: what one needs first comes first."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"streamgw.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. A bug keeps its traceback."""
        try:
            return super().invoke(ctx)
        except StreamgwError as error:
            failure = error if isinstance(error, Failure) else translate(error)
            click.echo("\n".join(failure.lines), err=True)
            ctx.exit(failure.exit_code)


@click.group(
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, "-V", "--version", prog_name="streamgw")
def commands() -> None:
    """A Layer-4 gateway: TCP routes from files, hot-reloaded.

    Every command takes the settings from -c and the routes from -r, relative to the working directory.
    """
