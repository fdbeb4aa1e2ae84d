"""What a write will do to the directory, decided before anything is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from streamgw.config import edit
from streamgw.config.documents import digest_of
from streamgw.config.edit import NotEditable
from streamgw.config.hidden import secrets_in
from streamgw.config.survey import Located, in_file
from streamgw.config.tree import Entry, Moment, State, Tree, build_tree
from streamgw.core.errors import StoreError
from streamgw.core.model import Key

_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_COLLECTION: Final = re.compile(r"[a-z][a-z_]*")
_SECRET: Final = frozenset({"ssls", "secrets"})
"""Collections whose files only their owner may read."""


class AlreadyExists(StoreError):
    """An object, or a file of that name, is there already."""


class NotFound(StoreError):
    """There is no such object."""


class Stale(StoreError):
    """The object or its file is not what the writer believed. Nothing was written."""


@attrs.frozen
class Change:
    """What becomes of one file."""

    path: Path
    content: bytes
    """Empty: the file goes."""
    replaces: Entry | None
    """What stands there now."""
    mode: int = 0o644
    """Of a new file."""
    is_narrowed: bool = False
    """It gets a secret of a kind that it had none of, which not everybody shall see who may read it now."""


@attrs.frozen
class Plan:
    """A write, thought through and not made."""

    change: Change
    before: State = attrs.field(repr=False)
    after: Tree = attrs.field(repr=False)
    """What the directory will be: the very text, so that problems name the right lines."""
    name: str
    """Of the file, below the directory."""

    @property
    def changes_nothing(self) -> bool:
        """The file holds what it should already."""
        return bool(self.change.content) and self.change.content == self.before.contents.get(self.name)


class Planner:
    """Plans for the files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(
        self,
        key: Key,
        data: Mapping[str, object],
        found: Located | None,
        moment: Moment,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> Plan:
        """Add an object in a file of its own, or change it where it was `found`. Raises like `Store.put`."""
        check_key(key)
        if str(data.get("id", key[1])) != key[1]:
            raise StoreError(f"{key[0]} {key[1]}: its data says that its id is {data['id']}")
        _check_match(key, found, if_match)
        if found is None:
            own = self._free_path(key, moment.state)
            with in_file(str(own)):
                new = edit.new_file(key, data).encode()
            mode = 0o600 if key[0] in _SECRET or secrets_in(new) else 0o644
            return self._plan(Change(own, new, None, mode), moment)
        if if_absent:
            raise AlreadyExists(f"{found.file}:{found.line}: {key[0]} {key[1]} is there already")
        self._check_editable(found)
        content = moment.state.contents[found.entry.name]
        with in_file(found.file):
            text = edit.encode(edit.replace_item(edit.decode(content), key, data), content)
        is_narrowed = not secrets_in(text) <= secrets_in(content)
        return self._plan(Change(Path(found.entry.path), text, found.entry, is_narrowed=is_narrowed), moment)

    def delete(self, key: Key, found: Located | None, moment: Moment, *, if_match: str | None = None) -> Plan:
        """Remove an object, and its file if that was written for it alone. Raises like `Store.delete`."""
        check_key(key)
        _check_match(key, found, if_match)
        if found is None:
            raise NotFound(f"{self._directory}: no {key[0]} {key[1]}")
        self._check_editable(found)
        content = moment.state.contents[found.entry.name]
        with in_file(found.file):
            rest = edit.remove_item(edit.decode(content), key)
            alone = found.entry.name in _own_names(key) and not edit.find_items(rest, name=str)
        text = b"" if alone else edit.encode(rest, content)
        return self._plan(Change(Path(found.entry.path), text, found.entry), moment)

    def file(self, name: str, content: bytes, moment: Moment) -> Plan:
        """A whole file. It may hold keys: only its owner may read it.

        Raises:
          NotEditable: what stands there is a link.
        """
        entry = next((entry for entry in moment.state.entries if entry.name == name), None)
        if entry is not None:
            self._check_regular(entry)
        return self._plan(Change(self._directory / name, content, entry, 0o600), moment)

    def _plan(self, change: Change, moment: Moment) -> Plan:
        name = change.path.relative_to(self._directory).as_posix()
        contents = {**moment.state.contents, name: change.content}
        if not change.content:
            del contents[name]
        return Plan(change, moment.state, build_tree(self._directory, contents, moment.tree), name)

    def _free_path(self, key: Key, state: State) -> Path:
        """`stream_routes/mysql.yaml`, or the next like it that is free: somebody may keep other objects there."""
        return self._directory / next(name for name in _own_names(key) if name not in state.contents)

    def _check_editable(self, found: Located) -> None:
        if not found.is_named:
            raise NotEditable(f"{found.file}:{found.line}: has no id; write one into the file first")
        self._check_regular(found.entry)

    def _check_regular(self, entry: Entry) -> None:
        real = Path(os.path.realpath(entry.path))
        if real == Path(os.path.realpath(self._directory)) / entry.name:
            return
        if any(part.startswith("..") for part in real.parts):
            # Kubernetes keeps the files of a volume in `..2026_11_21_…`, behind the link `..data`.
            raise NotEditable(
                f"{entry.path}: comes from a Kubernetes volume; change the ConfigMap or Secret instead"
            )
        raise NotEditable(f"{entry.path}: a link to {real}; edit that file instead")


def check_key(key: Key) -> None:
    """The key becomes a file name.

    Raises:
      StoreError: it must not.
    """
    if not _COLLECTION.fullmatch(key[0]):
        raise StoreError(f"{key[0]!r} is no collection of objects")
    if not _ID.fullmatch(key[1]):
        raise StoreError(
            f"id {key[1]!r}: expected 1 to 64 letters, digits, '-', '_' and '.', not beginning with '.'"
        )


def place_in(content: bytes, key: Key) -> int:
    """The position of an object in its collection in the text of a file, from 0."""
    return next(item.position for item in edit.find_items(edit.decode(content)) if item.key == key)


def digest_in(content: bytes, key: Key) -> str:
    """The digest of an object as it stands in the text of a file."""
    return next(digest_of(item.data) for item in edit.find_items(edit.decode(content)) if item.key == key)


def _own_names(key: Key) -> Iterator[str]:
    """The names that a file of this object's own may have, in the order in which they are tried."""
    yield f"{key[0]}/{key[1]}.yaml"
    yield from (f"{key[0]}/{key[1]}-{number}.yaml" for number in range(2, 100))


def _check_match(key: Key, located: Located | None, if_match: str | None) -> None:
    if if_match is not None and (located is None or located.digest != if_match):
        raise Stale(f"{key[0]} {key[1]}: not the version that was expected; nothing was written")
