"""`streamgw explain`: which route a client would get, and why not another one."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

import click

from streamgw.cli.options import read_settings, with_paths
from streamgw.cli.output import print_data, print_table
from streamgw.config.compile import Loader
from streamgw.config.store import Store
from streamgw.control.explain import (
    Meeting,
    as_data,
    facts_of,
    fold,
    likely_transport,
    meet,
    show_datagrams,
    show_plugins,
    show_tls,
)
from streamgw.core.model import Facts, Listener, Transport
from streamgw.core.wire.tls import ClientHello
from streamgw.process.plugins import plugin_set


@click.command()
@with_paths
@click.option("--remote-addr", default="127.0.0.1", show_default=True, help="The client's address.")
@click.option(
    "--server-addr", help="The address the client connects to.  [default: the listener's, else the loopback]"
)
@click.option(
    "--server-port",
    type=click.IntRange(1, 65535),
    help="The port.  [default: of the only listener, if there is one]",
)
@click.option(
    "--transport",
    type=click.Choice(["tcp", "udp"]),
    help="How it gets there.  [default: tcp, unless only UDP listens there]",
)
@click.option("--sni", help="The TLS server name that the client asks for.")
@click.option("--no-sni", is_flag=True, help="A TLS client that names no server.")
@click.option("--alpn", multiple=True, help="Protocol that the TLS client offers. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(  # noqa: PLR0913, PLR0917  # one parameter per option
    config: Path,
    routes: Path,
    remote_addr: str,
    server_addr: str | None,
    server_port: int | None,
    transport: Transport | None,
    sni: str | None,
    no_sni: bool,
    alpn: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say which route a client gets, and for every other one why not.

    Where the listener looks for TLS: also what becomes of it, and which certificate is served. The same code decides in
    the gateway.
    """
    said = _said(sni, no_sni, alpn)
    settings = read_settings(config)
    if transport is None:
        transport = likely_transport(settings.listeners, server_port)
    listeners = [listener for listener in settings.listeners if listener.transport == transport]
    listener, facts = _facts(transport, listeners, _address(remote_addr), server_addr, server_port)
    loader = Loader(
        Store(routes), environ=os.environ, tls=lambda: settings.tls, plugins=lambda: plugin_set(settings)
    )
    found = loader.load(settings.listeners)
    meeting = meet(listener, facts, said, found.snapshot, found.documents)
    if as_json:
        print_data(as_data(meeting), "json")
    else:
        _show(meeting)


def _show(meeting: Meeting) -> None:
    facts, winner = meeting.facts, meeting.routing.winner
    click.echo(_headline(meeting))
    if meeting.listener is None:
        click.echo(f"nobody listens on {facts.server}: the client is refused before any route is asked")
    elif meeting.is_hello_unread:
        click.echo(
            f"{facts.listener} is a {'UDP' if facts.transport == 'udp' else 'plain'} listener: no client of it has a server name or ALPN. Decided without them"
        )
    if winner is None:
        what = "datagram is dropped" if facts.transport == "udp" else "connection is closed"
        click.echo(f"no route matches: the {what} (no_route)")
    else:
        click.echo(f"route {winner.id} wins ({winner.source})")
        if plugins := show_plugins(winner, facts):
            click.echo(plugins)
        if facts.transport == "udp":
            click.echo(show_datagrams(winner))
        if winner.upstream is not None and winner.upstream.service_name:
            click.echo(f"its nodes are what DNS says of {winner.upstream.service_name}")
    for line in show_tls(meeting.tls) if meeting.tls else ():
        click.echo(line)
    rows = [
        [
            "✓" if verdict.wins else "",
            verdict.route.id,
            str(verdict.route.priority),
            str(verdict.route.source),
            verdict.why,
        ]
        for verdict in meeting.routing.verdicts
    ]
    if rows:
        click.echo()
    print_table(["", "ROUTE", "PRIORITY", "FILE", "WHY"], rows)
    candidates = meeting.tls.candidates if meeting.tls else ()
    if candidates:
        click.echo()
    print_table(
        ["", "CERTIFICATE", "FILE", "WHY"],
        [["✓" if each.serves else "", each.id, str(each.source), each.why] for each in candidates],
    )


def _headline(meeting: Meeting) -> str:
    facts = meeting.facts
    line = f"{facts.client.host} → {facts.server}{' over UDP' if facts.transport == 'udp' else ''}"
    if facts.server_name:
        line += f", server name {facts.server_name}"
        if meeting.tls is not None and meeting.tls.has_fallback_name:
            line += " (fallback_sni: the client sends none)"
    return line + (f", offers {', '.join(facts.alpn)}" if facts.alpn else "")


def _said(sni: str | None, no_sni: bool, alpn: tuple[str, ...]) -> ClientHello | None:
    """The hello that the options describe; None: they describe none."""
    if sni is not None and no_sni:
        raise click.UsageError("--sni and --no-sni exclude each other")
    if sni is None:
        return ClientHello(None, alpn, ()) if no_sni or alpn else None
    name = sni.lower().removesuffix(".")
    if not name or "*" in name or _is_address(name):
        raise click.UsageError(f"{sni!r} is no name that a client can send (RFC 6066); see --no-sni")
    return ClientHello(name, alpn, ())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _facts(
    transport: Transport,
    listeners: Sequence[Listener],
    client: str,
    server_addr: str | None,
    server_port: int | None,
) -> tuple[Listener | None, Facts]:
    try:
        return facts_of(
            transport,
            listeners,
            client=client,
            server_addr=None if server_addr is None else _address(server_addr),
            server_port=server_port,
        )
    except LookupError:
        raise click.UsageError(f"--server-port is needed: {_shown(listeners)}") from None


def _shown(listeners: Sequence[Listener]) -> str:
    return ", ".join(listener.name for listener in listeners) or "config.yaml has no listener"


def _address(text: str) -> str:
    try:
        return fold(text)
    except ValueError as error:
        raise click.UsageError(f"not an IP address: {text!r}") from error
