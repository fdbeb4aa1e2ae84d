"""The nodes of an upstream: `{"10.0.0.5:3306": 1}`, or a list with priorities.

Source:
  APISIX `apisix/schema_def.lua` (nodes_schema), `apisix/upstream.lua` (brackets around IPv6). In a stream a node without
  a port cannot be reached, so the port is required in both forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import attrs

from streamgw.config import patterns
from streamgw.config.patterns import whole
from streamgw.config.rules import PORT_SCHEMA, AnyMapping, Count, Port, host, integer
from streamgw.config.strict import Fault, Stated, Wrong, each, shown, structure
from streamgw.config.wording import Schema, wrong_type
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
        raise Wrong(Fault((), f"expected text, got {shown(value)}", apisix=wrong_type("string", value)))
    return host(value)


_HOST_SCHEMA: Schema = {"type": "string", "pattern": whole(patterns.HOST), "maxLength": 255}
_APISIX_HOST_SCHEMA: Schema = {"type": "string", "pattern": r"^\*?[0-9a-zA-Z-._\[\]:]+$"}


@attrs.frozen(kw_only=True)
class NodeSpec:
    """A node in the list form."""

    host: Annotated[str, Stated(_host, _HOST_SCHEMA, _APISIX_HOST_SCHEMA)]
    port: Port
    weight: Count
    priority: Annotated[int, integer(-(2**31), 2**31 - 1)] = 0
    metadata: AnyMapping | None = None


def _node(value: object) -> Node:
    spec = structure(value, NodeSpec)
    return Node(spec.host, spec.port, spec.weight, spec.priority)


_weight = integer(0)
_WEIGHT_SCHEMA: Schema = {"type": "integer", "minimum": 0}
_APISIX_NODES_SCHEMA: Schema = {
    "anyOf": [
        {"type": "object", "patternProperties": {".*": _WEIGHT_SCHEMA}},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "host": _APISIX_HOST_SCHEMA,
                    "port": PORT_SCHEMA,
                    "weight": _WEIGHT_SCHEMA,
                    "priority": {"type": "integer"},
                    "metadata": {"type": "object"},
                },
                "required": ["host", "weight"],
            },
        },
    ],
}
"""Its items may have other fields, and in a stream nobody can do without the port: for the words only."""
_BY_NAME: Schema = {
    "type": "object",
    "propertyNames": {"pattern": whole(patterns.HOST_PORT), "maxLength": 261},
    "additionalProperties": _WEIGHT_SCHEMA,
}
NODES_SCHEMA: Schema = {"anyOf": [_BY_NAME, {"type": "array", "items": NodeSpec}]}
Nodes: TypeAlias = Annotated[tuple[Node, ...], Stated(parse_nodes, NODES_SCHEMA, _APISIX_NODES_SCHEMA)]


def _split_host_port(name: str) -> tuple[str, int]:
    found = _HOST_PORT.fullmatch(name)
    if found is None:
        message = f"expected host:port with a port 1–65535, got {shown(name)}"
        raise Wrong(Fault((), message, at_key=True))
    try:
        return host(found.group(1)), int(found.group(2))
    except Wrong as wrong:
        raise Wrong(*(attrs.evolve(fault, at_key=True) for fault in wrong.faults)) from None


_HOST_PORT = re.compile(f"(.+):({patterns.PORT})")
