"""`streamgw upstream`: places to go that several routes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from streamgw.cli.objects import (
    Target,
    add_object,
    complete_id,
    get_object,
    list_objects,
    remove_object,
    slugs,
    with_wait,
)
from streamgw.cli.options import with_output, with_paths

_COLLECTION = "upstreams"


def with_upstream(command: Callable[..., None]) -> Callable[..., None]:
    """The options that describe an upstream: parameters `node`, `balancer` and `retries`."""
    node = click.option(
        "--node", multiple=True, metavar="HOST:PORT[=WEIGHT]", help="A place to connect to. May be repeated."
    )
    balancer = click.option(
        *("--type", "balancer"), help="How to choose among the nodes.  [default: roundrobin]"
    )
    retries = click.option(
        "--retries", type=click.IntRange(0), help="Further nodes to try.  [default: all the others]"
    )
    return node(balancer(retries(command)))


def with_description(command: Callable[..., None]) -> Callable[..., None]:
    """The options that describe any object: parameters `name`, `desc` and `label`."""
    name = click.option("--name", help="What people call it.")
    desc = click.option("--desc", help="What it is for.")
    label = click.option("--label", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
    return name(desc(label(command)))


def build_upstream(nodes: tuple[str, ...], balancer: str | None, retries: int | None) -> dict[str, object]:
    """An upstream as it is written in a file."""
    weights: dict[str, int] = {}
    for text in nodes:
        address, _, weight = text.partition("=")
        if weight and not weight.isdecimal():
            raise click.BadParameter(f"{text!r}: a weight is a number", param_hint="--node")
        if address in weights:
            raise click.BadParameter(f"{address} is named twice", param_hint="--node")
        weights[address] = int(weight or 1)
    return without_none({"nodes": weights, "type": balancer, "retries": retries})


def build_description(name: str | None, desc: str | None, labels: tuple[str, ...]) -> dict[str, object]:
    """`name`, `desc` and `labels`, as far as they are given."""
    pairs = dict(label.partition("=")[::2] for label in labels)
    return without_none({"name": name, "desc": desc, "labels": pairs or None})


def without_none(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields that are given."""
    return {name: value for name, value in fields.items() if value is not None}


def show_nodes(data: Mapping[str, Any]) -> str:
    """The nodes of an upstream on one line, with weights that are not 1."""
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
    node: tuple[str, ...],
    balancer: str | None,
    retries: int | None,
    name: str | None,
    desc: str | None,
    label: tuple[str, ...],
    wait: bool,
    timeout_s: float,
    url: str | None,
) -> None:
    """Add an upstream in a file of its own, routes.d/upstreams/ID.yaml, and print that file."""
    if not node:
        raise click.UsageError("an upstream needs a --node")
    data = {**build_description(name, desc, label), **build_upstream(node, balancer, retries)}
    ids = iter([id_]) if id_ else slugs([node[0].partition("=")[0]], otherwise="upstream")
    add_object(Target(config, routes, wait, timeout_s, url), _COLLECTION, ids, data)


@upstream.command(name="list")
@with_paths
@with_output(default="table")
def list_(config: Path, routes: Path, output: str) -> None:
    """List the upstreams."""
    del config
    columns = {"NODES": show_nodes, "NAME": lambda data: str(data.get("name", ""))}
    list_objects(routes, _COLLECTION, output, columns)


@upstream.command()
@with_paths
@click.argument("id_", metavar="ID", shell_complete=complete_id(_COLLECTION))
@with_output(default="yaml")
def get(config: Path, routes: Path, id_: str, output: str) -> None:
    """Print one upstream."""
    del config
    get_object(routes, (_COLLECTION, id_), output)


@upstream.command()
@with_paths
@click.argument("id_", metavar="ID", shell_complete=complete_id(_COLLECTION))
@with_wait
def remove(config: Path, routes: Path, id_: str, wait: bool, timeout_s: float, url: str | None) -> None:
    """Remove an upstream that no route refers to."""
    remove_object(Target(config, routes, wait, timeout_s, url), (_COLLECTION, id_))
