"""streamgw explain"""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import ROUTES, Desk
from tests.support.certificates import CA_PEM, document, issue


def test_the_winner_and_why_not_the_others(desk: Desk) -> None:
    result = desk.run("explain", "--server-port", "9101")

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "127.0.0.1 → 127.0.0.10:9101"
    assert lines[1] == "route mysql wins (routes.d/mine.yaml:3)"
    assert [line.split()[:2] for line in lines[4:]] == [["✓", "mysql"], ["redis", "0"]]
    assert "10.0.0.0/8" in lines[5]


def test_the_same_for_programs(desk: Desk) -> None:
    result = desk.run("explain", "--server-port", "9100", "--remote-addr", "::ffff:10.1.2.3", "--json")

    said = json.loads(result.stdout)
    assert (said["client"], said["server"], said["sni"]) == ("10.1.2.3", "127.0.0.1:9100", None)
    assert said["tls"] is None
    assert (said["listener"], said["winner"]) == ("tcp 127.0.0.1:9100", "redis")
    assert {route["id"]: route["wins"] for route in said["routes"]} == {"mysql": False, "redis": True}


def test_the_plugins_that_would_run(desk: Desk) -> None:
    filter_ = '_meta: {filter: [[remote_addr, "==", 192.0.2.1]]}'
    plugins = f"limit-rate: {{rate: 1, {filter_}}}, ip-restriction: {{blacklist: ['::1']}}"
    desk.hand_written.write_text(ROUTES.replace("id: mysql ", f"id: mysql\n    plugins: {{{plugins}}} "))

    for client, more in (("192.0.2.1", ""), ("192.0.2.2", " (not for this client)")):
        lines = desk.run("explain", "--server-port", "9101", "--remote-addr", client).stdout.splitlines()
        assert lines[2] == f"plugins, in this order: ip-restriction, limit-rate{more}"
        result = desk.run("explain", "--server-port", "9101", "--remote-addr", client, "--json")
        assert json.loads(result.stdout)["plugins"] == [
            {"name": "ip-restriction", "applies": True},
            {"name": "limit-rate", "applies": not more},
        ]


def test_a_client_that_no_route_takes(desk: Desk) -> None:
    result = desk.run("explain", "--server-port", "9100")

    assert "no route matches: the connection is closed (no_route)" in result.stdout


def test_no_route_at_all(desk: Desk) -> None:
    desk.hand_written.write_text("{}")

    assert "no route matches" in desk.run("explain", "--server-port", "9100").stdout


def test_a_port_that_nobody_listens_on(desk: Desk) -> None:
    result = desk.run("explain", "--server-port", "1", "--remote-addr", "::1")

    assert "nobody listens on [::1]:1" in result.stdout
    assert (
        "nobody listens on 127.0.0.9:9101"
        in desk.run("explain", "--server-port", "9101", "--server-addr", "127.0.0.9").stdout
    )


@pytest.mark.parametrize(
    ("listener", "server_addr", "expected"),
    [
        ("9100", "[::1]", "tcp *:9100"),
        ("'0.0.0.0:9100'", "127.0.0.1", "tcp 0.0.0.0:9100"),
        ("'0.0.0.0:9100'", "::1", None),
        ("'[::]:9100'", "::1", "tcp [::]:9100"),
    ],
)
def test_the_port_of_the_only_listener_is_meant(
    desk: Desk, listener: str, server_addr: str, expected: str | None
) -> None:
    desk.config.write_text(f"apisix: {{stream_proxy: {{tcp: [{listener}]}}}}")

    result = desk.run("explain", "--server-addr", server_addr, "--json")

    assert json.loads(result.stdout)["listener"] == expected


def test_wrong_usage_says_what_there_is(desk: Desk) -> None:
    assert "--server-port is needed: tcp 127.0.0.1:9100, tcp 127.0.0.10:9101" in desk.run("explain").stderr
    desk.config.write_text("{}")
    assert "config.yaml has no listener" in desk.run("explain").stderr
    assert (
        "not an IP address: 'db'" in desk.run("explain", "--server-port", "1", "--remote-addr", "db").stderr
    )


def test_broken_files_are_named(desk: Desk) -> None:
    desk.hand_written.write_text("stream_routes: 5")

    result = desk.run("explain", "--server-port", "9100")

    assert result.exit_code == 65
    assert "error: routes.d/mine.yaml:1:" in result.stderr


