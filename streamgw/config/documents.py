"""Routes as files: an APISIX standalone document in, typed documents and every problem out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import attrs

from streamgw.core.errors import Problem
from streamgw.core.model import Key, Source


@attrs.frozen
class SourceFile:
    """One file of the directory, as read."""

    name: str
    """As messages show it: `routes.d/mysql.yaml`."""
    text: bytes = attrs.field(repr=False)
    digest: str
    """Of the bytes: equal digests parse equally."""


@attrs.frozen
class Document:
    """One configured object: what is written, where, and what it means."""

    key: Key
    source: Source
    position: int
    """From 0, in its collection in its file: `stream_routes[0]`."""
    data: Mapping[str, object] = attrs.field(repr=False)
    """As written, environment variables filled in. Plain JSON types."""
    digest: str

    @property
    def pointer(self) -> str:
        """Where the object stands in its file: `stream_routes[0]`."""
        return f"{self.key[0]}[{self.position}]"


@attrs.frozen
class ParsedFile:
    """All of one file: its documents, or its problems."""

    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def digest_of(data: Mapping[str, object]) -> str:
    """The digest of one object: 32 hexadecimal digits, the same in the gateway, the API and the command line.

    Order of keys and way of writing do not count, nor does `id`, which is the object's key and not its content.
    """
    content = {name: value for name, value in data.items() if name != "id"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def parse_file(file: SourceFile, environ: Mapping[str, str]) -> ParsedFile:
    """Read one file completely; a file with problems has no documents."""
    raise NotImplementedError


def validate_object(collection: str, data: Mapping[str, object], *, file: str = "") -> tuple[Problem, ...]:
    """Check one object before it is written. Problems carry a pointer inside the object and no line."""
    raise NotImplementedError
