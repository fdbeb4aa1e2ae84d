"""Objects as text, the way a person would write them: block style, keys in a sensible order, quotes where needed.

A string that YAML 1.1 or YAML 1.2 would read as something else is quoted, so it does not matter which of the two the
next reader of the file speaks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeGuard

import yaml

from streamgw.core.model import Key

_ORDER: Final = {
    name: rank
    for rank, name in enumerate(
        (
            # who it is
            *("id", "name", "desc", "labels", "status", "priority"),
            # what it matches
            *("sni", "snis", "remote_addr", "remote_addrs", "server_addr", "server_addrs", "server_port"),
            *("server_ports", "protocol", "plugins"),
            # where it goes
            *("upstream_id", "service_id", "upstream"),
            # inside an upstream and its nodes
            *(
                "host",
                "port",
                "weight",
                "scheme",
                "nodes",
                "type",
                "hash_on",
                "key",
                "retries",
                "retry_timeout",
            ),
            *("timeout", "connect", "send", "read", "checks", "tls"),
            # what nobody writes by hand
            *("create_time", "update_time", "expire_time", "modifiedIndex"),
        )
    )
}
"""Names that are not here stand between what an object matches and where it goes, in the order they came in."""

_NODE_ORDER: Final = {"host": 0, "port": 1, "weight": 2, "priority": 3}
_UNKNOWN: Final = _ORDER["plugins"]

_PLAIN: Final = re.compile(r"[\w/.][\w/.+@%-]*(?: [\w/.+@%(-][\w/.+@%()-]*)*")
"""Strings that need no quotes anywhere, inside `[…]` and as a key included. Colons are quoted: `"10.0.0.5:3306"`."""

_VARIABLE: Final = re.compile(r"\$\{\{[^{}\s]*\}\}")

_OTHER_TYPES: Final = re.compile(
    r"[-+]?[0-9]+ | 0o[0-7]+ | 0x[0-9a-fA-F]+ | [yYnN]"  # YAML 1.2 integers; YAML 1.1 booleans that PyYAML left out
    r"| [-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"  # YAML 1.2 and JSON floats: 1e3
    r"| ---.* | \.\.\.",  # document markers
    re.VERBOSE,
)
_YAML_11: Final[Mapping[str, Sequence[tuple[str, re.Pattern[str]]]]] = yaml.SafeLoader.yaml_implicit_resolvers
"""First character → what YAML 1.1 takes a plain scalar for."""


def in_order(data: Mapping[str, object]) -> list[tuple[str, object]]:
    """The fields of an object in the order in which a person would write them."""
    return sorted(data.items(), key=lambda field: rank(field[0], data))


def rank(name: str, siblings: Mapping[str, object]) -> int:
    """Where a field stands among its siblings. A node's `priority` comes after its weight, a route's before its match;
    `key` goes with a certificate, or says what an upstream hashes.
    """
    if "host" in siblings and name in _NODE_ORDER:
        return _NODE_ORDER[name]
    if "cert" in siblings and name == "key":
        return _UNKNOWN
    return _ORDER.get(name, _UNKNOWN)


def render_file(key: Key, data: Mapping[str, object]) -> str:
    """A file of its own for one object."""
    return f"{key[0]}:\n  - {render_block(data, indent=4)}\n"


def render_block(value: object, *, indent: int) -> str:
    """Block style, to be put at column `indent`: further lines are indented, the first is not. No newline at the end."""
    margin = "\n" + " " * indent
    if isinstance(value, Mapping) and value:
        return margin.join(
            f"{render_key(name)}:{after_colon(field, indent=indent)}" for name, field in in_order(value)
        )
    if _is_list(value) and value:
        return margin.join(f"-{_after_dash(item, indent=indent)}" for item in value)
    return render_flow(value)


def _after_dash(item: object, *, indent: int) -> str:
    is_literal = isinstance(item, str) and _fits_literal(item)
    return after_colon(item, indent=indent) if is_literal else f" {render_block(item, indent=indent + 2)}"


def after_colon(value: object, *, indent: int) -> str:
    """What follows a `key:` at column `indent` in block style: a space and a scalar, or a line end and what is nested."""
    if isinstance(value, str) and _fits_literal(value):
        margin = "\n" + " " * (indent + 2)
        lines = value.removesuffix("\n").split("\n")
        return f" |{'' if value.endswith(chr(10)) else '-'}{margin}{margin.join(lines)}"
    if (isinstance(value, Mapping) or _is_list(value)) and value:
        return "\n" + " " * (indent + 2) + render_block(value, indent=indent + 2)
    return " " + render_flow(value)


def render_flow(value: object, *, as_json: bool = False) -> str:
    """Everything on one line: `{host: 10.0.0.5, port: 3306}`, or the same as JSON."""
    if isinstance(value, Mapping):
        fields = in_order(value)
        return (
            "{"
            + ", ".join(
                f"{render_key(name, as_json=as_json)}: {render_flow(field, as_json=as_json)}"
                for name, field in fields
            )
            + "}"
        )
    if _is_list(value):
        return "[" + ", ".join(render_flow(item, as_json=as_json) for item in value) + "]"
    return render_scalar(value, as_json=as_json)


def render_json(value: object, *, margin: str, step: str) -> str:
    """JSON over several lines: further lines begin with `margin`, nested ones with a `step` more."""
    if not isinstance(value, Mapping) or not value:
        return render_flow(value, as_json=True)
    deeper = margin + step
    fields = (
        f"{deeper}{render_key(name, as_json=True)}: {render_json(field, margin=deeper, step=step)}"
        for name, field in in_order(value)
    )
    return "{\n" + ",\n".join(fields) + f"\n{margin}}}"


def render_key(name: str, *, as_json: bool = False) -> str:
    """A field's name, quoted where it must be."""
    return render_scalar(name, as_json=as_json)


def render_scalar(value: object, *, as_json: bool = False) -> str:
    """One value on one line."""
    if isinstance(value, str):
        # A variable stays without quotes: what it stands for may be a number.
        plain = _is_plain(value) or _VARIABLE.fullmatch(value)
        return value if plain and not as_json else _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    text = repr(value)
    # YAML 1.1 wants a dot in every float: 1e+16 would come back as a string.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_plain(text: str) -> bool:
    return (
        _PLAIN.fullmatch(text) is not None
        and text.isprintable()
        and _OTHER_TYPES.fullmatch(text) is None
        and not any(pattern.match(text) for _, pattern in _YAML_11.get(text[0], ()))
    )


def _quoted(text: str) -> str:
    """Double quotes and JSON's escapes, which YAML shares; what YAML could not hold unescaped is escaped."""
    return "".join(
        char if char.isprintable() or ord(char) > 0xFFFF else f"\\u{ord(char):04x}"
        for char in json.dumps(text, ensure_ascii=False)
    )


def _fits_literal(text: str) -> bool:
    """Whether `|` shows it as it is: a certificate. One newline at the end or none, nothing invisible."""
    lines = text.removesuffix("\n").split("\n")
    return len(lines) > 1 and all(line and line.isprintable() and line.strip() == line for line in lines)
