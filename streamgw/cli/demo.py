"""`streamgw demo`."""

from __future__ import annotations

from pathlib import Path

import click

from streamgw.cli.options import with_paths
from streamgw.process.demo import run_demo


@click.command()
@with_paths
@click.pass_context
def demo(ctx: click.Context, config: Path, routes: Path) -> None:
    """Run the gateway with small upstreams inside, to try it out.

    Prints three things to try. Ends like `run`.
    """
    ctx.exit(run_demo(config, routes))
