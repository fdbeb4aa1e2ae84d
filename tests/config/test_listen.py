from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest

from streamgw.config.listen import Defaults, Listeners, TCPEntries, UDPEntries, build_listeners
from streamgw.config.strict import Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.model import Address, Listener

PLAIN = Defaults(is_ipv6_on=True, proxy_protocol="off", proxy_protocol_to_upstream="off", max_sessions=0)


@attrs.frozen
class Lists:
    tcp: TCPEntries = ()
    udp: UDPEntries = ()


def listen(*tcp: object, udp: Sequence[object] = (), defaults: Defaults = PLAIN) -> Listeners:
    lists = structure({"tcp": list(tcp), "udp": list(udp)}, Lists)
    return build_listeners(lists.tcp, defaults, lists.udp)


def served(*tcp: object, udp: Sequence[object] = (), defaults: Defaults = PLAIN) -> list[str]:
    return [listener.name for listener in listen(*tcp, udp=udp, defaults=defaults).served]


def refusals(**lists: object) -> list[str]:
    with pytest.raises(Wrong) as caught:
        structure(lists, Lists)
    return [f"{pointer_of(fault.path)}: {fault.message}" for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (9100, ["tcp *:9100"]),
        ("9100", ["tcp *:9100"]),
        ("127.0.0.1:9101", ["tcp 127.0.0.1:9101"]),
        ("[::1]:9100", ["tcp [::1]:9100"]),
        ("[0:0::1]:9100", ["tcp [::1]:9100"]),
        ("[::]:9100", ["tcp [::]:9100"]),
        ("0.0.0.0:9100", ["tcp 0.0.0.0:9100"]),
        ("*:9100", ["tcp 0.0.0.0:9100"]),
        ("2000-2002", ["tcp *:2000", "tcp *:2001", "tcp *:2002"]),
        ("127.0.0.1:4000-4001", ["tcp 127.0.0.1:4000", "tcp 127.0.0.1:4001"]),
        ("unix:/run/x.sock", ["tcp unix:/run/x.sock"]),
        ({"addr": 9100}, ["tcp *:9100"]),
        ({"addr": "unix:/run/x"}, ["tcp unix:/run/x"]),
    ],
)
def test_every_form_of_an_address(entry: object, names: list[str]) -> None:
    assert served(entry) == names


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (0, "port out of range (1-65535): 0"),
        (65536, "port out of range (1-65535): 65536"),
        (-1, "port out of range (1-65535): -1"),
        ("127.0.0.1:0", "port out of range (1-65535): 127.0.0.1:0"),
        ("1-65536", "port out of range (1-65535): 1-65536"),
        (80.5, "port must be an integer, got: 80.5"),
        ("10-5", "invalid port range (start > end): 10-5"),
        ("127.0.0.1:", "missing port: 127.0.0.1:"),
        ("", "missing port: "),
        ("80.5", "invalid port format: 80.5"),
        ("1e3", "invalid port format: 1e3"),
        ("unix:relative", "invalid port format: unix:relative"),
        ("[::1]", "invalid port format: [::1]"),
        (True, "invalid port value type: boolean"),
        (None, "invalid port value type: nil"),
        ([9100], "invalid port value type: table"),
        ("localhost:80", "expected an IP address, got 'localhost'"),
        (":80", "expected an IP address, got ''"),
        ("[::g]:80", "expected an IP address, got '[::g]'"),
        ("::1:80", "IPv6 address must be enclosed with '[' and ']', got '::1'"),
    ],
)
def test_what_is_no_address_is_said_in_apisix_words(entry: object, said: str) -> None:
    assert refusals(tcp=[9100, entry]) == [f"tcp[1]: invalid stream_proxy.tcp entry: {said}"]


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (9200, ["udp *:9200"]),
        ("127.0.0.1:9211", ["udp 127.0.0.1:9211"]),
        ("[::1]:9200", ["udp [::1]:9200"]),
        ("0.0.0.0:9200", ["udp 0.0.0.0:9200"]),
        ("2000-2002", ["udp *:2000", "udp *:2001", "udp *:2002"]),
        ({"addr": 9200}, ["udp *:9200"]),
        ({"addr": "127.0.0.1:4000-4001"}, ["udp 127.0.0.1:4000", "udp 127.0.0.1:4001"]),
    ],
)
def test_udp_has_the_same_forms(entry: object, names: list[str]) -> None:
    assert served(udp=[entry]) == names


