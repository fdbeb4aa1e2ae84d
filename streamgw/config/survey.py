"""Which objects stand where, in one state of the directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import attrs

from streamgw.config import edit
from streamgw.config.documents import derived_id, digest_of
from streamgw.config.edit import NotEditable
from streamgw.config.tree import Entry, Moment, State
from streamgw.core.model import Key


@attrs.frozen
class Located:
    """One object where it stands."""

    key: Key
    file: str
    """`routes.d/mysql.yaml`."""
    line: int
    """From 1."""
    start: int
    """Offset of its first character in the text of the file (a byte order mark does not count)."""
    end: int
    """Offset after its last character."""
    data: Mapping[str, object]
    """As written, `${{NAME}}` not filled in."""
    digest: str
    entry: Entry = attrs.field(repr=False)
    """Its file."""
    position: int
    """From 0, in its collection in its file."""
    is_named: bool
    """False: it has no id of its own, and is called after its file and place. Then it cannot be changed here."""


@attrs.frozen
class Survey:
    """One state of the directory with every object in it."""

    moment: Moment
    objects: Mapping[Key, Located]
    """By file and position. Those without an id by the name the Loader gives them."""

    def of(self, collection: str) -> tuple[Located, ...]:
        """All objects of a collection."""
        return tuple(located for key, located in self.objects.items() if key[0] == collection)


class Surveyor:
    """Finds objects in files, and remembers what it found while a file stays the same."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: Mapping[str, tuple[bytes, Entry, tuple[Located, ...]]] = {}
        """By the file's name: its content, and what is in it."""

    def survey(self, moment: Moment, *, to_show: bool = False) -> Survey:
        """Every object of a moment.

        One `to_show` is for whoever only looks; nothing may be written by it. A broken file has there what it held at the
        latest survey that could read it, which may be older than what runs, and nothing if there was none. Of two objects
        with the same id it has the first.

        Raises:
          NotEditable: a file is broken, or two objects of a kind have the same id. Not `to_show`.
        """
        objects: dict[Key, Located] = {}
        seen = {}
        for entry in moment.state.entries:
            content = moment.state.contents[entry.name]
            known = self._seen.get(entry.name)
            if known is None or known[0] is not content or known[1] != entry:
                try:
                    known = content, entry, self._look(entry, content)
                except NotEditable:
                    if not to_show:
                        raise
                    if known is None:
                        continue
            seen[entry.name] = known
            for located in known[2]:
                if objects.setdefault(located.key, located) is not located and not to_show:
                    raise _twice(objects[located.key], located)
        self._seen = seen
        return Survey(moment, objects)

    def find(self, key: Key, state: State) -> Located | None:
        """One of them, without parsing what cannot define it: ten thousand files take seconds.

        Raises:
          NotEditable: a file that mentions the id is broken, or two objects of the kind have it.
        """
        # A file that defines an id holds it as it is, or with escapes, which have a backslash.
        candidates = (
            entry
            for entry in state.entries
            if key[1].encode() in state.contents[entry.name] or b"\\" in state.contents[entry.name]
        )
        found = [
            located
            for entry in candidates
            for located in self._look(entry, state.contents[entry.name])
            if located.key == key
        ]
        if len(found) > 1:
            raise _twice(*found[:2])
        return found[0] if found else None

    def _look(self, entry: Entry, content: bytes) -> tuple[Located, ...]:
        known = self._seen.get(entry.name)
        if known is not None and known[:2] == (content, entry):
            return known[2]
        shown = str(self._directory / entry.name)
        with in_file(shown):
            return tuple(
                Located(
                    key=item.key,
                    file=shown,
                    line=item.line,
                    start=item.start,
                    end=item.end,
                    data=item.data,
                    digest=digest_of(item.data),
                    entry=entry,
                    position=item.position,
                    is_named=item.data.get("id") is not None,
                )
                for item in edit.find_items(edit.decode(content), name=partial(derived_id, entry.name))
            )


@contextlib.contextmanager
def in_file(shown: str) -> Iterator[None]:
    """Say in which file an edit went wrong."""
    try:
        yield
    except NotEditable as error:
        raise NotEditable(f"{shown}: {error}") from error


def _twice(first: Located, second: Located) -> NotEditable:
    places = f"{first.file}:{first.line} and {second.file}:{second.line}"
    return NotEditable(f"{first.key[0]} {first.key[1]} is defined more than once: {places}")
