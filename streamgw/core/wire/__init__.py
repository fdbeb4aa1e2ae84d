"""Parsers of the first bytes. Pure: a buffer in; a value, `NeedMore` or `ParseError` out."""

from __future__ import annotations

import attrs

_SHOWN_BYTES = 16


@attrs.frozen
class NeedMore:
    """Not enough bytes to decide yet."""

    at_least: int
    """Total bytes before another try can succeed; keeps byte-by-byte feeding linear."""


def shown(buffer: bytes) -> str:
    """The beginning of what a client sent, for a message: printable ASCII in quotes, whatever the bytes are."""
    return repr(bytes(buffer[:_SHOWN_BYTES]))[1:] + ("…" if len(buffer) > _SHOWN_BYTES else "")