def test_what_is_no_udp_entry_is_said_in_apisix_words() -> None:
    assert refusals(udp=["unix:/x", 0, {"addr": "x", "tls": True}, {"max_sessions": -1}]) == [
        "udp[0]: invalid stream_proxy.udp entry: invalid port format: unix:/x",
        "udp[1]: invalid stream_proxy.udp entry: port out of range (1-65535): 0",
        "udp[2].addr: invalid stream_proxy.udp entry: invalid port format: x",
        "udp[2].tls: unknown field 'tls'",
        "udp[3].addr: is required",
        "udp[3].max_sessions: expected an integer ≥ 0, got -1",
    ]


def test_a_bare_udp_port_is_one_socket_for_both_families() -> None:
    (listener,) = listen(udp=[9200]).served

    assert listener == Listener("udp", "::", 9200, dual_stack=True)


def test_tcp_and_udp_share_a_port_number() -> None:
    assert served(53, "[::]:54", udp=[53, 54]) == ["tcp *:53", "tcp [::]:54", "udp *:53", "udp *:54"]


def test_what_a_udp_entry_does_not_say_the_defaults_do() -> None:
    defaults = attrs.evolve(
        PLAIN,
        proxy_protocol="required",
        proxy_protocol_to_upstream="v2",
        max_sessions=9,
        max_udp_sessions=7,
        fallback_sni="a.test",
    )

    plain, own = listen(udp=[9200, {"addr": 9201, "max_sessions": 0}], defaults=defaults).served

    assert plain == Listener("udp", "::", 9200, dual_stack=True, max_sessions=7)
    assert own.max_sessions == 0


def test_nothing_is_listened_on_twice_over_udp() -> None:
    (fault,) = listen(9200, udp=[9200, {"addr": "9200"}]).faults

    assert fault.message == "*:9200 is listed twice, first as udp[0]"
    assert pointer_of(fault.path) == "apisix.stream_proxy.udp[1]"


def test_an_object_has_no_other_fields() -> None:
    assert sorted(refusals(tcp=[{"addr": "x", "prox_protocol": 1}, {}])) == [
        "tcp[0].addr: invalid stream_proxy.tcp entry: invalid port format: x",
        "tcp[0].prox_protocol: unknown field 'prox_protocol', did you mean 'proxy_protocol'?",
        "tcp[1].addr: is required",
    ]


def test_a_bare_port_is_one_socket_for_both_families() -> None:
    (listener,) = listen(9100).served

    assert listener == Listener("tcp", "::", 9100, dual_stack=True)


def test_a_bare_port_is_ipv4_where_ipv6_is_off() -> None:
    assert served(9100, "[::1]:9100", defaults=attrs.evolve(PLAIN, is_ipv6_on=False)) == [
        "tcp 0.0.0.0:9100",
        "tcp [::1]:9100",
    ]


