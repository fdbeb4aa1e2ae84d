"""Documents to a Snapshot: references resolved, order fixed, everything checked against everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from streamgw.config.documents import Document, SourceFile
from streamgw.core.errors import Problem
from streamgw.core.model import Key, Listener, Revision
from streamgw.core.snapshot import Snapshot


class FileTree(Protocol):
    """What was found in the directory (`config.store.Tree`)."""

    @property
    def files(self) -> tuple[SourceFile, ...]: ...
    @property
    def revision(self) -> Revision: ...


class Directory(Protocol):
    """Where the files come from (`config.store.Store`)."""

    def read(self) -> FileTree: ...


@attrs.frozen
class Compilation:
    """One valid state of the directory."""

    snapshot: Snapshot
    warnings: tuple[Problem, ...]
    documents: tuple[Document, ...]


class Loader:
    """Reads and compiles one directory; remembers parsed files, so that a reload parses only what changed."""

    def __init__(self, store: Directory, *, environ: Mapping[str, str]) -> None:
        self._store = store
        self._environ = environ

    def load(self, listeners: Sequence[Listener]) -> Compilation:
        """Read the directory and compile all of it. Blocks: run it in a worker thread.

        Raises:
          ConfigError: with every problem of every file; nothing of this state may be used.
          StoreError: the directory could not be read.
        """
        raise NotImplementedError

    def check(
        self,
        listeners: Sequence[Listener],
        *,
        put: tuple[Key, Mapping[str, object]] | None = None,
        delete: Key | None = None,
    ) -> Compilation:
        """What the directory would be with this object put or deleted. Writes nothing. Raises like `load`."""
        raise NotImplementedError
