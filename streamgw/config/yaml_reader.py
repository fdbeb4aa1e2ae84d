"""YAML and JSON to plain data, without YAML's traps, and the place of every value when it is asked for.

Constitution:

* **Events, not nodes.** libyaml composes or loads a document in one C call that never lets another thread run: 700 ms
  for 10,000 routes, during which the data plane stands still. Reading its events from Python costs 10 microseconds per
  route and the interpreter may switch threads between any two.
* **Only what YAML 1.2's core schema and every reader agree on is converted**: `true`, `null`, decimal numbers. `no`,
  `on`, `22:22`, `0123`, `0x1f`, `1_000`, dates are text, and a key is always the text it was written as.
* **Duplicate keys are errors**, tags other than `!!str` too, and a file has one document.
* **Aliases and `<<` work, within a bound**: what they add is counted, so that nine lines cannot become a billion
  values. An aliased value is the same object twice, never a copy; nobody changes what was read.
* **Places are not kept.** The fast pass remembers one line per item of a collection. `locate` reads the events again,
  when there is something to report.

JSON is read as the YAML it is, with the same strictness.

Source:
  YAML 1.2.2 § 10.3 (core schema), § 3.2.1.3 (duplicate keys); https://yaml.org/type/merge.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeAlias

import attrs
import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from streamgw.config.source_text import Place, SourceText
from streamgw.core.errors import ConfigError, Problem

_Written: TypeAlias = ScalarEvent | MappingStartEvent | SequenceStartEvent
_Node: TypeAlias = _Written | AliasEvent
Path: TypeAlias = tuple[str | int, ...]
"""From the root of a file to a value: `("stream_routes", 0, "upstream")`."""

MAX_DEPTH = 64
MAX_ALIASED_VALUES = 200_000
"""Values that aliases may add to one file."""

_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FRACTION = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_MAX_DIGITS = 300
"""Longer numbers stay text: no setting needs them, and int() is quadratic."""
_TEXT_TAGS = ("tag:yaml.org,2002:str", "!")
_PLAIN_TAGS = (None, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", *_TEXT_TAGS)


@attrs.frozen
class Reading:
    """One file as plain data."""

    data: object
    """dict, list, str, int, float, bool or None; None for an empty file."""
    item_lines: Mapping[str, tuple[int, ...]]
    """For each list directly under the root: the line of each of its items."""


def read_yaml(source: SourceText) -> Reading:
    """Read a whole file.

    Raises:
      ConfigError: what libyaml cannot parse and what this reader refuses, with the place.
    """
    try:
        return _Reader(source).read()
    except _DuplicateKeyError:
        raise ConfigError(_find_duplicates(source)) from None
    except yaml.YAMLError as error:
        raise ConfigError((_explain(source, error),)) from None


def pointer_of(path: Path) -> str:
    """`stream_routes[0].upstream.nodes['127.0.0.1:80']`."""
    parts = [
        f"[{step}]"
        if isinstance(step, int)
        else f".{step}"
        if re.fullmatch(r"[\w-]+", step)
        else f"[{step!r}]"
        for step in path
    ]
    return "".join(parts).removeprefix(".")


def _events(source: SourceText) -> Callable[[], Any]:
    """The parser. Each call gives the next event; the grammar says which class may come, mypy cannot."""
    return yaml.CSafeLoader(source.text).get_event


def _index(event: Event) -> int:
    assert event.start_mark is not None, "libyaml marks every event"
    return event.start_mark.index


class _DuplicateKeyError(Exception):
    """Seen in the fast pass, which does not know where the first one was."""


class _Reader:
    """The fast pass."""

    def __init__(self, source: SourceText) -> None:
        self._source = source
        self._next = _events(source)
        self._anchors: dict[str, tuple[object, int]] = {}
        self._count = 0
        self._aliased = 0
        self._item_lines: dict[str, tuple[int, ...]] = {}

    def read(self) -> Reading:
        assert isinstance(self._next(), StreamStartEvent)
        if isinstance(self._next(), StreamEndEvent):
            return Reading(None, {})
        first = self._next()
        data = self._root(first) if isinstance(first, MappingStartEvent) else self._value(first, 0)
        assert isinstance(self._next(), DocumentEndEvent)
        after = self._next()
        if isinstance(after, DocumentStartEvent):
            self._refuse(after, "a second document begins here; a file has one")
        return Reading(data, self._item_lines)

    def _root(self, start: MappingStartEvent) -> dict[str, object]:
        self._check_node(start)
        mapping: dict[str, object] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            key = self._key(event, mapping)
            value = self._next()
            if isinstance(value, SequenceStartEvent) and value.anchor is None:
                mapping[key], self._item_lines[key] = self._items(value)
            else:
                mapping[key] = self._value(value, 1)
        return mapping

    def _items(self, start: SequenceStartEvent) -> tuple[list[object], tuple[int, ...]]:
        """A collection, with the line of each item."""
        self._check_node(start)
        items: list[object] = []
        lines: list[int] = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            lines.append(self._source.place(_index(event))[0])
            items.append(self._value(event, 2))
        return items, tuple(lines)

    def _value(self, event: _Node, depth: int) -> object:
        if type(event) is ScalarEvent and event.anchor is None:
            return self._scalar(event)
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if depth > MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        before = self._count
        value: object
        if isinstance(event, MappingStartEvent):
            value = self._mapping(event, depth + 1)
        elif isinstance(event, SequenceStartEvent):
            self._check_node(event)
            value = items = []
            while not isinstance(item := self._next(), SequenceEndEvent):
                items.append(self._value(item, depth + 1))
        else:
            value = self._scalar(event)
        if event.anchor is not None:
            # Only now: an alias inside the value itself finds no such anchor, so nothing contains itself.
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _mapping(self, start: MappingStartEvent, depth: int) -> dict[str, object]:
        self._check_node(start)
        mapping: dict[str, object] = {}
        merged: list[dict[str, object]] = []
        while not isinstance(event := self._next(), MappingEndEvent):
            if type(event) is ScalarEvent and event.value == "<<" and event.implicit[0]:
                value_start = self._next()
                merged += self._merged(value_start, self._value(value_start, depth))
            else:
                key = self._key(event, mapping)
                mapping[key] = self._value(self._next(), depth)
        for other in merged:
            for key, value in other.items():
                mapping.setdefault(key, value)
        return mapping

    def _merged(self, event: _Node, value: object) -> list[dict[str, object]]:
        """What `<<` brings, the strongest first."""
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            self._refuse(event, "'<<' takes a mapping or a list of mappings")
        return mappings  # type: ignore[return-value]  # checked one line above

    def _key(self, event: _Node, mapping: dict[str, object]) -> str:
        if type(event) is not ScalarEvent:
            self._refuse(event, "a key must be text")
        key = event.value
        if key in mapping:
            raise _DuplicateKeyError
        self._check_tag(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = key, 1
        return key

    def _scalar(self, event: ScalarEvent) -> object:
        self._count += 1
        text = event.value
        if not event.implicit[0] or event.tag is not None:
            self._check_tag(event)
            return text
        if text in _WORDS:
            return _WORDS[text]
        if len(text) <= _MAX_DIGITS:
            if _NUMBER.fullmatch(text):
                return int(text)
            if _FRACTION.fullmatch(text):
                return float(text)
        return text

    def _alias(self, event: AliasEvent) -> object:
        if event.anchor not in self._anchors:
            self._refuse(event, f"alias to an unknown anchor '{event.anchor}'")
        value, size = self._anchors[event.anchor]
        self._count += size
        self._aliased += size
        if self._aliased > MAX_ALIASED_VALUES:
            self._refuse(event, f"aliases expand to more than {MAX_ALIASED_VALUES} values")
        return value

    def _check_node(self, event: _Written) -> None:
        self._count += 1
        self._check_tag(event)

    def _check_tag(self, event: _Written) -> None:
        if event.tag not in _PLAIN_TAGS:
            self._refuse(event, f"unsupported tag '{event.tag}'")

    def _refuse(self, event: Event, message: str) -> NoReturn:
        raise ConfigError((self._source.problem(_index(event), message),))


class Places:
    """Where the values of one file stand. Made by `locate`."""

    def __init__(self) -> None:
        self.values: dict[Path, Place] = {}
        self.keys: dict[Path, Place] = {}

    def of_value(self, path: Path) -> Place:
        """The place of a value, or of the innermost thing around it that is written there (not aliased or merged)."""
        while path not in self.values and path:
            path = path[:-1]
        return self.values.get(path, (0, 0))

    def of_key(self, path: Path) -> Place:
        """The place of a value's key; of an item of a list, its own."""
        return self.keys.get(path) or self.of_value(path)