def test_a_bare_port_is_ipv4_where_ipv6_is_listed_as_apisix_users_do() -> None:
    assert served(9100, "[::]:9100", 9101) == ["tcp 0.0.0.0:9100", "tcp [::]:9100", "tcp *:9101"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((9100, "9100"), "*:9100 is listed twice, first as tcp[0]"),
        (("127.0.0.1:1", "127.0.0.1:1-5"), "127.0.0.1:1 is listed twice, first as tcp[0]"),
        (("0.0.0.0:9100", 9100), "0.0.0.0:9100 is listed twice, first as tcp[0]"),
        (("unix:/x", {"addr": "unix:/x"}), "unix:/x is listed twice, first as tcp[0]"),
        ((9100, {"addr": 9100, "tls": True}), "*:9100 is listed twice, first as tcp[0]"),
    ],
)
def test_nothing_is_listened_on_twice(entries: tuple[object, ...], said: str) -> None:
    (fault,) = listen(*entries).faults

    assert fault.message == said
    assert pointer_of(fault.path) == "apisix.stream_proxy.tcp[1]"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((9100, "127.0.0.1:9100"), "127.0.0.1:9100 cannot be bound beside *:9100, tcp[0]"),
        (("127.0.0.1:9100", 9100), "*:9100 cannot be bound beside 127.0.0.1:9100, tcp[0]"),
        ((9100, "[::1]:9100"), "[::1]:9100 cannot be bound beside *:9100, tcp[0]"),
        (("9100-9102", "127.0.0.1:9101"), "127.0.0.1:9101 cannot be bound beside *:9101, tcp[0]"),
        (("127.0.0.1:9101", "9100-9102"), "*:9101 cannot be bound beside 127.0.0.1:9101, tcp[0]"),
        (("*:9100", "127.0.0.2:9100"), "127.0.0.2:9100 cannot be bound beside 0.0.0.0:9100, tcp[0]"),
        (("[::]:9100", "[::1]:9100"), "[::1]:9100 cannot be bound beside [::]:9100, tcp[0]"),
    ],
)
def test_what_the_kernel_never_binds_together_is_refused(entries: tuple[object, ...], said: str) -> None:
    """`check` said ok, and the start failed with "address already in use", as if another program had it."""
    (fault,) = listen(*entries).faults

    assert fault.message == said
    assert pointer_of(fault.path) == "apisix.stream_proxy.tcp[1]"
    (of_udp,) = listen(udp=entries).faults
    assert of_udp.message == said.replace("tcp", "udp")


@pytest.mark.parametrize(
    "entries",
    [
        ("127.0.0.1:9100", "127.0.0.2:9100", "[::1]:9100"),
        ("0.0.0.0:9100", "[::1]:9100"),
        ("127.0.0.1:9100", "[::]:9100"),
        (9100, "[::]:9100"),
        (9100, "127.0.0.1:9101"),
    ],
)
def test_what_the_kernel_binds_together_is_not_refused(entries: tuple[object, ...]) -> None:
    assert listen(*entries, udp=entries).faults == ()


def test_no_socket_file_stands_in_the_way_of_another() -> None:
    assert listen("unix:/a", "unix:/b").faults == ()


def test_no_client_is_listened_for_where_a_server_of_ours_listens() -> None:
    lists = structure({"tcp": ["9180-9190", "127.0.0.2:7085"], "udp": [7085]}, Lists)
    ours = {
        "apisix.status": Address("127.0.0.1", 7085),
        "deployment.admin.admin_listen": Address("::1", 9180),
    }

    (fault,) = build_listeners(lists.tcp, PLAIN, lists.udp, ours=ours).faults

    assert fault.message == (
        "*:9180 cannot be bound beside [::1]:9180, where deployment.admin.admin_listen listens"
    )
    assert pointer_of(fault.path) == "apisix.stream_proxy.tcp[0]"


@pytest.mark.parametrize(
    ("written", "mode"),
    [(True, "required"), (False, "off"), ("optional", "optional"), ("required", "required"), ("off", "off")],
)
def test_a_listener_may_expect_a_proxy_header(written: object, mode: str) -> None:
    (listener,) = listen({"addr": 9100, "proxy_protocol": written}).served

    assert listener.proxy_protocol == mode


