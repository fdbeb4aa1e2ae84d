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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from streamgw.config.documents import Document, ParsedFile, SourceFile, id_of, parse_file
from streamgw.config.hooks import Fitting, Fittings, HookWorkshop
from streamgw.config.pem import References
from streamgw.config.plugins import NO_PLUGINS, PluginSet
from streamgw.config.reach import Reach
from streamgw.config.schema import ServiceSpec, StreamRouteSpec, UpstreamSpec
from streamgw.config.strict import Fault, nearest
from streamgw.config.tls import Credentials, Look, TLSSettings, Workshop
from streamgw.config.yaml_reader import Path
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.hooks import Hooks
from streamgw.core.model import (
    Certificate,
    DatagramRules,
    Key,
    Listener,
    Revision,
    Route,
    Upstream,
    UpstreamTLS,
)
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
class _Memory:
    """What was made of documents that are still the same: a state differs from the one before it in a few of a thousand.

    Equal inputs give the very same route and upstream, which is also what the data plane likes best.
    """

    upstreams: dict[Key, tuple[Document, UpstreamTLS | None, Upstream]] = attrs.field(factory=dict)
    routes: dict[Key, tuple[tuple[object, ...], Route]] = attrs.field(factory=dict)
    reached: dict[Key, tuple[Route, tuple[Fault, ...]]] = attrs.field(factory=dict)
    """What `reach` said of each route."""
    reach: tuple[object, ...] = ()
    """What that depends on besides the route."""
    router: Router | None = None


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
      plugins: what there is to run on routes; asked at each load, too.
      wall_clock: what certificates' dates are compared with.
    """

    def __init__(
        self,
        store: Directory,
        *,
        environ: Mapping[str, str],
        tls: Callable[[], TLSSettings] = TLSSettings,
        plugins: Callable[[], PluginSet] = lambda: NO_PLUGINS,
        wall_clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._environ = environ
        self._tls = tls
        self._plugins = plugins
        self._wall_clock = wall_clock
        self._parsed: _Parsed = {}
        self._workshop = Workshop()
        self._hook_workshop = HookWorkshop()
        self._memory = _Memory()
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
                self._finish(forget=True)
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
            self._finish(forget=False)
            self.files = references.files
            raise

    def _finish(self, *, forget: bool) -> None:
        self._workshop.finish(forget=forget)
        self._hook_workshop.finish(forget=forget)

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
        return tuple(listeners), self._tls(), self._plugins()

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
        documents = [document for file in files for document in file.documents]
        credentials = Credentials(look, documents)
        fittings = Fittings(self._plugins(), self._hook_workshop, references, credentials, documents)
        resolution = _Resolution(files, credentials, fittings, self._memory, is_complete)
        compilation = _compile(files, revision, listeners, resolution)
        self._memory = resolution.memory
        return compilation

    def _parse(self, tree: FileTree) -> _Parsed:
        """Every file, in the order of the names."""
        checked = self._latest.parsed if self._latest is not None else {}
        parsed = {}
        for file in sorted(tree.files, key=lambda file: file.name):
            key = file.name, file.digest
            parsed[key] = self._parsed.get(key) or checked.get(key) or parse_file(file, self._environ)
        return parsed


def _compile(
    files: Sequence[ParsedFile], revision: Revision, listeners: Sequence[Listener], resolution: _Resolution
) -> Compilation:
    credentials = resolution.credentials
    resolution.raise_problems()
    routes = resolution.routes()
    resolution.raise_problems()  # a plugin's own code may refuse what its options allow
    router = resolution.router(routes)
    resolution.warn_of_shadows(router, routes)
    entries = tuple(credentials.entries())
    warnings = [warning for file in files for warning in file.warnings]
    warnings += resolution.warn_of_reach(listeners, entries, routes)
    warnings += resolution.report(resolution.warnings)
    warnings += resolution.fittings.problems()
    upstreams = resolution.upstreams
    nodes = (node for upstream in upstreams.values() for node in upstream.nodes)
    hooks = (hooks for _, route in routes for hooks in route.hooks)
    snapshot = Snapshot(
        revision=_with_digests(revision, resolution.digests),
        router=router,
        upstreams=upstreams,
        backgrounds=tuple(dict.fromkeys(each for each in hooks if each.background is not None)),
        names=frozenset(node.host for node in nodes if node.is_looked_up),
        certificates=SNIIndex(entries, one_label=True),
        sources={document.key: document.digest for document in resolution.documents},
    )
    return Compilation(snapshot, tuple(sorted(warnings)), resolution.documents, credentials.infos)


def _with_digests(revision: Revision, digests: Collection[str]) -> Revision:
    """The files of the directory are not all that counts: certificates beside it, variables, settings."""
    if not digests:
        return revision
    text = " ".join((revision, *sorted(digests)))
    return Revision(hashlib.sha256(text.encode()).hexdigest()[:32])


class _Resolution:
    """All documents of one state, each looked at in the light of the others."""

    def __init__(
        self,
        files: Sequence[ParsedFile],
        credentials: Credentials,
        fittings: Fittings,
        before: _Memory,
        is_complete: bool,
    ) -> None:
        self.documents = tuple(document for file in files for document in file.documents)
        self.credentials = credentials
        self.fittings = fittings
        self.faults: list[tuple[Document, Fault]] = credentials.faults + fittings.faults
        self.warnings: list[tuple[Document, Fault]] = credentials.warnings + fittings.warnings
        self.digests = credentials.digests | fittings.digests
        self.memory = _Memory()
        self._before = before
        self.upstreams: dict[str, Upstream] = {}
        """By key: every one that `routes` can reach."""
        self._file_problems = [problem for file in files for problem in file.problems]
        self._locations = {
            document.source.file: file.locations for file in files for document in file.documents[:1]
        }
        self._by_key: dict[Key, Document] = {}
        self._upstreams: dict[Key, Upstream] = {}
        self._index()
        # While a file cannot be read, nobody knows what it would have defined.
        if is_complete:
            self._check_references()
        self._check_passthrough()

    def raise_problems(self) -> None:
        """Stop here if anything is wrong, with everything that is.

        Raises:
          ConfigError: it is.
        """
        problems = self._file_problems + self.report(self.faults)
        if problems:
            raise ConfigError(tuple(sorted(problems)))

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

    def router(self, routes: Sequence[tuple[Document, Route]]) -> Router:
        """Who chooses among them."""
        router = Router([route for _, route in routes], self._before.router)
        self.memory = attrs.evolve(self.memory, router=router)
        return router

    def warn_of_shadows(self, router: Router, routes: Sequence[tuple[Document, Route]]) -> None:
        """Routes that an earlier one leaves nothing."""
        documents = {route.id: document for document, route in routes}
        for route, earlier in router.shadowed():
            message = (
                f"never wins: route {earlier.id} ({earlier.source}) comes first and takes all it asks for"
            )
            self.warnings.append((documents[route.id], Fault((), message)))

    def warn_of_reach(
        self,
        listeners: Sequence[Listener],
        entries: Sequence[tuple[str, Certificate]],
        routes: Sequence[tuple[Document, Route]],
    ) -> tuple[Problem, ...]:
        """Routes that ask for what no client can have. Returns what is wrong with the listeners themselves."""
        reach = Reach(listeners, entries)
        names = tuple(name for name, _ in entries)
        is_as_before = self._before.reach == (tuple(listeners), names)
        self.memory = attrs.evolve(self.memory, reach=(tuple(listeners), names))
        for document, route in routes:
            known = self._before.reached.get(document.key) if is_as_before else None
            if known is None or known[0] is not route:
                known = route, tuple(reach.faults(route, document.data))
            self.memory.reached[document.key] = known
            self.warnings += ((document, fault) for fault in known[1])
        return tuple(reach.problems())

    def _index(self) -> None:
        for document in self.documents:
            first = self._by_key.setdefault(document.key, document)
            if first is not document:
                message = f"'{document.key[1]}' is already defined at {first.source}"
                self.faults.append((document, Fault(("id",), message)))

    def _check_references(self) -> None:
        references: list[tuple[Document, Path, Key]] = [
            (document, (field,), key) for document in self.documents for field, key in _references(document)
        ]
        references += self.fittings.references
        dangling = [each for each in references if each[2] not in self._by_key]
        for number, (document, path, (collection, name)) in enumerate(dangling):
            hint = self._hint(collection, name) if number < _MAX_HINTS else ""
            kind = collection.removesuffix("s")
            words = f"failed to fetch {kind} info by {kind} id [{name}], response code: 404"
            fault = Fault(path, f"no {kind} has the id '{name}'{hint}", apisix=words, is_final=True)
            self.faults.append((document, fault))

    def _check_passthrough(self) -> None:
        for document in self.documents:
            spec = document.spec
            if isinstance(spec, StreamRouteSpec) and spec.status and spec.tls_passthrough:
                upstream = self._upstream_spec_of(spec)
                if (upstream is not None and upstream.scheme == "tls") or self._plugins_speak_tls(
                    document, spec
                ):
                    message = (
                        "the client's TLS is handed on untouched: its upstream cannot have 'scheme: tls'"
                    )
                    self.faults.append((document, Fault(("tls_passthrough",), message)))

    def _plugins_speak_tls(self, document: Document, spec: StreamRouteSpec) -> bool:
        """A plugin of this route may send a client to an upstream with `scheme: tls`."""
        service = self._by_key.get(("services", spec.service_id or ""))
        return any(
            fitting.speaks_tls or any(self._is_tls(name) for name in fitting.upstream_ids)
            for fitting in self.fittings.of_route(document, service)
        )

    def _is_tls(self, upstream_id: str) -> bool:
        found = self._by_key.get(("upstreams", upstream_id))
        return found is not None and isinstance(found.spec, UpstreamSpec) and found.spec.scheme == "tls"

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
        service = self._by_key[("services", spec.service_id)] if spec.service_id is not None else None
        fittings = self.fittings.of_route(document, service)
        chosen = [each for fitting in fittings for each in self._upstreams_for(fitting)]
        if upstream is not None:
            chosen.append(upstream)
        if not chosen:
            self.warnings.append((document, Fault((), "no upstream: every session that matches is closed")))
        for each in chosen:
            self.upstreams[each.key] = each
        hooks = tuple(self._hooks(fitting, document, service) for fitting in fittings)
        inputs: tuple[object, ...] = (document, upstream, *hooks)
        known = self._before.routes.get(document.key)
        if known is None or known[0] != inputs:  # mostly the very same, which a tuple looks at first
            known = inputs, _build_route(document, spec, upstream, hooks)
        self.memory.routes[document.key] = known
        return known[1]

    def _upstreams_for(self, fitting: Fitting) -> Iterator[Upstream]:
        """What a plugin may choose among."""
        yield from fitting.upstreams
        for name in fitting.upstream_ids:
            yield self._upstream_by_id(name)

    def _hooks(self, fitting: Fitting, document: Document, service: Document | None) -> Hooks:
        try:
            return self.fittings.hooks(fitting, document, service)
        except Exception as error:  # noqa: BLE001  the code of a plugin, perhaps not ours: it must not end the reloader
            message = f"plugin {fitting.plugin.name} cannot be built: {error!r}"
            self.faults.append((document, Fault(("plugins",), message)))
            return Hooks()

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
        if spec.upstream_id is not None:
            return self._upstream_by_id(spec.upstream_id)
        if owner not in self._upstreams and spec.upstream is not None:
            self._upstreams[owner] = self._built(owner, spec.upstream, "{}/{}/upstream")
        return self._upstreams.get(owner)

    def _upstream_by_id(self, name: str) -> Upstream:
        key = ("upstreams", name)
        if key not in self._upstreams:
            spec = self._by_key[key].spec
            assert isinstance(spec, UpstreamSpec), "the collection decides the class"
            self._upstreams[key] = self._built(key, spec, "{}/{}")
        return self._upstreams[key]

    def _built(self, owner: Key, spec: UpstreamSpec, form: str) -> Upstream:
        document, tls = self._by_key[owner], self.credentials.of_upstream(owner)
        known = self._before.upstreams.get(owner)
        if known is None or known[0] is not document or known[1] != tls:
            known = document, tls, spec.build(form.format(*owner), tls)
        self.memory.upstreams[owner] = known
        return known[2]


def _build_route(
    document: Document, spec: StreamRouteSpec, upstream: Upstream | None, hooks: tuple[Hooks, ...]
) -> Route:
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
        hooks=hooks,
    )


def _references(document: Document) -> Iterator[tuple[str, Key]]:
    """What an object refers to. Read from what is written: an object with other problems has no spec."""
    for field, target in _REFERENCES.get(document.key[0], {}).items():
        if field in document.data and (name := id_of(document.data[field])):
            yield field, (target, name)


_REFERENCES: Mapping[str, Mapping[str, str]] = {
    "stream_routes": {"upstream_id": "upstreams", "service_id": "services"},
    "services": {"upstream_id": "upstreams"},
}
