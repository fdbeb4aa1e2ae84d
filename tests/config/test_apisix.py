"""The texts of APISIX's Admin API, table by table. What is refused is decided elsewhere; here, in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import attrs
import pytest

from streamgw.config.apisix import first_fault, first_of, forbidden_times, refusal, refusal_of_http
from streamgw.config.compile import Loader
from streamgw.config.documents import SourceFile, digest_of, validate_object
from streamgw.config.plugins import PluginSet
from streamgw.config.rules import integer
from streamgw.config.strict import Fault
from streamgw.config.tree import Tree
from streamgw.core.errors import ConfigError
from streamgw.core.hooks import Hooks, Plugin
from streamgw.core.model import Revision
from streamgw.plugins import BUILT_IN
from tests.support.certificates import CA_PEM, document, issue

NODES = {"127.0.0.1:8080": 1}
SITE = issue("a.test")
OTHER = issue("b.test")
BAD_PEM = "-----BEGIN CERTIFICATE-----\n" + "hush" * 60
BAD_KEY = "-----BEGIN PRIVATE KEY-----\n" + "hush" * 60


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"remote_addr": "127.0.0.1", "desc": "test-desc", "upstream": {"nodes": NODES, "type": "roundrobin"}}, None),
        ({}, None),
        ({"desc": "only"}, None),
        ({"remote_addr": ":/8"}, "invalid remote_addr: :/8"),
        ({"server_addr": ":/8"}, "invalid server_addr: :/8"),
        ({"remote_addr": "abc"}, 'invalid configuration: property "remote_addr" validation failed: object matches none of the required'),
        ({"remote_addr": "127.0.0.1/33"}, 'invalid configuration: property "remote_addr" validation failed: object matches none of the required'),
        ({"remote_addr": ["::1"]}, 'invalid configuration: property "remote_addr" validation failed: wrong type: expected string, got table'),
        ({"remote_addr": None}, 'invalid configuration: property "remote_addr" validation failed: wrong type: expected string, got userdata'),
        ({"upstream_id": "invalid$"}, 'invalid configuration: property "upstream_id" validation failed: object matches none of the required'),
        ({"service_id": 0}, 'invalid configuration: property "service_id" validation failed: object matches none of the required'),
        ({"server_port": 0}, 'invalid configuration: property "server_port" validation failed: expected 0 to be at least 1'),
        ({"server_port": 65536}, 'invalid configuration: property "server_port" validation failed: expected 65536 to be at most 65535'),
        ({"server_port": "9100"}, 'invalid configuration: property "server_port" validation failed: wrong type: expected integer, got string'),
        ({"sni": "a b"}, r'invalid configuration: property "sni" validation failed: failed to match pattern "^\\*$|^\\*?[0-9a-zA-Z-._\\[\\]:]+$" with "a b"'),
        ({"snis": ["a", "b c"]}, r'invalid configuration: property "snis" validation failed: failed to validate item 2: failed to match pattern "^\\*$|^\\*?[0-9a-zA-Z-._\\[\\]:]+$" with "b c"'),
        ({"snis": []}, 'invalid configuration: property "snis" validation failed: expect array to have at least 1 items'),
        ({"snis": "a"}, 'invalid configuration: property "snis" validation failed: wrong type: expected array, got string'),
        ({"sni": "a", "snis": ["b"]}, "invalid configuration: value should match only one schema, but matches both schemas 1 and 2"),
        ({"name": ""}, 'invalid configuration: property "name" validation failed: string too short, expected at least 1, got 0'),
        ({"desc": "x" * 257}, 'invalid configuration: property "desc" validation failed: string too long, expected at most 256, got 257'),
        ({"labels": {"a": "b c"}}, r'invalid configuration: property "labels" validation failed: failed to validate a (matching ".*"): failed to match pattern "^\\S+$" with "b c"'),
        ({"status": 2}, 'invalid configuration: property "status" validation failed: matches none of the enum values'),
        ({"tls_passthrough": "yes"}, 'invalid configuration: property "tls_passthrough" validation failed: wrong type: expected boolean, got string'),
        ({"vars": []}, "invalid configuration: additional properties forbidden, found vars"),
        ({"upstream": []}, 'invalid configuration: property "upstream" validation failed: wrong type: expected object, got table'),
        ({"upstream": {"type": "roundrobin"}}, 'invalid configuration: property "upstream" validation failed: value should match only one schema, but matches none'),
        ({"plugins": {"x": 1}}, "invalid plugin conf 1 for plugin [x]"),
        ({"plugins": []}, 'invalid configuration: property "plugins" validation failed: wrong type: expected object, got table'),
        ({"protocol": {"name": "redis"}}, "unknown protocol [redis]"),
        ({"protocol": {}}, 'invalid configuration: property "protocol" validation failed: property "name" is required'),
        ({"server_ports": ["90-80"]}, 'invalid configuration: property "server_ports" validation failed: failed to validate item 1: expected a port 1–65535 or a range like 9100-9200, got \'90-80\''),
    ],
)  # fmt: skip
def test_a_stream_route_is_refused_as_apisix_does(data: dict[str, Any], said: str | None) -> None:
    assert refusal("stream_routes", data) == said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"nodes": []}, None),
        ({"nodes": {}}, None),
        ({}, "invalid configuration: value should match only one schema, but matches none"),
        ({"nodes": {"127.0.0.1:80": -1}}, 'invalid configuration: property "nodes" validation failed: object matches none of the required'),
        ({"nodes": [{"host": "a", "port": 80}]}, 'invalid configuration: property "nodes" validation failed: object matches none of the required'),
        ({"nodes": [{"host": "a b", "port": 80, "weight": 1}]}, 'invalid configuration: property "nodes" validation failed: object matches none of the required'),
        ({"nodes": "a"}, 'invalid configuration: property "nodes" validation failed: object matches none of the required'),
        ({"nodes": [{"host": "::1", "port": 80, "weight": 1}]}, "invalid configuration: IPv6 address must be enclosed with '[' and ']'"),
        ({"nodes": {"::1:80": 1}}, "invalid configuration: IPv6 address must be enclosed with '[' and ']'"),
        ({"nodes": NODES, "retries": -1}, 'invalid configuration: property "retries" validation failed: expected -1 to be at least 0'),
        ({"nodes": NODES, "retries": 1.5}, 'invalid configuration: property "retries" validation failed: wrong type: expected integer, got number'),
        ({"nodes": NODES, "timeout": {"connect": 1, "send": 1}}, 'invalid configuration: property "timeout" validation failed: property "read" is required'),
        ({"nodes": NODES, "timeout": {"connect": 0, "send": 1, "read": 1}}, 'invalid configuration: property "timeout" validation failed: property "connect" validation failed: expected 0 to be greater than 0'),
        ({"nodes": NODES, "scheme": "x"}, 'invalid configuration: property "scheme" validation failed: matches none of the enum values'),
        ({"nodes": NODES, "hash_on": "x"}, 'invalid configuration: property "hash_on" validation failed: matches none of the enum values'),
        ({"nodes": NODES, "type": 1}, 'invalid configuration: property "type" validation failed: wrong type: expected string, got number'),
        ({"nodes": NODES, "keepalive_pool": {"size": 320, "idle_timeout": 0, "requests": 1}}, None),
        ({"nodes": NODES, "keepalive_pool": {"size": 0}}, 'invalid configuration: property "keepalive_pool" validation failed: property "size" validation failed: expected 0 to be at least 1'),
        ({"nodes": NODES, "keepalive_pool": {"idle_timeout": -1}}, 'invalid configuration: property "keepalive_pool" validation failed: property "idle_timeout" validation failed: expected -1 to be at least 0'),
        ({"nodes": NODES, "keepalive_pool": {"requests": 0}}, 'invalid configuration: property "keepalive_pool" validation failed: property "requests" validation failed: expected 0 to be at least 1'),
        ({"nodes": NODES, "keepalive_pool": {"foo": "x"}}, 'invalid configuration: property "keepalive_pool" validation failed: additional properties forbidden, found foo'),
        ({"nodes": NODES, "pass_host": "rewrite"}, "invalid configuration: `upstream_host` can't be empty when `pass_host` is `rewrite`"),
        ({"nodes": NODES, "tls": {"client_cert": BAD_PEM}}, 'invalid configuration: property "tls" validation failed: failed to validate dependent schema for "client_cert": property "client_key" is required'),
        ({"nodes": NODES, "tls": {"client_key": BAD_KEY}}, 'invalid configuration: property "tls" validation failed: failed to validate dependent schema for "client_key": property "client_cert" is required'),
        ({"nodes": NODES, "tls": {"client_cert": BAD_PEM, "client_key": BAD_KEY, "client_cert_id": 1}}, 'invalid configuration: property "tls" validation failed: failed to validate dependent schema for "client_cert": value wasn\'t supposed to match schema'),
        ({"nodes": NODES, "scheme": "tls", "tls": {"client_cert": BAD_PEM, "client_key": SITE.key}}, "failed to parse cert: PEM_read_bio_X509_AUX() failed"),
        ({"nodes": NODES, "scheme": "tls", "tls": {"client_cert_id": 1}}, None),
        ({"service_name": "a", "discovery_type": "dns"}, None),
        ({"service_name": "a", "discovery_type": "eureka"}, 'invalid configuration: property "discovery_type" validation failed: discovery by eureka is not available; expected dns'),
        ({"service_name": "a", "discovery_type": 1}, 'invalid configuration: property "discovery_type" validation failed: wrong type: expected string, got number'),
        ({"service_name": "", "discovery_type": "dns"}, 'invalid configuration: property "service_name" validation failed: string too short, expected at least 1, got 0'),
        ({"service_name": "10.0.0.1", "discovery_type": "dns"}, 'invalid configuration: property "service_name" validation failed: expected a DNS name, or name:port, got \'10.0.0.1\''),
        ({"service_name": "a"}, "invalid configuration: value should match only one schema, but matches none"),
        ({"discovery_type": "dns"}, "invalid configuration: value should match only one schema, but matches none"),
        ({"nodes": NODES, "service_name": "a", "discovery_type": "dns"}, "invalid configuration: value should match only one schema, but matches both schemas 1 and 2"),
        ({"nodes": NODES, "service_name": "a"}, "invalid configuration: value should match only one schema, but matches both schemas 1 and 2"),
    ],
)  # fmt: skip
def test_an_upstream_is_refused_as_apisix_does(data: dict[str, Any], said: str | None) -> None:
    assert refusal("upstreams", data) == said


PAIR = {"cert": SITE.cert, "key": SITE.key}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({**PAIR, "sni": "a.test"}, None),
        ({"type": "client", **PAIR}, None),
        ({"sni": "a.test", "cert": SITE.cert}, "invalid configuration: then clause did not match"),
        ({"sni": "a.test", "key": SITE.key}, "invalid configuration: then clause did not match"),
        (PAIR, "invalid configuration: then clause did not match"),
        ({**PAIR, "sni": "a", "snis": ["b"]}, "invalid configuration: then clause did not match"),
        ({"type": "client", "cert": SITE.cert}, "invalid configuration: else clause did not match"),
        ({**PAIR, "sni": "a", "cert": BAD_PEM}, "failed to parse cert: PEM_read_bio_X509_AUX() failed"),
        ({**PAIR, "sni": "a", "key": BAD_KEY}, "failed to parse key: PEM_read_bio_PrivateKey() failed"),
        ({**PAIR, "sni": "a", "key": "hush" * 40}, "failed to decrypt previous encrypted key"),
        ({**PAIR, "sni": "a", "certs": [SITE.cert]}, "mismatched number of certs and keys"),
        ({**PAIR, "sni": "a", "certs": [BAD_PEM], "keys": [SITE.key]}, "failed to handle cert-key pair[1]: failed to parse cert: PEM_read_bio_X509_AUX() failed"),
        ({**PAIR, "sni": "a", "client": {"ca": BAD_PEM}}, "failed to validate client_cert: failed to parse cert: PEM_read_bio_X509_AUX() failed"),
        ({**PAIR, "sni": "a", "client": {}}, 'invalid configuration: property "client" validation failed: property "ca" is required'),
        ({**PAIR, "sni": "a", "client": {"ca": CA_PEM, "depth": -1}}, 'invalid configuration: property "client" validation failed: property "depth" validation failed: expected -1 to be at least 0'),
        ({**PAIR, "sni": "a", "ssl_protocols": ["TLSv1"]}, 'invalid configuration: property "ssl_protocols" validation failed: failed to validate item 1: matches none of the enum values'),
        ({**PAIR, "sni": "a", "ssl_protocols": ["TLSv1.2", "TLSv1.2"]}, 'invalid configuration: property "ssl_protocols" validation failed: expected unique items but items 1 and 2 are equal'),
        ({**PAIR, "sni": "a", "ssl_protocols": []}, 'invalid configuration: property "ssl_protocols" validation failed: expect array to have at least 1 items'),
        ({**PAIR, "snis": []}, 'invalid configuration: property "snis" validation failed: expect array to have at least 1 items'),
        ({**PAIR, "sni": "a", "cert": "short"}, 'invalid configuration: property "cert" validation failed: string too short, expected at least 128, got 5'),
        ({**PAIR, "sni": "a", "cert": 1}, 'invalid configuration: property "cert" validation failed: wrong type: expected string, got number'),
        ({**PAIR, "sni": "a", "validity_end": 1}, "invalid configuration: additional properties forbidden, found validity_end"),
        ({"cert": "$env://CERT", "key": "$file://a.key", "sni": "a", "certs": [SITE.cert], "keys": [SITE.key]}, None),
    ],
)  # fmt: skip
def test_a_certificate_is_refused_as_apisix_does(data: dict[str, Any], said: str | None) -> None:
    assert refusal("ssls", data) == said


def test_a_key_that_does_not_belong_to_its_certificate_is_refused_in_our_words() -> None:
    said = refusal("ssls", {"cert": SITE.cert, "key": OTHER.key, "sni": "a.test"})

    assert said is not None
    assert said.startswith("this key does not belong to the certificate (")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"create_time": 1}, "the property is forbidden:  create_time"),
        ({"update_time": 1, "create_time": 1}, "the property is forbidden:  create_time update_time"),
        ({"upstream": {"create_time": 1}}, "the property is forbidden:  upstream.create_time"),
        ({"plugins": {"update_time": 1}}, "the property is forbidden:  plugins.update_time"),
        ({"upstream": [], "plugins": None}, ""),
    ],
)
def test_times_are_set_by_nobody_else(data: dict[str, Any], said: str) -> None:
    assert forbidden_times(data) == said
    if said:
        assert refusal("stream_routes", data) == said


def test_a_patch_may_have_the_times_that_are_there() -> None:
    assert refusal("stream_routes", {"create_time": 1, "update_time": 2}, allow_times=True) is None


@attrs.frozen
class Doorman:
    """Options of a plugin."""

    limit: Annotated[int, integer(1)]
    guests: tuple[str, ...] = ()


DOORMAN = Plugin(name="doorman", priority=1, options=Doorman, build=lambda _options, _context: Hooks())
PLUGINS = PluginSet({"doorman": DOORMAN, "off": attrs.evolve(DOORMAN, name="off")}, frozenset({"doorman"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"doorman": {"limit": 1}}, None),
        ({"doorman": {"limit": 0, "_meta": {"disable": True}}}, None),
        ({"doorman": {"limit": "$env://LIMIT"}}, None),
        ({"doorman": {"limit": 0}}, "failed to check the configuration of stream plugin [doorman]: property \"limit\" validation failed: expected 0 to be at least 1"),
        ({"doorman": {}}, 'failed to check the configuration of stream plugin [doorman]: property "limit" is required'),
        ({"doorman": {"limit": 1, "x": 1}}, "failed to check the configuration of stream plugin [doorman]: additional properties forbidden, found x"),
        ({"doorman": {"limit": 1, "guests": [1]}}, 'failed to check the configuration of stream plugin [doorman]: property "guests" validation failed: failed to validate item 1: wrong type: expected string, got number'),
        ({"x": {}}, "unknown plugin [x]"),
        ({"off": {}}, "unknown plugin [off]"),
        ({"doorman": []}, "invalid plugin conf [] for plugin [doorman]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("collection", ["stream_routes", "services"])
def test_options_of_a_plugin_are_refused_as_apisix_does(
    collection: str, options: dict[str, Any], said: str | None
) -> None:
    assert refusal(collection, {"plugins": options}, plugins=PLUGINS) == said


BUILT_IN_PLUGINS = PluginSet(dict(BUILT_IN))
LIMIT = {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ip-restriction", {"whitelist": ["10.0.0.0/8", "::1"]}, ""),
        ("ip-restriction", {}, "value should match only one schema, but matches none"),
        ("ip-restriction", {"whitelist": ["1.1.1.1"], "blacklist": ["1.1.1.1"]}, "value should match only one schema, but matches both schemas 1 and 2"),
        ("ip-restriction", {"whitelist": ["10.0.0.0/x"]}, 'property "whitelist" validation failed: failed to validate item 1: object matches none of the required'),
        ("ip-restriction", {"blacklist": [":/8"]}, "invalid ip address: :/8"),
        ("ip-restriction", {"blacklist": []}, 'property "blacklist" validation failed: expect array to have at least 1 items'),
        ("limit-conn", LIMIT, ""),
        ("limit-conn", {**LIMIT, "conn": 0}, 'property "conn" validation failed: expected 0 to be greater than 0'),
        ("limit-conn", {**LIMIT, "burst": -1}, 'property "burst" validation failed: expected -1 to be at least 0'),
        ("limit-conn", {**LIMIT, "default_conn_delay": 0}, 'property "default_conn_delay" validation failed: expected 0 to be greater than 0'),
        ("limit-conn", {**LIMIT, "key_type": "x"}, 'property "key_type" validation failed: matches none of the enum values'),
        ("limit-conn", {"conn": 1}, 'property "burst" is required'),
        ("mqtt-proxy", {"protocol_level": 4}, ""),
        ("mqtt-proxy", {}, 'property "protocol_level" is required'),
        ("mqtt-proxy", {"protocol_level": 4, "upstream": {}}, "additional properties forbidden, found upstream"),
        ("traffic-split", {"rules": [{"match": [{"vars": [["remote_addr", "123", "a"]]}]}]}, "failed to validate the 'vars' expression: invalid operator '123'"),
        ("traffic-split", {"rules": [{"weighted_upstreams": [{"upstream": {"nodes": {"a:1": 1}, "type": "chash"}}]}]}, "missing key"),
        ("prometheus", {"prefer_name": 1}, 'property "prefer_name" validation failed: wrong type: expected boolean, got number'),
    ],
)  # fmt: skip
def test_the_plugins_of_apisix_say_what_they_say_there(name: str, options: dict[str, Any], said: str) -> None:
    prefix = f"failed to check the configuration of stream plugin [{name}]: "

    refused = refusal("stream_routes", {"plugins": {name: options}}, plugins=BUILT_IN_PLUGINS)

    assert refused == (prefix + said if said else None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"type": "chash"}, "missing key"),
        ({"type": "chash", "key": "not_support"}, 'failed to match pattern "^((uri|server_name|server_addr|request_uri|remote_port|remote_addr|query_string|host|hostname|mqtt_client_id)|arg_[0-9a-zA-z_-]+)$" with "not_support"'),
        ({"type": "chash", "key": "uri"}, "property \"key\" validation failed: 'uri' does not exist at layer 4; expected one of remote_addr, remote_port, server_addr, mqtt_client_id"),
        ({"type": "chash", "key": "remote_addr"}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_inline", [False, True])
def test_a_key_to_balance_by_is_refused_wherever_the_upstream_stands(
    data: dict[str, Any], said: str | None, *, is_inline: bool
) -> None:
    upstream = {"nodes": NODES, **data}

    refused = (
        refusal("stream_routes", {"upstream": upstream}) if is_inline else refusal("upstreams", upstream)
    )

    if said is None or said == "missing key":
        assert refused == said
    else:
        assert refused is not None
        assert refused.startswith("invalid configuration: ")
        assert refused.endswith(said)


def test_the_schema_speaks_before_what_the_fields_mean() -> None:
    data = {"remote_addr": ":/8", "server_port": 0}

    assert refusal("stream_routes", data) == (
        'invalid configuration: property "server_port" validation failed: expected 0 to be at least 1'
    )
    assert first_of(()) is None


def test_the_validation_of_a_schema_has_no_prefix() -> None:
    fault = first_fault("stream_routes", {"server_port": 0})

    assert fault is not None
    assert fault.words == 'property "server_port" validation failed: expected 0 to be at least 1'


@pytest.mark.parametrize(
    ("collection", "data"),
    [
        ("ssls", {**PAIR, "sni": "a", "key": BAD_KEY}),
        ("ssls", {**PAIR, "sni": BAD_KEY}),
        ("ssls", {**PAIR, "sni": "a", "key": {"hush": 1}}),
        ("ssls", {**PAIR, "sni": "a", "client": {"ca": "hush"}}),
        ("stream_routes", {"sni": BAD_KEY}),
        ("stream_routes", {"remote_addr": BAD_KEY}),
        ("stream_routes", {"labels": {"key": BAD_KEY}}),
        ("upstreams", {"nodes": BAD_KEY}),
        ("upstreams", {"nodes": {}, "tls": "hush"}),
        ("upstreams", {"nodes": {}, "type": BAD_KEY}),
        ("upstreams", {"nodes": {}, "hash_on": BAD_KEY}),
        ("upstreams", {"nodes": {}, "type": "chash", "key": BAD_KEY}),
    ],
)
def test_no_text_shows_a_secret(collection: str, data: dict[str, Any]) -> None:
    said = refusal(collection, data)

    assert said is not None
    assert "hush" not in said
    assert all("hush" not in problem.message for problem in validate_object(collection, data))


def test_what_only_http_has_can_not_be_written() -> None:
    assert refusal_of_http("stream_routes") is None
    assert refusal_of_http("routes") == (
        "routes serve HTTP only: this gateway works at layer 4; use stream_routes"
    )


def test_there_are_no_other_collections() -> None:
    with pytest.raises(KeyError):
        refusal("routes", {})


class Fixed:
    """A directory with one file."""

    def __init__(self, text: str) -> None:
        self.tree = Tree((SourceFile("routes.d/a.yaml", text.encode(), "1", "a.yaml"),), Revision("1"))

    def read(self) -> Tree:
        return self.tree


def problems_of(**collections: list[object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Loader(Fixed(document(**collections)), environ={}).load(())
    return [problem.error_msg for problem in caught.value.problems]


def test_what_is_found_in_the_light_of_the_others_has_the_words_of_apisix_too() -> None:
    assert problems_of(
        stream_routes=[{"upstream_id": "u"}, {"service_id": "s"}, {"upstream": {"nodes": {}, "retries": -1}}]
    ) == [
        "failed to fetch upstream info by upstream id [u], response code: 404",
        "failed to fetch service info by service id [s], response code: 404",
        'invalid configuration: property "upstream" validation failed: property "retries" validation failed: '
        "expected -1 to be at least 0",
    ]


def test_a_client_certificate_that_is_not_there_has_the_words_of_apisix() -> None:
    def upstream(name: object) -> dict[str, Any]:
        return {"id": f"u{name}", "nodes": NODES, "scheme": "tls", "tls": {"client_cert_id": name}}

    server = {"id": "server", **PAIR, "sni": "a.test"}

    assert problems_of(upstreams=[upstream("gone"), upstream("server")], ssls=[server]) == [
        "failed to fetch ssl info by ssl id [gone], response code: 404",
        "failed to fetch ssl info by ssl id [server], wrong ssl type",
    ]


def test_an_object_that_is_accepted_is_accepted_in_a_file(tmp_path: Path) -> None:
    data = {"id": "a", **PAIR, "snis": ["a.test"]}

    assert refusal("ssls", data, directory=str(tmp_path)) is None
    assert Loader(Fixed(document(ssls=[data])), environ={}).load(()).snapshot.sources == {
        ("ssls", "a"): digest_of(data)
    }


def test_two_faults_of_one_kind_are_told_in_their_order() -> None:
    first, second = Fault(("a",), "one"), Fault(("b",), "two")

    assert first_of([first, second]) is first