def locate(source: SourceText, paths: Iterable[Path]) -> Places:
    """Read the events again and note where these values stand. The text must be one that `read_yaml` accepted."""
    wanted = {path[:length] for path in paths for length in range(len(path) + 1)}
    locator = _Locator(source, wanted)
    locator.run()
    return locator.places


def _find_duplicates(source: SourceText) -> tuple[Problem, ...]:
    locator = _Locator(source, None)
    try:
        locator.run()
    except yaml.YAMLError as error:
        # The fast pass stopped at the first duplicate and has not seen the rest.
        locator.duplicates.append(_explain(source, error))
    return tuple(locator.duplicates)


class _Locator:
    """The slow pass: the places of the values that are wanted (None: of all), and every duplicate key."""

    def __init__(self, source: SourceText, wanted: set[Path] | None) -> None:
        self._source = source
        self._wanted = wanted
        self._next = _events(source)
        self.places = Places()
        self.duplicates: list[Problem] = []

    def run(self) -> None:
        while not isinstance(event := self._next(), StreamEndEvent):
            if isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent, AliasEvent)):
                self._visit(event, ())

    def _visit(self, event: _Node, path: Path) -> None:
        is_unwanted = self._wanted is not None and path not in self._wanted
        if is_unwanted or len(path) > MAX_DEPTH:
            self._skip(event)
            return
        self.places.values[path] = self._source.place(_index(event))
        if isinstance(event, SequenceStartEvent):
            position = 0
            while not isinstance(item := self._next(), SequenceEndEvent):
                self._visit(item, (*path, position))
                position += 1
        elif isinstance(event, MappingStartEvent):
            while not isinstance(key := self._next(), MappingEndEvent):
                self._visit_entry(key, path)

    def _visit_entry(self, key: _Node, path: Path) -> None:
        if not isinstance(key, ScalarEvent):
            self._skip(key)
            self._skip(self._next())
            return
        path = (*path, key.value)
        if path in self.places.keys:
            message = f"duplicate key, the first is at line {self.places.keys[path][0]}"
            self.duplicates.append(self._source.problem(_index(key), message, pointer=pointer_of(path)))
        else:
            self.places.keys[path] = self._source.place(_index(key))
        self._visit(self._next(), path)

    def _skip(self, event: Event) -> None:
        depth = 0
        while True:
            if isinstance(event, CollectionStartEvent):
                depth += 1
            elif isinstance(event, CollectionEndEvent):
                depth -= 1
            if not depth:
                return
            event = self._next()


def _explain(source: SourceText, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        before = source.text.encode()[: error.position].decode(errors="ignore")
        return source.problem(len(before), f"not text: {error.reason} (U+{error.character:04X})")
    assert isinstance(error, yaml.MarkedYAMLError), "the only other error a parser raises"
    assert error.problem_mark is not None, "libyaml marks everything it refuses"
    index = error.problem_mark.index
    if source.text[index : index + 1] == "\t":
        return source.problem(index, "not YAML: a tab cannot indent; use spaces")
    context = f" {error.context}" if error.context else ""
    if error.context_mark is not None:
        context += f" that begins at line {source.place(error.context_mark.index)[0]}"
    return source.problem(index, f"not YAML: {error.problem}{context}")
