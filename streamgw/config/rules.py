"""The rules for single values: what a port, an id, a network may be, and what is said when it is not one.

Each stands beside its JSON Schema (`strict.Stated`); tests/config/test_json_schema.py holds the two together. A schema's
patterns are meant for every dialect of regular expressions: editors have JavaScript's.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, TypeAlias, TypeVar

import attrs

from streamgw.config import patterns
from streamgw.config.patterns import whole
from streamgw.config.strict import Fault, Stated, Wrong, described, shown
from streamgw.config.wording import Schema, shortened
from streamgw.core.model import Network, PortRange

_T = TypeVar("_T")


def integer(least: int, most: int | None = None) -> Stated[int]:
    """An integer within bounds, both included."""
    expected = f"an integer ≥ {least}" if most is None else f"an integer {least}–{most}"

    def rule(value: object) -> int:
        # bool is an int to Python; nobody who writes `true` means 1.
        if type(value) is not int or value < least or (most is not None and value > most):
            raise Wrong(f"expected {expected}, got {shown(value)}")
        return value

    return Stated(rule, {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most}))


def number(least: float, *, exclusive: bool = False) -> Stated[float]:
    """A number of seconds or the like, not below `least` (`exclusive`: above it)."""
    expected = f"a number {'>' if exclusive else '≥'} {least:g}"

    def rule(value: object) -> float:
        if type(value) not in {int, float}:
            raise Wrong(f"expected {expected}, got {shown(value)}")
        assert isinstance(value, int | float)
        if not least <= value < _HUGE or (exclusive and value == least):
            raise Wrong(f"expected {expected}, got {shown(value)}")
        return float(value)

    lowest = "exclusiveMinimum" if exclusive else "minimum"
    return Stated(rule, {"type": "number", lowest: least, "exclusiveMaximum": _HUGE})


_HUGE = 1e12
"""Thirty thousand years in seconds: keeps infinity and overflow out of every computation that follows."""


def text(least: int = 0, most: int | None = None) -> Stated[str]:
    """Text with a length within bounds."""
    whole = secret(least, most)

    def rule(value: object) -> str:
        if type(value) is not str:
            raise Wrong(f"expected text, got {shown(value)}")
        return whole(value)

    return Stated(rule, whole.schema)


def secret(least: int = 0, most: int | None = None) -> Stated[str]:
    """Text that no message may show."""

    def rule(value: object) -> str:
        if type(value) is not str:
            raise Wrong("expected text")
        if len(value) < least or (most is not None and len(value) > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise Wrong(f"expected {bounds} characters, got {len(value)}")
        return value

    schema = {"type": "string"} | ({"minLength": least} if least else {})
    return Stated(rule, schema | ({} if most is None else {"maxLength": most}))


def identifier(value: object) -> str:
    """An id of APISIX: text, or an integer that becomes its digits."""
    if type(value) is int and value >= 1:
        return str(value)
    if type(value) is str and _ID.fullmatch(value):
        return value
    raise Wrong(f"expected 1 to 64 of a-z A-Z 0-9 - _ . or an integer ≥ 1, got {shown(value)}")


_ID = re.compile(patterns.ID)


def mapping(value: object) -> Mapping[str, object]:
    """Any mapping; what is in it is somebody else's."""
    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping, got {described(value)}")
    return value


def labels(value: object) -> Mapping[str, str]:
    """Names with a short text each."""
    from_value = mapping(value)
    faults = [
        Fault((name,), f"expected text without spaces, 1 to 256 characters, got {shown(label)}")
        for name, label in from_value.items()
        if type(label) is not str or not _LABEL.fullmatch(label)
    ]
    if faults:
        raise Wrong(*faults)
    return {name: str(label) for name, label in from_value.items()}


# As JSON Schema and APISIX read it: only Python knows more spaces.
_LABEL = re.compile(r"\S{1,256}", re.ASCII)


def network(value: object) -> Network:
    """An address or CIDR. Bits behind the prefix are cleared and IPv4-mapped networks become IPv4, as clients' do."""
    if type(value) is str:
        try:
            return _parse_network(value)
        except ValueError:
            pass
    raise Wrong(f"expected an IP address or CIDR, got {shown(value)}")


def address_of(field: str) -> Stated[Network]:
    """A network in a field whose name APISIX's message has."""

    def rule(value: object) -> Network:
        try:
            return network(value)
        except Wrong as wrong:
            said = f"invalid {field}: {shortened(str(value))}"
            raise Wrong(
                *(attrs.evolve(fault, apisix=said, is_final=True) for fault in wrong.faults)
            ) from None

    return Stated(rule, NETWORK_SCHEMA, _APISIX_NETWORK_SCHEMA)