@pytest.mark.parametrize(
    ("written", "mode"), [(True, "v1"), (False, "off"), ("v1", "v1"), ("v2", "v2"), ("off", "off")]
)
def test_a_listener_may_have_one_sent_on(written: object, mode: str) -> None:
    (listener,) = listen({"addr": 9100, "proxy_protocol_to_upstream": written}).served

    assert listener.proxy_protocol_to_upstream == mode


@pytest.mark.parametrize("written", [1, "on", None, ["v1"]])
def test_what_is_no_proxy_protocol_mode(written: object) -> None:
    said = refusals(tcp=[{"addr": 1, "proxy_protocol": written, "proxy_protocol_to_upstream": written}])

    assert said[0].startswith("tcp[0].proxy_protocol: expected true, false, 'optional' or 'required', got ")
    assert said[1].startswith("tcp[0].proxy_protocol_to_upstream: expected true, false, 'v1' or 'v2', got ")


def test_what_an_entry_does_not_say_the_defaults_do() -> None:
    defaults = Defaults(
        is_ipv6_on=True, proxy_protocol="required", proxy_protocol_to_upstream="v1", max_sessions=9
    )

    plain, own = listen(
        9100,
        {"addr": 9101, "proxy_protocol": False, "proxy_protocol_to_upstream": False, "max_sessions": 0},
        defaults=defaults,
    ).served

    assert (plain.proxy_protocol, plain.proxy_protocol_to_upstream, plain.max_sessions) == (
        "required",
        "v1",
        9,
    )
    assert (own.proxy_protocol, own.proxy_protocol_to_upstream, own.max_sessions) == ("off", "off", 0)


@pytest.mark.parametrize(
    ("options", "tls", "passthrough"),
    [
        ({}, "off", "never"),
        ({"tls": False, "tls_passthrough": False}, "off", "never"),
        ({"tls": True}, "required", "never"),
        ({"tls_passthrough": True}, "required", "always"),
        ({"tls": True, "tls_passthrough": True}, "required", "route"),
        ({"tls": "optional"}, "optional", "never"),
        ({"tls": "optional", "tls_passthrough": True}, "optional", "route"),
    ],
)
def test_what_a_listener_does_with_tls(options: dict[str, object], tls: str, passthrough: str) -> None:
    (listener,) = listen({"addr": 9100, **options}).served

    assert (listener.tls, listener.passthrough) == (tls, passthrough)


def test_a_listener_assumes_its_own_name_before_the_common_one() -> None:
    common = attrs.evolve(PLAIN, fallback_sni="common.test")

    own, other, plain = listen(
        {"addr": 1, "tls": True, "fallback_sni": "Own.Test."},
        {"addr": 2, "tls_passthrough": True},
        {"addr": 3},
        defaults=common,
    ).served

    assert (own.fallback_sni, other.fallback_sni, plain.fallback_sni) == ("own.test", "common.test", "")


def test_what_a_listener_may_not_say_about_tls() -> None:
    assert refusals(
        tcp=[{"addr": 1, "tls": "maybe"}, {"addr": 2, "tls": True, "fallback_sni": "*.test"}]
    ) == [
        "tcp[0].tls: expected true, false or 'optional', got 'maybe'",
        "tcp[1].fallback_sni: expected a name without wildcard, got '*.test'",
    ]
    assert refusals(tcp=[{"addr": 1, "fallback_sni": "a.test"}]) == [
        "tcp[0].fallback_sni: does nothing: this listener does not look for TLS ('tls', 'tls_passthrough')"
    ]


def test_no_listener_terminates_tls_that_is_switched_off() -> None:
    off = attrs.evolve(PLAIN, is_tls_on=False)

    found = listen({"addr": 1, "tls": "optional"}, {"addr": 2, "tls_passthrough": True}, 3, defaults=off)

    (fault,) = found.faults
    assert (pointer_of(fault.path), fault.message) == (
        "apisix.stream_proxy.tcp[0].tls",
        "expected false: 'apisix.ssl.enable' is false",
    )
