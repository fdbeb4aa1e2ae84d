"""Where HTTP servers of ours listen, beside listeners and each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgw.config.settings import Settings, load_settings
from streamgw.core.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("config.yaml")


def load(config: Path, text: str) -> Settings:
    config.write_text(text)
    return load_settings(config, environ={})


def problems(config: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(config, text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("apisix: {stream_proxy: {tcp: [7085]}}", "1:31 apisix.stream_proxy.tcp[0]: *:7085 cannot be bound beside 127.0.0.1:7085, where apisix.status listens"),
        ("apisix: {status: {port: 9100}, stream_proxy: {tcp: [9100]}}", "1:53 apisix.stream_proxy.tcp[0]: *:9100 cannot be bound beside 127.0.0.1:9100, where apisix.status listens"),
        ("apisix: {control: {port: 9100}, stream_proxy: {tcp: [9100]}}", "1:54 apisix.stream_proxy.tcp[0]: *:9100 cannot be bound beside 127.0.0.1:9100, where apisix.control listens"),
        (
            "apisix: {stream_proxy: {tcp: [1, 9091]}}\nplugin_attr: {prometheus: {export_addr: {ip: '::1'}}}",
            "1:34 apisix.stream_proxy.tcp[1]: *:9091 cannot be bound beside [::1]:9091, where plugin_attr.prometheus.export_addr listens",
        ),
        (
            "apisix: {stream_proxy: {tcp: ['127.0.0.1:9180']}}\ndeployment: {admin: {}}",
            "1:31 apisix.stream_proxy.tcp[0]: 127.0.0.1:9180 cannot be bound beside 127.0.0.1:9180, where deployment.admin.admin_listen listens",
        ),
        ("apisix: {control: {port: 7085}}", "1:19 apisix.control: 127.0.0.1:7085 cannot be bound beside 127.0.0.1:7085, where apisix.status listens"),
        (
            "deployment: {admin: {admin_listen: {port: 9090}}}",
            "1:36 deployment.admin.admin_listen: 127.0.0.1:9090 cannot be bound beside 127.0.0.1:9090, where apisix.control listens by default",
        ),
        (
            "plugin_attr: {prometheus: {export_addr: {port: 9090}}}",
            "1:41 plugin_attr.prometheus.export_addr: 127.0.0.1:9090 cannot be bound beside 127.0.0.1:9090, where apisix.control listens by default",
        ),
    ],
)  # fmt: skip
def test_two_things_are_never_at_one_address(config: Path, text: str, said: str) -> None:
    """`check` said ok, and the start failed."""
    assert problems(config, text) == [f"config.yaml:{said}"]


@pytest.mark.parametrize(
    "text",
    [
        # Nobody asked for them: they are missed, with a warning.
        "apisix: {stream_proxy: {tcp: [9090, 9091]}}",
        "apisix: {status: {port: 9090}}",
        # Switched off.
        "apisix: {enable_control: false, control: {port: 9100}, stream_proxy: {tcp: [7085, 9100]}}\nstreamgw: {enable_status: false}",
        "plugin_attr: {prometheus: {enable_export_server: false}}\napisix: {status: {port: 9091}}",
        # Another transport, another family, another address.
        "apisix: {stream_proxy: {udp: [7085]}}",
        "apisix: {stream_proxy: {tcp: ['[::]:7085', '127.0.0.2:7085']}}",
        "apisix: {status: {ip: '::'}, control: {ip: 0.0.0.0, port: 7085}}",
    ],
)
def test_what_can_be_had_together_is_right(config: Path, text: str) -> None:
    load(config, text)


def test_an_address_of_ours_is_wrong_beside_other_problems(config: Path) -> None:
    text = "apisix: {stream_proxy: {tcp: [7085]}}\ndeployment: {admin: {admin_key_required: false, allow_admin: [], admin_listen: {ip: 0.0.0.0}}}"

    assert [said.partition(": ")[0] for said in problems(config, text)] == [
        "config.yaml:1:31 apisix.stream_proxy.tcp[0]",
        "config.yaml:2:42 deployment.admin.admin_key_required",
    ]
