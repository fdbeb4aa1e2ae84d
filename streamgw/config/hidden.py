"""What of an object is not shown: the one place that says so, for the Admin API, the control API and the command line.

A client key may stand at any depth: wherever an upstream is described, in the options of a plugin that nobody here has
heard of, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeGuard

_KEYS: Final = frozenset({"client_key"})
"""Texts of keys, at any depth."""
_CREDENTIALS: Final = frozenset({"auth_header"})
"""Options of plugins, at any depth. Whoever may write them gets them back: nothing refuses an object without them, so a
client that writes what it has read would lose them."""
_OF_CERTIFICATES: Final = frozenset({"key", "keys"})
"""Of an object of `ssls`. Elsewhere `key` is something else."""
_CONTENT: Final = {
    "keys": re.compile(rb"PRIVATE KEY-----"),
    "credentials": re.compile(rb"""\bauth_header['"]?\s*:(?!\s*['"]?\$\w+://)"""),
}
"""The first line of every private key ends so (RFC 7468); a credential is one that is no reference."""
_ABSENT: Final = object()
_MASK: Final = "***"

_Hide: TypeAlias = Callable[[object], object]


def without_keys(collection: str, data: Mapping[str, object]) -> dict[str, object]:
    """The object without the text of any key, and without references to keys."""
    return _object(collection, data, _KEYS, lambda _: _ABSENT)


def without_secrets(collection: str, data: Mapping[str, object]) -> dict[str, object]:
    """The same, and without credentials: for whoever has shown no key of ours."""
    return _object(collection, data, _KEYS | _CREDENTIALS, lambda _: _ABSENT)


def masked(collection: str, data: Mapping[str, object]) -> dict[str, Any]:
    """The object with `***` in place of each key and credential. References stay, for they give nothing away."""
    return _object(collection, data, _KEYS | _CREDENTIALS, _masked)


def secrets_in(content: bytes) -> frozenset[str]:
    """Which kinds of secrets a file with this text holds. With any it is its owner's alone."""
    return frozenset(kind for kind, pattern in _CONTENT.items() if pattern.search(content))


def _object(
    collection: str, data: Mapping[str, object], names: frozenset[str], hide: _Hide
) -> dict[str, object]:
    at_the_top = names | _OF_CERTIFICATES if collection == "ssls" else names
    shown = {
        name: hide(value) if name in at_the_top else _inside(value, names, hide)
        for name, value in data.items()
    }
    return {name: value for name, value in shown.items() if value is not _ABSENT}


def _inside(value: object, names: frozenset[str], hide: _Hide) -> object:
    if isinstance(value, Mapping):
        return _object("", value, names, hide)
    if _is_list(value):
        return [_inside(item, names, hide) for item in value]
    return value


def _masked(value: object) -> object:
    if _is_list(value):
        return [_masked(item) for item in value]
    return value if str(value).startswith("$") and "://" in str(value) else _MASK


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
