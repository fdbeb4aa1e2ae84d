"""`python -m bench.charts bench/results/DATE`: pictures and table of docs/performance.md, from what `make bench` wrote there.

What each picture says to those who do not see it is written onto the page too, so that the two never differ. Results that
are not there leave their pictures as they are.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click

from bench.picture import COLOURS, Bar, Frame, Group, Span, draw_bars, draw_spans

PAGE: Final = Path(__file__).parents[1] / "docs/performance.md"
LESS: Final = "less is better"
ONE_WORKER: Final = "one-worker.json"
AGAIN: Final = "one-worker-again.json"
"""The same measured once more, if it was: what the ratios are worth."""
BULK: Final = {
    "bulk-down-1": "1 connection, down",
    "bulk-down-8": "8 connections, down",
    "bulk-up-1": "1 connection, up",
    "bulk-up-8": "8 connections, up",
    "tls-bulk-down-1": "TLS, 1 down",
    "tls-bulk-down-8": "TLS, 8 down",
    "tls-bulk-up-1": "TLS, 1 up",
    "tls-bulk-up-8": "TLS, 8 up",
}
"""What each scenario is called in a picture."""
SMALL: Final = {
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
}
MESSAGES: Final = {
    "ping-1": "TCP, 1 connection",
    "ping-32": "TCP, 32 connections",
    "ping-256": "TCP, 256 connections",
    "udp-ping-32": "UDP, 32 clients",
    "udp-up-1": "UDP up, 1,200 B",
    "udp-down-1": "UDP down, 1,200 B",
}
SESSIONS: Final = {
    "connect-32": "TCP connection",
    "tls-full-32": "TLS 1.3 handshake",
    "tls-resumed-32": "resumed TLS 1.3",
    "tls12-resumed-32": "resumed TLS 1.2",
    "udp-session-32": "UDP session",
}
TABLE: Final = {
    "bulk-down-1": "bulk down, 1 connection",
    "bulk-down-8": "bulk down, 8 connections",
    "bulk-up-1": "bulk up, 1 connection",
    "bulk-up-8": "bulk up, 8 connections",
    "ping-1": "ping-pong 64 bytes, 1 connection",
    "ping-32": "ping-pong, 32 connections",
    "ping-256": "ping-pong, 256 connections",
    "connect-32": "new connections, 32 at a time",
    "tls-full-32": "full TLS 1.3 handshakes, P-256, 32 at a time",
    "tls-resumed-32": "resumed TLS 1.3 handshakes",
    "tls12-resumed-32": "resumed TLS 1.2 handshakes",
    "tls-bulk-down-1": "bulk down through TLS, 1 connection",
    "tls-bulk-down-8": "bulk down through TLS, 8 connections",
    "tls-bulk-up-1": "bulk up through TLS, 1 connection",
    "tls-bulk-up-8": "bulk up through TLS, 8 connections",
    "udp-ping-32": "UDP question and answer, 32 clients",
    "udp-session-32": "a UDP session for each question, 32 at a time",
    "udp-up-1": "1,200-byte datagrams up, 64 under way",
    "udp-down-1": "the same down",
}
"""What each scenario is called in the table, in its order."""
HEAD: Final = "| | streamgw | beside nginx | beside HAProxy | both again | CPU: streamgw / nginx / HAProxy |"

# What json.loads returns: the shapes stand in the modules that wrote it.
Document = Mapping[str, Any]


@attrs.frozen
class Picture:
    """One file."""

    file: str
    says: str
    """Instead of the picture, for those who do not see it."""
    svg: str


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--page",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=PAGE,
    help="Pictures go into images/ beside it, and what they say onto it.  [default: docs/performance.md]",
)
def main(results: Path, page: Path) -> None:
    """Draw what the bench found."""
    documents: dict[str, Document] = {
        name: json.loads((results / name).read_text())
        for name in (*DRAWN_FROM, AGAIN)
        if (results / name).exists()
    }
    pictures = list[Picture]()
    for name, draw in DRAWN_FROM.items():
        if name in documents:
            pictures += draw(documents[name])
        else:
            click.echo(f"{results / name} is not there: its pictures stay as they are", err=True)
    if not pictures:
        raise click.ClickException(f"nothing in {results} can be drawn")
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    text = page.read_text()
    if ONE_WORKER in documents:
        text = with_table(text, table_of(documents[ONE_WORKER], documents.get(AGAIN, {"ratios": {}})))
    for picture in pictures:
        (images / picture.file).write_text(picture.svg)
        text = with_words(text, picture)
        click.echo(images / picture.file)
    page.write_text(text)


def with_words(text: str, picture: Picture) -> str:
    """A page with what the picture says, wherever it stands."""
    target = f"(images/{picture.file})"
    return re.sub(r"!\[[^\]]*\]" + re.escape(target), lambda _: f"![{picture.says}]{target}", text)


def with_table(text: str, table: str) -> str:
    """A page with this table in the place of the one with the same head."""
    return re.sub(re.escape(HEAD) + r"\n(?:\|.*\n)+", lambda _: table, text)


def table_of(document: Document, again: Document) -> str:
    """Rates, how many times the rivals' they are, and CPU per unit: everything that was measured with one worker."""
    rows = [HEAD, "| --- | --- | --- | --- | --- | --- |"]
    for scenario, words in TABLE.items():
        if scenario not in document["medians"]:
            continue
        medians = document["medians"][scenario]
        nginx, haproxy = _beside(document, scenario)
        is_bulk = "bulk" in scenario
        rate = (
            f"{medians['streamgw']['rate']:.2f} GiB/s" if is_bulk else f"{medians['streamgw']['rate']:,.0f}/s"
        )
        costs = [
            _figure(medians[peer]["proxy_us"] / (1000.0 if is_bulk else 1.0)) if peer in medians else "–"
            for peer in ("streamgw", "nginx", "haproxy")
        ]
        unit = "ms per GiB" if is_bulk else "µs"
        repeated = ", ".join(_beside(again, scenario))
        rows.append(f"| {words} | {rate} | {nginx} | {haproxy} | {repeated} | {' / '.join(costs)} {unit} |")
    return "\n".join(rows) + "\n"


