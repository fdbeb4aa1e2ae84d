from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from streamgw.config.schema import (
    COLLECTIONS,
    PluginMetadataSpec,
    ServiceSpec,
    Spec,
    SSLSpec,
    StreamRouteSpec,
    UpstreamSpec,
)
from streamgw.config.strict import Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.model import Match, Node, PortRange, Timeouts, Upstream

PEM = "-----BEGIN CERTIFICATE-----\n" + "x" * 200
NODES = {"10.0.0.1:3306": 1}


def faults(kind: type[Spec], **fields: object) -> list[str]:
    with pytest.raises(Wrong) as caught:
        structure(fields, kind)
    return sorted(f"{pointer_of(fault.path)}: {fault.message}" for fault in caught.value.faults)


def warnings(kind: type[Spec], **fields: object) -> list[str]:
    return [f"{pointer_of(fault.path)}: {fault.message}" for fault in structure(fields, kind).warnings()]


def upstream(**fields: object) -> Upstream:
    return structure({"nodes": NODES, **fields}, UpstreamSpec).build("upstreams/1")


def match(**fields: object) -> Match:
    return structure(fields, StreamRouteSpec).build_match()


COMMON: dict[str, Any] = {
    "id": 1,
    "desc": "",
    "labels": {"env": "prod"},
    "create_time": 1700000000,
    "update_time": 1700000000,
}


@pytest.mark.parametrize("kind", COLLECTIONS.values())
def test_every_object_takes_the_common_fields(kind: type[Spec]) -> None:
    required: dict[type[Spec], dict[str, object]] = {
        UpstreamSpec: {"nodes": NODES},
        SSLSpec: {"sni": "a", "cert": PEM, "key": PEM},
    }

    spec = structure({**COMMON, **required.get(kind, {})}, kind)

    assert spec.id == "1"
    assert faults(kind, id="a b", desc="x" * 257, labels={"a": ""}, create_time="now") == [
        "create_time: expected an integer ≥ 0, got 'now'",
        "desc: expected 0 to 256 characters, got 257",
        "id: expected 1 to 64 of a-z A-Z 0-9 - _ . or an integer ≥ 1, got 'a b'",
        "labels.a: expected text without spaces, 1 to 256 characters, got ''",
    ]


def test_an_upstream_has_apisix_defaults() -> None:
    assert upstream() == Upstream(key="upstreams/1", nodes=(Node("10.0.0.1", 3306, 1),))


def test_an_upstream_says_everything_the_data_plane_needs() -> None:
    built = upstream(
        name="db",
        retries=0,
        retry_timeout=2.5,
        timeout={"connect": 1, "send": 2, "read": 3.5},
        scheme="tcp",
        proxy_protocol="v2",
        type="roundrobin",
    )

    assert built == Upstream(
        key="upstreams/1",
        nodes=(Node("10.0.0.1", 3306, 1),),
        retries=0,
        retry_timeout_s=2.5,
        timeouts=Timeouts(connect_s=1.0, idle_s=3.5),
        proxy_protocol="v2",
        name="db",
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"type": "chash"}, "key: is required with type chash"),
        ({"type": "random"}, "type: expected one of roundrobin, chash, least_conn, ewma, got 'random'"),
        ({"type": ["x"]}, "type: expected one of roundrobin, chash, least_conn, ewma, got a list"),
        ({"tls": {"client_cert": PEM}}, "tls: 'client_cert' and 'client_key' need each other"),
        ({"tls": {"client_cert": PEM, "client_key": PEM, "client_cert_id": 1}}, "tls.client_cert_id: 'client_cert' and 'client_cert_id' exclude each other"),
        ({"tls": {"ca_certs": "hush"}}, "tls.ca_certs: expected 128 to 65536 characters, got 4"),
        ({"tls": {"server_name": "*.a"}}, "tls.server_name: expected a name without wildcard, got '*.a'"),
        ({"tls": {"alpn": [""]}}, "tls.alpn[0]: expected 1 to 255 characters, got 0"),
        ({"tls": {"alpn": ["h2", "café"]}}, "tls.alpn[1]: expected printable ASCII, got 'café'"),
        ({"scheme": "htp"}, "scheme: expected one of tcp, udp, http, tls, https, grpc, grpcs, kafka, got 'htp', did you mean 'http'?"),
        ({"scheme": 1}, "scheme: expected one of tcp, udp, http, tls, https, grpc, grpcs, kafka, got 1"),
        ({"pass_host": "rewrite"}, "pass_host: 'rewrite' needs 'upstream_host'"),
        ({"discovery_type": "nacos"}, "discovery_type: discovery by nacos is not available; expected dns"),
        ({"service_name": "x"}, "service_name: 'nodes' and 'service_name' exclude each other"),
        ({"timeout": {"connect": 1}}, "timeout.read: is required"),
        ({"timeout": {"connect": 1, "send": 1, "read": 0}}, "timeout.read: expected a number > 0, got 0"),
        ({"retries": -1}, "retries: expected an integer 0–2147483647, got -1"),
        ({"retries": 2**63 - 1}, "retries: expected an integer 0–2147483647, got 9223372036854775807"),
        ({"retry_timeout": "1s"}, "retry_timeout: expected a number ≥ 0, got '1s'"),
        ({"proxy_protocol": True}, "proxy_protocol: expected 'off' or 'v1' or 'v2', got true"),
        ({"checks": {"actve": {}}}, "checks.actve: unknown field 'actve', did you mean 'active'?"),
        ({"checks": {"active": 1}}, "checks.active: expected a mapping, got 1"),
        ({"tls": {"client_key": "hush"}}, "tls.client_key: expected 64 to 65536 characters, got 4"),
        ({"hash_on": "x"}, "hash_on: expected 'vars' or 'header' or 'cookie' or 'consumer' or 'vars_combinations', got 'x'"),
    ],
)  # fmt: skip
def test_what_an_upstream_may_not_say(fields: dict[str, object], said: str) -> None:
    assert said in faults(UpstreamSpec, nodes=NODES, **fields)


