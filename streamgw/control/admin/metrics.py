"""Metrics for Prometheus: plain numbers of the gateway, put into its text form when somebody asks.

Names and labels of what APISIX has are APISIX's, with its prefix; ours begin with `streamgw_`. docs/metrics.md lists all.

Source:
  APISIX `apisix/plugins/prometheus/exporter.lua` (`apisix_stream_…`); https://prometheus.io/docs/practices/naming/ and
  the OpenMetrics specification for everything else.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TypeAlias

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamgw import __version__
from streamgw.config.endpoints import MetricsSettings
from streamgw.control.admin.app import build_app
from streamgw.control.admin.fleet import Figures, Fleet, Spread


def build_metrics_app(fleet: Fleet, settings: MetricsSettings) -> Starlette:
    """The exporter: one path."""

    async def metrics(request: Request) -> Response:
        figures = await fleet.figures()
        # Ten thousand lines take a tenth of a second: not on the event loop.
        accept = request.headers.get("accept", "")
        body, media_type = await trio.to_thread.run_sync(expose, figures, settings.prefix, accept)
        return Response(body, media_type=media_type)

    return build_app([Route(settings.path, metrics)])


def expose(figures: Figures, prefix: str, accept: str = "") -> tuple[bytes, str]:
    """The text, and its media type: OpenMetrics for whoever accepts that. Any thread may call this."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(figures, prefix))
    ProcessCollector(registry=registry)
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Figures(Collector):
    """What prometheus_client asks for."""

    def __init__(self, figures: Figures, prefix: str) -> None:
        self._figures = figures
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Every series."""
        yield from _of_apisix(self._figures, self._prefix)
        yield from _of_sessions(self._figures)
        yield from _of_health(self._figures, self._prefix)
        yield from _of_services(self._figures)
        yield from _of_configuration(self._figures)
        yield from _of_the_process(self._figures)


def _of_apisix(figures: Figures, prefix: str) -> Iterator[Metric]:
    """As behind APISIX. Two of its counters lack the `_total` that a counter must have: their type is not said."""
    yield _counter(
        f"{prefix}stream_connection_total",
        "Sessions that ended on routes with the plugin prometheus.",
        ["route"],
        (([route], count) for route, count in figures.connections.items()),
    )
    yield _gauge(
        f"{prefix}stream_active_connections",
        "Live sessions.",
        ["listen_addr"],
        _summed(([_listen_addr(each.name)], each.active) for each in figures.listeners),
    )
    yield _untyped(
        f"{prefix}stream_status",
        "Sessions that ended, by the status in the access log.",
        ["code", "listen_addr", "node"],
        _summed(
            ([str(ended.status), _listen_addr(ended.listener), ended.node], ended.sessions)
            for ended in figures.ended
        ),
    )
    bandwidth = [
        ([_listen_addr(listener), kind, side], count)
        for listener, up, down in _bytes(figures)
        for kind, side, count in (
            ("ingress", "downstream", up),
            ("egress", "upstream", up),
            ("ingress", "upstream", down),
            ("egress", "downstream", down),
        )
    ]
    text = (
        "Bytes received (ingress) and sent (egress), towards the client (downstream) and the node (upstream)."
    )
    yield _untyped(f"{prefix}stream_bandwidth", text, ["listen_addr", "type", "side"], _summed(bandwidth))


def _of_sessions(figures: Figures) -> Iterator[Metric]:
    yield _counter(
        "streamgw_sessions_total",
        "Sessions that ended, by reason.",
        ["listener", "reason"],
        _summed(([ended.listener, ended.reason], ended.sessions) for ended in figures.ended),
    )
    yield _gauge(
        "streamgw_sessions_active",
        "Live sessions.",
        ["listener"],
        (([each.name], each.active) for each in figures.listeners),
    )
    yield _counter(
        "streamgw_sessions_accepted_total",
        "Sessions that began.",
        ["listener"],
        (([each.name], each.accepted) for each in figures.listeners),
    )
    yield _counter(
        "streamgw_accept_pauses_total",
        "How often a listener stopped accepting because of a limit.",
        ["listener"],
        (([each.name], each.pauses) for each in figures.listeners),
    )
    yield _counter(
        "streamgw_bytes_total",
        "Bytes of clients for nodes (up) and of nodes for clients (down), live sessions included.",
        ["listener", "direction"],
        (
            ([listener, direction], count)
            for listener, up, down in _bytes(figures)
            for direction, count in (("up", up), ("down", down))
        ),
    )
    yield _counter(
        "streamgw_datagrams_dropped_total",
        "Datagrams that were not passed on.",
        ["listener", "reason"],
        (([listener, reason], count) for (listener, reason), count in figures.drops.items()),
    )
    yield _histogram(
        "streamgw_connect_duration_seconds", "From dialling a node to its answer.", figures.connect
    )
    yield _histogram(
        "streamgw_session_duration_seconds", "From accept to the end of a session.", figures.duration
    )


def _of_health(figures: Figures, prefix: str) -> Iterator[Metric]:
    """Of upstreams that have checks."""
    if not figures.nodes:
        return
    yield _gauge(
        f"{prefix}upstream_status",
        "1 while sessions may go to a node, 0 while it is down.",
        ["name", "ip", "port"],
        (
            ([f"/apisix/{node.upstream}", node.host, str(node.port)], int(node.is_up))
            for node in figures.nodes
        ),
    )
    yield _counter(
        "streamgw_probes_total",
        "Probes of nodes that ended, by result.",
        ["upstream", "node", "result"],
        (
            ([node.upstream, _place(node.host, node.port), result], count)
            for node in figures.nodes
            for result, count in node.probes.items()
        ),
    )


def _of_services(figures: Figures) -> Iterator[Metric]:
    """Of upstreams whose nodes DNS says."""
    if not figures.services:
        return
    yield _gauge(
        "streamgw_discovered_nodes",
        "Nodes of a service, as DNS says.",
        ["service"],
        (([each.name], each.nodes) for each in figures.services),
    )
    yield _gauge(
        "streamgw_discovery_failing",
        "1 while a service cannot be looked up; the last answer is used as long as may be.",
        ["service"],
        (([each.name], int(each.is_failing)) for each in figures.services),
    )


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _of_configuration(figures: Figures) -> Iterator[Metric]:
    info = InfoMetricFamily("streamgw_config", "The configuration that runs.")
    info.add_metric([], {"revision": figures.revision})
    yield info
    yield _gauge(
        "streamgw_config_objects",
        "Objects of the configuration that runs.",
        ["collection"],
        (([name], count) for name, count in figures.objects.items()),
    )
    yield _counter(
        "streamgw_config_reloads_total",
        "Changed configurations that were applied, the first one included, or rejected.",
        ["what", "result"],
        (
            ([each.what, result], count)
            for each in figures.reloads
            for result, count in (("applied", each.applied), ("rejected", each.rejected))
        ),
    )
    yield _gauge(
        "streamgw_config_rejected",
        "1 while the files say something else than what runs.",
        ["what"],
        (([each.what], int(each.is_rejected)) for each in figures.reloads),
    )
    yield _gauge(
        "streamgw_config_last_applied_timestamp_seconds",
        "When what runs was applied.",
        ["what"],
        (([each.what], each.applied_at) for each in figures.reloads),
    )
    yield _gauge(
        "streamgw_certificate_expiry_timestamp_seconds",
        "When a certificate that is served ends.",
        ["certificate"],
        (([each.id], each.not_after) for each in figures.certificates),
    )


def _of_the_process(figures: Figures) -> Iterator[Metric]:
    info = InfoMetricFamily("streamgw_build", "The program.")
    info.add_metric([], {"version": __version__, "python": platform.python_version()})
    yield info
    counts = {
        "streamgw_bugs_total": (
            "Errors that nobody expected; each has its traceback in the log.",
            figures.bugs,
        ),
        "streamgw_log_dropped_lines_total": (
            "Lines of the application log that were lost: nobody read standard error, or its disk was full.",
            figures.log_dropped,
        ),
        "streamgw_access_log_dropped_lines_total": (
            "Lines of the access log that were lost: the disk was full, or the writer stuck.",
            figures.access_log_dropped,
        ),
        "streamgw_events_lost_total": (
            "Events of the live feed that a listener was too slow for.",
            figures.events_lost,
        ),
    }
    for name, (text, count) in counts.items():
        yield _counter(name, text, [], [([], count)])
    yield _gauge("streamgw_event_clients", "Who listens to the live feed.", [], [([], figures.event_clients)])
    yield _counter(
        "streamgw_records_dropped_total",
        "Records of plugins that log which never arrived.",
        ["collector"],
        (([name], count) for name, count in figures.records_dropped.items()),
    )
    yield _counter(
        "streamgw_admin_refused_total",
        "Requests that the Admin API did not let in.",
        ["why"],
        (([why], count) for why, count in figures.refused.items()),
    )


def _bytes(figures: Figures) -> list[tuple[str, int, int]]:
    """By listener: up and down, of sessions that ended and of those that live."""
    up, down = Counter[str](), Counter[str]()
    for ended in figures.ended:
        up[ended.listener] += ended.bytes_up
        down[ended.listener] += ended.bytes_down
    for listener in figures.listeners:
        up[listener.name] += listener.bytes_up
        down[listener.name] += listener.bytes_down
    return [(name, up[name], down[name]) for name in up]


def _listen_addr(listener: str) -> str:
    """As nginx says it: TCP and UDP of one port are one address; a bare port is `0.0.0.0`."""
    address = listener.partition(" ")[2]
    return f"0.0.0.0{address[1:]}" if address.startswith("*") else address  # noqa: S104  shown, not bound


Samples: TypeAlias = Iterable[tuple[list[str], float]]
"""Values of the labels, and of the sample."""


def _summed(samples: Samples) -> Samples:
    """One sample for each combination of labels."""
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for labels, value in samples:
        sums[tuple(labels)] += value
    return [([*labels], value) for labels, value in sums.items()]


def _counter(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in samples:
        family.add_metric(values, count)
    return family


def _gauge(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _untyped(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    family = UnknownMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(name: str, text: str, spread: Spread) -> Metric:
    bounds = [*map(repr, spread.bounds), "+Inf"]
    family = HistogramMetricFamily(name, text)
    family.add_metric([], [*zip(bounds, accumulate(spread.counts), strict=True)], spread.sum)
    return family