def _beside(document: Document, scenario: str) -> tuple[str, str]:
    """How many times nginx's rate ours was, in brackets with its larger buffers, and HAProxy's."""
    ratios = document["ratios"].get(scenario, {})
    nginx, large, haproxy = (
        f"{ratios[peer]:.2f}" if peer in ratios else "–" for peer in ("nginx", "nginx-64k", "haproxy")
    )
    return (f"{nginx} ({large})" if "nginx-64k" in ratios else nginx), haproxy


def _draw_one_worker(document: Document) -> Iterator[Picture]:
    caption = _caption(document, f"workers: {document['about']['workers']}")
    yield from _times(document, "bench-bulk.svg", "Bulk: times the rival's bytes per second", BULK, caption)
    title = "Small messages and new sessions: times the rival's rate"
    yield from _times(document, "bench-small.svg", title, SMALL, caption)
    cost = "CPU of the proxy"
    yield from _cpu(document, "bench-cpu-bulk.svg", f"{cost} per GiB, in ms", BULK, caption)
    title = f"{cost} per message or datagram, in µs"
    yield from _cpu(document, "bench-cpu-messages.svg", title, MESSAGES, caption)
    title = f"{cost} per new connection, handshake or UDP session, in µs"
    yield from _cpu(document, "bench-cpu-sessions.svg", title, SESSIONS, caption)


def _times(
    document: Document, file: str, title: str, scenarios: Mapping[str, str], caption: str
) -> Iterator[Picture]:
    """Our rate as a multiple of everybody else's."""
    groups = _groups(document["ratios"], scenarios, float)
    if groups:
        legend = {peer: f"beside {peer}" for peer in _peers(groups)}
        svg = draw_bars(
            Frame(title, caption, legend, "more is better; dashed: equal"), groups, "{:.2f}".format, one=True
        )
        yield Picture(file, f"{title}. Each figure stands in the table above.", svg)


def _cpu(
    document: Document, file: str, title: str, scenarios: Mapping[str, str], caption: str
) -> Iterator[Picture]:
    """Whatever costs least comes first."""
    per_ms = 1000.0 if title.endswith("ms") else 1.0
    groups = _groups(document["medians"], scenarios, lambda sample: sample["proxy_us"] / per_ms)
    if groups:
        legend = {peer: peer for peer in _peers(groups)}
        groups.sort(key=lambda group: group.first)
        svg = draw_bars(Frame(title, caption, legend, LESS), groups, _figure)
        yield Picture(file, f"{title}. {_said(groups)}.", svg)


def _groups(
    by_scenario: Mapping[str, Mapping[str, Any]],
    scenarios: Mapping[str, str],
    value_of: Callable[[Any], float],
) -> list[Group]:
    return [
        Group(words, {peer: Bar(value_of(found[peer])) for peer in COLOURS if peer in found})
        for scenario, words in scenarios.items()
        if (found := by_scenario.get(scenario))
    ]


