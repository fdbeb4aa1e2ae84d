"""What no client can have. Ports and addresses as they are written: `test_compile.py`, over the same code."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import attrs
import pytest

from streamgw.config.reach import Reach
from streamgw.config.rules import network
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.model import (
    Certificate,
    Listener,
    Match,
    Node,
    PortRange,
    Route,
    Source,
    Upstream,
    UpstreamTLS,
)

PLAIN = Listener("tcp", "127.0.0.1", 9100)
TLS = Listener("tcp", "127.0.0.1", 9101, tls="required")
OPTIONAL = Listener("tcp", "127.0.0.1", 9102, tls="optional")
THROUGH = Listener("tcp", "127.0.0.1", 9103, tls="required", passthrough="always")
EITHER = Listener("tcp", "127.0.0.1", 9104, tls="required", passthrough="route")
UDP = Listener("udp", "127.0.0.1", 9200)
UNIX = Listener("tcp", "unix:", 0, path="/run/x", tls="required")


def entries(*names: str) -> list[tuple[str, Certificate]]:
    certificate = Certificate(
        id="a",
        source=Source("a.yaml", 1),
        names=names,
        context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        requires_client_certificate=False,
        not_after_s=0.0,
        issuer="",
        fingerprint="",
    )
    return [(name, certificate) for name in names]


def route(match: Match, *, to_tls: bool = False, passthrough: bool = False) -> Route:
    tls = UpstreamTLS(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) if to_tls else None
    return Route(
        "r", match, Upstream("u", (Node("a", 1),), tls=tls), Source("", 1), tls_passthrough=passthrough
    )


def said(
    listeners: Sequence[Listener], checked: Route, *names: str, written: Sequence[str] = ("sni",)
) -> list[str]:
    found = Reach(listeners, entries(*names)).faults(checked, dict.fromkeys(written))
    return [f"{pointer_of(fault.path)}: {fault.message}" for fault in found]


def test_where_nobody_listens_is_named() -> None:
    match = Match(
        server_ports=(PortRange(9100, 9100), PortRange(1, 2), PortRange(3, 3), PortRange(9000, 9100))
    )

    assert said([PLAIN], route(match), written=["server_ports"]) == [
        "server_ports[1]: no listener has port 1 to 2",
        "server_ports[2]: no listener has port 3",
    ]
    assert said([PLAIN], route(Match(server_ports=(PortRange(3, 3),)))) == [
        "server_port: no listener has port 3"
    ]
    assert said([Listener("tcp", "127.0.0.1", 0)], route(match)) == []


def test_an_address_that_nobody_has_is_named() -> None:
    elsewhere = Match(server_addrs=(network("10.0.0.1"),))
    with_port = Match(server_addrs=(network("10.0.0.1"),), server_ports=(PortRange(9100, 9100),))

    assert said([PLAIN], route(elsewhere)) == ["server_addr: no listener has an address in 10.0.0.1/32"]
    assert said([PLAIN], route(with_port)) == [
        "server_addr: no listener with this port has an address in 10.0.0.1/32"
    ]
    assert said([Listener("tcp", "::", 9100, dual_stack=True)], route(with_port)) == []


def test_names_and_protocols_are_for_clients_that_speak_tls() -> None:
    asks = route(Match(server_names=("a.test",), alpn=("mqtt",)))

    assert said([PLAIN], asks) == [
        "sni: never matches: no listener speaks TLS, so no client has a server name",
        "alpn: never matches: no listener speaks TLS, so no client offers a protocol",
    ]
    assert said([], asks) == []
    assert said([PLAIN, THROUGH], asks) == []
    assert said([PLAIN, UNIX], asks) == []


@pytest.mark.parametrize(
    "match",
    [
        Match(server_names=("a.test",), server_ports=(PortRange(9100, 9100),)),
        Match(server_names=("a.test",), server_addrs=(network("127.0.0.1"),), server_ports=(PortRange(9100, 9100),)),
    ],
)  # fmt: skip
def test_it_counts_which_listeners_lead_to_the_route(match: Match) -> None:
    assert said([PLAIN, TLS], route(match), "a.test", written=["snis"]) == [
        "snis: never matches: no listener that leads here speaks TLS, so no client has a server name"
    ]


def test_a_choice_that_no_listener_leaves_is_named() -> None:
    chosen = route(Match(), passthrough=True)

    assert said([TLS, EITHER], chosen) == []
    (found,) = said([TLS, THROUGH], chosen)
    assert found.startswith("tls_passthrough: does nothing: no listener here leaves the choice")


def test_tls_inside_tls_is_named() -> None:
    to_tls = route(Match(), to_tls=True)

    assert said([THROUGH, PLAIN], to_tls) == said([TLS], to_tls) == said([EITHER], to_tls) == []
    (found,) = said([THROUGH], to_tls)
    assert found.startswith(": TLS inside TLS")
    nowhere = Route("r", Match(), None, Source("", 1))
    assert said([THROUGH], nowhere) == []


@pytest.mark.parametrize(
    ("name", "certificates", "is_covered"),
    [
        ("a.test", ["a.test"], True),
        ("a.test", ["*.test"], True),
        ("a.test", ["*"], True),
        ("a.b.test", ["*.test"], False),
        ("*.test", ["a.test"], True),
        ("*.test", ["*.test"], True),
        ("*.test", ["*.b.test"], True),
        ("*.b.test", ["*.test"], True),
        ("*.b.test", ["*.c.test", "test"], False),
        ("*test", ["mytest"], True),
        ("*", ["a.test"], True),
    ],
)
def test_a_terminated_name_wants_a_certificate(name: str, certificates: list[str], is_covered: bool) -> None:
    found = said([OPTIONAL], route(Match(server_names=(name,))), *certificates)

    assert found == (
        [] if is_covered else [f"sni: no certificate for '{name}': clients that ask for it are refused"]
    )


def test_each_uncovered_name_of_several_is_named() -> None:
    found = said([TLS], route(Match(server_names=("a.test", "b.test"))), "a.test", written=["snis"])

    assert found == ["snis[1]: no certificate for 'b.test': clients that ask for it are refused"]


@pytest.mark.parametrize(
    ("listener", "passthrough", "names"),
    [(THROUGH, False, ["a.test"]), (EITHER, True, ["a.test"]), (TLS, False, [])],
    ids=["handed on here", "handed on by the route", "no certificate at all is said once"],
)
def test_what_is_not_terminated_wants_none(listener: Listener, passthrough: bool, names: list[str]) -> None:
    assert said([listener], route(Match(server_names=("b.test",)), passthrough=passthrough), *names) == []


def test_a_route_terminates_where_it_may_choose_and_does_not() -> None:
    (found,) = said([EITHER], route(Match(server_names=("b.test",))), "a.test")

    assert found.startswith("sni: no certificate for 'b.test'")


def test_a_listener_without_any_certificate_is_named() -> None:
    def problems(*names: str) -> list[str]:
        fallback = Listener("tcp", "127.0.0.1", 1, tls="required", fallback_sni="b.test")
        return list(map(str, Reach([PLAIN, TLS, THROUGH, EITHER, fallback], entries(*names)).problems()))

    nothing = "there is no certificate: every TLS client is refused"
    assert problems() == [f"listener tcp 127.0.0.1:9101: {nothing}", f"listener tcp 127.0.0.1:1: {nothing}"]
    assert problems("a.test") == ["listener tcp 127.0.0.1:1: no certificate for the fallback_sni 'b.test'"]
    assert problems("*.test") == []


ON_UDP = Match(server_ports=(PortRange(9200, 9200),))


def test_rules_for_datagrams_are_for_routes_that_udp_listeners_lead_to() -> None:
    nothing = ["udp: does nothing: no UDP listener leads here"]

    assert said([PLAIN, UDP], route(Match(server_ports=(PortRange(9100, 9100),))), written=["udp"]) == nothing
    assert said([PLAIN], route(Match()), written=["udp"]) == nothing
    assert said([PLAIN, UDP], route(Match()), written=["udp"]) == []
    assert said([PLAIN, UDP], route(ON_UDP), written=["udp"]) == []


def test_a_port_number_may_be_there_twice() -> None:
    both = [Listener("tcp", "127.0.0.1", 53), Listener("udp", "127.0.0.1", 53)]

    assert said(both, route(Match(server_ports=(PortRange(53, 53),))), written=["udp"]) == []


def test_udp_sends_no_proxy_header_of_version_1() -> None:
    v1 = attrs.evolve(route(Match()), upstream=Upstream("u", (Node("a", 1),), proxy_protocol="v1"))
    v2 = attrs.evolve(route(Match()), upstream=Upstream("u", (Node("a", 1),), proxy_protocol="v2"))
    message = "UDP sessions of this route send no PROXY header: its upstream has 'proxy_protocol: v1', UDP has v2 only"

    assert said([PLAIN, UDP], v1) == [f": {message}"]
    assert said([PLAIN], v1) == []
    assert said([PLAIN, UDP], v2) == []


def test_a_route_for_udp_alone_has_nothing_to_do_with_tls() -> None:
    tls = attrs.evolve(route(ON_UDP, to_tls=True), match=attrs.evolve(ON_UDP, server_names=("a.test",)))

    assert said([TLS, UDP], tls) == [
        ": only UDP listeners lead here: 'scheme: tls' of its upstream does nothing",
        "sni: never matches: no listener that leads here speaks TLS, so no client has a server name",
    ]
    assert said([PLAIN, UDP], route(Match(), to_tls=True)) == []
    assert said([UDP], attrs.evolve(route(ON_UDP), upstream=None)) == []
