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
from streamgw.core.model import Address, Facts, Listener
from streamgw.core.router import Explanation


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
@click.option("--sni", help="The TLS server name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(  # noqa: PLR0913, PLR0917  # one parameter per option
    config: Path,
    routes: Path,
    remote_addr: str,
    server_addr: str | None,
    server_port: int | None,
    sni: str | None,
    as_json: bool,
) -> None:
    """Say which route a client gets, and for every other one why not.

    The same code decides in the gateway.
    """
    listeners = read_settings(config).listeners
    facts = _facts(listeners, _address(remote_addr), server_addr, server_port, sni)
    explanation = Loader(Store(routes), environ=os.environ).load(listeners).snapshot.router.explain(facts)
    if as_json:
        print_data(_as_data(facts, explanation), "json")
        return
    name = f", server name {facts.server_name}" if facts.server_name else ""
    click.echo(f"{facts.client.host} → {facts.server}{name}")
    if not facts.listener:
        click.echo(f"nobody listens on {facts.server}: the client is refused before any route is asked")
    if explanation.winner is None:
        click.echo("no route matches: the connection is closed (no_route)")
    else:
        click.echo(f"route {explanation.winner.id} wins ({explanation.winner.source})")
    rows = [
        [
            "✓" if verdict.wins else "",
            verdict.route.id,
            str(verdict.route.priority),
            str(verdict.route.source),
            verdict.why,
        ]
        for verdict in explanation.verdicts
    ]
    if rows:
        click.echo()
    print_table(["", "ROUTE", "PRIORITY", "FILE", "WHY"], rows)


def _as_data(facts: Facts, explanation: Explanation) -> dict[str, object]:
    return {
        "client": facts.client.host,
        "server": str(facts.server),
        "sni": facts.server_name,
        "listener": facts.listener or None,
        "winner": explanation.winner.id if explanation.winner else None,
        "routes": [
            {
                "id": verdict.route.id,
                "file": verdict.route.source.file,
                "line": verdict.route.source.line,
                "priority": verdict.route.priority,
                "wins": verdict.wins,
                "why": verdict.why,
            }
            for verdict in explanation.verdicts
        ],
    }


def _facts(
    listeners: Sequence[Listener],
    client: str,
    server_addr: str | None,
    server_port: int | None,
    sni: str | None,
) -> Facts:
    if server_port is None:
        ports = {listener.port for listener in listeners if listener.port}
        if len(ports) != 1:
            raise click.UsageError(f"--server-port is needed: {_shown(listeners)}")
        (server_port,) = ports
    if server_addr is None:
        own = [
            listener.host for listener in listeners if listener.port == server_port and not _is_any(listener)
        ]
        server_addr = own[0] if own else "::1" if ":" in client else "127.0.0.1"
    server = Address(_address(server_addr), server_port)
    accepting = [listener for listener in listeners if _accepts(listener, server)]
    return Facts(
        transport="tcp",
        listener=accepting[0].name if accepting else "",
        client=Address(client, 0),
        server=server,
        server_name=sni.lower().removesuffix(".") if sni else None,
    )


def _shown(listeners: Sequence[Listener]) -> str:
    return ", ".join(listener.name for listener in listeners) or "config.yaml has no listener"


def _is_any(listener: Listener) -> bool:
    return listener.dual_stack or listener.host in {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound


def _accepts(listener: Listener, server: Address) -> bool:
    if listener.port != server.port:
        return False
    if listener.dual_stack:
        return True
    if _is_any(listener):
        return (":" in listener.host) == (":" in server.host)
    return listener.host == server.host


def _address(text: str) -> str:
    """In the form that sockets give: IPv4-mapped addresses folded."""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise click.UsageError(f"not an IP address: {text!r}") from error
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
