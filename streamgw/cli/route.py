"""`streamgw route`: routes, one at a time, in the files where they stand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from streamgw.cli.objects import (
    Target,
    add_get,
    add_object,
    add_remove,
    add_switch,
    list_objects,
    slugs,
    with_wait,
)
from streamgw.cli.options import with_output, with_paths
from streamgw.cli.upstream import (
    UpstreamOptions,
    build_description,
    show_nodes,
    with_description,
    with_upstream,
    without_none,
)

_COLLECTION = "stream_routes"


@click.group()
def route() -> None:
    """Add, list, change and remove routes."""


def _with_datagrams(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how UDP sessions live, together as the parameter `datagrams`: the route's `udp`."""

    @functools.wraps(command)
    def collected(**parameters: Any) -> None:  # noqa: ANN401  what Click parsed
        said = {name: parameters.pop(f"udp_{name}") for name in _DATAGRAM_HELP}
        command(
            datagrams={name: _shortest(value) for name, value in without_none(said).items()}, **parameters
        )

    for name, (kind, text) in reversed(tuple(_DATAGRAM_HELP.items())):
        click.option(f"--udp-{name.replace('_', '-')}", type=kind, help=text)(collected)
    return collected


_DATAGRAM_HELP: Mapping[str, tuple[click.ParamType[Any], str]] = {
    "idle_timeout": (
        click.FloatRange(0, min_open=True),
        "Over UDP: seconds without a datagram that end a session.  [default: 600]",
    ),
    "responses": (
        click.IntRange(0),
        "Over UDP: answers to each datagram that end a session; 0: none is waited for.",
    ),
    "requests": (click.IntRange(0), "Over UDP: datagrams after which another session begins."),
    "amplification": (
        click.FloatRange(0),
        "Over UDP: bytes back for each byte, until the client has answered.",
    ),
}


def _shortest(value: object) -> object:
    """`5` for 5.0: as a person would write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@route.command()
@with_paths
@click.argument("positional_id", metavar="[ID]", required=False)
@click.option(*("--id", "id_"), help="The same as ID.  [default: made from what the route matches]")
@click.option("--sni", multiple=True, help="TLS server name. May be repeated.")
@click.option(
    "--server-port", multiple=True, metavar="PORT[-PORT]", help="Port of the gateway. May be repeated."
)
@click.option("--server-addr", help="Address of the gateway, or a CIDR.")
@click.option("--remote-addr", multiple=True, help="Address of the client, or a CIDR. May be repeated.")
@click.option("--alpn", multiple=True, help="Protocol that the client offers (TLS). May be repeated.")
@click.option(
    "--tls-passthrough",
    is_flag=True,
    help="Hand TLS on untouched, where the listener leaves that to the route.",
)
@_with_datagrams
@with_upstream
@click.option("--upstream-id", help="Go to this upstream.")
@click.option("--service-id", help="Go where this service goes.")
@click.option("--priority", type=int, help="Higher is asked first.  [default: 0]")
@with_description
@with_wait
def add(  # noqa: PLR0913, PLR0917  # one parameter per option
    config: Path,
    routes: Path,
    positional_id: str | None,
    id_: str | None,
    sni: tuple[str, ...],
    server_port: tuple[str, ...],
    server_addr: str | None,
    remote_addr: tuple[str, ...],
    alpn: tuple[str, ...],
    tls_passthrough: bool,
    datagrams: Mapping[str, object],
    upstream: UpstreamOptions,
    upstream_id: str | None,
    service_id: str | None,
    priority: int | None,
    name: str | None,
    desc: str | None,
    label: tuple[str, ...],
    wait: bool,
    timeout_s: float,
    url: str | None,
) -> None:
    """Add a route in a file of its own, routes.d/stream_routes/ID.yaml, and print that file.

    The directory is checked with the route in it first; if anything is wrong, nothing is written.

    \b
    streamgw route add --server-port 9101 --node 127.0.0.1:3306
    streamgw route add mysql --server-port 9101 --node 10.0.0.5:3306=3 --node 10.0.0.6:3306 --wait
    streamgw route add --sni a.test.com --node 127.0.0.1:5991
    streamgw route add dns --server-port 53 --node 10.0.0.5:53 --udp-responses 1 --udp-idle-timeout 5
    """  # noqa: D301  # \b is Click's mark for lines that stay as they are
    if positional_id and id_ and positional_id != id_:
        raise click.UsageError(f"two ids: {positional_id} and {id_}")
    if not (upstream.is_somewhere() or upstream_id or service_id):
        raise click.UsageError("where to? Give a --node, --dns, an --upstream-id or a --service-id")
    if upstream.is_somewhere() and upstream_id:
        raise click.UsageError("--node and --dns exclude --upstream-id")
    if not upstream.is_somewhere() and upstream.besides_nodes:
        raise click.UsageError(
            "--type, --key, --retries, --scheme and --tls-… of the upstream belong to --node or --dns"
        )
    data = {
        **build_description(name, desc, label),
        **_one_or_many("sni", "snis", sni),
        **_one_or_many("remote_addr", "remote_addrs", remote_addr),
        **_one_or_many("server_port", "server_ports", [_port(text) for text in server_port]),
        **without_none(
            {
                "priority": priority,
                "server_addr": server_addr,
                "alpn": list(alpn) or None,
                "tls_passthrough": tls_passthrough or None,
                "udp": datagrams or None,
                "upstream_id": upstream_id,
                "service_id": service_id,
            }
        ),
        **({"upstream": upstream.build(_COLLECTION, routes)} if upstream.is_somewhere() else {}),
    }
    wanted = positional_id or id_
    ids = iter([wanted]) if wanted else slugs(_about(data), otherwise="default")
    add_object(Target(config, routes, wait, timeout_s, url), _COLLECTION, ids, data)


@route.command(name="list")
@with_paths
@with_output(default="table")
def list_(config: Path, routes: Path, output: str) -> None:
    """List the routes, by file."""
    del config
    columns = {
        "MATCHES": _show_match,
        "GOES TO": _show_upstream,
        "PRIORITY": lambda data: str(data.get("priority", 0)),
        "STATUS": lambda data: "disabled" if data.get("status", 1) == 0 else "enabled",
    }
    list_objects(routes, _COLLECTION, output, columns)


add_get(route, _COLLECTION, "Print one route.")
add_remove(
    route, _COLLECTION, "Remove a route from the file it stands in. The rest of the file stays as it is."
)
add_switch(
    route,
    _COLLECTION,
    enable="Let a route match again.",
    disable="Make a route match nothing. Only its status changes in the file.",
)


def _port(text: str) -> int | str:
    """A number where it is one; what else it may be (`9100-9200`) is the converter's to judge."""
    return int(text) if text.isdecimal() else text


