"""`python -m bench.charts RESULTS.json DIRECTORY`: pictures for the documentation, from what `python -m bench --json` wrote.

Plain SVG, readable in light and in dark. One bar per kind of load and rival: how many times the rival's rate ours is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import click

RIVALS: Final = {"nginx": "#3d8b40", "nginx-64k": "#8a9a2b", "haproxy": "#3467b0"}
"""Each with its colour, which goes with light and dark."""
_WIDTH, _LEFT, _RIGHT, _BAR, _GAP, _TOP = 720, 150, 60, 11, 8, 58
_STYLE: Final = """\
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: 600 }
.small { font-size: 10.5px; fill: #57606a } .one { stroke: #57606a; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9198a1 } .one { stroke: #9198a1 } }"""


@attrs.frozen
class Chart:
    """One picture."""

    file: str
    title: str
    scenarios: Mapping[str, str]
    """What each is called in the picture."""


CHARTS: Final = (
    Chart(
        "bench-bulk.svg",
        "Bulk: times the rival's bytes per second",
        {
            "bulk-down-1": "1 connection, down",
            "bulk-down-8": "8 connections, down",
            "bulk-up-1": "1 connection, up",
            "bulk-up-8": "8 connections, up",
            "tls-bulk-down-1": "TLS, 1 down",
            "tls-bulk-down-8": "TLS, 8 down",
            "tls-bulk-up-1": "TLS, 1 up",
            "tls-bulk-up-8": "TLS, 8 up",
        },
    ),
    Chart(
        "bench-small.svg",
        "Small messages and new sessions: times the rival's rate",
        {
            "ping-1": "1 connection",
            "ping-32": "32 connections",
            "ping-256": "256 connections",
            "connect-32": "new connections",
            "tls-full-32": "TLS handshakes",
            "tls-resumed-32": "resumed",
            "udp-ping-32": "UDP, 32 clients",
            "udp-session-32": "UDP, new sessions",
            "udp-up-1": "UDP up, 1,200 B",
            "udp-down-1": "UDP down, 1,200 B",
        },
    ),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def main(results: Path, directory: Path) -> None:
    """Draw what a run of the bench found."""
    document = json.loads(results.read_text())
    about = document["about"]
    caption = f"{about['date']} · {about['machine']} · medians of {about['rounds']} rounds · workers: {about['workers']}"
    directory.mkdir(parents=True, exist_ok=True)
    for chart in CHARTS:
        (directory / chart.file).write_text(draw(chart, document["ratios"], caption))
        click.echo(directory / chart.file)


def draw(chart: Chart, ratios: Mapping[str, Mapping[str, float]], caption: str) -> str:
    """The picture as text.

    Args:
      ratios: scenario → rival → ours as a multiple of theirs.
    """
    groups = [
        (words, {name: ratios[scenario][name] for name in RIVALS if name in ratios[scenario]})
        for scenario, words in chart.scenarios.items()
        if scenario in ratios
    ]
    most = max([1.0, *(ratio for _, bars in groups for ratio in bars.values())])
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    body, y = list[str](), float(_TOP)
    for words, bars in groups:
        middle = y + len(bars) * _BAR / 2 + 4
        body.append(f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">{words}</text>')
        for name, ratio in bars.items():
            body += _bar(y, ratio, scale, RIVALS[name])
            y += _BAR
        y += _GAP
    one = _LEFT + scale
    body.append(f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{_TOP - 6}" y2="{y:.1f}"/>')
    head = [f'<text class="title" x="12" y="22">{chart.title}</text>', *_legend(groups)]
    foot = f'<text class="small" x="12" y="{y + 14:.1f}">{caption}</text>'
    size = f'viewBox="0 0 {_WIDTH} {y + 24:.0f}" width="{_WIDTH}" role="img" aria-label="{chart.title}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<style>{_STYLE}</style>",
        *head,
        *body,
        foot,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _bar(y: float, ratio: float, scale: float, colour: str) -> Sequence[str]:
    width = ratio * scale
    return (
        f'<rect x="{_LEFT}" y="{y:.1f}" width="{width:.1f}" height="{_BAR - 2}" rx="2" fill="{colour}"/>',
        f'<text class="small" x="{_LEFT + width + 5:.1f}" y="{y + _BAR - 2.5:.1f}">{ratio:.2f}</text>',
    )


def _legend(groups: Sequence[tuple[str, Mapping[str, float]]]) -> Sequence[str]:
    """Of those who have a bar."""
    lines, x = [], 12
    for name, colour in RIVALS.items():
        if not any(name in bars for _, bars in groups):
            continue
        lines.append(f'<rect x="{x}" y="34" width="10" height="10" rx="2" fill="{colour}"/>')
        lines.append(f'<text class="small" x="{x + 15}" y="43">beside {name}</text>')
        x += 120
    return lines


if __name__ == "__main__":
    main()
