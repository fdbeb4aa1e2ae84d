"""What becomes of one client, and why: for `streamgw explain` and for the control API.

The decisions are those of `dataplane/session.py`, asked of the same objects; here they get their reasons. Plain functions:
the command line runs them without a gateway.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

import attrs

from streamgw.config.documents import Document
from streamgw.config.schema import SSLSpec
from streamgw.core.model import (
    Address,
    Certificate,
    Facts,
    Listener,
    Route,
    Source,
    Timeouts,
    Transport,
)
from streamgw.core.router import Explanation
from streamgw.core.snapshot import Snapshot
from streamgw.core.sni import matches_name
from streamgw.core.wire.tls import ClientHello

Does = Literal["plain", "close", "passthrough", "terminate", "refuse"]


@attrs.frozen
class Candidate:
    """One certificate that the name speaks for, served or not."""

    id: str
    source: Source
    serves: bool
    why: str


@attrs.frozen
class TLSExplanation:
    """What becomes of one client's TLS."""

    does: Does
    why: str
    """For a person, with its subject: `TLS is terminated here: …`."""
    has_fallback_name: bool = False
    """The server name is the listener's, not the client's."""
    certificate: Certificate | None = None
    candidates: tuple[Candidate, ...] = ()


@attrs.frozen
class Meeting:
    """One client, one listener, and what comes of it."""

    listener: Listener | None
    facts: Facts
    routing: Explanation
    tls: TLSExplanation | None
    """None: the listener does not look for TLS."""
    is_hello_unread: bool
    """A hello was described, and nobody there reads one."""


def meet(
    listener: Listener | None,
    facts: Facts,
    said: ClientHello | None,
    snapshot: Snapshot,
    documents: Sequence[Document],
) -> Meeting:
    """Let this client meet this listener.

    Args:
      listener: None: nobody listens there. What a listener with TLS would make of the client is said then.
      facts: addresses; what the hello adds is added here.
      said: the hello that the client sends; None: none.
      snapshot: decides.
      documents: of the same snapshot, for the certificates that are not served.
    """
    looks = facts.transport == "tcp" if listener is None else listener.tls != "off"
    hello = said if looks else None
    if listener is None:
        # Nobody there: what a listener with TLS would do with the name is still worth knowing.
        name, alpn = (hello.server_name, hello.alpn) if hello else (None, ())
        facts = attrs.evolve(facts, server_name=name, alpn=alpn)
    elif hello is None and listener.tls == "required":
        hello = ClientHello(None, (), ())
    if listener is not None:
        facts = facts_with_hello(facts, listener, hello)
    routing = snapshot.router.explain(facts)
    tls = None
    if listener is not None and looks:
        tls = explain_tls(listener, hello, facts, routing.winner, snapshot)
        if tls.does in {"terminate", "refuse"} and facts.server_name:
            ranked = rank_certificates(facts.server_name, snapshot, documents)
            tls = attrs.evolve(tls, candidates=ranked)
    return Meeting(listener, facts, routing, tls, is_hello_unread=said is not None and not looks)


def likely_transport(listeners: Sequence[Listener], port: int | None) -> Transport:
    """What a client of this port speaks, if nobody says: TCP, unless only datagrams are received there."""
    there = {listener.transport for listener in listeners if port is None or listener.port == port}
    return "udp" if there == {"udp"} else "tcp"


def facts_of(
    transport: Transport,
    listeners: Sequence[Listener],
    *,
    client: str,
    server_addr: str | None,
    server_port: int | None,
) -> tuple[Listener | None, Facts]:
    """Who accepts such a client, and what is known of it by then.

    Args:
      transport: of the client; the listeners are those of it.
      listeners: all there are.
      client: its address, folded.
      server_addr: where it connects to, folded. None: the listener's own address, else the loopback.
      server_port: None: that of the only listener.

    Raises:
      LookupError: no port is given, and there is not exactly one.
    """
    if server_port is None:
        ports = {listener.port for listener in listeners if listener.port}
        if len(ports) != 1:
            raise LookupError(f"{len(ports)} ports")
        (server_port,) = ports
    if server_addr is None:
        own = [
            listener.host for listener in listeners if listener.port == server_port and not is_any(listener)
        ]
        server_addr = own[0] if own else "::1" if ":" in client else "127.0.0.1"
    server = Address(server_addr, server_port)
    listener = next((each for each in listeners if accepts(each, server, transport)), None)
    return listener, Facts(transport, listener.name if listener else "", Address(client, 0), server)


