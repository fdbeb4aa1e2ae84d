"""What an upstream may say of a service, and the settings of discovery."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.discovery import DiscoverySettings, DiscoverySpec, build_discovery, name_server
from streamgw.config.json_schema import schema_of
from streamgw.config.schema import UpstreamSpec
from streamgw.config.strict import Wrong, structure
from streamgw.config.wording import complaint
from streamgw.core.model import Address

NODES = {"10.0.0.1:3306": 1}


def faults(**fields: object) -> list[str]:
    with pytest.raises(Wrong) as caught:
        structure(fields, UpstreamSpec)
    return [f"{'.'.join(map(str, fault.path))}: {fault.message}" for fault in caught.value.faults]


def warnings(**fields: object) -> list[str]:
    spec = structure(fields, UpstreamSpec)
    return [f"{'.'.join(map(str, fault.path))}: {fault.message}" for fault in spec.warnings()]


@pytest.mark.parametrize(
    "name",
    [
        "_mysql._tcp.db.example",
        "db.example:3306",
        "db",
        "db.example.",
        "a.example.:1",
        "x.service.consul:65535",
    ],
)
def test_a_service_is_a_name_with_or_without_a_port(name: str) -> None:
    upstream = structure({"service_name": name, "discovery_type": "dns"}, UpstreamSpec).build("upstreams/1")

    assert (upstream.service_name, upstream.nodes) == (name, ())


@pytest.mark.parametrize(
    "name",
    ["", "10.0.0.5", "10.0.0.5:3306", "[::1]:1", "::1", "a:0", "a:65536", "a:", ":1", "a b", "a..b", "é",
     "a." * 127 + "a", f"{'a' * 64}.example"],
)  # fmt: skip
def test_a_service_is_nothing_else(name: str) -> None:
    (said,) = faults(service_name=name, discovery_type="dns")

    assert said.startswith("service_name: expected a DNS name, or name:port, got ")


@pytest.mark.parametrize("value", [1, None, True, ["a"]])
def test_a_service_is_text(value: object) -> None:
    assert faults(service_name=value, discovery_type="dns")[0].startswith("service_name: expected a DNS name")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("consul", "discovery by consul is not available; expected dns"),
        ("kubernetes", "discovery by kubernetes is not available; expected dns"),
        ("zookeeper", "expected dns, got 'zookeeper'"),
        ("DNS", "expected dns, got 'DNS'"),
        (1, "expected dns, got 1"),
    ],
)
def test_only_dns_is_asked(value: object, said: str) -> None:
    assert faults(service_name="db.example", discovery_type=value) == [f"discovery_type: {said}"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "nodes: is required"),
        ({"service_name": "db"}, "service_name: 'service_name' needs 'discovery_type: dns'"),
        ({"discovery_type": "dns"}, "discovery_type: 'discovery_type' needs 'service_name'"),
        ({"nodes": NODES, "service_name": "db"}, "service_name: 'nodes' and 'service_name' exclude each other"),
        (
            {"nodes": NODES, "service_name": "db", "discovery_type": "dns"},
            "service_name: 'nodes' and 'service_name' exclude each other",
        ),
    ],
)  # fmt: skip
def test_nodes_are_listed_or_discovered(fields: dict[str, object], said: str) -> None:
    assert faults(**fields) == [said]
    assert complaint(schema_of(UpstreamSpec), fields) or "nodes" in fields, "the schema says it, too"


def test_what_does_nothing_is_named() -> None:
    assert warnings(nodes=NODES, discovery_type="dns") == [
        "discovery_type: does nothing without 'service_name'"
    ]
    assert warnings(service_name="db:1", discovery_type="dns", discovery_args={"group_name": "x"}) == [
        "discovery_args: does nothing with 'discovery_type: dns'"
    ]
    assert warnings(service_name="db:1", discovery_type="dns") == []


def test_chash_over_a_service_is_fine() -> None:
    fields = {"service_name": "db:1", "discovery_type": "dns", "type": "chash", "key": "remote_addr"}

    assert structure(fields, UpstreamSpec).build("upstreams/1").hash_key == "$remote_addr"


@given(st.text(max_size=30))
def test_the_schema_and_the_rule_agree_on_names(name: str) -> None:
    fields = {"service_name": name, "discovery_type": "dns"}
    try:
        structure(fields, UpstreamSpec)
    except Wrong:
        is_good = False
    else:
        is_good = True

    assert (not complaint(schema_of(UpstreamSpec)["properties"]["service_name"], name)) is is_good


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────


def settings(**dns: object) -> DiscoverySettings:
    return build_discovery(structure({"dns": dns}, DiscoverySpec))


def test_the_settings_say_whom_to_ask_and_what_for() -> None:
    assert settings() == DiscoverySettings()
    assert settings(servers=["127.0.0.1:8600", "fd00::2"]) == DiscoverySettings(
        servers=(Address("127.0.0.1", 8600), Address("fd00::2", 53))
    )
    assert settings(resolv_conf="/etc/own.conf", order=["A", "SRV"]) == DiscoverySettings(
        resolv_conf=Path("/etc/own.conf"), order=("A", "SRV")
    )


@pytest.mark.parametrize(
    ("dns", "said"),
    [
        ({"servers": []}, "dns.servers: expected at least one server; to have the machine's, leave it out"),
        ({"servers": ["dns.example"]}, "dns.servers.0: expected an IP address, got 'dns.example'"),
        (
            {"servers": ["127.0.0.1"], "resolv_conf": "/x"},
            "dns.resolv_conf: 'servers' and 'resolv_conf' exclude each other",
        ),
        ({"order": []}, "dns.order: expected at least one of SRV, A, AAAA, CNAME"),
        ({"order": ["last"]}, "dns.order: expected at least one of SRV, A, AAAA, CNAME"),
        ({"order": ["A", "A"]}, "dns.order: expected each kind of record once"),
        (
            {"order": ["MX"]},
            "dns.order.0: expected 'last' or 'SRV' or 'A' or 'AAAA' or 'CNAME', got 'MX'",
        ),
    ],
)
def test_what_the_settings_may_not_say(dns: dict[str, object], said: str) -> None:
    with pytest.raises(Wrong) as caught:
        settings(**dns)

    (fault,) = caught.value.faults
    assert f"{'.'.join(map(str, fault.path))}: {fault.message}" == said


@pytest.mark.parametrize("value", [53, "dns.example:53", "10.0.0.2:x"])
def test_a_name_server_is_no_name(value: object) -> None:
    with pytest.raises(Wrong, match="expected an IP address"):
        name_server(value)


def test_other_kinds_of_discovery_may_stand_there() -> None:
    """They are named in the one warning of what has no effect."""
    names = cast("dict[str, object]", schema_of(DiscoverySpec)["properties"])

    assert names.keys() == {"dns", "consul", "consul_kv", "eureka", "kubernetes", "nacos", "tars"}


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("10.0.0.2", Address("10.0.0.2", 53)),
        ("10.0.0.2:5353", Address("10.0.0.2", 5353)),
        ("[fd00::2]:5353", Address("fd00::2", 5353)),
        ("fd00::2", Address("fd00::2", 53)),
    ],
)
def test_a_name_server_is_an_address_with_or_without_a_port(written: str, address: Address) -> None:
    assert name_server(written) == address
