"""What a listener does with TLS. The whole of an explanation is tested with the command: tests/cli/test_explain.py."""

from __future__ import annotations

import pytest

from streamgw.control.explain import explain_tls, facts_with_hello
from streamgw.core.model import (
    Address,
    Facts,
    Listener,
    Match,
    Node,
    Passthrough,
    Revision,
    Route,
    Source,
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