TLS_CONFIG = """\
apisix:
  stream_proxy:
    tcp:
      - {addr: "127.0.0.1:9100", tls: true}
      - {addr: "127.0.0.1:9101", tls_passthrough: true}
      - {addr: "127.0.0.1:9102", tls: true, tls_passthrough: true}
      - {addr: "127.0.0.1:9103", tls: optional, fallback_sni: b.test}
      - "127.0.0.1:9104"
"""


@pytest.fixture
def tls_desk(desk: Desk) -> Desk:
    """One listener of every kind, and certificates of which some only seem to cover a name."""
    upstream = {"nodes": {"127.0.0.1:1": 1}}
    issued, wild, mutual = issue("a.test"), issue("*.test"), issue("b.test")
    routes = [
        {"id": "names", "snis": ["a.test", "b.test", "x.y.test", "un.known"], "upstream": upstream},
        {"id": "whole", "sni": "whole.test", "tls_passthrough": True, "upstream": upstream},
        {"id": "h2", "alpn": ["h2"], "upstream": upstream},
        {"id": "rest", "priority": -1, "server_ports": [9103, 9104], "upstream": upstream},
    ]
    ssls = [
        {"id": "exact", "sni": "a.test", **issued.fields()},
        {"id": "again", "sni": "a.test", **issued.fields()},
        {"id": "wild", "sni": "*.test", **wild.fields()},
        {"id": "off", "sni": "x.y.test", "status": 0, **wild.fields()},
        {"id": "mutual", "sni": "b.test", "client": {"ca": CA_PEM}, **mutual.fields()},
        {"id": "mine", "type": "client", **issued.fields()},
    ]
    desk.config.write_text(TLS_CONFIG)
    desk.hand_written.write_text(document(stream_routes=routes, ssls=ssls))
    return desk


def test_the_certificate_that_is_served_and_why(tls_desk: Desk) -> None:
    result = tls_desk.run("explain", "--server-port", "9100", "--sni", "A.test.", "--alpn", "http/1.1")

    lines = result.stdout.splitlines()
    assert lines[0] == "127.0.0.1 → 127.0.0.1:9100, server name a.test, offers http/1.1"
    assert lines[1].startswith("route names wins (routes.d/mine.yaml:")
    assert lines[2] == "TLS is terminated here (the listener has tls)"
    assert lines[3].startswith("certificate exact is served (routes.d/mine.yaml:")
    assert lines[4] == "no client certificate is asked for"
    assert [line.split()[:2] for line in lines[-4:]] == [
        ["CERTIFICATE", "FILE"],
        ["✓", "exact"],
        ["wild", lines[-2].split()[1]],
        ["again", lines[-1].split()[1]],
    ]
    assert lines[-3].endswith("  is its name")
    assert lines[-2].endswith("  *.test covers it, but exact is more precise")
    assert lines[-1].endswith("  a.test is served from another object, which comes first")


