from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from streamgw.config.discovery import DiscoverySettings
from streamgw.config.endpoints import AdminKey, AdminSettings, Endpoint, HTTPLimits, MetricsSettings
from streamgw.config.settings import (
    AccessLogSettings,
    LimitSettings,
    LogSettings,
    ReloadSettings,
    ResolverSettings,
    Settings,
    TLSSettings,
    load_settings,
    load_status_address,
)
from streamgw.core.errors import ConfigError
from streamgw.core.model import Address, Listener

SHIPPED = Path(__file__).parents[2] / "conf" / "config.yaml"
ONE_LISTENER = "apisix: {stream_proxy: {tcp: [9100]}}\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("conf/config.yaml")


def load(config: Path, text: str, **environ: str) -> Settings:
    config.write_text(text)
    return load_settings(config, environ=environ)


def problems(config: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(config, text, **environ)
    return [str(problem) for problem in caught.value.problems]


def warnings(config: Path, text: str) -> list[str]:
    return [str(warning) for warning in load(config, text).warnings]


def test_what_the_documentation_of_apisix_shows_works(config: Path) -> None:
    settings = load(
        config,
        """\
apisix:
  stream_proxy: # TCP/UDP proxy
    tcp: # TCP proxy address list
      - 9100
      - "127.0.0.1:9101"
    udp: # UDP proxy address list
      - 9200
      - "127.0.0.1:9211"
""",
    )

    assert settings.listeners == (
        Listener("tcp", "::", 9100, dual_stack=True),
        Listener("tcp", "127.0.0.1", 9101),
        Listener("udp", "::", 9200, dual_stack=True),
        Listener("udp", "127.0.0.1", 9211),
    )
    assert settings.warnings == ()


def test_defaults(config: Path) -> None:
    settings = load(config, ONE_LISTENER)

    assert settings == Settings(listeners=(Listener("tcp", "::", 9100, dual_stack=True),))
    assert settings.status == Address("127.0.0.1", 7085)
    assert settings.drain_timeout_s == 240.0


def test_every_setting_has_its_place(config: Path) -> None:
    settings = load(
        config,
        """\
apisix:
  proxy_mode: http&stream
  enable_ipv6: false
  stream_proxy: {tcp: [9100]}
  proxy_protocol: {enable_tcp_pp: true, enable_tcp_pp_to_upstream: true}
  status: {ip: "::1", port: 7086}
  control: {port: 9190}
  dns_resolver: [10.0.0.2]
  dns_resolver_valid: 30
  resolver_timeout: 2
  enable_resolv_search_opt: false
  disable_upstream_healthcheck: true
nginx_config:
  worker_shutdown_timeout: 1m30s
  enable_cpu_affinity: true
  stream:
    enable_access_log: false
    access_log: logs/a.log
    access_log_format: "$remote_addr"
    access_log_format_escape: json
    real_ip_from: [10.0.0.0/8]
plugin_attr:
  prometheus: {export_uri: /metrics, export_addr: {ip: "::1", port: 9191}, metric_prefix: x_}
deployment:
  admin: {admin_key: [{name: a, key: hush, role: viewer}], allow_admin: []}
discovery:
  dns: {servers: ["127.0.0.1:8600"], order: [SRV, A]}
streamgw:
  workers: 2
  relay: sockmap
  admin: {server_header: APISIX/3.18.0, hosts: [gw.example], max_requests: 5}
  limits:
    max_sessions: 3
    max_sessions_per_listener: 2
    max_session_duration_s: 3.5
    preread_timeout_s: 4
    preread_limit_bytes: 600
    handshake_timeout_s: 10.5
    max_handshakes: 11
  tls: {expiry_warning_days: 12}
  log: {level: debug, format: json}
  resolver: {min_ttl_s: 5, max_ttl_s: 6, stale_s: 7, max_records: 8}
  reload: {settle_ms: 8, relook_s: 9, force_polling: true}
""",
    )

    assert settings == Settings(
        listeners=(
            Listener(
                "tcp",
                "0.0.0.0",
                9100,
                proxy_protocol="required",
                proxy_protocol_to_upstream="v1",
                max_sessions=2,
            ),
        ),
        trusted_proxies=(ipaddress.IPv4Network("10.0.0.0/8"),),
        status=Address("::1", 7086),
        admin=AdminSettings(keys=(AdminKey("a", "hush", "viewer"),), allowed=()),
        control=Endpoint(Address("127.0.0.1", 9190), is_named=True),
        metrics=MetricsSettings(Endpoint(Address("::1", 9191), is_named=True), "/metrics", "x_"),
        http=HTTPLimits(server_header="APISIX/3.18.0", hosts=("gw.example",), max_requests=5),
        drain_timeout_s=90.0,
        access_log=AccessLogSettings(enabled=False, path="logs/a.log", format="$remote_addr", escape="json"),
        log=LogSettings("debug", "json"),
        limits=LimitSettings(3, 2, 3.5, 4.0, 600, 10.5, 11),
        tls=TLSSettings(expiry_warning_days=12),
        resolver=ResolverSettings(
            (Address("10.0.0.2", 53),),
            30.0,
            5.0,
            6.0,
            2.0,
            7.0,
            search=False,
            max_records=8,
            discovery=DiscoverySettings((Address("127.0.0.1", 8600),), order=("SRV", "A")),
        ),
        reload=ReloadSettings(8, 9.0, force_polling=True),
        checks_health=False,
        workers=2,
        has_cpu_affinity=True,
        relay="sockmap",
    )


def test_other_kinds_of_discovery_are_named_as_having_no_effect(config: Path) -> None:
    settings = load(config, ONE_LISTENER + "discovery: {consul: {servers: []}, dns: {}}\n")

    (warning,) = settings.warnings
    assert warning.message == "these settings do nothing here: discovery.consul"
    assert settings.resolver.discovery == DiscoverySettings()


def test_the_status_endpoint_can_be_switched_off(config: Path) -> None:
    assert load(config, ONE_LISTENER + "streamgw: {enable_status: false}").status is None


def test_our_access_log_settings_win(config: Path) -> None:
    settings = load(
        config,
        ONE_LISTENER
        + "nginx_config: {stream: {access_log: a, access_log_format: x}}\n"
        + "streamgw: {access_log: {path: b, format: apisix}}\n",
    )

    assert settings.access_log == AccessLogSettings(path="b", format="apisix")
    assert [warning.message for warning in settings.warnings] == [
        "does nothing: streamgw.access_log.path wins",
        "does nothing: streamgw.access_log.format wins",
    ]


def test_an_unknown_variable_of_a_log_format_is_named(config: Path) -> None:
    (problem,) = problems(
        config, ONE_LISTENER + "nginx_config:\n  stream:\n    access_log_format: '$remote_adr'\n"
    )

    assert problem.startswith("conf/config.yaml:4:24 nginx_config.stream.access_log_format: ")
    assert "remote_adr" in problem


def test_http_settings_of_a_real_apisix_are_named_once(config: Path) -> None:
    text = """\
apisix:
  node_listen: [9080]
  ssl: {enable: true, listen: [{port: 9443}]}
  stream_proxy: {only: false, tcp: [9100]}
  proxy_protocol: {listen_http_port: 9181}
nginx_config:
  worker_processes: auto
  http: {access_log: x}
  stream: {metrics_zone_size: 1m}
deployment:
  etcd: {host: ["http://127.0.0.1:2379"]}
plugins: [limit-count]
ext-plugin: {cmd: [x]}
"""

    assert warnings(config, text) == [
        "conf/config.yaml:13:1 ext-plugin: these settings do nothing here: ext-plugin, plugins, apisix.node_listen,"
        " apisix.stream_proxy.only, apisix.proxy_protocol.listen_http_port, apisix.ssl.listen, nginx_config.http,"
        " nginx_config.worker_processes, nginx_config.stream.metrics_zone_size, deployment.etcd"
    ]


def test_an_admin_section_that_is_switched_off_says_so(config: Path) -> None:
    text = (
        "apisix: {stream_proxy: {tcp: [9100]}, enable_admin: false}\ndeployment: {admin: {allow_admin: []}}"
    )

    assert load(config, text).admin is None
    assert warnings(config, text) == [
        "conf/config.yaml:2:14 deployment.admin: does nothing: apisix.enable_admin is false"
    ]


def test_there_is_an_admin_api_where_there_is_a_section_for_it(config: Path) -> None:
    assert load(config, ONE_LISTENER).admin is None
    assert load(config, ONE_LISTENER + "deployment: {admin: }").admin is None

    admin = load(config, ONE_LISTENER + "deployment: {admin: {admin_key_required: false}}").admin

    assert admin is not None
    assert (admin.listen, admin.keys) == (Address("127.0.0.1", 9180), ())


def test_an_open_admin_api_is_a_problem_beside_the_others(config: Path) -> None:
    text = """\
nginx_config: {stream: {access_log_format: "$x"}}
deployment:
  admin:
    admin_key_required: false
    admin_listen: {ip: 0.0.0.0}
    allow_admin: []
"""

    said = problems(config, text)

    assert len(said) == 2
    assert said[1].startswith(
        "conf/config.yaml:4:25 deployment.admin.admin_key_required: missing valid Admin API token: "
    )


def test_the_control_api_and_the_metrics_can_be_switched_off(config: Path) -> None:
    text = ONE_LISTENER.replace("apisix: {", "apisix: {enable_control: false, ")

    settings = load(config, text + "plugin_attr: {prometheus: {enable_export_server: false}}")

    assert (settings.control, settings.metrics) == (None, None)


def test_attributes_of_other_plugins_do_nothing(config: Path) -> None:
    assert warnings(config, ONE_LISTENER + "plugin_attr:\n  skywalking: {}\n  prometheus: {}\n") == [
        "conf/config.yaml:3:3 plugin_attr.skywalking: these settings do nothing here: plugin_attr.skywalking"
    ]


def test_a_stream_proxy_listens_whatever_the_mode(config: Path) -> None:
    assert warnings(config, "apisix:\n  proxy_mode: http\n  stream_proxy: {tcp: [9100]}") == [
        "conf/config.yaml:2:15 apisix.proxy_mode: APISIX would not listen on stream_proxy with proxy_mode 'http';"
        " streamgw does"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "apisix:\n",
        "apisix:\n  stream_proxy:\n",
        "apisix: {proxy_mode: http, stream_proxy: {tcp: []}}",
        "{}",
        "#END",
    ],
)
def test_no_listener_is_a_warning(config: Path, text: str) -> None:
    settings = load(config, text)

    assert settings.listeners == ()
    assert [warning.message for warning in settings.warnings] == ["no listener: no client can connect"]