def test_an_upstream_without_nodes_is_refused() -> None:
    assert faults(UpstreamSpec) == ["nodes: is required"]


def test_an_upstream_names_what_does_nothing() -> None:
    assert warnings(UpstreamSpec, nodes=NODES, scheme="http") == []
    assert warnings(
        UpstreamSpec,
        nodes=NODES,
        scheme="grpc",
        pass_host="node",
        upstream_host="a",
        keepalive_pool={"size": 1},
        hash_on="vars",
        key="remote_addr",
        tls={"verify": True},
        checks={"active": {"type": "tcp"}},
    ) == [
        "scheme: 'grpc' is treated as tcp",
        "pass_host: does nothing at layer 4",
        "upstream_host: does nothing at layer 4",
        "keepalive_pool: does nothing at layer 4",
        "hash_on: does nothing with type roundrobin",
        "key: does nothing with type roundrobin",
        "tls: does nothing without 'scheme: tls'",
    ]


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"size": 0}, "keepalive_pool.size: expected an integer ≥ 1, got 0"),
        ({"idle_timeout": -1}, "keepalive_pool.idle_timeout: expected a number ≥ 0, got -1"),
        ({"sizes": 1}, "keepalive_pool.sizes: unknown field 'sizes', did you mean 'size'?"),
    ],
)
def test_what_does_nothing_is_checked_all_the_same(pool: dict[str, object], said: str) -> None:
    assert faults(UpstreamSpec, nodes=NODES, keepalive_pool=pool) == [said]


def test_a_proxy_header_may_stand_before_every_datagram() -> None:
    each = {"nodes": NODES, "proxy_protocol_datagrams": "each"}

    assert upstream(proxy_protocol="v2", proxy_protocol_datagrams="each").proxy_protocol_on_each
    assert not upstream(proxy_protocol="v2", proxy_protocol_datagrams="first").proxy_protocol_on_each
    assert warnings(UpstreamSpec, proxy_protocol="v2", **each) == []
    assert warnings(UpstreamSpec, proxy_protocol="v1", **each) == [
        "proxy_protocol_datagrams: does nothing without 'proxy_protocol: v2'"
    ]


def test_an_upstream_that_leads_nowhere_says_so() -> None:
    assert warnings(UpstreamSpec, nodes=[]) == ["nodes: no node: every session that comes here is closed"]
    assert warnings(UpstreamSpec, nodes={"a:1": 0}) == ["nodes: every weight is 0: no node is ever picked"]


def test_a_route_that_asks_for_nothing_matches_all() -> None:
    assert match() == Match()


def test_a_route_asks_for_addresses_ports_and_names() -> None:
    assert match(remote_addr="10.0.0.0/8", server_addr="::1", server_port=3306, sni="Db.Example") == Match(
        remote_addrs=(ipaddress.ip_network("10.0.0.0/8"),),
        server_addrs=(ipaddress.ip_network("::1"),),
        server_ports=(PortRange(3306, 3306),),
        server_names=("db.example",),
    )


