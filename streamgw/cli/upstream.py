"""`streamgw upstream`: places to go that several routes share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import click

from streamgw.cli.objects import (
    Target,
    add_get,
    add_object,
    add_remove,
    list_objects,
    slugs,
    with_wait,
)
from streamgw.cli.options import with_output, with_paths
from streamgw.config import discovery

_COLLECTION = "upstreams"


@attrs.frozen(kw_only=True)
class UpstreamOptions:
    """What the options of `with_upstream` say, before it is written."""

    node: tuple[str, ...]
    dns: str | None
    balancer: str | None
    key: str | None
    hash_on: str | None
    retries: int | None
    scheme: str | None
    tls_verify: bool
    tls_ca: str | None
    tls_server_name: str | None
    tls_alpn: tuple[str, ...]
    tls_client_cert_id: str | None

    def is_somewhere(self) -> bool:
        """Whether they say where to go. Raises UsageError: they say it in two ways."""
        if self.node and self.dns:
            raise click.UsageError("--node and --dns exclude each other")
        return bool(self.node or self.dns)

    @property
    def besides_nodes(self) -> bool:
        """Whether anything is said that means nothing without a place to go to."""
        said = attrs.astuple(attrs.evolve(self, node=(), dns=None), recurse=False)
        return any(value is not None and value is not False and value != () for value in said)

    def build(self, collection: str, routes: Path) -> dict[str, object]:
        """An upstream as it is written in a file of that collection. Whoever says anything of TLS means TLS, and who says
        what to hash means to hash.
        """
        tls = without_none(
            {
                # A CA is for nothing but verifying.
                "verify": True if self.tls_verify or self.tls_ca else None,
                "ca_certs": self.tls_ca and _ca_reference(self.tls_ca, routes / collection),
                "server_name": self.tls_server_name,
                "alpn": list(self.tls_alpn) or None,
                "client_cert_id": self.tls_client_cert_id,
            }
        )
        return without_none(
            {
                "nodes": _weights(self.node) or None,
                "discovery_type": discovery.TYPE if self.dns else None,
                "service_name": self.dns,
                "type": self.balancer or ("chash" if self.key else None),
                "hash_on": self.hash_on or ("vars_combinations" if "$" in (self.key or "") else None),
                "key": self.key,
                "retries": self.retries,
                "scheme": self.scheme or ("tls" if tls else None),
                "tls": tls or None,
            }
        )


def with_upstream(command: Callable[..., None]) -> Callable[..., None]:
    """The options that describe an upstream, together as the parameter `upstream`."""

    @functools.wraps(command)
    def collected(**parameters: Any) -> None:  # noqa: ANN401  what Click parsed
        names = [field.name for field in attrs.fields(UpstreamOptions)]
        options = UpstreamOptions(**{name: parameters.pop(name) for name in names})
        command(upstream=options, **parameters)

    for option in reversed(_OPTIONS):
        option(collected)
    return collected


_OPTIONS: Final = (
    click.option(
        "--node", multiple=True, metavar="HOST:PORT[=WEIGHT]", help="A place to connect to. May be repeated."
    ),
    click.option(
        "--dns", metavar="NAME[:PORT]", help="The nodes are what DNS has: SRV records, or addresses."
    ),
    click.option(*("--type", "balancer"), help="How to choose among the nodes.  [default: roundrobin]"),
    click.option("--key", help="What chash hashes: remote_addr, or a text like '$remote_addr$server_port'."),
    click.option(
        "--hash-on",
        type=click.Choice(["vars", "vars_combinations"]),
        help="What the --key is: one variable, or a text with variables.  [default: by the key's look]",
    ),
    click.option(
        "--retries", type=click.IntRange(0), help="Further nodes to try.  [default: all the others]"
    ),
    click.option("--scheme", type=click.Choice(["tcp", "tls"]), help="tls: speak TLS to the nodes."),
    click.option("--tls-verify", is_flag=True, help="Check the nodes' certificates."),
    click.option("--tls-ca", metavar="FILE|system", help="Check them against these CAs.  [default: system]"),
    click.option("--tls-server-name", help="The name to ask for and to check.  [default: the client's]"),
    click.option("--tls-alpn", multiple=True, help="Protocol to offer to the nodes. May be repeated."),
    click.option("--tls-client-cert-id", help="Show the nodes this certificate (`ssl add --type client`)."),
)


def with_description(command: Callable[..., None]) -> Callable[..., None]:
    """The options that describe any object: parameters `name`, `desc` and `label`."""
    name = click.option("--name", help="What people call it.")
    desc = click.option("--desc", help="What it is for.")
    label = click.option("--label", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
    return name(desc(label(command)))


def build_description(name: str | None, desc: str | None, labels: tuple[str, ...]) -> dict[str, object]:
    """`name`, `desc` and `labels`, as far as they are given."""
    pairs = dict(label.partition("=")[::2] for label in labels)
    return without_none({"name": name, "desc": desc, "labels": pairs or None})


def without_none(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields that are given."""
    return {name: value for name, value in fields.items() if value is not None}


