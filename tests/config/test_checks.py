"""`checks` of an upstream: APISIX's bounds and defaults, ours, and what is refused in whose words."""

from __future__ import annotations

import pytest

from streamgw.config.schema import StreamRouteSpec, UpstreamSpec
from streamgw.config.strict import Fault, Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.probe import ActiveCheck, Checks, Ejection, Probe, Request, Thresholds

NODES = {"10.0.0.1:3306": 1}


def spec(checks: object) -> UpstreamSpec:
    return structure({"nodes": NODES, "checks": checks}, UpstreamSpec)


def built(checks: object) -> Checks:
    found = spec(checks).build("upstreams/1").checks
    assert found is not None
    return found


def active(**fields: object) -> ActiveCheck:
    found = built({"active": fields}).active
    assert found is not None
    return found


def faults(checks: object) -> list[str]:
    return [f"{pointer_of(found.path)}: {found.message}" for found in _faults(checks)]


def _faults(checks: object) -> tuple[Fault, ...]:
    with pytest.raises(Wrong) as caught:
        spec(checks)
    return caught.value.faults


def warnings(checks: object) -> list[str]:
    return [f"{pointer_of(found.path)}: {found.message}" for found in spec(checks).warnings()]


# ── Defaults ─────────────────────────────────────────────────────────────────────────────────────


def test_without_checks_nothing_is_checked() -> None:
    assert structure({"nodes": NODES}, UpstreamSpec).build("upstreams/1").checks is None


def test_an_empty_active_check_connects_every_second() -> None:
    assert active() == ActiveCheck(
        probe=Probe(kind="tcp", timeout_s=1.0),
        thresholds=Thresholds(successes=2, tcp_failures=2, timeouts=3, http_failures=5),
        healthy_interval_s=1.0,
        unhealthy_interval_s=1.0,
        concurrency=10,
    )


def test_defaults_hold_whatever_is_left_out() -> None:
    assert active(healthy={}, unhealthy={}) == active(healthy={"interval": 1}) == active()


def test_passive_checks_have_those_of_apisix() -> None:
    assert built({"active": {}, "passive": {}}).passive == Thresholds(successes=5, tcp_failures=2, timeouts=7)


def test_every_field_arrives() -> None:
    check = active(
        type="https",
        timeout=2.5,
        concurrency=3,
        host="db.example",
        port=8443,
        http_method="POST",
        http_path="/health",
        http_req_body="{}",
        req_headers=["X-Probe: yes"],
        https_verify_certificate=False,
        healthy={"interval": 7, "http_statuses": [204], "successes": 4},
        unhealthy={
            "interval": 9,
            "http_statuses": [500, 599],
            "http_failures": 6,
            "tcp_failures": 7,
            "timeouts": 8,
        },
    )

    assert check == ActiveCheck(
        probe=Probe(
            kind="https",
            timeout_s=2.5,
            host="db.example",
            port=8443,
            verify=False,
            request=Request("POST", "/health", "{}", ("X-Probe: yes",)),
            healthy_statuses=frozenset({204}),
            unhealthy_statuses=frozenset({500, 599}),
        ),
        thresholds=Thresholds(successes=4, tcp_failures=7, timeouts=8, http_failures=6),
        healthy_interval_s=7.0,
        unhealthy_interval_s=9.0,
        concurrency=3,
    )


def test_what_follows_arrives_too() -> None:
    checks = built(
        {
            "passive": {"healthy": {"successes": 0}, "unhealthy": {"tcp_failures": 3, "timeouts": 0}},
            "streamgw": {
                "recover_after": "1m",
                "on_all_down": "closed",
                "on_marked_down": "close",
                "ejection": {"failures": 3, "time": "10s", "max_time": 60, "max_percent": 30},
            },
        }
    )

    assert checks == Checks(
        active=None,
        passive=Thresholds(successes=0, tcp_failures=3, timeouts=0),
        recover_after_s=60.0,
        ejection=Ejection(failures=3, time_s=10.0, max_time_s=60.0, max_percent=30),
        fails_open=False,
        ends_sessions=True,
    )


def test_a_talk_becomes_steps() -> None:
    steps = active(streamgw={"talk": [{"expect": "220 "}, {"send": "QUIT\r\n"}]}).probe.talk

    assert [(step.send, step.is_answered(b"220 hello")) for step in steps] == [
        (b"", True),
        (b"QUIT\r\n", True),
    ]


def test_a_ready_made_talk_is_found_by_its_name() -> None:
    assert active(streamgw={"probe": "redis"}).probe.talk[0].send == b"PING\r\n"
    assert active(type="udp", streamgw={"talk": [{"send": "hi"}]}).probe.talk[0].send == b"hi"
    over_udp, over_tcp = (active(type=kind, streamgw={"probe": "dns"}) for kind in ("udp", "tcp"))
    assert over_tcp.probe.talk[0].send[2:] == over_udp.probe.talk[0].send


def test_equal_checks_are_equal() -> None:
    """So that an edit elsewhere restarts no probe."""
    checks = {"active": {"streamgw": {"probe": "mysql", "user": "monitor"}}}

    assert built(checks) == built(checks)