def _one_or_many(one: str, many: str, values: Sequence[object]) -> dict[str, object]:
    """`server_port: 3306`, or `server_ports: […]` when there are several or it is a range."""
    if not values:
        return {}
    is_range = one == "server_port" and "-" in str(values[0])
    return {many: list(values)} if len(values) > 1 or is_range else {one: values[0]}


def _about(data: Mapping[str, Any]) -> list[str]:
    """What a route matches, as words for an id: `["sni-a.test.com", "port-9100"]`."""
    names = [data["sni"]] if "sni" in data else data.get("snis", [])
    ports = [data["server_port"]] if "server_port" in data else data.get("server_ports", [])
    clients = [data["remote_addr"]] if "remote_addr" in data else data.get("remote_addrs", [])
    servers = [data["server_addr"]] if "server_addr" in data else []
    words = (("sni", names), ("port", ports), ("at", servers), ("from", clients))
    # Two wildcards of one name, `*.a` and `*a`, share an id here; the second becomes `…-2`.
    return [f"{word}-{str(values[0]).lower().replace('*', 'any')}" for word, values in words if values]


def _show_match(data: Mapping[str, Any]) -> str:
    names = (
        "sni",
        "snis",
        "alpn",
        "remote_addr",
        "remote_addrs",
        "server_addr",
        "server_port",
        "server_ports",
    )
    shown = []
    for name in names:
        if name in data:
            value = data[name]
            shown.append(f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    if data.get("tls_passthrough") is True:
        shown.append("TLS untouched")
    return ", ".join(shown) or "everything"


def _show_upstream(data: Mapping[str, Any]) -> str:
    if "upstream_id" in data:
        return f"upstream {data['upstream_id']}"
    if "upstream" in data:
        scheme = "tls " if data["upstream"].get("scheme") == "tls" else ""
        return f"{scheme}{show_nodes(data['upstream'])}"
    return f"service {data['service_id']}" if "service_id" in data else "nowhere"
