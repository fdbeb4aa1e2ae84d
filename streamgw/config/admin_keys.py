"""Fills in the admin keys that conf/config.yaml leaves empty, in the file itself: whoever may read it may have the key.

Only the characters of the empty value change, or, where there is no `admin_key` at all, four lines are added: comments
and everything else stay. The file is replaced at once, by a rename.

Source:
  APISIX, `apisix/cli/ops.lua` (`autogenerate_admin_key`): 32 random letters, written back.
"""

from __future__ import annotations

import contextlib
import copy
import re
import secrets
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from streamgw.config.disk import Disk
from streamgw.config.edit import NotEditable, Splice, decode, encode
from streamgw.config.endpoints import ADMIN
from streamgw.config.layout import Layout, Node, NotYAML, is_same, read_layout
from streamgw.core.errors import ConfigError, Problem

LENGTH: Final = 32
_POINTER: Final = ".".join(map(str, (*ADMIN, "admin_key")))
_WRITE_ONE: Final = "cannot be filled in without touching something else: write one"
_COLON: Final = re.compile(r"\s*:")


def random_key() -> str:
    """32 letters: 182 bits."""
    return "".join(secrets.choice(string.ascii_letters) for _ in range(LENGTH))


def fill_in_keys(path: Path, *, make_key: Callable[[], str] = random_key, disk: Disk | None = None) -> int:
    """Replace each empty key of `deployment.admin.admin_key` by a random one. Blocks.

    Without a `deployment.admin`, with `admin_key_required: false`, or where every key is there, the file is not touched.
    A key that comes out of an empty variable is not filled in. What is of another shape is left alone: the schema says
    what is wrong with it, and where.

    Returns:
      How many were filled in.

    Raises:
      ConfigError: the file cannot be written, or not without touching something else.
    """
    try:
        raw = path.read_bytes()
        text = decode(raw)
        before = read_layout(text)
    except (OSError, NotEditable, NotYAML):
        return 0  # `load_settings` reads it next, and says what is wrong, and where
    expected = copy.deepcopy(dict(before.data))
    gaps = list(_gaps(text, before, expected, make_key))
    if not gaps:
        return 0
    filled, done = "", 0
    for gap in gaps:
        if gap.splice is None:
            raise gap.problem(path, _WRITE_ONE)
        start, end, replacement = gap.splice
        filled, done = filled + text[done:start] + replacement, end
    filled += text[done:]
    if not _says(filled, expected):
        raise gaps[0].problem(path, _WRITE_ONE)
    try:
        _replace(path.resolve(), encode(filled, raw), disk or Disk())
    except OSError as error:
        raise gaps[0].problem(path, f"a random key cannot be written here: {error.strerror}") from None
    return len(gaps)


@attrs.frozen
class _Gap:
    """A key that is empty, or the list of keys where there is none."""

    node: Node
    """Where it stands, or where something stands for it."""
    pointer: str
    splice: Splice | None
    """What fills it. None: it is not written there, or in no usual way."""

    def problem(self, path: Path, why: str) -> ConfigError:
        """To be raised."""
        place = self.node.line, self.node.column + 1
        return ConfigError((Problem(str(path), *place, self.pointer, f"is empty, and {why}"),))


def _says(text: str, expected: Mapping[str, object]) -> bool:
    try:
        return is_same(read_layout(text).data, expected)
    except NotYAML:
        return False


def _gaps(
    text: str, layout: Layout, expected: Mapping[str, object], make_key: Callable[[], str]
) -> Iterator[_Gap]:
    """What is empty, in the order of the text; `expected`, what the file says, is filled in."""
    deployment = expected.get("deployment")
    said = deployment.get("admin") if isinstance(deployment, dict) else None
    if not isinstance(said, dict) or said.get("admin_key_required") is False:
        return
    section = _child(_child(layout.root, "deployment"), "admin")
    if "admin_key" not in said:
        said["admin_key"] = [{"name": "admin", "key": make_key(), "role": "admin"}]
        is_here = section.kind == "mapping"
        yield _Gap(section, _POINTER, _added(section, said["admin_key"][0]) if is_here else None)
    elif isinstance(said["admin_key"], list):
        node = _child(section, "admin_key")
        for position, each in enumerate(said["admin_key"]):
            # Compared, not looked up: it may be anything.
            if isinstance(each, dict) and each.get("key", "is missing") in ("", None):
                each["key"] = make_key()
                item = node.children[position] if node.children else node
                yield _filled(text, item, f"{_POINTER}[{position}].key", each["key"])


def _child(node: Node, name: str) -> Node:
    """The value of a field; a node without children where an alias stands, or the field comes out of one."""
    try:
        return node.field(name)[1]
    except KeyError:
        return Node("alias", node.start, node.line, node.column, node.end)


def _filled(text: str, item: Node, pointer: str, key: str) -> _Gap:
    try:
        name, value = item.field("key")
    except KeyError:
        return _Gap(item, pointer, None)  # an alias, or merged into it
    if value.style:
        return _Gap(name, pointer, (value.start, value.end, f"{value.style}{key}{value.style}"))
    # Nothing, `null` or `~`. Of nothing the parser says that it stands somewhere behind the blanks.
    colon = _COLON.match(text, name.end)
    if colon is None:
        return _Gap(name, pointer, None)  # `{key}`, `? key`
    start = colon.end()
    return _Gap(name, pointer, (start, value.end if value.value else start, f" {key}"))


def _added(section: Node, key: Mapping[str, str]) -> Splice:
    fields = [f"{name}: {value}" for name, value in key.items()]
    if section.flow:
        start = section.start + 1
        return start, start, f"admin_key: [{{{', '.join(fields)}}}]" + (", " if section.children else "")
    start, indent = section.children[0].start, "\n" + " " * section.children[0].column
    return start, start, f"admin_key:{indent}  - " + f"{indent}    ".join(fields) + indent


def _replace(path: Path, content: bytes, disk: Disk) -> None:
    temporary = path.with_name(f".{path.name}.streamgw.tmp")
    model = path.stat()
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(temporary)  # of a start that was killed
    fd = disk.create(temporary, 0o600)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[disk.write(fd, view) :]
            disk.adopt(fd, model)
            disk.sync(fd)
        finally:
            disk.close(fd)
        disk.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    disk.sync_directory(path.parent)
