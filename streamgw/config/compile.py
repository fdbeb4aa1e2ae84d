"""Documents to a Snapshot: references resolved, order fixed, everything checked against everything.

All or nothing: one problem in one file and there is no snapshot, only the list of all problems. What concerns a file
alone comes from `config/documents.py` and is remembered by the file's digest, so a reload parses what changed and
nothing else. What concerns several files is done anew each time, in one pass.

Source:
  APISIX for what wins over what: `upstream_id`, then the route's own upstream, then the service's.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from streamgw.config.documents import Document, ParsedFile, SourceFile, id_of, parse_file
from streamgw.config.pem import References
from streamgw.config.reach import Reach
from streamgw.config.schema import ServiceSpec, StreamRouteSpec, UpstreamSpec
from streamgw.config.strict import Fault, nearest
from streamgw.config.tls import Credentials, Look, TLSSettings, Workshop
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import DatagramRules, Key, Listener, Revision, Route, Upstream
from streamgw.core.router import Router
from streamgw.core.snapshot import Snapshot
from streamgw.core.sni import SNIIndex

if TYPE_CHECKING:
    from streamgw.config.x509 import CertificateInfo


class FileTree(Protocol):
    """One state of the directory (`config.store.Tree`)."""

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every file."""
        ...

    @property
    def revision(self) -> Revision:
        """Digest of every file."""
        ...


class Directory(Protocol):
    """Where the files come from (`config.store.Store`)."""

    def read(self) -> FileTree:
        """All files, of one moment. Raises StoreError."""
        ...


# Looking for the nearest of 1,000 names takes 10 ms: not for every line of a broken file.
_MAX_HINTS = 10
_MAX_NAMES = 1000


@attrs.frozen
class Compilation:
    """One valid state of the directory."""

    snapshot: Snapshot
    warnings: tuple[Problem, ...]
    documents: tuple[Document, ...]
    certificates: Mapping[Key, CertificateInfo] = attrs.field(factory=dict)
    """Of every enabled object of `ssls`, those of type client too: its first certificate."""


def _now() -> datetime:
    return datetime.now(UTC)


_Parsed: TypeAlias = Mapping[tuple[str, str], ParsedFile]
"""By name and digest, in the order of the names."""
_KEPT_FOR = timedelta(minutes=1)
"""A compile is taken for that of a later moment: what it says of certificates that expire is good for that long."""


@attrs.frozen
class _Answer:
    """What a state of the directory compiled to, and all that went into that."""

    revision: Revision
    circumstances: tuple[object, ...]
    at: datetime
    references: References
    parsed: _Parsed
    compilation: Compilation
    is_loaded: bool = False
    """It is, or was, what runs; False: it was only checked."""


