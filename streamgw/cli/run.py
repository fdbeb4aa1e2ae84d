"""`streamgw run`."""

from __future__ import annotations

from pathlib import Path

import click

from streamgw.cli.options import with_paths
from streamgw.process.supervisor import run_gateway


@click.command()
@with_paths
@click.pass_context
def run(ctx: click.Context, config: Path, routes: Path) -> None:
    """Run the gateway until a signal ends it.

    The first SIGTERM or SIGINT lets sessions finish until the drain deadline, the second one ends at once.
    """
    ctx.exit(run_gateway(config, routes))