def test_a_route_may_list_what_apisix_has_once() -> None:
    assert match(remote_addrs=["10.0.0.1", "::/0"], server_ports=[80, "90-99"], snis=["a", "*.b"]) == Match(
        remote_addrs=(ipaddress.ip_network("10.0.0.1"), ipaddress.ip_network("::/0")),
        server_ports=(PortRange(80, 80), PortRange(90, 99)),
        server_names=("a", "*.b"),
    )


def test_a_star_among_several_names_is_no_restriction() -> None:
    assert match(snis=["a", "*"]).server_names == ()
    assert match(sni="*").server_names == ("*",)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"server_prot": 1}, "server_prot: unknown field 'server_prot', did you mean 'server_port'?"),
        ({"server_port": "80"}, "server_port: expected an integer 1–65535, got '80'"),
        ({"remote_addr": ":/8"}, "remote_addr: expected an IP address or CIDR, got ':/8'"),
        ({"remote_addr": "::1", "remote_addrs": ["::1"]}, "remote_addrs: 'remote_addr' and 'remote_addrs' exclude each other"),
        ({"server_port": 1, "server_ports": []}, "server_ports: 'server_port' and 'server_ports' exclude each other"),
        ({"sni": "a", "snis": ["a"]}, "snis: 'sni' and 'snis' exclude each other"),
        ({"remote_addrs": []}, "remote_addrs: expected at least one entry; to match any, leave out 'remote_addrs'"),
        ({"server_ports": [0]}, "server_ports[0]: expected a port 1–65535 or a range like 9100-9200, got 0"),
        ({"status": True}, "status: expected 0 or 1, got true"),
        ({"priority": "1"}, "priority: expected an integer -2147483648–2147483647, got '1'"),
        ({"protocol": {"name": "redis"}}, "protocol.name: unknown protocol [redis]"),
        ({"protocol": {}}, "protocol.name: unknown protocol []"),
        ({"protocol": "redis"}, "protocol: expected a mapping, got text"),
        ({"plugins": []}, "plugins: expected a mapping, got a list"),
        ({"upstream": {"nodes": {}, "type": "chash"}}, "upstream.key: is required with type chash"),
        ({"name": ""}, "name: expected 1 to 256 characters, got 0"),
        ({"udp": {"idle_timeout": 0}}, "udp.idle_timeout: expected a number > 0, got 0"),
    ],
)  # fmt: skip
def test_what_a_route_may_not_say(fields: dict[str, object], said: str) -> None:
    assert faults(StreamRouteSpec, **fields) == [said]


def test_a_route_names_what_does_nothing() -> None:
    assert warnings(StreamRouteSpec, plugins={}, sni="a", alpn=["mqtt"], tls_passthrough=True, udp={}) == []
    assert warnings(StreamRouteSpec, udp={"responses": 0, "requests": 1}) == [
        "udp.requests: does nothing with 'responses: 0': a session is one datagram, and nothing comes back"
    ]
    assert warnings(
        StreamRouteSpec,
        upstream_id=1,
        upstream={"nodes": NODES, "pass_host": "pass"},
    ) == [
        "upstream: does nothing: 'upstream_id' wins",
        "upstream.pass_host: does nothing at layer 4",
    ]


def test_a_service_names_what_does_nothing() -> None:
    assert warnings(ServiceSpec, hosts=["a"], enable_websocket=False, script="x", type="http") == [
        "hosts: does nothing at layer 4",
        "enable_websocket: does nothing at layer 4",
        "script: does nothing at layer 4",
    ]
    assert warnings(ServiceSpec, upstream={"nodes": NODES}) == []


def test_a_certificate_names_what_does_nothing() -> None:
    assert warnings(SSLSpec, sni="a", cert=PEM, key="$ENV://KEY", client={"ca": "$file://ca.pem"}) == []
    assert warnings(
        SSLSpec, sni="a", cert=PEM, key=PEM, client={"ca": PEM, "skip_mtls_uri_regex": ["x"]}
    ) == ["client.skip_mtls_uri_regex: does nothing at layer 4"]
    assert warnings(SSLSpec, type="client", cert=PEM, key=PEM) == []
    assert warnings(
        SSLSpec, type="client", cert=PEM, key=PEM, sni="a", certs=[PEM], keys=[PEM], ssl_protocols=["TLSv1.2"]
    ) == [f"{name}: does nothing with 'type: client'" for name in ("sni", "certs", "ssl_protocols")]