def file_reference(path: str, directory: Path) -> str:
    """How an object written in `directory` names a file: relative names stay relative, to where they will be read."""
    return f"$file://{path if os.path.isabs(path) else os.path.relpath(path, directory)}"  # noqa: PTH117  text in, text out


def _ca_reference(path: str, directory: Path) -> str:
    return path if path == "system" else file_reference(path, directory)


def _weights(nodes: tuple[str, ...]) -> dict[str, int]:
    weights: dict[str, int] = {}
    for text in nodes:
        address, _, weight = text.partition("=")
        if weight and not weight.isdecimal():
            raise click.BadParameter(f"{text!r}: a weight is a number", param_hint="--node")
        if address in weights:
            raise click.BadParameter(f"{address} is named twice", param_hint="--node")
        weights[address] = int(weight or 1)
    return weights


def show_nodes(data: Mapping[str, Any]) -> str:
    """The nodes of an upstream on one line, with weights that are not 1."""
    if service_name := data.get("service_name"):
        return f"dns {service_name}"
    nodes = data.get("nodes") or {}
    if isinstance(nodes, Mapping):
        weights = list(nodes.items())
    else:
        weights = [(f"{node.get('host')}:{node.get('port')}", node.get("weight", 1)) for node in nodes]
    return ", ".join(address if weight == 1 else f"{address}={weight}" for address, weight in weights)


@click.group()
def upstream() -> None:
    """Add, list and remove upstreams that several routes share."""


@upstream.command()
@with_paths
@click.argument("id_", metavar="[ID]", required=False)
@with_upstream
@with_description
@with_wait
def add(  # noqa: PLR0913, PLR0917  # one parameter per option
    config: Path,
    routes: Path,
    id_: str | None,
    upstream: UpstreamOptions,
    name: str | None,
    desc: str | None,
    label: tuple[str, ...],
    wait: bool,
    timeout_s: float,
    url: str | None,
) -> None:
    """Add an upstream in a file of its own, routes.d/upstreams/ID.yaml, and print that file."""
    if not upstream.is_somewhere():
        raise click.UsageError("an upstream needs a --node or --dns")
    data = {**build_description(name, desc, label), **upstream.build(_COLLECTION, routes)}
    place = upstream.dns or upstream.node[0].partition("=")[0]
    ids = iter([id_]) if id_ else slugs([place], otherwise="upstream")
    add_object(Target(config, routes, wait, timeout_s, url), _COLLECTION, ids, data)


@upstream.command(name="list")
@with_paths
@with_output(default="table")
def list_(config: Path, routes: Path, output: str) -> None:
    """List the upstreams."""
    del config
    columns = {"NODES": show_nodes, "NAME": lambda data: str(data.get("name", ""))}
    list_objects(routes, _COLLECTION, output, columns)


add_get(upstream, _COLLECTION, "Print one upstream.")
add_remove(upstream, _COLLECTION, "Remove an upstream that no route refers to.")
