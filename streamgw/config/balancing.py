"""How an upstream chooses among its nodes: `type`, `hash_on` and `key`, and how it holds clients back (`streamgw:`).

The same checks for an upstream of its own, one of a route, of a service, and of a plugin. APISIX has them for the first
only, and there lets everything of HTTP through that a stream has no value for.

Source:
  APISIX `apisix/upstream.lua` (check_upstream_conf), `apisix/schema_def.lua` (upstream_hash_vars_schema).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Protocol, TypeAlias

import attrs

from streamgw.config.rules import Count, Duration, integer
from streamgw.config.strict import Fault, Stated, Wrong, nearest, shown
from streamgw.config.wording import Schema, shortened
from streamgw.core import access_log
from streamgw.core.model import NO_PACING, BalancerType, Node, Pacing
from streamgw.core.ring import MAX_TOTAL_WEIGHT
from streamgw.core.variables import NAMES, UnknownVariable, compile_template

TYPES: tuple[BalancerType, ...] = ("roundrobin", "chash", "least_conn", "ewma")
HASH_VARIABLES = ("remote_addr", "remote_port", "server_addr", "mqtt_client_id")
"""Those of APISIX's pattern that exist at layer 4. In a combination there may be every variable of the client: `NAMES`."""
MAX_WAITING = 100_000


def balancer_type(value: object) -> BalancerType:
    """One of `TYPES`. APISIX takes any text, and closes every connection."""
    for known in TYPES:
        if value == known:
            return known
    hint = nearest(value, TYPES) if isinstance(value, str) else ""
    raise Wrong(f"expected one of {', '.join(TYPES)}, got {shown(value)}{hint}")


BalancerKind: TypeAlias = Annotated[
    BalancerType, Stated(balancer_type, {"enum": list(TYPES)}, {"type": "string"})
]
HashOn: TypeAlias = Literal["vars", "header", "cookie", "consumer", "vars_combinations"]

BALANCING_SCHEMA: Schema = {
    "if": {"properties": {"type": {"const": "chash"}}, "required": ["type"]},
    "then": {
        "required": ["key"],
        "properties": {"hash_on": {"enum": ["vars", "vars_combinations"]}},
        "if": {"properties": {"hash_on": {"const": "vars_combinations"}}, "required": ["hash_on"]},
        "then": {"properties": {"key": {"pattern": r"\$"}}},
        "else": {"properties": {"key": {"enum": list(HASH_VARIABLES)}}},
    },
}
"""What `check_balancing` says, as far as a schema can."""


@attrs.frozen(kw_only=True)
class PacingSpec:
    """How an upstream holds clients back from its nodes. Ours; APISIX has nothing of the kind."""

    slow_start: Duration = 0.0
    """How long a node that came up takes to get its whole weight."""
    max_conns: Count = 0
    """Sessions of one node at a time; 0 is no limit."""
    wait_for_node: Duration = 0.0
    """How long a new client waits while no node can be had."""
    queue_timeout: Duration = NO_PACING.queue_timeout_s
    """How long a client waits for room at a node."""
    queue_size: Annotated[int, integer(1, MAX_WAITING)] = NO_PACING.queue_size
    """Clients that may wait."""

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if not self.max_conns:
            if self.queue_timeout != NO_PACING.queue_timeout_s:
                yield Fault(("queue_timeout",), "does nothing without 'max_conns'", at_key=True)
            if not self.wait_for_node and self.queue_size != NO_PACING.queue_size:
                message = "does nothing without 'max_conns' or 'wait_for_node'"
                yield Fault(("queue_size",), message, at_key=True)

    def build(self) -> Pacing:
        """As the data plane knows it."""
        return Pacing(
            slow_start_s=self.slow_start,
            max_conns=self.max_conns,
            wait_for_node_s=self.wait_for_node,
            queue_timeout_s=self.queue_timeout,
            queue_size=self.queue_size,
        )


