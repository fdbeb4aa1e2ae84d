"""One object changed inside the text of a file; every byte outside it stays, comments included.

The text is never parsed and written back. PyYAML's marks say where the object stands and where each of its fields
does; the fields that differ are replaced, added and removed there, so that comments inside the object survive too.
Where that cannot be done (a merge key, an unusual layout) the object is written anew as a whole. Whatever was done, the
result is then parsed and compared with what it should be, and every other object with what it was: an edit that went
wrong in any way is refused, not written. That comparison is the guarantee; the rest is about good looks.

What belongs to an object: from its first field (its dash, when it is removed) to its last value, and when it is removed
a comment behind that on the same line. Comments before it, after it, and between it and its neighbours do not.
"""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Final

import attrs

from streamgw.config import render
from streamgw.config.layout import Layout, Node, NotYAML, is_same, read_layout
from streamgw.config.source_text import EMPTY
from streamgw.core.errors import StoreError
from streamgw.core.model import Key

_GAP: Final = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_REST_OF_LINE: Final = re.compile(r"[^\r\n]*")

Splice = tuple[int, int, str]
"""The characters from the first offset to the second become the text."""


class NotEditable(StoreError):
    """This object cannot be changed in place without touching something else."""


class _Awkward(Exception):
    """This part cannot be changed field by field."""


@attrs.frozen
class Item:
    """One object in the text of a file."""

    key: Key
    position: int
    """From 0, in its collection."""
    line: int
    """From 1: where its first field stands."""
    start: int
    """Offset of the first character of its first field."""
    end: int
    """Offset after the last character of its last value."""
    data: Mapping[str, object]
    """As written: `${{NAME}}` is not filled in."""


def decode(content: bytes) -> str:
    """A file as text, without the byte order mark.

    Raises:
      NotEditable: it is not UTF-8, or blank.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotEditable(f"not UTF-8: {error.reason} at byte {error.start}") from error
    if not text or text.isspace():
        raise NotEditable(EMPTY)
    return text


def encode(text: str, old: bytes) -> bytes:
    """Back to bytes, with a byte order mark if the old ones had it."""
    return (codecs.BOM_UTF8 if old.startswith(codecs.BOM_UTF8) else b"") + text.encode()


def find_items(text: str, *, name: Callable[[int], str] | None = None) -> tuple[Item, ...]:
    """Every object of a file, in the order of the file. `name` says what those without an id are called, by their
    position; without it they are left out.

    Raises:
      NotEditable: this is not one YAML document.
    """
    return tuple(_items(_read(text), name))


def new_file(key: Key, data: Mapping[str, object]) -> str:
    """The text of a file for one object.

    Raises:
      NotEditable: it holds something that YAML cannot say.
    """
    wanted = {"id": key[1], **data}
    text = render.render_file(key, wanted)
    if is_same(_read(text).data, {key[0]: [wanted]}):
        return text
    raise NotEditable(f"{key[0]} {key[1]} holds a value that cannot be written as YAML")


def replace_item(text: str, key: Key, data: Mapping[str, object]) -> str:
    """The text with one object changed to `data`. Its id stays as it is written: `id: 1` and `id: "1"` are one object.

    Raises:
      NotEditable: the object is not there, or something outside it depends on how it is written.
    """
    layout = _read(text)
    item, collection = _locate(layout, key)
    wanted = {**data, "id": item.data["id"]}
    node = collection.children[item.position]
    for edit in (_change_fields, _rewrite, _squeeze):
        try:
            edited = _apply(text, edit(text, node, item.data, wanted))
        except _Awkward:
            continue
        if _is_only_change(layout, edited, item, wanted):
            return edited
    raise NotEditable(
        f"line {item.line}: {key[0]} {key[1]} cannot be changed in place; edit the file by hand"
    )


def remove_item(text: str, key: Key) -> str:
    """The text without one object. Its collection stays, empty if need be: `stream_routes: []`.

    Raises:
      NotEditable: the object is not there, or something outside it depends on it (an anchor).
    """
    layout = _read(text)
    item, collection = _locate(layout, key)
    try:
        remove = _remove_from_flow if collection.flow else _remove_from_block
        splices = remove(text, collection, item.position)
        if not collection.flow and len(collection.children) == 1:
            # Before the lines of the item, so that a comment behind the key stays behind the key.
            colon = text.index(":", layout.root.field(key[0])[0].end)
            splices.append((colon + 1, colon + 1, " []"))
        edited = _apply(text, splices)
    except _Awkward:
        edited = text
    if _is_only_change(layout, edited, item, None):
        return edited
    raise NotEditable(f"line {item.line}: {key[0]} {key[1]} cannot be removed alone; edit the file by hand")


def _read(text: str) -> Layout:
    try:
        return read_layout(text)
    except NotYAML as error:
        raise NotEditable(str(error)) from error


def _items(layout: Layout, name: Callable[[int], str] | None = None) -> Iterator[Item]:
    for key, collection in layout.root.pairs():
        values = layout.data.get(key.value)
        if not isinstance(values, list):
            continue
        # An alias instead of a list shows no children: what it stands for belongs to its anchor.
        for position, (node, data) in enumerate(zip(collection.children, values, strict=False)):
            if not isinstance(data, dict):
                continue
            if data.get("id") is not None:
                yield Item((key.value, str(data["id"])), position, node.line, node.start, node.end, data)
            elif name is not None:
                yield Item((key.value, name(position)), position, node.line, node.start, node.end, data)


def _locate(layout: Layout, key: Key) -> tuple[Item, Node]:
    for item in _items(layout):
        if item.key == key:
            return item, layout.root.field(key[0])[1]
    raise NotEditable(f"no {key[0]} {key[1]} here")


def _is_only_change(before: Layout, edited: str, item: Item, wanted: Mapping[str, object] | None) -> bool:
    """Whether the edited text says what it should: this object as wanted (None: gone), all else as before."""
    try:
        after = read_layout(edited)
    except NotYAML:
        return False
    expected = copy.deepcopy(dict(before.data))
    collection = expected[item.key[0]]
    assert isinstance(collection, list), "items stand in lists"
    if wanted is None:
        del collection[item.position]
    else:
        collection[item.position] = wanted
    return is_same(after.data, expected)


# Changing an object


def _rewrite(text: str, node: Node, have: Mapping[str, object], want: Mapping[str, object]) -> list[Splice]:
    """The whole object anew, where it stands and in its style."""
    del have
    return [(node.start, node.end, _rendered(text, node, want, as_json=node.is_json))]


def _squeeze(text: str, node: Node, have: Mapping[str, object], want: Mapping[str, object]) -> list[Splice]:
    """The whole object on one line: not pretty, but good where a certificate's last line meets a comment."""
    del text, have
    return [(node.start, node.end, render.render_flow(want))]