def fold(address: str) -> str:
    """An address in the form that sockets give: IPv4-mapped ones folded, no brackets.

    Raises:
      ValueError: this is none.
    """
    parsed = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def is_any(listener: Listener) -> bool:
    """Whether it listens on every address of the machine."""
    return listener.dual_stack or listener.host in {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound


def accepts(listener: Listener, server: Address, transport: Transport = "tcp") -> bool:
    """Whether a client that connects to this address, or sends its datagrams there, ends up at this listener."""
    if listener.transport != transport or listener.port != server.port:
        return False
    if listener.dual_stack:
        return True
    if is_any(listener):
        return (":" in listener.host) == (":" in server.host)
    return listener.host == server.host


def plugins_of(route: Route, facts: Facts) -> Iterator[tuple[str, bool]]:
    """The plugins of a route in the order in which they run, and whether their filter (`_meta.filter`) lets them.

    As far as that can be told from the facts: what a handshake or another plugin adds is not known here.
    """
    for hooks in route.hooks:
        yield hooks.plugin, hooks.applies is None or hooks.applies(facts)


def show_plugins(route: Route, facts: Facts) -> str:
    """The same for a person; empty: it has none."""
    shown = [
        f"{name}{'' if applies else ' (not for this client)'}" for name, applies in plugins_of(route, facts)
    ]
    return f"plugins, in this order: {', '.join(shown)}" if shown else ""


def as_data(meeting: Meeting) -> dict[str, object]:
    """The whole answer for programs."""
    facts, winner = meeting.facts, meeting.routing.winner
    return {
        "client": facts.client.host,
        "server": str(facts.server),
        "sni": facts.server_name,
        "alpn": list(facts.alpn),
        "transport": facts.transport,
        "listener": facts.listener or None,
        "winner": winner.id if winner else None,
        "service_name": (winner.upstream.service_name or None) if winner and winner.upstream else None,
        "plugins": [
            {"name": name, "applies": applies}
            for name, applies in (plugins_of(winner, facts) if winner else ())
        ],
        "udp": attrs.asdict(winner.udp) if winner and facts.transport == "udp" else None,
        "tls": tls_as_data(meeting.listener, facts, meeting.tls)
        if meeting.listener and meeting.tls
        else None,
        "routes": [
            {
                "id": verdict.route.id,
                "file": verdict.route.source.file,
                "line": verdict.route.source.line,
                "priority": verdict.route.priority,
                "wins": verdict.wins,
                "why": verdict.why,
            }
            for verdict in meeting.routing.verdicts
        ],
    }


def facts_with_hello(facts: Facts, listener: Listener, hello: ClientHello | None) -> Facts:
    """What the gateway knows of this client once it has read its hello."""
    if hello is None:
        return facts
    name = hello.server_name or listener.fallback_sni or None
    return attrs.evolve(facts, server_name=name, alpn=hello.alpn)


def explain_tls(
    listener: Listener, hello: ClientHello | None, facts: Facts, winner: Route | None, snapshot: Snapshot
) -> TLSExplanation:
    """What the session does once its route is chosen. `facts` are those with the hello."""
    if hello is None:
        also = " that comes without TLS" if listener.tls == "optional" else ""
        return TLSExplanation("plain", f"no TLS: this is a plain client{also}")
    fallback = hello.server_name is None and facts.server_name is not None
    if winner is None:
        why = "TLS is not begun: without a route the client gets the alert unrecognized_name"
        return TLSExplanation("close", why, fallback)
    if winner.upstream is None:
        why = f"TLS is not begun: route {winner.id} names no upstream, the connection is closed (no_upstream)"
        return TLSExplanation("close", why, fallback)
    if winner.passes_through(listener):
        whose = "the listener" if listener.passthrough == "always" else f"route {winner.id}"
        why = f"TLS is handed on untouched: {whose} has tls_passthrough, no certificate of ours is served"
        return TLSExplanation("passthrough", why, fallback)
    name = facts.server_name
    certificate = next(snapshot.certificates.candidates(name), None) if name else None
    if certificate is not None:
        because = (
            f"route {winner.id} has no tls_passthrough"
            if listener.passthrough == "route"
            else "the listener has tls"
        )
        why = f"TLS is terminated here ({because})"
        return TLSExplanation("terminate", why, fallback, certificate)
    lacking = (
        f"no certificate for {name}" if name else "the client sends no name, and there is no fallback_sni"
    )
    why = f"TLS is refused: {lacking} (tls_failed; the client sees the alert unrecognized_name)"
    return TLSExplanation("refuse", why, fallback)


def rank_certificates(name: str, snapshot: Snapshot, documents: Sequence[Document]) -> tuple[Candidate, ...]:
    """Every certificate that has something to do with a name, the one that is served first."""
    in_turn = {certificate.id: certificate for certificate in snapshot.certificates.candidates(name)}
    first = next(iter(in_turn), "")
    found = [
        Candidate(id_, certificate.source, id_ == first, _why(certificate.names, name, first, id_))
        for id_, certificate in in_turn.items()
    ]
    return (*found, *_near_misses(name, in_turn.keys(), documents))


def _why(names: Sequence[str], name: str, first: str, id_: str) -> str:
    pattern = next(iter(_covering(names, name, one_label=True)))
    covers = "is its name" if pattern == name else f"{pattern} covers it"
    return covers if id_ == first else f"{covers}, but {first} is more precise"


def _near_misses(name: str, taken: Collection[str], documents: Sequence[Document]) -> Iterator[Candidate]:
    for document in documents:
        spec = document.spec
        if not isinstance(spec, SSLSpec) or spec.type != "server" or document.key[1] in taken:
            continue
        patterns = list(_covering(spec.names, name, one_label=False))
        if not patterns:
            continue
        if not spec.status:
            why = "is disabled (status: 0)"
        elif any(_covering(patterns, name, one_label=True)):
            why = f"{patterns[0]} is served from another object, which comes first"
        else:
            why = f"{patterns[0]} covers one label only, unlike the sni of a route"
        yield Candidate(document.key[1], document.source, serves=False, why=why)


def _covering(patterns: Sequence[str], name: str, *, one_label: bool) -> Iterator[str]:
    """Longest first: the exact one, then by how much a wildcard says."""
    for pattern in sorted(patterns, key=lambda text: (text.startswith("*"), -len(text))):
        if matches_name(pattern, name, one_label=one_label):
            yield pattern


def show_tls(explanation: TLSExplanation) -> Iterator[str]:
    """The explanation in sentences."""
    yield explanation.why
    certificate = explanation.certificate
    if certificate is None:
        return
    until = datetime.fromtimestamp(certificate.not_after_s, UTC)
    yield f"certificate {certificate.id} is served ({certificate.source}), valid until {until:%Y-%m-%d}"
    asked = certificate.requires_client_certificate
    yield "a client certificate is required" if asked else "no client certificate is asked for"


def show_datagrams(route: Route) -> str:
    """How a UDP session of this route goes, in a sentence."""
    rules = route.udp
    if rules.responses == 0:
        return "each datagram is a session of its own: no answer is waited for"
    idle_s = rules.idle_s
    if idle_s is None:
        idle_s = route.upstream.timeouts.idle_s if route.upstream else Timeouts().idle_s
    ends = [f"without a datagram for {idle_s:g} s"]
    if rules.responses is not None:
        ends.append(f"when each datagram has had {_counted(rules.responses, 'answer')}")
    line = f"a session ends {', or '.join(ends)}"
    if rules.requests:
        line += f"; another begins after every {_counted(rules.requests, 'datagram')} of the client"
    if rules.amplification:
        line += (
            f"; at most {rules.amplification:g} bytes come back for each byte until the client has answered"
        )
    return line


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def tls_as_data(listener: Listener, facts: Facts, explanation: TLSExplanation) -> dict[str, object]:
    """The explanation for programs."""
    served = explanation.certificate
    return {
        "listener": listener.tls,
        "passthrough": listener.passthrough,
        "does": explanation.does,
        "why": explanation.why,
        "server_name": facts.server_name,
        "from_fallback_sni": explanation.has_fallback_name,
        "certificate": {
            "id": served.id,
            "file": served.source.file,
            "line": served.source.line,
            "names": list(served.names),
            "issuer": served.issuer,
            "fingerprint": served.fingerprint,
            "not_after": datetime.fromtimestamp(served.not_after_s, UTC).isoformat(),
            "requires_client_certificate": served.requires_client_certificate,
        }
        if served
        else None,
        "certificates": [
            {
                "id": candidate.id,
                "file": candidate.source.file,
                "line": candidate.source.line,
                "serves": candidate.serves,
                "why": candidate.why,
            }
            for candidate in explanation.candidates
        ],
    }
