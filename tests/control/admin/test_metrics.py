"""The metrics in Prometheus' text form."""

from __future__ import annotations

import subprocess

import attrs
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from streamgw.config.endpoints import MetricsSettings
from streamgw.control.admin.metrics import build_metrics_app, expose
from tests.support.control_fleet import FIGURES, ControlFleet

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(text: str) -> dict[tuple[str, str], float]:
    """By name and labels, `a=1,b=2` in the order of the names."""
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for family in parse(text)
        for sample in family.samples
    }


@pytest.fixture
def shown() -> dict[tuple[str, str], float]:
    return samples(expose(FIGURES, "apisix_")[0].decode())


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("apisix_stream_connection_total", 'route=my "route"\n', 5),
        ("apisix_stream_active_connections", "listen_addr=0.0.0.0:9100", 3),
        ("apisix_stream_status", "code=200,listen_addr=0.0.0.0:9100,node=10.0.0.1:80", 9),
        ("apisix_stream_status", "code=403,listen_addr=[::1]:9101,node=", 1),
        ("apisix_stream_bandwidth", "listen_addr=0.0.0.0:9100,side=downstream,type=ingress", 1111),
        ("apisix_stream_bandwidth", "listen_addr=0.0.0.0:9100,side=upstream,type=egress", 1111),
        ("apisix_stream_bandwidth", "listen_addr=0.0.0.0:9100,side=upstream,type=ingress", 2222),
        ("apisix_stream_bandwidth", "listen_addr=0.0.0.0:9100,side=downstream,type=egress", 2222),
        ("streamgw_sessions_total", "listener=tcp *:9100,reason=closed", 5),
        ("streamgw_sessions_total", "listener=udp *:9100,reason=closed", 3),
        ("streamgw_sessions_active", "listener=udp *:9100", 1),
        ("streamgw_sessions_accepted_total", "listener=tcp *:9100", 9),
        ("streamgw_accept_pauses_total", "listener=tcp *:9100", 1),
        ("streamgw_bytes_total", "direction=down,listener=udp *:9100", 2020),
        ("streamgw_datagrams_dropped_total", "listener=udp *:9100,reason=no_route", 7),
        ("streamgw_connect_duration_seconds_bucket", "le=0.1", 3),
        ("streamgw_connect_duration_seconds_bucket", "le=1.0", 5),
        ("streamgw_connect_duration_seconds_bucket", "le=+Inf", 6),
        ("streamgw_connect_duration_seconds_sum", "", 4.5),
        ("streamgw_session_duration_seconds_count", "", 9),
        ("apisix_upstream_status", "ip=10.0.0.1,name=/apisix/upstreams/1,port=80", 1),
        ("apisix_upstream_status", "ip=fd00::1,name=/apisix/upstreams/1,port=80", 0),
        ("streamgw_probes_total", "node=10.0.0.1:80,result=timeout,upstream=upstreams/1", 1),
        ("streamgw_config_info", "revision=3f2a9b0c", 1),
        ("streamgw_config_objects", "collection=stream_routes", 2),
        ("streamgw_config_reloads_total", "result=rejected,what=routes", 1),
        ("streamgw_config_rejected", "what=routes", 1),
        ("streamgw_config_rejected", "what=settings", 0),
        ("streamgw_config_last_applied_timestamp_seconds", "what=routes", 1_700_000_000),
        ("streamgw_certificate_expiry_timestamp_seconds", "certificate=a.test", 1_800_000_000),
        ("streamgw_bugs_total", "", 0),
        ("streamgw_log_dropped_lines_total", "", 8),
        ("streamgw_access_log_dropped_lines_total", "", 1),
        ("streamgw_records_dropped_total", "collector=tcp://logs.test:514", 6),
        ("streamgw_events_lost_total", "", 3),
        ("streamgw_event_clients", "", 2),
        ("streamgw_admin_refused_total", "why=key", 4),
    ],
)
def test_every_figure_has_its_series(
    shown: dict[tuple[str, str], float], name: str, labels: str, value: float
) -> None:
    assert shown[name, labels] == value


def test_the_process_is_measured_too(shown: dict[tuple[str, str], float]) -> None:
    assert shown["process_open_fds", ""] > 0
    assert shown["process_start_time_seconds", ""] > 0
    (build,) = [labels for name, labels in shown if name == "streamgw_build_info"]
    assert "version=" in build


def test_the_prefix_is_that_of_the_settings() -> None:
    shown = samples(expose(FIGURES, "gw_")[0].decode())

    assert ("gw_stream_active_connections", "listen_addr=0.0.0.0:9100") in shown
    assert not any(name.startswith("apisix_") for name, _ in shown)


def test_without_checks_there_are_no_series_of_health() -> None:
    text = expose(attrs.evolve(FIGURES, nodes=()), "apisix_")[0].decode()

    assert "upstream_status" not in text
    assert "probes" not in text


def test_openmetrics_says_the_same_to_whoever_asks_for_it() -> None:
    body, media_type = expose(FIGURES, "apisix_", OPENMETRICS)

    families = {family.name: family.type for family in parse_openmetrics(body.decode())}
    assert media_type.startswith("application/openmetrics-text")
    assert families["streamgw_sessions"] == "counter"
    assert families["apisix_stream_status"] == "unknown"


async def test_the_page_stands_where_the_settings_say() -> None:
    app = build_metrics_app(ControlFleet(), attrs.evolve(MetricsSettings(), path="/metrics", prefix="x_"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gw") as client:
        reply = await client.get("/metrics")
        missing = await client.get("/apisix/prometheus/metrics")

    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert "x_stream_active_connections" in reply.text
    assert missing.status_code == 404


@pytest.mark.servers
@pytest.mark.parametrize("prefix", ["apisix_", ""])
def test_promtool_has_nothing_to_say(prefix: str) -> None:
    text, _ = expose(FIGURES, prefix)

    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