class Balanced(Protocol):
    """An upstream as written, as far as this module cares (`schema.UpstreamSpec`)."""

    @property
    def type(self) -> BalancerType:
        """One of `TYPES`."""
        ...

    @property
    def hash_on(self) -> HashOn | None:
        """Where the key of chash comes from."""
        ...

    @property
    def key(self) -> str | None:
        """Of chash."""
        ...

    @property
    def nodes(self) -> tuple[Node, ...] | None:
        """None: not written, which is another fault."""
        ...

    @property
    def streamgw(self) -> PacingSpec | None:
        """How clients are held back."""
        ...


def check_balancing(spec: Balanced) -> Iterator[Fault]:
    """What is wrong with the way an upstream chooses."""
    if spec.type != "chash":
        return
    if spec.hash_on not in (None, "vars", "vars_combinations"):
        message = f"'{spec.hash_on}' does not exist at layer 4; expected vars or vars_combinations"
        yield Fault(("hash_on",), message)
    elif spec.key is None:
        yield Fault(("key",), "is required with type chash", apisix="missing key", is_final=True)
    elif spec.hash_on == "vars_combinations":
        yield from _check_combination(spec.key)
    else:
        yield from _check_variable(spec.key)
    yield from _check_weights(spec.nodes or ())


def warn_of_balancing(spec: Balanced) -> Iterator[Fault]:
    """What is written and has no effect."""
    if spec.type != "chash":
        for name in ("hash_on", "key"):
            if getattr(spec, name) is not None:
                yield Fault((name,), f"does nothing with type {spec.type}", at_key=True)
    if spec.streamgw is not None:
        if spec.type == "chash" and spec.streamgw.slow_start:
            # Fewer points for a while would move other nodes' keys there and back.
            message = "does nothing with type chash: a key stays where it is"
            yield Fault(("streamgw", "slow_start"), message, at_key=True)
        yield from (fault.under(("streamgw",)) for fault in spec.streamgw.warnings())


def hash_key(spec: Balanced) -> str:
    """The template of what clients are hashed by; empty for other types than chash."""
    if spec.type != "chash":
        return ""
    assert spec.key is not None, "checked"
    return spec.key if spec.hash_on == "vars_combinations" else f"${spec.key}"


_HASH_VARIABLE = (
    "^((uri|server_name|server_addr|request_uri|remote_port|remote_addr|query_string|host|hostname|mqtt_client_id)"
    "|arg_[0-9a-zA-z_-]+)$"
)
"""APISIX's own, slip (`A-z`) and all: it is part of its message."""


def _check_variable(key: str) -> Iterator[Fault]:
    if key in HASH_VARIABLES:
        return
    expected = f"expected one of {', '.join(HASH_VARIABLES)}"
    hint = nearest(key, HASH_VARIABLES)
    if not re.fullmatch(_HASH_VARIABLE, key):
        words = f'invalid configuration: failed to match pattern "{_HASH_VARIABLE}" with "{shortened(key)}"'
        yield Fault(("key",), f"{expected}, got {shown(key)}{hint}", apisix=words, is_final=True)
    else:
        yield Fault(("key",), f"'{key}' does not exist at layer 4; {expected}")


def _check_combination(key: str) -> Iterator[Fault]:
    try:
        names = compile_template(key).names
    except UnknownVariable as error:
        yield Fault(("key",), f"variable ${error.name} {_why_not(error.name)}")
    else:
        if not names:
            yield Fault(("key",), f"expected variables like $remote_addr$server_port, got {shown(key)}")


def _why_not(name: str) -> str:
    if access_log.lookup(name) is not None:
        return "is not known when a node is chosen"
    return f"does not exist at layer 4{nearest(name, tuple(sorted(NAMES)))}"


def _check_weights(nodes: tuple[Node, ...]) -> Iterator[Fault]:
    total = sum(node.weight for node in nodes)
    if total > MAX_TOTAL_WEIGHT:
        message = (
            f"with chash the weights may add up to {MAX_TOTAL_WEIGHT}, these to {total}; make them smaller"
        )
        yield Fault(("nodes",), message)
