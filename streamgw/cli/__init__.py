"""The `streamgw` command: Click, what it prints, exit codes. No logic of its own."""

from streamgw.cli.commands import main

__all__ = ["main"]
