"""The nodes of an upstream: `{"10.0.0.5:3306": 1}`, or a list with priorities.

Source:
  APISIX `apisix/schema_def.lua` (nodes_schema), `apisix/upstream.lua` (brackets around IPv6). In a stream a node without
  a port cannot be reached, so the port is required in both forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import attrs

from streamgw.config.rules import AnyMapping, Count, Port, host, integer
from streamgw.config.strict import Fault, Wrong, each, shown, structure
from streamgw.core.model import Node


def parse_nodes(value: object) -> tuple[Node, ...]:
    """Both forms of `nodes`, in the order written.

    Raises:
      Wrong: with the faults of every node.
    """
    if isinstance(value, list):
        return each(_node, value)
    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping of host:port to weight, or a list of nodes, got {shown(value)}")
    nodes: list[Node] = []
    faults: list[Fault] = []
    for name, weight in value.items():
        try:
            nodes.append(Node(*_split_host_port(name), weight=_weight(weight)))
        except Wrong as wrong:
            faults += [fault.under((name,)) for fault in wrong.faults]
    if faults:
        raise Wrong(*faults)
    return tuple(nodes)


def _host(value: object) -> str:
    if type(value) is not str:
        raise Wrong(f"expected text, got {shown(value)}")
    return host(value)


@attrs.frozen(kw_only=True)
class NodeSpec:
    """A node in the list form."""

    host: Annotated[str, _host]
    port: Port
    weight: Count
    priority: Annotated[int, integer(-(2**31), 2**31 - 1)] = 0
    metadata: AnyMapping | None = None


def _node(value: object) -> Node:
    spec = structure(value, NodeSpec)
    return Node(spec.host, spec.port, spec.weight, spec.priority)


_weight = integer(0)


def _split_host_port(name: str) -> tuple[str, int]:
    found = _HOST_PORT.fullmatch(name)
    if found is None or not 1 <= int(found.group(2)) <= 65535:
        message = f"expected host:port with a port 1–65535, got {shown(name)}"
        raise Wrong(Fault((), message, at_key=True))
    try:
        return host(found.group(1)), int(found.group(2))
    except Wrong as wrong:
        raise Wrong(*(attrs.evolve(fault, at_key=True) for fault in wrong.faults)) from None


_HOST_PORT = re.compile(r"(.+):([0-9]{1,5})")
