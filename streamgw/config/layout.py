"""Where everything stands in the text of a YAML or JSON file, beside what it says.

Offsets count characters. yaml.compose would give most of this, but it puts the anchor's node where an alias stands, with
the marks of the anchor: an edit there would change another object. So the tree is built from the events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, cast

import attrs
import yaml

from streamgw.config.source_text import SourceText
from streamgw.config.yaml_reader import read_yaml
from streamgw.core.errors import ConfigError

_VARIABLE: Final = re.compile(r"\$\{\{[^\r\n]*?\}\}")
_PAIR_ESCAPED: Final = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE
)
_BLANK_LINES: Final = re.compile(r"(?:[ \t]*(?:\r\n|\n|\r))+[ \t]*\Z")


class NotYAML(Exception):
    """This text is not a YAML document with a mapping at its top."""


@attrs.define
class Node:
    """One value with its place."""

    kind: Literal["scalar", "mapping", "sequence", "alias"]
    start: int
    """Offset of the first character, anchor and tag included."""
    line: int
    """From 1."""
    column: int
    """From 0."""
    end: int = 0
    """Offset after the last character: of a block collection, of its last value."""
    flow: bool = False
    """Written `{…}` or `[…]`, or inside of that."""
    value: str = ""
    """Of a scalar."""
    style: str = ""
    """Of a scalar: its quote, `|`, `>`, or nothing."""
    children: list[Node] = attrs.Factory(list)
    """Of a mapping: key, value, key, value, …"""

    def pairs(self) -> list[tuple[Node, Node]]:
        """Keys and values of a mapping."""
        return list(zip(self.children[::2], self.children[1::2], strict=True))

    def spans(self) -> list[tuple[int, int]]:
        """From where to where the fields of a mapping, or the items of a sequence, stand."""
        if self.kind == "mapping":
            return [(key.start, value.end) for key, value in self.pairs()]
        return [(item.start, item.end) for item in self.children]

    def field(self, name: str) -> tuple[Node, Node]:
        """One field of a mapping, key and value.

        Raises:
          KeyError: there is none.
        """
        for key, value in self.pairs():
            if key.value == name:
                return key, value
        raise KeyError(name)

    @property
    def is_json(self) -> bool:
        """Whether this mapping is written as JSON: all its keys are in double quotes."""
        return self.kind == "mapping" and self.flow and all(key.style == '"' for key in self.children[::2])


@attrs.frozen
class Layout:
    """A text, where everything stands in it, and what it says."""

    root: Node
    data: Mapping[str, object]


def read_layout(text: str) -> Layout:
    """Read a file. An empty one has no fields.

    Raises:
      NotYAML: it is broken (as `yaml_reader` sees it), or the top is not a mapping.
    """
    mask = _Mask(text)
    masked = mask.text
    try:
        data = read_yaml(SourceText("", masked, masked)).data
    except ConfigError as error:
        problem = error.problems[0]
        raise NotYAML(f"line {problem.line}: {problem.message}") from error
    if data is None:
        return Layout(Node("mapping", len(text), 1, 0, len(text)), {})
    if not isinstance(data, dict):
        raise NotYAML("no mapping at the top")
    root = _root(yaml.parse(masked, Loader=yaml.CSafeLoader), mask)
    return Layout(root, cast("dict[str, object]", _unmasked(data, mask)))


def is_same(one: object, other: object) -> bool:
    """Deep equality that tells 1 from True and from 1.0; the order of keys does not count."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and one == other


class _Mask:
    r"""A text in which letters stand for what YAML must not touch or cannot read, one for one, so that offsets stay true.

    - `${{NAME:=[1]}}` is filled in before YAML is read. Here it stays, and what is special in it is hidden.
    - json.dumps writes characters beyond the BMP as two escapes, which YAML refuses. `\ud83d\ude00` becomes `\td83d?ude00`,
      where `?` is a letter of the mask: a tab shows that it stood in double quotes, where it is one character; anywhere
      else it is twelve.
    """

    def __init__(self, text: str) -> None:
        letters = _unused_letters(text)
        hide = str.maketrans("{}[],\"'", letters[:7])
        self._plain = {mask: plain for plain, mask in hide.items()}
        self._escaped = letters[7]
        self._pair = re.compile(rf"(\t|\\t)(d[0-9a-f]{{3}}){self._escaped}u(d[0-9a-f]{{3}})", re.IGNORECASE)
        text = _VARIABLE.sub(lambda variable: variable[0].translate(hide), text)
        self.text = _PAIR_ESCAPED.sub(rf"\1\\t\2{self._escaped}u\3", text)

    def undo(self, value: str) -> str:
        """What a string of the text is without it."""
        if self._escaped in value:
            value = self._pair.sub(_joined, value)
        return value.translate(self._plain)


def _unused_letters(text: str) -> str:
    """Eight characters that the text does not have, nor the escapes of."""
    for first in range(0xE000, 0xF900, 8):
        digit = "[0-7]" if first % 16 == 0 else "[89a-f]"
        escapes = rf"\\(?:u|U0000){first >> 4:03x}{digit}"
        if not re.search(rf"[{chr(first)}-{chr(first + 7)}]|(?i:{escapes})", text):
            return "".join(map(chr, range(first, first + 8)))
    raise NotYAML("all characters for private use are in use")


def _joined(pair: re.Match[str]) -> str:
    quoted, high, low = pair.groups()
    if quoted != "\t":
        return rf"\u{high}\u{low}"
    return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))


def _unmasked(value: object, mask: _Mask) -> object:
    if isinstance(value, str):
        return mask.undo(value)
    if isinstance(value, list):
        return [_unmasked(item, mask) for item in value]
    if isinstance(value, dict):
        return {_unmasked(name, mask): _unmasked(field, mask) for name, field in value.items()}
    return value


def _root(events: Iterator[yaml.Event], mask: _Mask) -> Node:
    open_nodes: list[Node] = []
    while True:  # the mapping that read_yaml found ends somewhere
        event = next(events)
        if isinstance(event, yaml.CollectionEndEvent):
            node = open_nodes.pop()
            assert event.end_mark is not None, "a parser sets the marks"
            # A block collection's end mark is where the next token stands, comments and all skipped.
            node.end = event.end_mark.index if node.flow else node.children[-1].end
            if not open_nodes:
                return node
        elif isinstance(event, yaml.NodeEvent):
            node = _node(event, mask)
            if open_nodes:
                open_nodes[-1].children.append(node)
                node.flow |= open_nodes[-1].flow
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append(node)


def _node(event: yaml.NodeEvent, mask: _Mask) -> Node:
    start, end = event.start_mark, event.end_mark
    assert start is not None, "a parser sets the marks"
    assert end is not None, "a parser sets the marks"
    node = Node("alias", start.index, start.line + 1, start.column, end.index)
    if isinstance(event, yaml.ScalarEvent):
        node.kind, node.value, node.style = "scalar", mask.undo(event.value), event.style or ""
        if node.style in {"|", ">"}:
            # Its end mark is behind the blank lines that follow it, which belong to nobody.
            node.end = start.index + len(_BLANK_LINES.sub("", mask.text[start.index : end.index]))
    elif isinstance(event, yaml.CollectionStartEvent):
        node.kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
        node.flow = bool(event.flow_style)
    return node