def _draw_memory(document: Document) -> Iterator[Picture]:
    found = sorted(document["kib_per_connection"].items(), key=lambda item: item[1])
    bars = {peer: Bar(kib, note=" KiB") for peer, kib in found if peer in COLOURS}
    title = "Memory of the proxy (PSS) per idle connection"
    frame = Frame(title, _caption(document, f"{document['about']['connections']:,} connections"), hint=LESS)
    svg = draw_bars(frame, [Group(peer, {peer: bar}) for peer, bar in bars.items()], "{:.2f}".format)
    said = ", ".join(f"{peer} {bar.value:.2f} KiB" for peer, bar in bars.items())
    yield Picture("bench-memory.svg", f"{title}: {said}.", svg)


def _draw_pace(document: Document) -> Iterator[Picture]:
    groups = {
        f"at half of {row['rival']}'s highest rate, {row['rate']:,.0f} messages a second": [
            _latencies("streamgw", row["ours"]),
            _latencies(row["rival"], row["theirs"]),
        ]
        for row in document["rows"]
    }
    title = "How long a message takes: median (left) and 99th percentile (right), in ms"
    about = document["about"]
    connections = [f"{about['connections']:,} connections"] if "connections" in about else []
    caption = _caption(document, "small dots: single rounds", *connections)
    svg = draw_spans(Frame(title, caption, hint=f"logarithmic; {LESS}"), groups, _ms)
    said = "; ".join(
        f"{pace}: " + ", ".join(f"{span.peer} {_ms(span.low)} and {_ms(span.high)}" for span in spans)
        for pace, spans in groups.items()
    )
    yield Picture("bench-pace.svg", f"Median and 99th percentile of a message, in ms, {said}.", svg)


def _latencies(peer: str, samples: Sequence[Mapping[str, float]]) -> Span:
    rounds = [(sample["p50_us"] / 1000, sample["p99_us"] / 1000) for sample in samples]
    low, high = map(statistics.median, zip(*rounds, strict=True))
    return Span(peer, low, high, rounds)


def _draw_growth(document: Document) -> Iterator[Picture]:
    by_connections = [
        Group(
            f"{int(count):,} connections",
            {peer: _cost(by_peer[peer]) for peer in COLOURS if peer in by_peer},
        )
        for count, by_peer in document["connections"].items()
    ]
    caption = _caption(document, "small dots: single rounds")
    title = "CPU of the proxy per message, in µs, with more and more connections"
    legend = {peer: peer for peer in _peers(by_connections)}
    svg = draw_bars(Frame(title, caption, legend, LESS), by_connections, _figure)
    yield Picture("bench-growth-connections.svg", f"{title}. {_said(by_connections)}.", svg)
    by_routes = [
        Group(f"{int(count):,} routes", {"streamgw": _cost(samples, "rate")})
        for count, samples in document["routes"].items()
    ]
    title = "CPU of streamgw per new connection, in µs, with more and more routes"
    svg = draw_bars(Frame(title, caption, hint=LESS), by_routes, _figure)
    yield Picture("bench-growth-routes.svg", f"{title}. {_said(by_routes)}.", svg)


def _cost(samples: Sequence[Mapping[str, float]], beside: str = "") -> Bar:
    """CPU per unit, with the rate behind it if that is what stands `beside`."""
    costs = [sample["proxy_us"] for sample in samples]
    note = f" µs, {statistics.median(sample[beside] for sample in samples):,.0f} a second" if beside else ""
    return Bar(statistics.median(costs), costs, note)


def _said(groups: Sequence[Group]) -> str:
    def one(group: Group) -> str:
        return ", ".join(f"{peer} {_figure(bar.value)}{bar.note}" for peer, bar in group.bars.items())

    return "; ".join(f"{group.words}: {one(group)}" for group in groups)


def _caption(document: Document, *more: str) -> str:
    about = document["about"]
    return " · ".join([about["date"], about["machine"], f"medians of {about['rounds']} rounds", *more])


def _peers(groups: Sequence[Group]) -> list[str]:
    """Who has a bar."""
    return [peer for peer in COLOURS if any(peer in group.bars for group in groups)]


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


DRAWN_FROM: Final[Mapping[str, Callable[[Document], Iterator[Picture]]]] = {
    ONE_WORKER: _draw_one_worker,
    "memory.json": _draw_memory,
    "pace.json": _draw_pace,
    "growth.json": _draw_growth,
}
"""File in the directory of results → what draws it."""


if __name__ == "__main__":
    main()
