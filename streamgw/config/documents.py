"""Routes as files: an APISIX standalone document in, typed documents and every problem out.

One file has one shape, whoever wrote it: `stream_routes:`, `upstreams:`, `services:`, `ssls:`, each a list of objects. A
real apisix.yaml works as it is; what of it serves HTTP is named in a warning. Everything that can be said about a file
alone is said here, so that it can be remembered by the file's digest; what concerns several files is compiled in
`config/compile.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from streamgw.config.rules import identifier
from streamgw.config.schema import ALL_COLLECTIONS, COLLECTIONS, HTTP_COLLECTIONS, Spec
from streamgw.config.source_text import Place, read_text
from streamgw.config.strict import Fault, Wrong, nearest, shown, structure, unknown_field
from streamgw.config.yaml_reader import Path, Reading, locate, pointer_of, read_yaml
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import Key, Source


@attrs.frozen
class SourceFile:
    """One file of the directory, as read."""

    name: str
    """As messages show it: `routes.d/mysql.yaml`."""
    text: bytes = attrs.field(repr=False)
    digest: str
    """Of the bytes: equal digests parse equally."""
    path: str = ""
    """Below the directory, with slashes: `mysql.yaml`. Objects without an id are called after it; empty: after
    the name."""


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
    spec: Spec | None = attrs.field(repr=False)
    """None if it has problems: then only its key is known."""

    @property
    def path(self) -> Path:
        """Where the object stands in its file."""
        return self.key[0], self.position


class Locations:
    """Turns the faults of one file into problems with lines, and remembers where things stand.

    A warning that stays over many reloads costs one look at its file.
    """

    def __init__(self, file: SourceFile, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._places: dict[tuple[Path, bool], Place] = {}

    def problems(self, faults: Iterable[Fault]) -> tuple[Problem, ...]:
        """One problem per fault, in the order of the lines."""
        faults = tuple(faults)
        missing = {(fault.path, fault.at_key) for fault in faults} - self._places.keys()
        if missing:
            source = read_text(self._file.name, self._file.text, self._environ)
            places = locate(source, (path for path, _ in missing))
            for path, at_key in missing:
                self._places[path, at_key] = places.of_key(path) if at_key else places.of_value(path)
        return tuple(
            sorted(
                Problem(
                    self._file.name,
                    *self._places[fault.path, fault.at_key],
                    pointer_of(fault.path),
                    fault.message,
                    error_msg=fault.error_msg,
                )
                for fault in faults
            )
        )


@attrs.frozen
class ParsedFile:
    """All of one file: its documents, and what is wrong with it."""

    locations: Locations = attrs.field(repr=False)
    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    is_readable: bool = True
    """False: not even the keys of its objects are known."""


def digest_of(data: Mapping[str, object]) -> str:
    """The digest of one object: 32 hexadecimal digits, the same in the gateway, the API and the command line.

    Order of keys and way of writing do not count, nor does `id`, which is the object's key and not its content.
    """
    content = {name: value for name, value in data.items() if name != "id"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def parse_file(file: SourceFile, environ: Mapping[str, str]) -> ParsedFile:
    """Read one file completely. Never raises: what is wrong is in the result."""
    locations = Locations(file, environ)
    try:
        reading = read_yaml(read_text(file.name, file.text, environ))
    except ConfigError as error:
        return ParsedFile(locations, problems=error.problems, is_readable=False)
    documents: list[Document] = []
    faults: list[Fault] = []
    warnings: list[Fault] = []
    for collection, items in _collections(reading, faults, warnings):
        for position, item in enumerate(items):
            line = reading.item_lines.get(collection, ())
            source = Source(file.name, line[position] if line else 0)
            made = _make_document(file, source, (collection, position), item)
            faults += made.faults
            if made.document is not None:
                documents.append(made.document)
                warnings += made.warnings
    return ParsedFile(locations, tuple(documents), locations.problems(faults), locations.problems(warnings))


def id_of(value: object) -> str:
    """An id as the text it stands for; empty if it is none."""
    try:
        return identifier(value)
    except Wrong:
        return ""


def validate_object(collection: str, data: Mapping[str, object], *, file: str = "") -> tuple[Problem, ...]:
    """Check one object before it is written. Problems have a pointer inside the object and no line.

    References to other objects are not looked up: that is `Loader.check`.
    """
    kind = COLLECTIONS.get(collection)
    if kind is None:
        message = f"unknown collection {shown(collection)}{nearest(collection, tuple(COLLECTIONS))}"
        return (Problem(file, 0, 0, "", message),)
    try:
        structure(data, kind)
    except Wrong as wrong:
        return tuple(
            sorted(
                Problem(file, 0, 0, pointer_of(fault.path), fault.message, error_msg=fault.error_msg)
                for fault in wrong.faults
            )
        )
    return ()


@attrs.frozen
class _Made:
    document: Document | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()


def _collections(
    reading: Reading, faults: list[Fault], warnings: list[Fault]
) -> Iterator[tuple[str, list[object]]]:
    """The lists of objects this gateway knows; what else the file has becomes faults and warnings."""
    if reading.data is None:
        return
    if not isinstance(reading.data, dict):
        faults.append(Fault((), f"expected a mapping of collections, got {shown(reading.data)}"))
        return
    faults += _version_faults(reading.data)
    http_only: list[str] = []
    for name, items in ((name, items) for name, items in reading.data.items() if name not in _VERSIONS):
        if name not in ALL_COLLECTIONS:
            faults.append(unknown_field(name, ALL_COLLECTIONS))
        elif items is not None and not isinstance(items, list):
            faults.append(Fault((name,), f"expected a list, got {shown(items)}"))
        elif not items:
            pass  # `stream_routes:` with every item commented out is an empty list, not a mistake
        elif name in COLLECTIONS:
            yield name, items
        elif name in HTTP_COLLECTIONS:
            http_only.append(name)
        else:
            warnings.append(Fault((name,), f"does nothing: {_INSTEAD[name]}", at_key=True))
    if http_only:
        message = f"HTTP only, does nothing at layer 4: {', '.join(http_only)}"
        warnings.append(Fault((http_only[0],), message, at_key=True))


def _version_faults(data: Mapping[str, object]) -> Iterator[Fault]:
    for name in data:
        if name in _VERSIONS and type(data[name]) is not int:
            yield Fault((name,), f"expected an integer, got {shown(data[name])}")


_INSTEAD = {
    "plugins": "stream_plugins of config.yaml says which plugins are on",
    "secrets": "values are taken from $env://NAME and $file://PATH",
}
_VERSIONS = frozenset(f"{name}_conf_version" for name in ALL_COLLECTIONS)
"""What `GET /apisix/admin/configs` says of each collection; a document that was saved from there may be put here."""


def _make_document(file: SourceFile, source: Source, path: tuple[str, int], item: object) -> _Made:
    collection, position = path
    spec: Spec | None = None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    try:
        spec = structure(item, COLLECTIONS[collection])
        warnings = tuple(fault.under(path) for fault in spec.warnings())
    except Wrong as wrong:
        faults = tuple(fault.inside(path) for fault in wrong.faults)
    if not isinstance(item, dict):
        return _Made(None, faults)
    name = id_of(item.get("id")) or derived_id(file.path or file.name, position)
    document = Document(
        key=(collection, name),
        source=source,
        position=position,
        data=item,
        digest=digest_of(item),
        spec=spec,
    )
    return _Made(document, faults, warnings)


def derived_id(path: str, position: int) -> str:
    """The id of an object that has none: its file and its place, counted from 1: `mysql.yaml-1`.

    Stable while the file keeps its name and the object its place. A path that is no id by itself (a directory, a blank,
    too long) is shortened and told apart by its digest.
    """
    if not _PLAIN_PATH.fullmatch(path):
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        path = f"{_NOT_IN_ID.sub('_', path)[-40:]}-{digest}"
    return f"{path}-{position + 1}"


_PLAIN_PATH = re.compile(r"[a-zA-Z0-9\-_.]{1,50}")
_NOT_IN_ID = re.compile(r"[^a-zA-Z0-9\-_.]")