def test_the_same_about_tls_for_programs(tls_desk: Desk) -> None:
    result = tls_desk.run("explain", "--server-port", "9100", "--sni", "b.test", "--json")

    tls = json.loads(result.stdout)["tls"]
    assert (tls["listener"], tls["passthrough"], tls["does"]) == ("required", "never", "terminate")
    assert (tls["server_name"], tls["from_fallback_sni"]) == ("b.test", False)
    assert tls["certificate"]["id"] == "mutual"
    assert tls["certificate"]["requires_client_certificate"]
    assert [(each["id"], each["serves"]) for each in tls["certificates"]] == [
        ("mutual", True),
        ("wild", False),
    ]


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (["9100", "--sni", "b.test"], "a client certificate is required"),
        (["9100", "--sni", "un.known"], "TLS is refused: no certificate for un.known (tls_failed"),
        (["9100", "--sni", "x.y.test"], "TLS is refused: no certificate for x.y.test (tls_failed"),
        (["9100", "--sni", "x.y.test"], "*.test covers one label only, unlike the sni of a route"),
        (["9100", "--sni", "x.y.test"], "is disabled (status: 0)"),
        (["9100", "--sni", "no.route"], "TLS is not begun: without a route"),
        (["9100", "--alpn", "h2"], "TLS is refused: the client sends no name, and there is no fallback_sni"),
        (["9100"], "no route matches"),
        (["9101", "--sni", "a.test"], "TLS is handed on untouched: the listener has tls_passthrough"),
        (["9102", "--sni", "whole.test"], "TLS is handed on untouched: route whole has tls_passthrough"),
        (["9102", "--sni", "a.test"], "TLS is terminated here (route names has no tls_passthrough)"),
        (["9103"], "no TLS: this is a plain client that comes without TLS"),
        (["9103", "--no-sni"], "server name b.test (fallback_sni: the client sends none)"),
        (["9103", "--no-sni"], "certificate mutual is served"),
        (
            ["9104", "--sni", "a.test"],
            "tcp 127.0.0.1:9104 is a plain listener: no client of it has a server name",
        ),
        (["9104", "--sni", "a.test"], "route rest wins"),
        (["9199", "--sni", "a.test"], "nobody listens on 127.0.0.1:9199"),
        (["9199", "--sni", "a.test"], "route names wins"),
    ],
)
def test_what_becomes_of_tls(tls_desk: Desk, client: list[str], said: str) -> None:
    result = tls_desk.run("explain", "--server-port", *client)

    assert result.exit_code == 0
    assert said in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sni", "a", "--no-sni"], "--sni and --no-sni exclude each other"),
        (["--sni", "127.0.0.1"], "'127.0.0.1' is no name that a client can send"),
        (["--sni", "*.test"], "'*.test' is no name that a client can send"),
        (["--sni", ""], "'' is no name that a client can send"),
    ],
)
def test_a_hello_that_no_client_can_send(desk: Desk, options: list[str], said: str) -> None:
    result = desk.run("explain", "--server-port", "9100", *options)

    assert result.exit_code == 2
    assert said in result.stderr


DNS = """\
apisix: {stream_proxy: {tcp: ["127.0.0.1:53", "127.0.0.1:9100"], udp: ["127.0.0.1:53", "127.0.0.1:9200"]}}
"""


def test_tcp_and_udp_of_one_port_are_told_apart(desk: Desk) -> None:
    desk.config.write_text(DNS)

    def asked(*options: str) -> tuple[str, str]:
        said = json.loads(desk.run("explain", "--server-port", "53", "--json", *options).stdout)
        return said["transport"], said["listener"]

    assert asked() == ("tcp", "tcp 127.0.0.1:53")
    assert asked("--transport", "tcp") == ("tcp", "tcp 127.0.0.1:53")
    assert asked("--transport", "udp") == ("udp", "udp 127.0.0.1:53")


def test_a_port_that_only_udp_has_means_udp(desk: Desk) -> None:
    desk.config.write_text(DNS)
    desk.hand_written.write_text("stream_routes: [{id: r, udp: {responses: 1}, upstream: {nodes: {a:1: 1}}}]")

    result = desk.run("explain", "--server-port", "9200")
    said = json.loads(desk.run("explain", "--server-port", "9200", "--json").stdout)

    assert result.stdout.splitlines()[:3] == [
        "127.0.0.1 → 127.0.0.1:9200 over UDP",
        "route r wins (routes.d/mine.yaml:1)",
        "a session ends without a datagram for 600 s, or when each datagram has had 1 answer",
    ]
    assert said["udp"] == {"idle_s": None, "responses": 1, "requests": 0, "amplification": 0.0}


def test_the_only_udp_listener_is_meant_when_udp_is_said(desk: Desk) -> None:
    desk.config.write_text("apisix: {stream_proxy: {tcp: [9100], udp: [9200]}}")
    desk.hand_written.write_text("{}")

    result = desk.run("explain", "--transport", "udp", "--sni", "a.test")

    assert result.stdout.splitlines() == [
        "127.0.0.1 → 127.0.0.1:9200 over UDP",
        "udp *:9200 is a UDP listener: no client of it has a server name or ALPN. Decided without them",
        "no route matches: the datagram is dropped (no_route)",
    ]


def test_a_udp_port_that_nobody_listens_on(desk: Desk) -> None:
    result = desk.run("explain", "--transport", "udp", "--server-port", "9100", "--sni", "a.test")

    assert "nobody listens on 127.0.0.1:9100" in result.stdout
    assert "server name" not in result.stdout.splitlines()[0]