def test_a_file_that_was_cut_off_closes_no_listener(config: Path) -> None:
    (problem,) = problems(config, "")

    assert problem.startswith("conf/config.yaml:1:1: the file is empty, ")


def test_sections_may_be_empty_but_settings_may_not(config: Path) -> None:
    assert load(config, ONE_LISTENER + "streamgw:\nnginx_config:\n  stream:\n").warnings == ()
    assert problems(config, "apisix:\n  status:\n") == [
        "conf/config.yaml:2:10 apisix.status: expected a mapping, got null"
    ]


def test_all_problems_of_the_file_come_at_once_with_their_places(config: Path) -> None:
    text = """\
apisix:
  stream_proxi: {}
  stream_proxy:
    tcp: [9100, 99999]
nginx_config: 5
streamgw:
  limits: {max_sessions: "10"}
"""

    assert problems(config, text) == [
        "conf/config.yaml:2:3 apisix.stream_proxi: unknown field 'stream_proxi', did you mean 'stream_proxy'?",
        "conf/config.yaml:4:17 apisix.stream_proxy.tcp[1]: invalid stream_proxy.tcp entry: port out of range (1-65535): 99999",
        "conf/config.yaml:5:15 nginx_config: expected a mapping, got 5",
        "conf/config.yaml:7:26 streamgw.limits.max_sessions: expected an integer ≥ 0, got '10'",
    ]


