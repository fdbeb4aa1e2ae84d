"""Pictures as SVG, readable in light and in dark: bars, and spans on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs

COLOURS: Final = {
    "streamgw": "#cf6412",
    "nginx": "#3d8b40",
    "nginx-64k": "#8a9a2b",
    "haproxy": "#3467b0",
}
"""In the order in which they are drawn; each goes with light and dark."""
_WIDTH, _LEFT, _RIGHT, _GAP, _TOP = 720, 150, 60, 8, 58
_THIN, _THICK = 11, 19
"""A bar with others beside it, and one alone."""
_ROW, _HEAD = 30, 34
"""Of spans: a row, and the line above a group of them."""
_LETTER, _SMALL_LETTER = 6.4, 5.7
"""About as wide, on average."""
_STYLE: Final = """\
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: 600 }
.small { font-size: 10.5px; fill: #57606a } .one { stroke: #57606a; stroke-dasharray: 3 3 }
.round { fill: #24292f; fill-opacity: .75 } .grid { stroke: #57606a; stroke-opacity: .25 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9198a1 } .one { stroke: #9198a1 }
.round { fill: #e6edf3 } .grid { stroke: #9198a1 } }"""


@attrs.frozen
class Bar:
    """One figure of one peer."""

    value: float
    rounds: Sequence[float] = ()
    """Small dots. With them the figures stand in a column of their own."""
    note: str = ""
    """Stands behind the figure."""


@attrs.frozen
class Group:
    """Bars that belong together."""

    words: str
    bars: Mapping[str, Bar]
    """By peer."""

    @property
    def first(self) -> float:
        """The figure of whoever is drawn first; groups are sorted by it."""
        return next(iter(self.bars.values())).value


@attrs.frozen
class Span:
    """From one figure of a peer to a larger one, each a median."""

    peer: str
    low: float
    high: float
    rounds: Sequence[tuple[float, float]]


@attrs.frozen
class Frame:
    """What stands around a picture."""

    title: str
    caption: str
    legend: Mapping[str, str] = attrs.field(factory=dict)
    """Peer → words. Empty: the bars have the names beside them."""
    hint: str = ""
    """In the upper right corner."""


def draw_bars(
    frame: Frame, groups: Sequence[Group], shown: Callable[[float], str], *, one: bool = False
) -> str:
    """A bar for each figure, all on one scale that begins at 0.

    Args:
      one: mark where 1 is.
    """
    bars = [bar for group in groups for bar in group.bars.values()]
    most = max([*([1.0] if one else []), *(figure for bar in bars for figure in (bar.value, *bar.rounds))])
    left = max(_LEFT, 20 + _LETTER * max(len(group.words) for group in groups))
    right = max(_RIGHT, 18 + _SMALL_LETTER * max(len(_label(bar, shown)) for bar in bars))
    scale = (_WIDTH - left - right) / most
    high = _THICK if len(bars) == len(groups) else _THIN
    top = float(_TOP if frame.legend or frame.hint else _TOP - 20)
    body, y = list[str](), top
    for group in groups:
        body.append(
            _text(left - 8, y + len(group.bars) * high / 2 + (3 if high == _THICK else 4), group.words)
        )
        for peer, bar in group.bars.items():
            body += _bar((left, y), high, scale, peer, bar)
            x = left + scale * (most if bar.rounds else bar.value) + (10 if bar.rounds else 5)
            body.append(
                f'<text class="small" x="{x:.1f}" y="{y + high / 2 + 3:.1f}">{_label(bar, shown)}</text>'
            )
            y += high
        y += _GAP
    if one:
        x = left + scale
        body.append(f'<line class="one" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6:g}" y2="{y:.1f}"/>')
    return _framed(frame, body, y)


def draw_spans(frame: Frame, groups: Mapping[str, Sequence[Span]], shown: Callable[[float], str]) -> str:
    """A line for each span on one logarithmic scale; large dots for its ends, small ones for single rounds."""
    spans = [span for group in groups.values() for span in group]
    figures = [figure for span in spans for ends in span.rounds for figure in ends]
    left, right = _LEFT, _WIDTH - _RIGHT
    scale = (right - left) / math.log10(max(figures) / min(figures))

    def x_of(figure: float) -> float:
        return left + math.log10(figure / min(figures)) * scale

    ticks = list(_ticks(min(figures), max(figures)))
    body, y = list[str](), float(_TOP)
    for words, group in groups.items():
        body.append(f'<text x="12" y="{y + 6:.1f}">{words}</text>')
        y += _HEAD
        ends = f'y1="{y - _ROW / 2:.1f}" y2="{y + _ROW * (len(group) - 0.5):.1f}"'
        body += (f'<line class="grid" x1="{x_of(tick):.1f}" x2="{x_of(tick):.1f}" {ends}/>' for tick in ticks)
        for span in group:
            body += _span(x_of, y, span, shown)
            y += _ROW
    for tick in ticks:
        words = f'x="{x_of(tick):.1f}" y="{y:.1f}" text-anchor="middle">{tick:g}'
        body.append(f'<text class="small" {words}</text>')
    return _framed(frame, body, y + 8)


def _label(bar: Bar, shown: Callable[[float], str]) -> str:
    return shown(bar.value) + bar.note


def _bar(corner: tuple[float, float], high: int, scale: float, peer: str, bar: Bar) -> Iterator[str]:
    (left, y), width = corner, bar.value * scale
    yield f'<rect x="{left:g}" y="{y:.1f}" width="{width:.1f}" height="{high - 2}" rx="2" fill="{COLOURS[peer]}"/>'
    for figure in bar.rounds:
        x = left + figure * scale
        yield f'<circle class="round" cx="{x:.1f}" cy="{y + high / 2 - 1:.1f}" r="2"/>'


def _span(
    x_of: Callable[[float], float], y: float, span: Span, shown: Callable[[float], str]
) -> Iterator[str]:
    low, high, colour = x_of(span.low), x_of(span.high), COLOURS[span.peer]
    yield _text(_LEFT - 24, y + 4, span.peer)
    ends = f'x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
    yield f'<line {ends} stroke="{colour}" stroke-width="2" stroke-opacity=".45"/>'
    for figure in (end for ends_of_one in span.rounds for end in ends_of_one):
        yield f'<circle cx="{x_of(figure):.1f}" cy="{y:.1f}" r="2.5" fill="{colour}" fill-opacity=".55"/>'
    for x, figure in ((low, span.low), (high, span.high)):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{colour}"/>'
        yield f'<text class="small" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{shown(figure)}</text>'


def _ticks(least: float, most: float) -> Iterator[float]:
    """1, 2, 5, 10, 20, 50 …, as far as they fit."""
    for power in range(math.floor(math.log10(least)), math.floor(math.log10(most)) + 1):
        yield from (figure for step in (1, 2, 5) if least <= (figure := float(f"{step}e{power}")) <= most)


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:g}" y="{y:.1f}" text-anchor="end">{words}</text>'


def _framed(frame: Frame, body: Sequence[str], y: float) -> str:
    head = [f'<text class="title" x="12" y="22">{frame.title}</text>', *_legend(frame)]
    foot = f'<text class="small" x="12" y="{y + 14:.1f}">{frame.caption}</text>'
    size = f'viewBox="0 0 {_WIDTH} {y + 24:.0f}" width="{_WIDTH}" role="img" aria-label="{frame.title}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([svg, f"<style>{_STYLE}</style>", *head, *body, foot, "</svg>"]) + "\n"


def _legend(frame: Frame) -> Iterator[str]:
    x = 12
    for peer, words in frame.legend.items():
        yield f'<rect x="{x}" y="34" width="10" height="10" rx="2" fill="{COLOURS[peer]}"/>'
        yield f'<text class="small" x="{x + 15}" y="43">{words}</text>'
        x += 120
    if frame.hint:
        yield f'<text class="small" x="{_WIDTH - 12}" y="43" text-anchor="end">{frame.hint}</text>'
