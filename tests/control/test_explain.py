"""What a listener does with TLS, and with datagrams. The whole of an explanation is tested with the command:
tests/cli/test_explain.py.
"""

from __future__ import annotations

import attrs
import pytest

from streamgw.control.explain import accepts, explain_tls, facts_with_hello, show_datagrams
from streamgw.core.model import (
    Address,
    DatagramRules,
    Facts,
    Listener,
    Match,
    Node,
    Passthrough,
    Revision,
    Route,
    Source,
    Timeouts,
    TLSIn,
    Upstream,
)
from streamgw.core.router import Router
from streamgw.core.snapshot import Snapshot
from streamgw.core.sni import SNIIndex
from streamgw.core.wire.tls import ClientHello

FACTS = Facts("tcp", "tcp 127.0.0.1:9100", Address("192.0.2.1", 1), Address("127.0.0.1", 9100))
UPSTREAM = Upstream("upstreams/1", (Node("127.0.0.1", 1),))
NOTHING = Snapshot(Revision(""), Router([]), {}, SNIIndex([], one_label=True), {})


def listener(tls: TLSIn, passthrough: Passthrough = "never", fallback_sni: str = "") -> Listener:
    return Listener("tcp", "127.0.0.1", 9100, tls=tls, passthrough=passthrough, fallback_sni=fallback_sni)


def route(*, tls_passthrough: bool = False, upstream: Upstream | None = UPSTREAM) -> Route:
    return Route("r", Match(), upstream, Source("routes.d/r.yaml", 1), tls_passthrough=tls_passthrough)


@pytest.mark.parametrize(
    ("name", "fallback", "known"), [("a.test", "", "a.test"), (None, "f.test", "f.test"), (None, "", None)]
)
def test_the_fallback_is_the_name_of_whoever_sends_none(
    name: str | None, fallback: str, known: str | None
) -> None:
    facts = facts_with_hello(FACTS, listener("required", "always", fallback), ClientHello(name, ("h2",), ()))

    assert (facts.server_name, facts.alpn) == (known, ("h2",))


@pytest.mark.parametrize(
    ("passthrough", "winner", "does"),
    [
        ("always", route(), "passthrough"),
        ("route", route(tls_passthrough=True), "passthrough"),
        ("route", route(), "refuse"),
        ("never", route(tls_passthrough=True), "refuse"),
        ("never", None, "close"),
        ("always", route(upstream=None), "close"),
    ],
)
def test_listener_and_route_decide_together(
    passthrough: Passthrough, winner: Route | None, does: str
) -> None:
    hello = ClientHello("a.test", (), ())
    here = listener("required", passthrough)

    assert explain_tls(here, hello, facts_with_hello(FACTS, here, hello), winner, NOTHING).does == does


@pytest.mark.parametrize("tls", ["off", "optional"])
def test_whoever_sends_no_hello_is_a_plain_client(tls: TLSIn) -> None:
    assert explain_tls(listener(tls), None, FACTS, route(), NOTHING).does == "plain"


@pytest.mark.parametrize(
    ("rules", "upstream", "said"),
    [
        (DatagramRules(), UPSTREAM, "a session ends without a datagram for 600 s"),
        (DatagramRules(), None, "a session ends without a datagram for 600 s"),
        (DatagramRules(idle_s=2.5), UPSTREAM, "a session ends without a datagram for 2.5 s"),
        (
            DatagramRules(responses=1, requests=2),
            attrs.evolve(UPSTREAM, timeouts=Timeouts(idle_s=7)),
            "a session ends without a datagram for 7 s, or when each datagram has had 1 answer; "
            "another begins after every 2 datagrams of the client",
        ),
        (
            DatagramRules(idle_s=1, amplification=3),
            UPSTREAM,
            "a session ends without a datagram for 1 s; at most 3 bytes come back for each byte until the client "
            "has answered",
        ),
        (
            DatagramRules(responses=0),
            UPSTREAM,
            "each datagram is a session of its own: no answer is waited for",
        ),
    ],
)
def test_how_a_udp_session_goes(rules: DatagramRules, upstream: Upstream | None, said: str) -> None:
    assert show_datagrams(attrs.evolve(route(upstream=upstream), udp=rules)) == said


def test_tcp_and_udp_on_one_port_are_two_listeners() -> None:
    at = Address("127.0.0.1", 53)

    assert accepts(Listener("udp", "::", 53, dual_stack=True), at, "udp")
    assert not accepts(Listener("udp", "::", 53, dual_stack=True), at)
    assert not accepts(Listener("tcp", "::", 53, dual_stack=True), at, "udp")