class Loader:
    """Reads and compiles one directory; remembers parsed files, so that a reload parses only what changed.

    What was checked and is then found on the disk is not compiled again: a write through the API costs one compile.
    Threads may share a loader; they take turns.

    Args:
      tls: asked at each load: conf/config.yaml may have changed.
      wall_clock: what certificates' dates are compared with.
    """

    def __init__(
        self,
        store: Directory,
        *,
        environ: Mapping[str, str],
        tls: Callable[[], TLSSettings] = TLSSettings,
        wall_clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._environ = environ
        self._tls = tls
        self._wall_clock = wall_clock
        self._parsed: _Parsed = {}
        self._workshop = Workshop()
        self._latest: _Answer | None = None
        self._turn = threading.Lock()
        self.files: frozenset[FilePath] = frozenset()
        """What the latest `load` looked at outside of the directory, also if it failed: to be watched with it. Absolute;
        some may not exist."""

    def load(self, listeners: Sequence[Listener]) -> Compilation:
        """Read the directory and compile all of it. Blocks: run it in a worker thread.

        Raises:
          ConfigError: with every problem of every file; nothing of this state may be used.
          StoreError: the directory could not be read.
        """
        tree = self._store.read()
        with self._turn:
            answer = self._known(tree.revision, listeners)
            if answer is None:
                answer = self._load(tree, listeners)
            if not answer.is_loaded:
                self._parsed = answer.parsed
                self._workshop.finish(forget=True)
            self._latest = attrs.evolve(answer, is_loaded=True)
            self.files = answer.references.files
            return answer.compilation

    def check(self, tree: FileTree, listeners: Sequence[Listener]) -> Compilation:
        """What `load` would say if the directory were this. Blocks; changes nothing.

        Raises:
          ConfigError: with every problem of every file.
        """
        with self._turn:
            answer = self._known(tree.revision, listeners)
            if answer is None:
                answer = self._answer(tree, listeners, References(self._environ))
                self._latest = answer
            return answer.compilation

    def _load(self, tree: FileTree, listeners: Sequence[Listener]) -> _Answer:
        references = References(self._environ)
        try:
            return self._answer(tree, listeners, references)
        except ConfigError:
            # What could be parsed need not be parsed again when the rest is mended.
            self._parsed = self._parse(tree)
            self._workshop.finish(forget=False)
            self.files = references.files
            raise

    def _known(self, revision: Revision, listeners: Sequence[Listener]) -> _Answer | None:
        """The answer of last time, if the same would come out again."""
        latest = self._latest
        if (
            latest is not None
            and latest.revision == revision
            and latest.circumstances == self._circumstances(listeners)
            and latest.at <= self._wall_clock() < latest.at + _KEPT_FOR
            and latest.references.are_as_before()
        ):
            return latest
        return None

    def _circumstances(self, listeners: Sequence[Listener]) -> tuple[object, ...]:
        """What counts beside the files and what they refer to."""
        return tuple(listeners), self._tls()

    def _answer(self, tree: FileTree, listeners: Sequence[Listener], references: References) -> _Answer:
        now = self._wall_clock()
        circumstances = self._circumstances(listeners)
        parsed = self._parse(tree)
        compilation = self._compile(parsed, tree.revision, listeners, references)
        return _Answer(tree.revision, circumstances, now, references, parsed, compilation)

    def _compile(
        self,
        parsed: _Parsed,
        revision: Revision,
        listeners: Sequence[Listener],
        references: References,
    ) -> Compilation:
        files = list(parsed.values())
        is_complete = all(file.is_readable for file in files)
        look = Look(self._workshop, references, self._tls(), self._wall_clock(), is_complete)
        return _compile(files, revision, listeners, look)

    def _parse(self, tree: FileTree) -> _Parsed:
        """Every file, in the order of the names."""
        checked = self._latest.parsed if self._latest is not None else {}
        parsed = {}
        for file in sorted(tree.files, key=lambda file: file.name):
            key = file.name, file.digest
            parsed[key] = self._parsed.get(key) or checked.get(key) or parse_file(file, self._environ)
        return parsed


def _compile(
    files: Sequence[ParsedFile], revision: Revision, listeners: Sequence[Listener], look: Look
) -> Compilation:
    documents = tuple(document for file in files for document in file.documents)
    credentials = Credentials(look, documents)
    resolution = _Resolution(files, credentials, look.is_complete)
    problems = [problem for file in files for problem in file.problems]
    problems += resolution.report(resolution.faults)
    if problems:
        raise ConfigError(tuple(sorted(problems)))
    routes = resolution.routes()
    router = Router([route for _, route in routes])
    resolution.warn_of_shadows(router, routes)
    entries = tuple(credentials.entries())
    reach = Reach(listeners, entries)
    resolution.warn_of_reach(reach, routes)
    warnings = [warning for file in files for warning in file.warnings]
    warnings += reach.problems()
    warnings += resolution.report(resolution.warnings)
    upstreams = {route.upstream.key: route.upstream for _, route in routes if route.upstream}
    nodes = (node for upstream in upstreams.values() for node in upstream.nodes)
    snapshot = Snapshot(
        revision=_with_credentials(revision, credentials),
        router=router,
        upstreams=upstreams,
        names=frozenset(node.host for node in nodes if node.is_looked_up),
        certificates=SNIIndex(entries, one_label=True),
        sources={document.key: document.digest for document in resolution.documents},
    )
    return Compilation(snapshot, tuple(sorted(warnings)), documents, credentials.infos)


def _with_credentials(revision: Revision, credentials: Credentials) -> Revision:
    """The files of the directory are not all that counts: certificates beside it, variables, settings."""
    if not credentials.digests:
        return revision
    text = " ".join((revision, *sorted(credentials.digests)))
    return Revision(hashlib.sha256(text.encode()).hexdigest()[:32])


class _Resolution:
    """All documents of one state, each looked at in the light of the others."""

    def __init__(self, files: Sequence[ParsedFile], credentials: Credentials, is_complete: bool) -> None:
        self.documents = tuple(document for file in files for document in file.documents)
        self.faults: list[tuple[Document, Fault]] = credentials.faults
        self.warnings: list[tuple[Document, Fault]] = credentials.warnings
        self._credentials = credentials
        self._locations = {
            document.source.file: file.locations for file in files for document in file.documents[:1]
        }
        self._by_key: dict[Key, Document] = {}
        self._upstreams: dict[Key, Upstream | None] = {}
        self._index()
        # While a file cannot be read, nobody knows what it would have defined.
        if is_complete:
            self._check_references()
        self._check_passthrough()

    def report(self, found: Sequence[tuple[Document, Fault]]) -> list[Problem]:
        """Faults as problems with a file and a line."""
        by_file: dict[str, list[Fault]] = {}
        for document, fault in found:
            by_file.setdefault(document.source.file, []).append(fault.inside(document.path))
        return [
            problem for file, faults in by_file.items() for problem in self._locations[file].problems(faults)
        ]

    def routes(self) -> list[tuple[Document, Route]]:
        """The routes that are on, in the order they are asked: priority, file, position."""
        found: list[tuple[Document, StreamRouteSpec]] = [
            (document, document.spec)
            for document in self.documents
            if isinstance(document.spec, StreamRouteSpec) and document.spec.status
        ]
        found.sort(key=lambda pair: -pair[1].priority)
        return [(document, self._route(document, spec)) for document, spec in found]

    def warn_of_shadows(self, router: Router, routes: Sequence[tuple[Document, Route]]) -> None:
        """Routes that an earlier one leaves nothing."""
        documents = {route.id: document for document, route in routes}
        for route, earlier in router.shadowed():
            message = (
                f"never wins: route {earlier.id} ({earlier.source}) comes first and takes all it asks for"
            )
            self.warnings.append((documents[route.id], Fault((), message)))

    def warn_of_reach(self, reach: Reach, routes: Sequence[tuple[Document, Route]]) -> None:
        """Routes that ask for what no client can have."""
        for document, route in routes:
            self.warnings += ((document, fault) for fault in reach.faults(route, document.data))

    def _index(self) -> None:
        for document in self.documents:
            first = self._by_key.setdefault(document.key, document)
            if first is not document:
                message = f"'{document.key[1]}' is already defined at {first.source}"
                self.faults.append((document, Fault(("id",), message)))

    def _check_references(self) -> None:
        dangling = [
            (document, field, key)
            for document in self.documents
            for field, key in _references(document)
            if key not in self._by_key
        ]
        for number, (document, field, (collection, name)) in enumerate(dangling):
            hint = self._hint(collection, name) if number < _MAX_HINTS else ""
            kind = collection.removesuffix("s")
            words = f"failed to fetch {kind} info by {kind} id [{name}], response code: 404"
            fault = Fault((field,), f"no {kind} has the id '{name}'{hint}", apisix=words, is_final=True)
            self.faults.append((document, fault))

    def _check_passthrough(self) -> None:
        for document in self.documents:
            spec = document.spec
            if isinstance(spec, StreamRouteSpec) and spec.status and spec.tls_passthrough:
                upstream = self._upstream_spec_of(spec)
                if upstream is not None and upstream.scheme == "tls":
                    message = (
                        "the client's TLS is handed on untouched: its upstream cannot have 'scheme: tls'"
                    )
                    self.faults.append((document, Fault(("tls_passthrough",), message)))

    def _upstream_spec_of(self, owner: StreamRouteSpec | ServiceSpec) -> UpstreamSpec | None:
        """As `_upstream_of`, among objects that may have faults."""
        if owner.upstream_id is not None:
            found = self._by_key.get(("upstreams", owner.upstream_id))
            return found.spec if found is not None and isinstance(found.spec, UpstreamSpec) else None
        if owner.upstream is not None or isinstance(owner, ServiceSpec) or owner.service_id is None:
            return owner.upstream
        found = self._by_key.get(("services", owner.service_id))
        if found is None or not isinstance(found.spec, ServiceSpec):
            return None
        return self._upstream_spec_of(found.spec)

    def _hint(self, collection: str, name: str) -> str:
        known = (other for kind, other in self._by_key if kind == collection)
        return nearest(name, tuple(itertools.islice(known, _MAX_NAMES)))

    def _route(self, document: Document, spec: StreamRouteSpec) -> Route:
        upstream = self._upstream_of(document.key, spec)
        if upstream is None and spec.service_id is not None:
            upstream = self._upstream_of_service(document, spec.service_id)
        if upstream is None:
            self.warnings.append((document, Fault((), "no upstream: every session that matches is closed")))
        return Route(
            id=document.key[1],
            match=spec.build_match(),
            upstream=upstream,
            source=document.source,
            priority=spec.priority,
            name=spec.name or "",
            service_id=spec.service_id or "",
            tls_passthrough=spec.tls_passthrough,
            udp=spec.udp.build() if spec.udp is not None else DatagramRules(),
        )

    def _upstream_of_service(self, document: Document, service_id: str) -> Upstream | None:
        key = ("services", service_id)
        service = self._by_key[key].spec
        assert isinstance(service, ServiceSpec), "the collection decides the class"
        if service.type == "http":
            fault = Fault(("service_id",), f"service '{service_id}' is of type http, not stream")
            self.warnings.append((document, fault))
        return self._upstream_of(key, service)

    def _upstream_of(self, owner: Key, spec: StreamRouteSpec | ServiceSpec) -> Upstream | None:
        """The upstream that an object names or contains. Equal keys give the same value."""
        key = owner if spec.upstream_id is None else ("upstreams", spec.upstream_id)
        if key not in self._upstreams:
            inline = spec.upstream if spec.upstream_id is None else self._by_key[key].spec
            assert inline is None or isinstance(inline, UpstreamSpec), "the collection decides the class"
            name = "/".join(key) if spec.upstream_id is not None else f"{owner[0]}/{owner[1]}/upstream"
            tls = self._credentials.of_upstream(key)
            self._upstreams[key] = inline.build(name, tls) if inline is not None else None
        return self._upstreams[key]


def _references(document: Document) -> Iterator[tuple[str, Key]]:
    """What an object refers to. Read from what is written: an object with other problems has no spec."""
    for field, target in _REFERENCES.get(document.key[0], {}).items():
        if field in document.data and (name := id_of(document.data[field])):
            yield field, (target, name)


_REFERENCES: Mapping[str, Mapping[str, str]] = {
    "stream_routes": {"upstream_id": "upstreams", "service_id": "services"},
    "services": {"upstream_id": "upstreams"},
}