# ── What is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        (
            {"active": {"type": "tpc"}},
            "checks.active.type: expected 'tcp' or 'tls' or 'http' or 'https' or 'udp'",
        ),
        ({"active": {"timeout": 0}}, "checks.active.timeout: expected a number > 0, got 0"),
        ({"active": {"timeout": 3601}}, "checks.active.timeout: expected at most 3600 seconds"),
        ({"active": {"concurrency": 0}}, "checks.active.concurrency: expected an integer ≥ 1, got 0"),
        ({"active": {"port": 0}}, "checks.active.port: expected an integer 1–65535, got 0"),
        ({"active": {"host": 1}}, "checks.active.host: expected text, got 1"),
        ({"active": {"http_path": "/\r\nX: y"}}, "checks.active.http_path: expected a single line"),
        (
            {"active": {"healthy": {"interval": 0}}},
            "checks.active.healthy.interval: expected an integer ≥ 1, got 0",
        ),
        (
            {"active": {"healthy": {"successes": 255}}},
            "checks.active.healthy.successes: expected an integer 1–254, got 255",
        ),
        (
            {"active": {"unhealthy": {"timeouts": 0}}},
            "checks.active.unhealthy.timeouts: expected an integer 1–254, got 0",
        ),
        (
            {"active": {}, "passive": {"unhealthy": {"tcp_failures": 255}}},
            "checks.passive.unhealthy.tcp_failures: expected an integer 0–254, got 255",
        ),
        (
            {"active": {"healthy": {"http_statuses": []}}},
            "checks.active.healthy.http_statuses: expected a list of at least 1, got a list",
        ),
        (
            {"active": {"healthy": {"http_statuses": [200, 600]}}},
            "checks.active.healthy.http_statuses[1]: expected an integer 200–599, got 600",
        ),
        (
            {"active": {"healthy": {"http_statuses": [200, 200]}}},
            "checks.active.healthy.http_statuses[1]: 200 stands here twice",
        ),
        (
            {"active": {"type": "udp"}},
            "checks.active.type: udp needs 'streamgw.probe' or 'streamgw.talk': silence proves nothing",
        ),
        (
            {"active": {"type": "udp", "streamgw": {"probe": "redis"}}},
            "checks.active.streamgw.probe: 'redis' is not spoken over udp",
        ),
        (
            {"active": {"type": "udp", "streamgw": {"talk": [{"expect": "a"}]}}},
            "checks.active.streamgw.talk[0]: over udp each step says something",
        ),
        (
            {"active": {"type": "http", "streamgw": {"probe": "redis"}}},
            "checks.active.streamgw: a talk needs type tcp, tls or udp, not http",
        ),
        (
            {"active": {"streamgw": {"probe": "redis", "talk": [{"send": "a"}]}}},
            "checks.active.streamgw.talk: 'probe' and 'talk' exclude each other",
        ),
        ({"active": {"streamgw": {"talk": []}}}, "checks.active.streamgw.talk: expected at least one step"),
        (
            {"streamgw": {}},
            "checks: nothing is checked: expected 'active', 'passive' or 'streamgw.ejection'",
        ),
        (
            {"streamgw": {"ejection": {"max_percent": 0}}},
            "checks.streamgw.ejection.max_percent: expected an integer 1–100, got 0",
        ),
    ],
)
def test_what_is_wrong_is_said(checks: object, said: str) -> None:
    assert [fault[: len(said)] for fault in faults(checks)] == [said]


@pytest.mark.parametrize("checks", [{"passive": {}}, {}])
def test_passive_checks_alone_are_refused_in_apisixs_words(checks: object) -> None:
    (fault,) = _faults(checks)

    assert "'active' is required" in fault.message
    assert fault.error_msg == (
        'invalid configuration: property "checks" validation failed: '
        'object matches none of the required: ["active"] or ["active","passive"]'
    )


def test_the_checks_are_the_same_for_an_upstream_inside_a_route() -> None:
    with pytest.raises(Wrong) as caught:
        structure({"upstream": {"nodes": NODES, "checks": {"passive": {}}}}, StreamRouteSpec)

    (fault,) = caught.value.faults
    assert "'active' is required" in fault.message


# ── What does nothing ────────────────────────────────────────────────────────────────────────────


def test_what_means_something_is_not_warned_of() -> None:
    assert warnings({"active": {"type": "http", "http_path": "/health"}, "passive": {}}) == []
    assert warnings({"active": {"streamgw": {"probe": "mysql", "user": "a"}}}) == []
    assert warnings({"passive": {}, "streamgw": {"recover_after": 1}}) == []


def test_what_does_nothing_is_named() -> None:
    assert warnings(
        {
            "active": {"http_path": "/health", "streamgw": {"probe": "redis", "user": "a"}},
            "passive": {"healthy": {"http_statuses": [200]}, "unhealthy": {"http_statuses": [500]}},
            "streamgw": {"recover_after": "5s"},
        }
    ) == [
        "checks.active.http_path: does nothing with type tcp; write 'type: http' if that is meant",
        "checks.active.streamgw.user: does nothing without 'probe: mysql' or 'probe: postgresql'",
        "checks.streamgw.recover_after: does nothing with 'active': probes bring a node back",
        "checks.passive.healthy.http_statuses: does nothing at layer 4",
        "checks.passive.unhealthy.http_statuses: does nothing at layer 4",
    ]


def test_ejection_alone_is_a_check() -> None:
    assert built({"streamgw": {"ejection": {}}}).ejection == Ejection()
