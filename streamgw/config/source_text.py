"""A file's bytes as text: decoded, environment variables filled in, every character still traceable to its place.

`${{NAME}}` and `${{NAME:=default}}` are replaced in the text, before YAML is parsed, so a variable may hold a number,
a list or a whole object. Comment lines are left alone: a commented-out example must not ask for its variables.

Source:
  APISIX, `apisix/cli/file.lua`; YAML 1.2 § 5.2 (byte order mark).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Mapping
from typing import TypeAlias

import attrs

from streamgw.core.errors import ConfigError, Problem

Place: TypeAlias = tuple[int, int]
"""Line and column, both from 1."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Ten times what 100,000 routes in one file need; a larger one is an accident (a log, a core dump)."""

EMPTY = "the file is empty, as if it had been cut off; if nothing is meant, write {}"
"""On a full disk a copy is left without a byte, and so is, for a moment, any file that is written in place. To take that
for a wish would remove routes and close listeners. Comments are a wish."""

_VARIABLE = re.compile(r"\$\{\{\s*([A-Za-z_]\w*)\s*(?::=(.*?))?\s*\}\}")
# What os.environ makes of a byte that it cannot decode (PEP 383).
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")
_COMMENT_LINE = re.compile(r"[ \t]*#")
# json.dumps writes characters beyond the BMP as two escapes; libyaml takes an escape for a whole character.
_SURROGATE_PAIR = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)


@attrs.frozen
class _Replacement:
    """One variable, filled in."""

    start: int
    """In the text as it reads now."""
    end: int
    original_start: int
    original_end: int


@attrs.frozen
class SourceText:
    """What the parser sees, and the way back to what the person wrote."""

    file: str
    text: str = attrs.field(repr=False)
    _original: str = attrs.field(repr=False)
    _replacements: tuple[_Replacement, ...] = attrs.field(default=(), repr=False)

    def place(self, index: int) -> Place:
        """Where the character at this index of `text` was written; inside a variable's value, where its `${{` stands."""
        at = bisect.bisect_right(self._replacements, index, key=lambda replacement: replacement.start)
        if at:
            last = self._replacements[at - 1]
            index = last.original_start if index < last.end else index - last.end + last.original_end
        line = bisect.bisect_right(self._line_starts, index)
        return line, index - self._line_starts[line - 1] + 1

    @functools.cached_property
    def _line_starts(self) -> tuple[int, ...]:
        lengths = (len(line) + 1 for line in self._original.split("\n"))
        return tuple(itertools.accumulate(lengths, initial=0))[:-1]

    def problem(self, index: int, message: str, *, pointer: str = "") -> Problem:
        """A problem of this file, at this index of `text`."""
        return Problem(self.file, *self.place(index), pointer, message)


def read_text(file: str, raw: bytes, environ: Mapping[str, str]) -> SourceText:
    """Decode a file and fill in its variables.

    Raises:
      ConfigError: blank, too large, not UTF-8, or with every variable that is not set and has no default, or is not UTF-8.
    """
    if len(raw) > MAX_FILE_BYTES:
        message = f"the file is too large ({len(raw)} bytes, at most {MAX_FILE_BYTES})"
        raise ConfigError((Problem(file, 0, 0, "", message),))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode("utf-8")
        message = f"not UTF-8: {error.reason} (byte 0x{error.object[error.start]:02x})"
        raise ConfigError((SourceText(file, good, good).problem(len(good), message),)) from None
    if not text or text.isspace():
        raise ConfigError((SourceText(file, text, text).problem(0, EMPTY),))
    if file.lower().endswith(".json"):
        text = _SURROGATE_PAIR.sub(_join_surrogates, text)
    return _fill_in(file, text, environ)


def _fill_in(file: str, text: str, environ: Mapping[str, str]) -> SourceText:
    original = SourceText(file, text, text)
    pieces: list[str] = []
    replacements: list[_Replacement] = []
    problems: list[Problem] = []
    done = length = 0
    for found in _VARIABLE.finditer(text):
        if _COMMENT_LINE.match(text, text.rfind("\n", 0, found.start()) + 1, found.start()):
            continue
        name = found.group(1)
        default: str | None = found.group(2)
        value = environ.get(name, default)
        if value is None:
            problems.append(original.problem(found.start(), f"can't find environment variable {name}"))
            continue
        if _NOT_UTF8.search(value):
            problems.append(original.problem(found.start(), f"environment variable {name} is not UTF-8"))
            continue
        pieces += (text[done : found.start()], value)
        start = length + found.start() - done
        done, length = found.end(), start + len(value)
        replacements.append(_Replacement(start, length, found.start(), found.end()))
    if problems:
        raise ConfigError(tuple(problems))
    if not replacements:
        return original
    pieces.append(text[done:])
    return SourceText(file, "".join(pieces), text, tuple(replacements))


def _join_surrogates(found: re.Match[str]) -> str:
    high, low = int(found.group(2), 16), int(found.group(3), 16)
    return found.group(1) + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