@functools.lru_cache(maxsize=4096)
def _parse_network(value: str) -> Network:
    # Python's own reading is wider: zones (they name an interface, which no client address carries), netmasks.
    # Compiled when the first is read: it is longer than all others together, and a start does without as often as not.
    if not re.fullmatch(patterns.NETWORK, value):
        raise ValueError
    parsed = ipaddress.ip_network(value, strict=False)
    if isinstance(parsed, ipaddress.IPv6Network) and parsed.subnet_of(_MAPPED):
        return ipaddress.IPv4Network((int(parsed.network_address) & 0xFFFF_FFFF, parsed.prefixlen - 96))
    return parsed


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def port_range(value: object) -> PortRange:
    """A port, or `9100-9200`."""
    if type(value) is int and 1 <= value <= 65535:
        return PortRange(value, value)
    if type(value) is str and (found := _PORT_RANGE.fullmatch(value)):
        first, last = int(found.group(1)), int(found.group(2))
        if first <= last:
            return PortRange(first, last)
    raise Wrong(f"expected a port 1–65535 or a range like 9100-9200, got {shown(value)}")


_PORT_RANGE = re.compile(f"({patterns.PORT})-({patterns.PORT})")


@functools.lru_cache(maxsize=65536)
def host(value: str) -> str:
    """The host of a node: IPv4, IPv6 in brackets, or a name. Without brackets, an IPv6 address in its usual form."""
    if value.startswith("[") and value.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(value[1:-1]))
        except ValueError:
            raise Wrong(f"expected an IPv6 address in brackets, got {shown(value)}") from None
    if ":" in value:
        needed = "IPv6 address must be enclosed with '[' and ']'"
        raise Wrong(
            Fault(
                (), f"{needed}, got {shown(value)}", apisix=f"invalid configuration: {needed}", is_final=True
            )
        )
    if _DIGITS_AND_DOTS.fullmatch(value):
        try:
            return str(ipaddress.IPv4Address(value))
        except ValueError:
            raise Wrong(f"expected an IPv4 address, got {shown(value)}") from None
    if len(value) <= 253 and _NAME.fullmatch(value):
        return value
    raise Wrong(f"expected an IP address or a DNS name, got {shown(value)}")


_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")
_NAME = re.compile(patterns.NAME)


def server_name(value: object) -> str:
    """A name or wildcard to match the TLS server name with. Folded to lower case: APISIX forgets to, and never matches."""
    if type(value) is not str or not _SNI.fullmatch(value):
        raise Wrong(f"expected a server name like db.example or *.example, got {shown(value)}")
    folded = value.lower()
    return folded.removesuffix(".") if len(folded) > 1 else folded


_SNI = re.compile(r"\*|\*?[0-9a-zA-Z\-._\[\]:]+")


def host_name(value: object) -> str:
    """A server name as a client sends it: no wildcard."""
    name = server_name(value)
    if name.startswith("*"):
        raise Wrong(f"expected a name without wildcard, got {shown(value)}")
    return name


def duration(value: object) -> float:
    """Nginx's time: `240s`, `4m`, `1h30m`, `500ms`; a bare number is seconds."""
    if type(value) in {int, float} or (type(value) is str and value.isdecimal()):
        return _SECONDS(float(str(value)))
    if type(value) is str and _DURATION.fullmatch(value):
        parts = _DURATION_PART.findall(value)
        return _SECONDS(sum(float(amount) * _UNITS[unit] for amount, unit in parts))
    raise Wrong(f"expected a time like 240s, 4m or 1h30m, got {shown(value)}")


_SECONDS = number(0)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "M": 2_592_000, "y": 31_536_000}
_DURATION_PART = re.compile(r"([0-9]+)\s*(ms|[smhdwMy])\s*")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")


def size(value: object) -> int:
    """Bytes: a number, nginx's `512k`, `10m`, `1g` (of 1,024), or `10KiB`, `10kB` and their like (1,024 and 1,000)."""
    if type(value) is str and (found := _SIZE.fullmatch(value)):
        value = int(found[1]) * _BYTES[found[2]]
    if type(value) is int and 1 <= value < _HUGE:
        return value
    raise Wrong(f"expected a number of bytes like 65536, 512k or 10MiB, got {shown(value)}")


_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_BYTES |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"([1-9][0-9]{0,11})\s*(|[kmg]|[KMG]iB|[kMG]B)")


