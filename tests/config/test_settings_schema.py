from __future__ import annotations

import os

import attrs
import pytest

from streamgw.config.settings_schema import SECTIONS, WITHOUT_EFFECT, ApisixSpec, ConfigSpec, DeploymentSpec
from streamgw.config.strict import Wrong, structure
from streamgw.config.yaml_reader import Path, pointer_of
from streamgw.core.model import Address


def refusals(data: object) -> list[str]:
    with pytest.raises(Wrong) as caught:
        structure(data, ConfigSpec)
    return [f"{pointer_of(fault.path)}: {fault.message}" for fault in caught.value.faults]


def section(path: Path, value: object) -> object:
    for name in reversed(path):
        value = {name: value}
    return value


def test_an_empty_file_has_every_default() -> None:
    assert structure({}, ConfigSpec) == ConfigSpec()
    assert structure({"streamgw": {"workers": 1}}, ConfigSpec) == ConfigSpec()


@pytest.mark.parametrize("path", SECTIONS)
def test_every_section_that_may_be_empty_exists(path: Path) -> None:
    structure(section(path, {}), ConfigSpec)

    assert refusals(section((*path, "xyzzy"), 1)) == [
        f"{pointer_of((*path, 'xyzzy'))}: unknown field 'xyzzy'"
    ]


@pytest.mark.parametrize(("path", "names"), WITHOUT_EFFECT.items())
def test_settings_without_effect_are_no_fields_too_but_offered_for_typos(
    path: Path, names: tuple[str, ...]
) -> None:
    assert list(names) == sorted(names)
    for name in names:
        (said,) = refusals(section((*path, f"{name}_"), 1))
        assert said.endswith(f"did you mean '{name}'?")


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("10.0.0.2", "10.0.0.2:53"),
        ("10.0.0.2:5353", "10.0.0.2:5353"),
        ("fd00::2", "[fd00::2]:53"),
        ("[fd00::2]", "[fd00::2]:53"),
        ("[fd00::2]:5353", "[fd00::2]:5353"),
    ],
)
def test_name_servers_are_written_as_nginx_takes_them(written: str, address: str) -> None:
    (server,) = structure({"dns_resolver": [written]}, ApisixSpec).dns_resolver

    assert isinstance(server, Address)
    assert str(server) == address


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("apisix.ssl.ssl_protocols", "SSLv3", ": expected versions out of TLSv1.1, TLSv1.2, TLSv1.3, with a space between, got 'SSLv3'"),
        ("apisix.ssl.ssl_protocols", "TLSv1.2 TLSv1.2", ": expected versions out of TLSv1.1, TLSv1.2, TLSv1.3, with a space between, got 'TLSv1.2 TLSv1.2'"),
        ("apisix.ssl.ssl_protocols", ["TLSv1.2"], ": expected versions out of TLSv1.1, TLSv1.2, TLSv1.3, with a space between, got a list"),
        ("apisix.ssl.ssl_protocols", "TLSv1.1 TLSv1.3", ": expected versions without a gap between them, got 'TLSv1.1 TLSv1.3'"),
        ("apisix.ssl.ssl_ciphers", "XYZZY", ": OpenSSL knows none of these ciphers"),
        ("apisix.ssl.fallback_sni", "*.test", ": expected a name without wildcard, got '*.test'"),
        ("streamgw.limits.max_handshakes", 0, ": expected an integer ≥ 1, got 0"),
        ("apisix.dns_resolver", ["dns.example"], "[0]: expected an IP address, got 'dns.example'"),
        ("apisix.dns_resolver", ["dns:53"], "[0]: expected an IP address, got 'dns'"),
        ("apisix.dns_resolver", ["10.0.0.1:0"], "[0]: expected an integer 1–65535, got 0"),
        ("apisix.dns_resolver", [53], "[0]: expected an IP address, got 53"),
        ("apisix.dns_resolver", "10.0.0.1", ": expected a list, got text"),
        ("apisix.dns_resolver_valid", 0, ": expected a number > 0, got 0"),
        ("apisix.resolver_timeout", "5", ": expected a number > 0, got '5'"),
        ("apisix.status", {"ip": "localhost"}, ".ip: expected an IP address, got 'localhost'"),
        ("apisix.status", {"port": 0}, ".port: expected an integer 1–65535, got 0"),
        ("apisix.proxy_mode", "steam", ": expected 'http' or 'stream' or 'http&stream', got 'steam', did you mean 'stream'?"),
        ("apisix.enable_ipv6", "yes", ": expected true or false, got 'yes'"),
        ("nginx_config.worker_shutdown_timeout", "soon", ": expected a time like 240s, 4m or 1h30m, got 'soon'"),
        ("nginx_config.stream.real_ip_from", ["unix:"], "[0]: expected an IP address or CIDR, got 'unix:'"),
        ("nginx_config.stream.access_log", "", ": expected at least 1 characters, got 0"),
        ("streamgw.workers", 0, ": expected an integer 1–32 or 'auto', got 0"),
        ("streamgw.workers", True, ": expected an integer 1–32 or 'auto', got true"),
        ("streamgw.workers", "all", ": expected an integer 1–32 or 'auto', got 'all'"),
        ("streamgw", {"workers": 4, "limits": {"max_sessions": 3}}, ".limits.max_sessions: expected at least 1 for each of the 4 workers, got 3"),
        ("streamgw.limits.preread_limit_bytes", 100, ": expected an integer 536–65536, got 100"),
        ("streamgw.reload.settle_ms", 0, ": expected an integer 1–10000, got 0"),
        ("streamgw.reload.relook_s", 0, ": expected a number > 0, got 0"),
        ("streamgw.resolver", {"min_ttl_s": 301}, ".min_ttl_s: expected at most max_ttl_s (300), got 301"),
        ("streamgw.log.level", "loud", ": expected 'debug' or 'info' or 'warning' or 'error', got 'loud'"),
        ("deployment.role", "boss", ": expected 'traditional' or 'control_plane' or 'data_plane' or 'standalone', got 'boss'"),
    ],
)  # fmt: skip
def test_what_a_setting_may_not_be(path: str, value: object, said: str) -> None:
    assert refusals(section(tuple(path.split(".")), value)) == [f"{path}{said}"]


