"""One frame of `streamgw top`: a model and a view become lines for a terminal of a given size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final, Generic, TypeVar

import attrs
from rich.console import Group as Lines
from rich.table import Column, Table
from rich.text import Text

from streamgw.cli.output import shown_duration, shown_size
from streamgw.cli.top.model import Close, Group, Model, Session, plain
from streamgw.cli.top.view import View
from streamgw.core.errors import Problem

_FAULTS: Final = {"client": "yellow", "upstream": "red", "operator": "magenta", "gateway": "bold red"}
_PROBLEMS: Final = 3
_HELP: Final = "s sort  r reverse  / filter  ↑↓ choose  k kill  p pause  q quit"
_NUMBERS: Final = {"AGE": 6, "UP": 9, "DOWN": 9, "RATE": 11, "SESSIONS": 8, "FAILED": 6, "LASTED": 6}
"""With their least width: half a figure is a wrong one."""
_WORDS: Final = {"CLOSED": 8, "REASON": 15, "FAULT": 8}
"""The same of words from a short list."""


_Item = TypeVar("_Item")


@attrs.frozen
class _Column(Generic[_Item]):
    title: str
    text: Callable[[_Item, float], str]
    sort: str = ""
    least_width: int = 0
    """Of the screen: on a narrower one other columns need the room."""


_SESSION: Final[tuple[_Column[Session], ...]] = (
    _Column("CLIENT", lambda row, _: row.client, "client"),
    _Column("LISTENER", lambda row, _: row.listener, "", 100),
    _Column("ROUTE", lambda row, _: row.route or f"{row.phase}…", "route"),
    _Column("NODE", lambda row, _: row.node or (f"{row.phase}…" if row.route else ""), "node", 80),
    _Column("NAME", lambda row, _: f"{row.server_name} {row.tls}".strip(), "", 120),
    _Column("AGE", lambda row, now: shown_duration(row.age_s(now)), "age"),
    _Column("UP", lambda row, _: shown_size(row.bytes_up), "up", 70),
    _Column("DOWN", lambda row, _: shown_size(row.bytes_down), "down", 70),
    _Column("RATE", lambda row, _: f"{shown_size(row.rate)}/s" if row.rate else "-", "rate"),
)
_CLOSE: Final[tuple[_Column[Close], ...]] = (
    _Column("CLOSED", lambda close, _: _clock(close.at)),
    _Column("REASON", lambda close, _: close.reason),
    _Column("FAULT", lambda close, _: close.fault),
    _Column("CLIENT", lambda close, _: close.client),
    _Column("ROUTE", lambda close, _: close.route, "", 80),
    _Column("NODE", lambda close, _: close.node, "", 100),
    _Column("LASTED", lambda close, _: _lasted(close.duration_s), "", 80),
    _Column("UP", lambda close, _: shown_size(close.bytes_up), "", 140),
    _Column("DOWN", lambda close, _: shown_size(close.bytes_down), "", 140),
    _Column("DETAIL", lambda close, _: close.detail),
)


def draw(
    model: Model, view: View, *, now: float, size: tuple[int, int], link: str, keys: bool = True
) -> Lines:
    """At most as many lines as `size` (width, height) has; lists are cut, and say so.

    `link` says how the gateway can be reached: `live`, or what the trouble is. Without `keys` nobody is told of any.
    """
    width, height = size
    head = [*_head(model, link), *_rejected(model)]
    groups, closes = _share(height - len(head) - 1)
    rows = view.shown(model, now)
    room = max(1, height - len(head) - 1 - _taken(groups) - _taken(closes) - 3)
    parts: list[Text | Table] = [*head, Text(""), _sessions(model, view, rows, (width, room), now)]
    if groups:
        parts += [Text(""), _groups(model, groups)]
    if closes:
        parts += [Text(""), _closes(model, closes, width, now)]
    return Lines(*parts, _foot(view)) if keys else Lines(*parts)


def _share(height: int) -> tuple[int, int]:
    """Rows for routes and nodes, rows for closes: nothing on a small terminal, where the sessions come first."""
    if height < 16:
        return 0, 0
    if height < 26:
        return 0, 4
    return min(6, height // 6), min(10, height // 5)


def _taken(rows: int) -> int:
    return rows + 2 if rows else 0


def _head(model: Model, link: str) -> Iterator[Text]:
    status = model.status
    if status is None:
        yield Text.assemble(("streamgw", "bold"), f"  {link}")
        return
    state = "draining" if status["draining"] else "ready" if status["ready"] else "not ready"
    style = "green" if state == "ready" else "yellow"
    revision = status["config"]["revision"]
    yield Text.assemble(
        ("streamgw", "bold"),
        f" {plain(status['version'])}  ",
        (state, style),
        f"  up {shown_duration(status['uptime_s'])}",
        f"  revision {plain(revision)[:8]}" if revision else "",
        "  ",
        (link, "green" if link == "live" else "yellow"),
        no_wrap=True,
    )
    sessions = status["sessions"]
    ended = ", ".join(f"{count} {plain(reason)}" for reason, count in _most(sessions["by_reason"]))
    yield Text(
        f"{sessions['active']:,} session{'' if sessions['active'] == 1 else 's'}, {model.pace.opened:.1f}/s new"
        f"  up {shown_size(model.pace.bytes_up)}/s  down {shown_size(model.pace.bytes_down)}/s"
        f"{f'  ended: {ended}' if ended else ''}",
        no_wrap=True,
        overflow="ellipsis",
    )


def _most(by_reason: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(
        ((reason, count) for reason, count in by_reason.items() if count), key=lambda each: -each[1]
    )[:6]


def _rejected(model: Model) -> Iterator[Text]:
    for what, problems in model.problems():
        yield Text(f"{what}: REJECTED, what ran before still runs", style="bold red", no_wrap=True)
        for problem in problems[:_PROBLEMS]:
            names = ("file", "line", "column", "pointer", "message")
            text = plain(Problem(**{name: problem[name] for name in names}))
            yield Text(f"  {text}", style="red", no_wrap=True, overflow="ellipsis")
        if len(problems) > _PROBLEMS:
            yield Text(f"  and {len(problems) - _PROBLEMS} more: streamgw status", style="red")


def _sessions(model: Model, view: View, rows: Sequence[Session], size: tuple[int, int], now: float) -> Table:
    width, room = size
    arrow = "↑" if view.backwards == (view.sort not in {"client", "route", "node"}) else "↓"
    columns = [column for column in _SESSION if width >= column.least_width]
    table = _table(
        [f"{column.title}{arrow}" if column.sort == view.sort else column.title for column in columns]
    )
    at = next((number for number, row in enumerate(rows) if row.id == view.chosen), 0)
    first = max(0, min(at - room // 2, len(rows) - room))
    for row in rows[first : first + room]:
        style = "reverse" if row.id == view.chosen else ""
        table.add_row(*(Text(column.text(row, now)) for column in columns), style=style)
    table.caption = Text(_caption(model, view, len(rows), min(room, len(rows))), style="dim")
    return table


def _caption(model: Model, view: View, fitting: int, shown: int) -> str:
    words = f" with {view.words!r}" if view.words else ""
    paused = ", paused" if view.frozen is not None else ""
    beyond = model.total - len(model.sessions)
    unknown = f"; the gateway has {beyond:,} younger ones" if beyond > 0 else ""
    return f"{shown} of {fitting:,} session{'' if fitting == 1 else 's'}{words}{unknown}{paused}"


def _groups(model: Model, room: int) -> Table:
    both = Table.grid(padding=(0, 4), expand=True)
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    both.add_row(_group("ROUTE", model.routes(), room), _group("NODE", model.nodes(), room))
    return both


def _group(title: str, groups: Sequence[Group], room: int) -> Table:
    table = _table([title, "SESSIONS", "RATE", "FAILED"])
    for group in groups[:room]:
        failed = Text(str(group.failures) if group.failures else "-", style="red" if group.failures else "")
        rate = f"{shown_size(group.rate)}/s" if group.rate else "-"
        table.add_row(Text(group.name), Text(str(group.sessions)), Text(rate), failed)
    return table


def _closes(model: Model, room: int, width: int, now: float) -> Table | Text:
    if not model.closes:
        return Text("no session has ended since this was started", style="dim")
    columns = [column for column in _CLOSE if width >= column.least_width]
    table = _table([column.title for column in columns])
    for close in list(model.closes)[:room]:
        cells = (Text(column.text(close, now)) for column in columns)
        table.add_row(
            *(_marked(cell, column.title, close) for cell, column in zip(cells, columns, strict=True))
        )
    return table


def _marked(cell: Text, title: str, close: Close) -> Text:
    if title in {"REASON", "FAULT"}:
        cell.stylize(_FAULTS.get(close.fault, ""))
    return cell


def _clock(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix):%H:%M:%S}"  # noqa: DTZ006  # the wall clock of whoever looks


def _lasted(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else shown_duration(seconds)


def _table(headings: Sequence[str]) -> Table:
    columns = [
        Column(
            heading,
            justify="right" if heading.rstrip("↑↓") in _NUMBERS else "left",
            min_width=_NUMBERS.get(heading.rstrip("↑↓"), _WORDS.get(heading)),
            no_wrap=True,
            overflow="ellipsis",
        )
        for heading in headings
    ]
    return Table(
        *columns,
        box=None,
        pad_edge=False,
        expand=True,
        header_style="bold cyan",
        caption_justify="left",
        padding=(0, 1),
    )


def _foot(view: View) -> Text:
    if view.prompt == "filter":
        return Text.assemble(("filter: ", "bold"), view.words, ("▏", "blink"), no_wrap=True)
    if view.prompt == "kill" and view.victim is not None:
        return Text(f"kill the session of {view.victim.client}? y/n", style="bold red", no_wrap=True)
    if view.message:
        return Text(view.message, style="yellow", no_wrap=True)
    return Text(_HELP, style="dim", no_wrap=True)