def about(rule: Stated[_T], description: str) -> Stated[_T]:
    """The same rule, with a text that editors show."""
    return attrs.evolve(rule, schema={**rule.schema, "description": description})


def at_least(least: int, item: Schema, *, unique: bool = False) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": item, "minItems": least} | ({"uniqueItems": True} if unique else {})


_STRING = {"type": "string"}
ID_SCHEMA: Schema = {
    "anyOf": [_STRING | {"pattern": whole(patterns.ID)}, {"type": "integer", "minimum": 1}],
}
PORT_SCHEMA: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_MAPPING_SCHEMA: Schema = {"type": "object"}
_LABELS_SCHEMA: Schema = {
    "type": "object",
    "patternProperties": {".*": _STRING | {"minLength": 1, "maxLength": 256, "pattern": r"^\S+$"}},
}
NETWORK_SCHEMA: Schema = {
    "type": "string",
    "anyOf": [
        {"title": "IPv4", "pattern": whole(patterns.IPV4)},
        {"title": "IPv4/CIDR", "pattern": whole(patterns.IPV4_NETWORK)},
        {"title": "IPv6", "pattern": whole(patterns.IPV6)},
        {"title": "IPv6/CIDR", "pattern": whole(patterns.IPV6_NETWORK)},
    ],
}
_APISIX_NETWORK_SCHEMA: Schema = {
    "type": "string",
    # `:/8` passes, and is refused later, with another text.
    "anyOf": [
        *NETWORK_SCHEMA["anyOf"],
        {"pattern": "^(?:[a-fA-F0-9]{0,4}:){1,8}(?::[a-fA-F0-9]{0,4}){0,8}(?:[a-fA-F0-9]{0,4})?/[0-9]{1,3}$"},
    ],
}
_PORTS_SCHEMA: Schema = {
    "anyOf": [PORT_SCHEMA, _STRING | {"pattern": whole(f"{patterns.PORT}-{patterns.PORT}")}],
}
_SERVER_NAME_SCHEMA: Schema = _STRING | {"pattern": r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$"}
_HOST_NAME_SCHEMA: Schema = _STRING | {"pattern": r"^[0-9a-zA-Z-._\[\]:]+$"}
_DURATION_SCHEMA: Schema = {
    "anyOf": [
        {"type": "number", "minimum": 0, "exclusiveMaximum": _HUGE},
        _STRING | {"pattern": r"^(?:[0-9]+|(?:[0-9]+\s*(?:ms|[smhdwMy])\s*)+)$"},
    ],
}
_SIZE_SCHEMA: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "exclusiveMaximum": _HUGE},
        _STRING | {"pattern": rf"^(?:{_SIZE.pattern})$"},
    ],
}

Id: TypeAlias = Annotated[
    str, about(Stated(identifier, ID_SCHEMA), "1 to 64 of a-z A-Z 0-9 - _ . or an integer from 1 on.")
]
Port: TypeAlias = Annotated[int, integer(1, 65535)]
Count: TypeAlias = Annotated[int, integer(0)]
Seconds: TypeAlias = Annotated[float, number(0)]
PositiveSeconds: TypeAlias = Annotated[float, number(0, exclusive=True)]
Name: TypeAlias = Annotated[str, about(text(1, 256), "A name for people.")]
Description: TypeAlias = Annotated[str, about(text(0, 256), "A note for people.")]
Labels: TypeAlias = Annotated[
    Mapping[str, str],
    about(Stated(labels, _LABELS_SCHEMA), "Names with a short text each, to sort objects by."),
]
Time: TypeAlias = Annotated[int, about(integer(0), "Unix time, in seconds.")]
AnyMapping: TypeAlias = Annotated[Mapping[str, object], Stated(mapping, _MAPPING_SCHEMA)]
Net: TypeAlias = Annotated[Network, Stated(network, NETWORK_SCHEMA, _APISIX_NETWORK_SCHEMA)]
Ports: TypeAlias = Annotated[PortRange, Stated(port_range, _PORTS_SCHEMA)]
ServerName: TypeAlias = Annotated[str, Stated(server_name, _SERVER_NAME_SCHEMA)]
HostName: TypeAlias = Annotated[str, Stated(host_name, _HOST_NAME_SCHEMA, _SERVER_NAME_SCHEMA)]
Duration: TypeAlias = Annotated[float, Stated(duration, _DURATION_SCHEMA)]
Size: TypeAlias = Annotated[int, Stated(size, _SIZE_SCHEMA)]