def test_versions_may_stand_in_any_order() -> None:
    assert warnings(SSLSpec, sni="a", cert=PEM, key=PEM, ssl_protocols=["TLSv1.3", "TLSv1.2"]) == []


def test_what_a_certificate_is_served_for() -> None:
    def names(**fields: object) -> tuple[str, ...]:
        return structure({"cert": PEM, "key": PEM, **fields}, SSLSpec).names

    assert names(sni="A.Test.") == ("a.test",)
    assert names(snis=["a.test", "*.B.test"]) == ("a.test", "*.b.test")
    assert names(type="client") == ()


def test_a_route_asks_for_a_protocol() -> None:
    assert structure({"alpn": ["mqtt", "h2"]}, StreamRouteSpec).build_match().alpn == ("mqtt", "h2")
    assert faults(StreamRouteSpec, alpn=[]) == [
        "alpn: expected at least one entry; to match any, leave out 'alpn'"
    ]


def test_tls_to_an_upstream_warns_of_what_is_not_verified() -> None:
    unverified = "scheme: whoever answers is believed: the nodes' certificates are not verified (tls.verify)"

    def said(**tls: object) -> list[str]:
        return warnings(UpstreamSpec, nodes=NODES, scheme="tls", tls=tls)

    assert warnings(UpstreamSpec, nodes=NODES, scheme="tls") == [unverified]
    assert said(ca_certs="system") == [unverified, "tls.ca_certs: does nothing without 'verify: true'"]
    assert said(verify=True, server_name="db.test", ca_certs=PEM) == []
    (unnamed,) = said(verify=True)
    assert unnamed.startswith("tls.verify: without 'server_name' the nodes' certificates must be for")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ["cert: is required", "key: is required", ": expected exactly one of 'sni' and 'snis'"]),
        ({"cert": PEM, "key": PEM, "sni": "a", "snis": ["a"]}, [": expected exactly one of 'sni' and 'snis'"]),
        ({"cert": PEM, "key": PEM, "snis": []}, ["snis: expected at least one entry"]),
        ({"cert": PEM, "key": PEM, "sni": "a", "certs": [PEM]}, [": mismatched number of certs and keys"]),
        ({"cert": 1, "key": "hush"}, ["cert: expected text", "key: expected 64 to 65536 characters, got 4"]),
        ({"keys": PEM}, ["keys: expected a list, got text"]),
        ({"keys": ["hush"]}, ["keys[0]: expected 64 to 65536 characters, got 4"]),
        ({"ssl_protocols": ["TLSv1"]}, ["ssl_protocols[0]: expected 'TLSv1.1' or 'TLSv1.2' or 'TLSv1.3', got 'TLSv1', did you mean 'TLSv1.3'?"]),
        ({"cert": PEM, "key": PEM, "sni": "a", "ssl_protocols": []}, ["ssl_protocols: expected each version once, and at least one"]),
        ({"cert": PEM, "key": PEM, "sni": "a", "ssl_protocols": ["TLSv1.2", "TLSv1.2"]}, ["ssl_protocols: expected each version once, and at least one"]),
        ({"cert": PEM, "key": PEM, "sni": "a", "ssl_protocols": ["TLSv1.3", "TLSv1.1"]}, ["ssl_protocols: expected versions without a gap between them"]),
        ({"client": {"ca": "hush", "depth": -1}}, ["client.ca: expected 128 to 65536 characters, got 4", "client.depth: expected an integer ≥ 0, got -1"]),
    ],
)  # fmt: skip
def test_what_a_certificate_may_not_be(fields: dict[str, object], said: list[str]) -> None:
    assert faults(SSLSpec, **fields) == sorted(said)


def test_private_keys_are_in_no_repr() -> None:
    spec = structure(
        {"sni": "a", "cert": PEM, "key": "hush" * 50, "keys": ["hush" * 50], "certs": [PEM]}, SSLSpec
    )

    assert "hush" not in repr(spec)
    tls = {"client_cert": "hush" * 50, "client_key": "hush" * 50}
    assert "hush" not in repr(structure({"nodes": {}, "tls": tls}, UpstreamSpec))


def test_metadata_of_a_plugin_has_whatever_the_plugin_says() -> None:
    spec = structure({"id": "syslog", "log_format": {"host": "$remote_addr"}}, PluginMetadataSpec)

    assert spec.id == "syslog"
    assert list(spec.warnings()) == []
    assert "log_format" not in PluginMetadataSpec.common()
    assert "desc" in PluginMetadataSpec.common()
