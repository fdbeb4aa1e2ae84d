"""`streamgw top`: what a running gateway does, as it does it."""

from streamgw.cli.top.command import top

__all__ = ["top"]
