"""Parsers of the first bytes. Pure: a buffer in; a value, `NeedMore` or `ParseError` out."""

from __future__ import annotations

import attrs


@attrs.frozen
class NeedMore:
    """Not enough bytes to decide yet."""

    at_least: int
    """Total bytes before another try can succeed; keeps byte-by-byte feeding linear."""
