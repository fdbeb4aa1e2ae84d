"""Documents to a Snapshot: references resolved, order fixed, everything checked against everything.

All or nothing: one problem in one file and there is no snapshot, only the list of all problems. What concerns a file
alone comes from `config/documents.py` and is remembered by the file's digest, so a reload parses what changed and
nothing else. What concerns several files is looked at in one pass, by `config/resolution.py`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from streamgw.config.documents import Document, ParsedFile, SourceFile, parse_file
from streamgw.config.hooks import Fittings, HookWorkshop
from streamgw.config.pem import References
from streamgw.config.plugins import NO_PLUGINS, PluginSet
from streamgw.config.resolution import Memory, Resolution
from streamgw.config.tls import Credentials, Look, TLSSettings, Workshop
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import (
    Key,
    Listener,
    Revision,
)
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

    def latest(self) -> FileTree:
        """What `read` found last, and what was written through it since. Raises StoreError."""
        ...


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
        self._memory = Memory()
        self._loaded: _Answer | None = None
        self._checked: _Answer | None = None
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
        return self._take(self._store.read(), listeners)

    def load_written(self, listeners: Sequence[Listener]) -> Compilation:
        """What `load` says right after a write through the store, if nobody else changed a file since.

        Does not look at the directory, which is half the time of such a load. Raises like `load`.
        """
        return self._take(self._store.latest(), listeners)

    def _take(self, tree: FileTree, listeners: Sequence[Listener]) -> Compilation:
        with self._turn:
            answer = self._known(tree.revision, listeners)
            if answer is None:
                answer = self._load(tree, listeners)
            if answer is not self._loaded:
                self._parsed = answer.parsed
                self._finish(forget=True)
            self._loaded = answer
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
                answer = self._checked = self._answer(tree, listeners, References(self._environ))
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
        """An answer that was given before, if the same would come out again.

        Of two: a look at what runs comes between a check and the load of what was checked.
        """
        circumstances, now = self._circumstances(listeners), self._wall_clock()
        for answer in (self._loaded, self._checked):
            if (
                answer is not None
                and answer.revision == revision
                and answer.circumstances == circumstances
                and answer.at <= now < answer.at + _KEPT_FOR
                and answer.references.are_as_before()
            ):
                return answer
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
        resolution = Resolution(files, credentials, fittings, self._memory, is_complete)
        compilation = _compile(files, revision, listeners, resolution)
        self._memory = resolution.memory
        return compilation

    def _parse(self, tree: FileTree) -> _Parsed:
        """Every file, in the order of the names."""
        checked = self._checked.parsed if self._checked is not None else {}
        parsed = {}
        for file in sorted(tree.files, key=lambda file: file.name):
            key = file.name, file.digest
            parsed[key] = self._parsed.get(key) or checked.get(key) or parse_file(file, self._environ)
        return parsed


def _compile(
    files: Sequence[ParsedFile], revision: Revision, listeners: Sequence[Listener], resolution: Resolution
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
        services=frozenset(each.service_name for each in upstreams.values() if each.service_name),
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
