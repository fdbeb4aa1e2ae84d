from __future__ import annotations

import ipaddress

import pytest

from streamgw.config.endpoints import (
    CONTROL,
    LOOPBACK,
    AdminKey,
    AdminSettings,
    AdminSpec,
    AdminTLS,
    Endpoint,
    HTTPLimits,
    ListenSpec,
    MetricsSettings,
    PrometheusSpec,
    build_admin,
    build_control,
    build_metrics,
    plugin_attr,
)
from streamgw.config.strict import Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.model import Address

MTLS = {"admin_ssl_cert": "c.pem", "admin_ssl_cert_key": "k.pem", "admin_ssl_ca_cert": "ca.pem"}


def admin(**section: object) -> AdminSettings:
    return build_admin(structure(section, AdminSpec))


def refusals(data: object, kind: type) -> list[str]:
    with pytest.raises(Wrong) as caught:
        structure(data, kind)
    return [f"{pointer_of(fault.path)}: {fault.message}" for fault in caught.value.faults]


def test_by_default_only_this_machine_may_ask_and_only_with_a_key() -> None:
    assert admin() == AdminSettings()
    assert admin().allowed == LOOPBACK
    assert admin().is_key_required


def test_what_apisix_documents_is_understood() -> None:
    settings = admin(
        admin_key=[
            {"name": "admin", "key": "hush", "role": "admin"},
            {"name": "viewer", "key": "quiet", "role": "viewer"},
        ],
        allow_admin=["10.0.0.0/8"],
        admin_listen={"ip": "0.0.0.0", "port": 9181},
        https_admin=True,
        admin_api_mtls=MTLS,
        enable_admin_cors=False,
        enable_admin_ui=False,
        admin_api_version="v2",
    )

    assert settings == AdminSettings(
        listen=Address("0.0.0.0", 9181),
        keys=(AdminKey("admin", "hush", "admin"), AdminKey("viewer", "quiet", "viewer")),
        allowed=(ipaddress.IPv4Network("10.0.0.0/8"),),
        tls=AdminTLS("c.pem", "k.pem", "ca.pem"),
        has_cors=False,
        has_ui=False,
        version="v2",
    )
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"allow_admin": []},
        {"admin_listen": {"ip": "::1"}, "allow_admin": []},
        {"admin_listen": {"ip": "0.0.0.0"}, "allow_admin": ["127.0.0.0/24"]},
        {"admin_listen": {"ip": "0.0.0.0"}, "allow_admin": [], "https_admin": True, "admin_api_mtls": MTLS},
    ],
)
def test_without_a_key_something_else_must_keep_strangers_out(section: dict[str, object]) -> None:
    assert not admin(admin_key_required=False, **section).is_key_required


@pytest.mark.parametrize(
    "section",
    [
        {"allow_admin": []},
        {"allow_admin": ["127.0.0.0/24", "10.0.0.1"]},
        {"allow_admin": [], "https_admin": True, "admin_api_mtls": MTLS | {"admin_ssl_ca_cert": ""}},
    ],
)
def test_wide_open_is_refused(section: dict[str, object]) -> None:
    with pytest.raises(Wrong) as caught:
        admin(admin_key_required=False, admin_listen={"ip": "0.0.0.0"}, **section)

    (fault,) = caught.value.faults
    assert fault.path == ("deployment", "admin", "admin_key_required")
    assert fault.message.startswith("missing valid Admin API token: ")


def test_https_needs_a_certificate() -> None:
    assert refusals({"https_admin": True, "admin_api_mtls": {"admin_ssl_cert": "c.pem"}}, AdminSpec) == [
        "https_admin: missing ssl cert for https admin: admin_ssl_cert and admin_ssl_cert_key are needed"
    ]


def test_one_key_has_one_role() -> None:
    keys = [{"name": name, "key": "hush", "role": role} for name, role in (("a", "admin"), ("b", "viewer"))]

    assert refusals({"admin_key": keys}, AdminSpec) == ["admin_key: two of them have the same key"]


def test_empty_keys_are_no_key_at_all_and_may_be_many() -> None:
    keys = [{"name": name, "key": "", "role": "admin"} for name in ("a", "b")]

    assert [key.key for key in admin(admin_key=keys).keys] == ["", ""]


@pytest.mark.parametrize("value", [None, {}, {"log-rotate": {"interval": 3600}}])
def test_other_plugins_are_not_looked_at(value: object) -> None:
    assert plugin_attr(value).prometheus == PrometheusSpec()


def test_what_the_metrics_may_not_be() -> None:
    with pytest.raises(Wrong) as caught:
        plugin_attr(
            {
                "prometheus": {
                    "export_uri": "metrics",
                    "metric_prefix": "9_",
                    "export_addr": {"ip": "localhost"},
                }
            }
        )

    assert [f"{pointer_of(fault.path)}: {fault.message}" for fault in caught.value.faults] == [
        "prometheus.export_uri: expected a path like /metrics, got 'metrics'",
        "prometheus.export_addr.ip: expected an IP address, got 'localhost'",
        "prometheus.metric_prefix: expected the beginning of a metric name, like apisix_, got '9_'",
    ]


def test_an_address_is_named_as_soon_as_a_part_of_it_is() -> None:
    assert build_control(ListenSpec()) == CONTROL
    assert build_control(structure({"port": 9191}, ListenSpec)) == Endpoint(
        Address("127.0.0.1", 9191), is_named=True
    )
    assert build_metrics(PrometheusSpec()) == MetricsSettings()
    assert build_metrics(
        structure({"export_addr": {"ip": "[::1]"}, "metric_prefix": ""}, PrometheusSpec)
    ) == (MetricsSettings(Endpoint(Address("::1", 9091), is_named=True), prefix=""))


def test_metrics_can_be_switched_off() -> None:
    assert build_metrics(PrometheusSpec(enable_export_server=False)) is None


def test_limits_have_limits() -> None:
    assert refusals({"body_limit_bytes": 0, "hosts": ["*"], "max_requests": 0}, HTTPLimits) == [
        "hosts[0]: expected a name without wildcard, got '*'",
        "body_limit_bytes: expected an integer 1024–67108864, got 0",
        "max_requests: expected an integer ≥ 1, got 0",
    ]


def test_the_path_of_the_metrics_is_a_path() -> None:
    assert plugin_attr({"prometheus": {"export_uri": "/metrics"}}).prometheus.export_uri == "/metrics"


def test_an_address_is_text() -> None:
    assert refusals({"ip": 127}, ListenSpec) == ["ip: expected an IP address, got 127"]