def test_the_deployment_of_a_real_apisix_is_understood() -> None:
    spec = structure(
        {
            "role": "traditional",
            "role_traditional": {"config_provider": "etcd"},
            "role_control_plane": {"config_provider": "etcd"},
            "role_data_plane": {"config_provider": "yaml"},
            "admin": {
                "admin_key_required": False,
                "admin_key": [{"name": "admin", "key": "hush", "role": "admin"}],
                "allow_admin": ["127.0.0.0/24"],
                "admin_listen": {"ip": "0.0.0.0", "port": 9180},
                "https_admin": True,
                "admin_api_mtls": {"admin_ssl_cert": "c.pem", "admin_ssl_cert_key": "k.pem"},
                "enable_admin_cors": True,
                "enable_admin_ui": True,
                "admin_api_version": "v3",
            },
        },
        DeploymentSpec,
    )

    assert spec.role_data_plane is not None
    assert spec.admin is not None
    assert "hush" not in repr(spec)


def test_an_admin_key_is_in_no_message() -> None:
    for keys in (["hush"], [{"name": "a", "key": 1234567, "role": "admin"}], "hush", {"hush": 1}):
        said = refusals({"deployment": {"admin": {"admin_key": keys}}})
        assert "hush" not in " ".join(said)
        assert "1234567" not in " ".join(said)


def test_every_section_can_be_made_without_words() -> None:
    for kind in (ConfigSpec, *(field.type for field in attrs.fields(ConfigSpec))):
        assert kind is not None
        if attrs.has(kind):
            assert kind() == structure({}, kind)


def test_tls_is_written_as_nginx_takes_it() -> None:
    ssl = {"ssl_protocols": " TLSv1.3  TLSv1.2", "ssl_ciphers": "ECDHE+AESGCM"}

    written = structure({"ssl": ssl}, ApisixSpec).ssl

    assert (written.ssl_protocols, written.ssl_ciphers) == (("TLSv1.2", "TLSv1.3"), "ECDHE+AESGCM")


def test_auto_is_as_many_workers_as_cpus_that_may_be_used() -> None:
    workers = structure({"streamgw": {"workers": "auto"}}, ConfigSpec).streamgw.workers

    assert workers == min(len(os.sched_getaffinity(0)), 32)


def test_a_limit_is_enough_when_every_worker_gets_one_and_0_is_none() -> None:
    spec = structure(
        {"streamgw": {"workers": 4, "limits": {"max_sessions": 4, "max_udp_sessions": 0}}}, ConfigSpec
    )

    assert spec.streamgw.workers == 4
