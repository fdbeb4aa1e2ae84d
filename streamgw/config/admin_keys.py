"""Fills in the admin keys that conf/config.yaml leaves empty, in the file itself: whoever may read it may have the key.

Only the characters of the empty value change, or, where there is no `admin_key` at all, four lines are added: comments
and everything else stay. The file is replaced at once, by a rename.

Source:
  APISIX, `apisix/cli/ops.lua` (`autogenerate_admin_key`): 32 random letters, written back.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from streamgw.config.disk import Disk
from streamgw.config.edit import NotEditable, Splice, decode, encode
from streamgw.config.endpoints import ADMIN
from streamgw.config.layout import Layout, Node, NotYAML, is_same, read_layout
from streamgw.core.errors import ConfigError, Problem

LENGTH: Final = 32
_POINTER: Final = ".".join(map(str, (*ADMIN, "admin_key")))


def random_key() -> str:
    """32 letters: 182 bits."""
    return "".join(secrets.choice(string.ascii_letters) for _ in range(LENGTH))


def fill_in_keys(path: Path, *, make_key: Callable[[], str] = random_key, disk: Disk | None = None) -> int:
    """Replace each empty key of `deployment.admin.admin_key` by a random one. Blocks.

    Without a `deployment.admin`, with `admin_key_required: false`, or where every key is there, the file is not touched.
    A key that comes out of an empty variable is not filled in.

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
    splices = list(_splices(text, before, expected, make_key))
    if is_same(expected, before.data):
        return 0
    for start, end, replacement in reversed(splices):
        text = text[:start] + replacement + text[end:]
    if not _says(text, expected):
        raise _problem(path, "is empty, and cannot be filled in without touching something else: write one")
    try:
        _replace(path.resolve(), encode(text, raw), disk or Disk())
    except OSError as error:
        raise _problem(path, f"is empty, and a random key cannot be written here: {error.strerror}") from None
    return len(splices)


def _problem(path: Path, message: str) -> ConfigError:
    return ConfigError((Problem(str(path), 0, 0, _POINTER, message),))


def _says(text: str, expected: Mapping[str, object]) -> bool:
    try:
        return is_same(read_layout(text).data, expected)
    except NotYAML:
        return False


def _splices(
    text: str, layout: Layout, expected: Mapping[str, object], make_key: Callable[[], str]
) -> Iterator[Splice]:
    """What to write where; `expected`, what the file says, is changed in the same way."""
    deployment = expected.get("deployment")
    said = deployment.get("admin") if isinstance(deployment, dict) else None
    if not isinstance(said, dict) or said.get("admin_key_required") is False:
        return
    section = _child(_child(layout.root, "deployment"), "admin")
    if "admin_key" not in said:
        said["admin_key"] = [{"name": "admin", "key": make_key(), "role": "admin"}]
        if section.kind == "mapping":
            yield _added(section, said["admin_key"][0])
        return
    items = _child(section, "admin_key").children
    for position, each in enumerate(said["admin_key"] or ()):
        if isinstance(each, dict) and each.get("key", "is missing") in {"", None}:
            each["key"] = make_key()
            if items:
                yield _filled(text, items[position], each["key"])


def _child(node: Node, name: str) -> Node:
    """The value of a field; a node without children where an alias stands, or the field comes out of one."""
    try:
        return node.field(name)[1]
    except KeyError:
        return Node("alias", node.start, node.line, node.column, node.end)


def _filled(text: str, item: Node, key: str) -> Splice:
    name, value = item.field("key")
    if value.style:
        return value.start, value.end, f"{value.style}{key}{value.style}"
    # Nothing, `null` or `~`. Of nothing the parser says that it stands somewhere behind the blanks.
    colon = text.index(":", name.end)
    return colon + 1, value.end if value.value else colon + 1, f" {key}"


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