def _change_fields(
    text: str, node: Node, have: Mapping[str, object], want: Mapping[str, object]
) -> list[Splice]:
    """Only the fields that differ, at any depth; `have` is what the node says."""
    pairs = node.pairs()
    if [key.value for key, _ in pairs] != list(have) or not have.keys() & want.keys():
        raise _Awkward  # a merge key, a key that is no string, or no field left to hold on to
    remove = _remove_from_flow if node.flow else _remove_field
    splices: list[Splice] = []
    for index, (key, _) in enumerate(pairs):
        if key.value not in want:
            splices += remove(text, node, index)
        elif not is_same(have[key.value], want[key.value]):
            splices += _change_value(text, node, index, have[key.value], want[key.value])
    return splices + [
        _add_field(text, node, name, want) for name, _ in render.in_order(want) if name not in have
    ]


def _change_value(text: str, parent: Node, index: int, have: object, want: object) -> list[Splice]:
    key, value = parent.pairs()[index]
    if value.kind == "mapping" and isinstance(have, Mapping) and isinstance(want, Mapping):
        try:
            return _change_fields(text, value, have, want)
        except _Awkward:
            pass  # then all of this value
    colon = text.index(":", key.end)
    if value.flow or _stays_in_shape(value, want):
        # Nothing after the colon: then the parser puts the value somewhere behind the blanks.
        start, space = (value.start, "") if value.start < value.end else (colon + 1, " ")
        return [(start, value.end, space + _rendered(text, value, want, as_json=parent.is_json))]
    return [(colon + 1, value.end, render.after_colon(want, indent=key.column))]


def _stays_in_shape(value: Node, want: object) -> bool:
    """Whether a block-style value can be replaced from its first character on: nested by nested, word by word."""
    if value.kind in {"mapping", "sequence"}:
        return bool(want) and isinstance(want, Mapping if value.kind == "mapping" else list)
    is_word = value.style not in {"|", ">"} and value.start < value.end
    return is_word and not isinstance(want, Mapping | list) and "\n" not in str(want)


