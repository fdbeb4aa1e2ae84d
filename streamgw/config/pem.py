"""Where a PEM text comes from: written in the object, an environment variable, or a file beside it.

`$env://NAME` and `$ENV://NAME` are APISIX's. `$file://PATH` is ours: relative to the directory of the file it is written
in, so that it means the same whatever directory the process was started in. No message contains a text that was found.

Source:
  APISIX `apisix/secret.lua` (references), `apisix/ssl.lua` (keys encrypted at rest).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from streamgw.config.strict import Wrong

MAX_BYTES: Final = 1 << 20
"""Of a referenced file: five times the CA bundle of a Linux distribution."""


@attrs.frozen
class Pem:
    """A text and what is known of where it came from."""

    text: str = attrs.field(repr=False)
    origin: str = ""
    """For messages: the path or the variable; empty: written in the object."""
    is_public: bool = False
    """It is a file that every user of the machine may read."""


class References:
    """What one load looks up outside of the routes: each file is read once, so that all see the same state of it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._found: dict[Path, Pem | str] = {}
        self._variables: dict[str, str | None] = {}

    @property
    def files(self) -> frozenset[Path]:
        """Every file that was asked for, the missing ones too: when one of them changes, it is time to load again."""
        return frozenset(self._found)

    def are_as_before(self) -> bool:
        """Whether every file and variable still says what it said. Reads them all."""
        return all(_read(path) == found for path, found in self._found.items()) and all(
            self._environ.get(name) == value for name, value in self._variables.items()
        )

    def resolve(self, value: str, directory: Path) -> Pem:
        """The text that a value stands for.

        Raises:
          Wrong: the variable or the file is not there, or this kind of reference is not known.
        """
        scheme, slashes, name = value.partition("://")
        if not slashes or not scheme.startswith("$"):
            return Pem(value)
        match scheme.lower():
            case "$env":
                return self._variable(name)
            case "$file":
                return self.read(directory / name)
            case _:
                raise Wrong(f"{scheme}:// is not available; use PEM text, $file://path or $env://NAME")

    def read(self, path: Path) -> Pem:
        """The text of a file.

        Raises:
          Wrong: it is not there, not a regular file, or too large.
        """
        shown = os.path.normpath(path)
        absolute = Path(os.path.abspath(path))  # noqa: PTH100  resolve() would follow the links that are to be watched
        if absolute not in self._found:
            self._found[absolute] = _read(absolute)
        found = self._found[absolute]
        if isinstance(found, str):
            raise Wrong(f"{shown}: {found}")
        return attrs.evolve(found, origin=shown)

    def _variable(self, name: str) -> Pem:
        value = self._variables[name] = self._environ.get(name)
        if value is None:
            raise Wrong(f"can't find environment variable {name}")
        return Pem(value, f"${name}")


def digest_of(*parts: str) -> str:
    """One digest of several texts; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    return digest.hexdigest()


def _read(path: Path) -> Pem | str:
    """The text, or why there is none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if status.st_size > MAX_BYTES:
            return f"larger than {MAX_BYTES >> 20} MiB"
        # What stands between the PEM blocks may be in any encoding.
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        return str(error.strerror)
    except ValueError:
        return "not a path"  # a zero byte in it
    return Pem(text, is_public=bool(status.st_mode & stat.S_IROTH))
