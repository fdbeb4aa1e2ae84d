"""`streamgw completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and ids.

    \b
    bash: eval "$(streamgw completion bash)" in ~/.bashrc
    zsh:  eval "$(streamgw completion zsh)" in ~/.zshrc
    fish: streamgw completion fish > ~/.config/fish/completions/streamgw.fish
    """  # noqa: D301  # \b is Click's mark for lines that stay as they are
    kind = get_completion_class(shell)
    assert kind is not None, "Click knows the shells that we offer"
    click.echo(kind(ctx.find_root().command, {}, "streamgw", "_STREAMGW_COMPLETE").source())