def _add_field(text: str, node: Node, name: str, want: Mapping[str, object]) -> Splice:
    """A new field behind the last one that it belongs after and that stays, else before all."""
    kept = [
        (key, value)
        for key, value in node.pairs()
        if key.value in want and render.rank(key.value, want) <= render.rank(name, want)
    ]
    key = kept[-1][0] if kept else node.children[0]
    margin = _margin(text, key.start)
    if node.flow:
        own_line = _is_line_start(text, key.start)
        separator = ",\n" + margin if own_line else ", "
        shown = (
            render.render_json(want[name], margin=margin, step="\t" if "\t" in margin else "  ")
            if own_line and node.is_json
            else render.render_flow(want[name], as_json=node.is_json)
        )
        field = f"{render.render_key(name, as_json=node.is_json)}: {shown}"
    else:
        separator = "\n" + " " * key.column
        field = render.render_key(name) + ":" + render.after_colon(want[name], indent=key.column)
    if not kept:
        return (key.start, key.start, field + separator)
    end = kept[-1][1].end if node.flow else _line_end(text, kept[-1][1].end)
    return (end, end, separator + field)


def _rendered(text: str, node: Node, value: object, *, as_json: bool) -> str:
    """A value as text, in the style of the node at whose place it will stand."""
    if not node.flow:
        return render.render_block(value, indent=node.column)
    if as_json and node.children and "\n" in text[node.start : node.end]:
        margin = _margin(text, node.start)
        step = _margin(text, node.children[0].start)[len(margin) :]
        return render.render_json(value, margin=margin, step=step or "  ")
    return render.render_flow(value, as_json=as_json)


# Removing


def _remove_field(text: str, node: Node, index: int) -> list[Splice]:
    """One field of a block mapping: its lines, or up to the next field where it stands behind a dash."""
    start, end = node.spans()[index]
    if _is_line_start(text, start):
        return [(_line_start(text, start), _next_line(text, end), "")]
    assert index + 1 < len(node.pairs()), "the field behind a dash is not alone: the id stays"
    return [(start, node.spans()[index + 1][0], "")]


def _remove_from_block(text: str, collection: Node, index: int) -> list[Splice]:
    """One item of a block sequence: its lines, its dash included."""
    end = collection.spans()[index][1]
    before = collection.spans()[index - 1][1] if index else collection.start
    dash = _after_gap(text, before)
    if text[dash] != "-" or not _is_line_start(text, dash):
        raise _Awkward  # an anchor or a tag before the list
    return [(_line_start(text, dash), _next_line(text, end), "")]


def _remove_from_flow(text: str, node: Node, index: int) -> list[Splice]:
    """One item of `[…]` or field of `{…}`, with the comma that has lost its use."""
    spans = node.spans()
    start, end = spans[index]
    splices: list[Splice] = []
    comma = _after_gap(text, end)
    if text[comma] == ",":
        if text[end:comma].strip():
            splices.append((comma, comma + 1, ""))  # a comment between the two stays
        else:
            end = comma + 1
    elif index:
        comma = _after_gap(text, spans[index - 1][1])
        splices.append((comma, comma + 1, ""))
    if _is_line_start(text, start) and not text[end : _line_end(text, end)].strip():
        start, end = _line_start(text, start), _next_line(text, end)
    elif index + 1 < len(spans):
        end += len(text[end:]) - len(text[end:].lstrip(" "))
    else:
        start -= len(text[comma + 1 : start]) - len(text[comma + 1 : start].rstrip(" ")) if index else 0
    return [*splices, (start, end, "")]


# Lines and gaps


def _apply(text: str, splices: list[Splice]) -> str:
    """The text with the splices made, those at one place in their order.

    Raises:
      _Awkward: two of them overlap.
    """
    newline = next((end for end in ("\r\n", "\n", "\r") if end in text), "\n")
    ordered = sorted(splices, key=lambda splice: splice[:2])
    if any(after[0] < before[1] for before, after in pairwise(ordered)):
        raise _Awkward
    for start, end, replacement in reversed(ordered):
        text = text[:start] + replacement.replace("\n", newline) + text[end:]
    return text


def _after_gap(text: str, offset: int) -> int:
    """Over white space and comments."""
    gap = _GAP.match(text, offset)
    assert gap is not None, "the pattern matches nothing, too"
    return gap.end()


def _line_start(text: str, offset: int) -> int:
    return max(text.rfind("\n", 0, offset), text.rfind("\r", 0, offset)) + 1


def _line_end(text: str, offset: int) -> int:
    """Where the line ends, before its line end."""
    rest = _REST_OF_LINE.match(text, offset)
    assert rest is not None, "the pattern matches nothing, too"
    return rest.end()


def _next_line(text: str, offset: int) -> int:
    end = _line_end(text, offset)
    return end + (2 if text[end : end + 2] == "\r\n" else len(text[end : end + 1]))


def _margin(text: str, offset: int) -> str:
    """The white space at the beginning of a line."""
    line = text[_line_start(text, offset) : offset]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _is_line_start(text: str, offset: int) -> bool:
    """Whether only white space stands before it on its line."""
    return not text[_line_start(text, offset) : offset].strip(" \t")
