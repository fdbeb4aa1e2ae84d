"""Tables for people, JSON and YAML for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final

import click

from streamgw.config.render import render_block

_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, styles: Sequence[str] = ()
) -> None:
    """A table: with lines and colours on a terminal, plain columns for a pipe. Nothing at all without rows.

    Args:
      headings: one per column.
      rows: of as many cells each.
      styles: of the rows, on a terminal: `red`; empty for none.
    """
    if not rows:
        return
    if sys.stdout.isatty():
        _print_rich(headings, rows, styles or [""] * len(rows))
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def print_data(data: object, output: str) -> None:
    """Plain data as `json` or `yaml`."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    click.echo(render_block(data, indent=0))


def shown_duration(seconds: float) -> str:
    """In its largest unit: `2 h`."""
    for unit_s, unit in _UNITS:
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return "0 s"


def shown_size(size: float) -> str:
    """Of bytes: `3.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _print_rich(headings: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
    # 50 ms that a pipe need not pay.
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  # see above
    from rich.console import Console  # noqa: PLC0415  # see above
    from rich.table import Table  # noqa: PLC0415  # see above
    from rich.text import Text  # noqa: PLC0415  # see above

    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for row, style in zip(rows, styles, strict=True):
        # Text, so that what stands in a file is never taken for markup.
        table.add_row(*map(Text, row), style=style)
    Console().print(table)
