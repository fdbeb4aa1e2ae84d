"""Which clients can come to a route at all: routes held against listeners and certificates, for warnings."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence

from streamgw.config.strict import Fault
from streamgw.core.errors import Problem
from streamgw.core.model import Certificate, Listener, Match, Network, PortRange, Route
from streamgw.core.sni import SNIIndex


class Reach:
    """Which local ports and addresses a client can have connected to, and which names it can have asked for.

    Args:
      entries: each name that a certificate is served for.
    """

    def __init__(
        self, listeners: Sequence[Listener], entries: Iterable[tuple[str, Certificate]] = ()
    ) -> None:
        self._all = tuple(listeners)
        self._listeners = tuple(listener for listener in listeners if not listener.path)
        self._by_port: dict[int, list[Listener]] = {}
        for listener in self._listeners:
            self._by_port.setdefault(listener.port, []).append(listener)
        entries = tuple(entries)
        self._certificates = SNIIndex(entries, one_label=True)
        self._names = tuple(name for name, _ in entries)

    def problems(self) -> Iterator[Problem]:
        """Listeners whose TLS clients are all refused."""
        for listener in self._all:
            if listener.tls == "off" or listener.passthrough != "never":
                continue
            said = ""
            if not self._names:
                said = "there is no certificate: every TLS client is refused"
            elif listener.fallback_sni and not self._has_certificate(listener.fallback_sni):
                said = f"no certificate for the fallback_sni '{listener.fallback_sni}'"
            if said:
                yield Problem(f"listener {listener.name}", 0, 0, "", said)

    def faults(self, route: Route, written: Mapping[str, object]) -> Iterator[Fault]:
        """What of a route no client can ever have. `written`: the route as it stands in its file."""
        match = route.match
        nowhere = list(self._ports_without_listener(match, "server_ports" in written))
        yield from nowhere
        with_port = self._with_ports(match)
        for network in match.server_addrs:
            if not any(_has_address(listener, network) for listener in with_port) and not nowhere:
                which = " with this port" if match.server_ports else ""
                yield Fault(("server_addr",), f"no listener{which} has an address in {network}")
        reached = [
            listener
            for listener in with_port
            if not match.server_addrs
            or any(not listener.path and _has_address(listener, network) for network in match.server_addrs)
        ]
        if reached:
            yield from _datagram_faults(route, reached, written)
            yield from self._tls_faults(route, reached, written)

    def _tls_faults(
        self, route: Route, reached: Sequence[Listener], written: Mapping[str, object]
    ) -> Iterator[Fault]:
        with_tls = [listener for listener in reached if listener.tls != "off"]
        names = "snis" if "snis" in written else "sni"
        if not with_tls:
            which = "" if len(reached) == len(self._all) else " that leads here"
            for field, asked in ((names, route.match.server_names), ("alpn", route.match.alpn)):
                if asked:
                    lack = "has a server name" if field == names else "offers a protocol"
                    message = f"never matches: no listener{which} speaks TLS, so no client {lack}"
                    yield Fault((field,), message, at_key=True)
        if route.tls_passthrough and not any(listener.passthrough == "route" for listener in reached):
            message = (
                "does nothing: no listener here leaves the choice to its routes ('tls' and 'tls_passthrough')"
            )
            yield Fault(("tls_passthrough",), message, at_key=True)
        if (
            route.upstream is not None
            and route.upstream.tls is not None
            and all(listener.tls == "required" and listener.passthrough == "always" for listener in reached)
        ):
            message = "TLS inside TLS: the listeners that lead here hand the client's TLS on, to an upstream with scheme tls"
            yield Fault((), message)
        if self._names and any(_terminates(listener, route) for listener in with_tls):
            for position, name in enumerate(route.match.server_names):
                if not self._has_certificate(name):
                    path = (names, position) if names == "snis" else (names,)
                    yield Fault(path, f"no certificate for '{name}': clients that ask for it are refused")

    def _ports_without_listener(self, match: Match, is_list: bool) -> Iterator[Fault]:
        for position, ports in enumerate(match.server_ports):
            if not self._with_port(ports):
                path = ("server_ports", position) if is_list else ("server_port",)
                which = f"{ports.first}" if ports.first == ports.last else f"{ports.first} to {ports.last}"
                yield Fault(path, f"no listener has port {which}")

    def _with_ports(self, match: Match) -> Sequence[Listener]:
        if match.server_ports:
            return [listener for ports in match.server_ports for listener in self._with_port(ports)]
        return self._listeners if match.server_addrs else self._all

    def _with_port(self, ports: PortRange) -> list[Listener]:
        chosen_by_kernel = self._by_port.get(0, [])  # nobody knows which it will be
        if ports.first == ports.last:
            return self._by_port.get(ports.first, []) + chosen_by_kernel
        inside = [listener for listener in self._listeners if ports.first <= listener.port <= ports.last]
        return inside + chosen_by_kernel

    def _has_certificate(self, pattern: str) -> bool:
        """Whether a name that the pattern of a route covers has a certificate."""
        if not pattern.startswith("*"):
            return any(True for _ in self._certificates.candidates(pattern))
        end = pattern[1:]
        # A wildcard of a certificate meets that of a route where the one's end is the end of the other.
        return any(
            name.lstrip("*").endswith(end) or (name.startswith("*") and end.endswith(name[1:]))
            for name in self._names
        )


def _datagram_faults(
    route: Route, reached: Sequence[Listener], written: Mapping[str, object]
) -> Iterator[Fault]:
    """What a route says of sessions over TCP or UDP, and its clients come over the other one, or over both."""
    transports = {listener.transport for listener in reached}
    if "udp" not in transports:
        if "udp" in written:
            yield Fault(("udp",), "does nothing: no UDP listener leads here", at_key=True)
        return
    if route.upstream is None:
        return
    if route.upstream.proxy_protocol == "v1":
        message = "UDP sessions of this route send no PROXY header: its upstream has 'proxy_protocol: v1', UDP has v2 only"
        yield Fault((), message)
    if route.upstream.tls is not None and transports == {"udp"}:
        yield Fault((), "only UDP listeners lead here: 'scheme: tls' of its upstream does nothing")


def _terminates(listener: Listener, route: Route) -> bool:
    return listener.passthrough == "never" or (listener.passthrough == "route" and not route.tls_passthrough)


def _has_address(listener: Listener, network: Network) -> bool:
    if listener.dual_stack:
        return True
    address = ipaddress.ip_address(listener.host)
    return address.version == network.version and (address.is_unspecified or address in network)
