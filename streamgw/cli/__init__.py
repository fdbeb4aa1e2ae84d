"""The `streamgw` command: Click, what it prints, exit codes. No logic of its own."""

import gc
import io
import sys


def main() -> None:
    """The entry point: `streamgw`, and `python -m streamgw`.

    Without the garbage collector: it would look 140 times among the modules that a command imports, which stay, for a sixth
    of what they take. Most commands are over soon. Those that are not switch it on: the gateway when it has loaded
    (`process.worker.settle`), and `top`.
    """
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        # The name of a file may be no text in this encoding: what does not fit is shown with a backslash. In the C locale
        # Python writes such bytes as they came.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    from streamgw.cli.commands import commands  # noqa: PLC0415  not before that

    commands(prog_name="streamgw", complete_var="_STREAMGW_COMPLETE")