def test_a_port_that_is_listed_twice_is_refused_with_its_place(config: Path) -> None:
    assert problems(config, "apisix:\n  stream_proxy:\n    tcp:\n      - 9100\n      - '9100'\n") == [
        "conf/config.yaml:5:9 apisix.stream_proxy.tcp[1]: *:9100 is listed twice, first as tcp[0]"
    ]


def test_variables_are_filled_in(config: Path) -> None:
    text = "apisix:\n  stream_proxy:\n    tcp: [${{PORT:=9100}}, '${{HOST}}:1']\n"

    assert [listener.name for listener in load(config, text, HOST="127.0.0.1").listeners] == [
        "tcp *:9100",
        "tcp 127.0.0.1:1",
    ]
    assert problems(config, text) == ["conf/config.yaml:3:29: can't find environment variable HOST"]


def test_a_file_that_is_not_there_is_named(config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(config, environ={})

    assert str(caught.value) == "conf/config.yaml: cannot be read: No such file or directory"


def test_a_file_that_is_a_directory_is_named(config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(config.parent, environ={})

    assert str(caught.value) == "conf: cannot be read: Is a directory"


@pytest.mark.parametrize(("text", "kind"), [("- 1", "a list"), ("9100", "9100")])
def test_the_root_is_a_mapping(config: Path, text: str, kind: str) -> None:
    assert problems(config, text) == [f"conf/config.yaml:1:1: expected a mapping of sections, got {kind}"]


def test_the_shipped_file_is_right() -> None:
    settings = load_settings(SHIPPED, environ={})

    assert settings.warnings == ()
    names = [listener.name for listener in settings.listeners]
    assert names == ["tcp *:9100", "tcp 127.0.0.1:9101", "udp *:9200", "udp 127.0.0.1:9211"]


def test_the_shipped_file_stays_right_with_every_example_switched_on(config: Path) -> None:
    """A comment that looks like a setting must be one: `# key: …` and `# - …` lose their sign."""

    def switch_on(line: str) -> str:
        is_example = line.lstrip() != line or line.startswith(
            ("# streamgw:", "# deployment:", "# plugin_attr:", "#   ")
        )
        return line.replace("# ", "", 1) if is_example and line.lstrip().startswith("# ") else line

    settings = load(config, "\n".join(map(switch_on, SHIPPED.read_text().splitlines())))

    assert len(settings.listeners) > 100
    assert [warning.message for warning in settings.warnings] == [
        "does nothing: streamgw.access_log.format wins"
    ]


def test_tls_of_a_real_apisix_is_taken_over(config: Path) -> None:
    settings = load(
        config,
        """
apisix:
  ssl:
    ssl_protocols: TLSv1.3 TLSv1.2
    ssl_ciphers: ECDHE-ECDSA-AES128-GCM-SHA256
    ssl_session_tickets: false
    ssl_trusted_certificate: /etc/ca.pem
    fallback_sni: a.test
  stream_proxy: {tcp: [{addr: "127.0.0.1:9100", tls: true}]}
""",
    )

    assert settings.tls == TLSSettings(
        protocols=("TLSv1.2", "TLSv1.3"),
        ciphers="ECDHE-ECDSA-AES128-GCM-SHA256",
        session_tickets=False,
        trusted_certificate="/etc/ca.pem",
    )
    assert settings.listeners == (Listener("tcp", "127.0.0.1", 9100, tls="required", fallback_sni="a.test"),)


def test_tls_that_is_switched_off_is_terminated_nowhere(config: Path) -> None:
    (problem,) = problems(
        config, "apisix: {ssl: {enable: false}, stream_proxy: {tcp: [{addr: 9100, tls: true}]}}"
    )

    assert problem.endswith("apisix.stream_proxy.tcp[0].tls: expected false: 'apisix.ssl.enable' is false")


def test_the_status_endpoint_is_found_in_a_file_that_is_broken(config: Path) -> None:
    there = Address("::1", 7086)
    for text, expected in {
        "apisix: {status: {ip: '::1', port: 7086}, stream_proxy: {tcp: [0]}}": there,
        "apisix: {stream_proxy: {tcp: [0]}}": Address("127.0.0.1", 7085),
        "apisix: {status: {port: 0}}": Address("127.0.0.1", 7085),
        "apisix: [": Address("127.0.0.1", 7085),
        "[]": Address("127.0.0.1", 7085),
    }.items():
        config.write_text(text)
        assert load_status_address(config, environ={}) == expected
    config.unlink()
    assert load_status_address(config, environ={}) == Address("127.0.0.1", 7085)


def test_every_worker_has_a_part_of_a_listeners_limit(config: Path) -> None:
    text = """\
apisix:
  stream_proxy:
    tcp: [{addr: 9100, max_sessions: 1}, {addr: 9101, max_sessions: 2}]
    udp: [{addr: 9200, max_sessions: 1}]
streamgw: {workers: 2}
"""

    tcp, udp = problems(config, text)

    assert (
        "stream_proxy.tcp: tcp *:9100: expected max_sessions to be at least 1 for each of the 2 workers"
        in tcp
    )
    assert "stream_proxy.udp: udp *:9200: expected max_sessions to be at least 1" in udp
