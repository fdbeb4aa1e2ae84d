"""The whole configuration at once: APISIX's API-driven standalone mode, which its ingress controller speaks.

What is put is one file, `configs.yaml`, and a PUT replaces all of it. Objects in other files stay as they are: a set that
has an id of theirs is refused. The digest and the time that the client is told stand in comments at the top, with a
digest of what follows: once somebody has edited the file by hand, it is not what the client has put any more.

Source:
  APISIX `apisix/admin/standalone.lua`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Final

import attrs
import trio
from starlette.requests import Request
from starlette.responses import Response

from streamgw.config.apisix import refusal
from streamgw.config.documents import digest_of, id_of
from streamgw.config.hidden import without_keys
from streamgw.config.layout import is_same
from streamgw.config.plugins import PluginSet
from streamgw.config.render import render_block
from streamgw.config.schema import ALL_COLLECTIONS, COLLECTIONS
from streamgw.config.source_text import EMPTY, SourceText
from streamgw.config.strict import nearest
from streamgw.config.survey import Survey
from streamgw.config.yaml_reader import read_yaml
from streamgw.control.admin.changes import Changes, Made
from streamgw.control.admin.replies import RequestError, bad, json_reply, parse_json
from streamgw.control.admin.writer import Writer
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.model import Key

FILE: Final = "configs.yaml"
MAX_DIGEST = 128
_NAMES: Final = (*ALL_COLLECTIONS, *(f"{kind}_conf_version" for kind in ALL_COLLECTIONS))
"""What a document may have."""
_METADATA: Final = ("X-Last-Modified", "X-Digest")
"""APISIX keeps its headers in the document and shows them: whoever sends what was read there sends them too."""
_HEAD: Final = """\
# Written by PUT /apisix/admin/configs. The next one replaces all of this file.
# X-Digest: {digest}
# X-Last-Modified: {modified_s}
# Content: {content}
"""
_HEAD_PATTERN: Final = re.compile(
    re.escape(_HEAD)
    .replace(re.escape("{digest}"), "(.*)")
    .replace(re.escape("{modified_s}"), "([0-9]+)")
    .replace(re.escape("{content}"), "([0-9a-f]+)")
)
_DIGEST: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


@attrs.frozen
class Stored:
    """What was put the last time."""

    data: Mapping[str, object] = attrs.field(factory=dict)
    digest: str = ""
    """The client's; empty: there is none, or the file was edited since."""
    modified_s: str = ""

    def version(self, kind: str) -> int:
        """The version of one collection."""
        version = self.data.get(f"{kind}_conf_version")
        return version if type(version) is int else 0

    def items(self, kind: str) -> list[object]:
        """The objects of one collection."""
        items = self.data.get(kind)
        return items if isinstance(items, list) else []

    @property
    def headers(self) -> dict[str, str]:
        """What the client is told with every answer."""
        both = {"X-Last-Modified": self.modified_s, "X-Digest": self.digest}
        return {name: value for name, value in both.items() if value}


class Standalone:
    """Answers requests for `configs`.

    Args:
      wall_clock: Unix time.
      plugins: what there is to run on routes.
    """

    def __init__(
        self,
        changes: Changes,
        writer: Writer,
        wall_clock: Callable[[], float],
        plugins: Callable[[], PluginSet],
    ) -> None:
        self._changes = changes
        self._writer = writer
        self._wall_clock = wall_clock
        self._plugins = plugins
        self._latest = Stored()
        """What our file held when it could be read the last time, to show while it cannot."""

    async def answer(self, request: Request) -> Response:
        """GET, HEAD or PUT `configs`.

        Raises:
          RequestError: the set is refused; nothing was written.
        """
        if request.method == "PUT":
            return await self._put(request)
        survey = await trio.to_thread.run_sync(self._changes.survey_to_show)
        stored = await trio.to_thread.run_sync(self._to_show, survey)
        if request.method == "HEAD":
            return Response(headers=stored.headers, media_type="application/json")
        shown = _shown(stored)
        if _wants_yaml(request.headers.get("accept", "")):
            return Response(
                f"{render_block(shown, indent=0)}\n", headers=stored.headers, media_type="application/yaml"
            )
        return json_reply(shown, headers=stored.headers)

    async def validate(self, request: Request) -> Response:
        """POST `configs/validate`: every object alone, all that is wrong at once. Nothing is written.

        Raises:
          RequestError: 400, with `errors`.
        """
        sent = await _document(request)
        _check_versions(sent)
        errors = await trio.to_thread.run_sync(lambda: list(_errors(sent, self._plugins())))
        if errors:
            content = {"error_msg": "Configuration validation failed", "errors": errors}
            raise RequestError(HTTPStatus.BAD_REQUEST, content)
        return json_reply({})

    def _to_show(self, survey: Survey) -> Stored:
        """In the worker thread."""
        try:
            self._latest = _stored(survey)
        except (ConfigError, UnicodeDecodeError):
            return attrs.evolve(self._latest, digest="")
        return self._latest

    async def _put(self, request: Request) -> Response:
        digest = request.headers.get("x-digest", "")
        if not digest:
            raise bad("missing digest header")
        if len(digest) > MAX_DIGEST or not _DIGEST.fullmatch(digest):
            raise bad(f"invalid digest header: at most {MAX_DIGEST} printable characters")
        sent = await _document(request)
        _check_versions(sent)
        _check_kinds_of_items(sent)
        modified_s = str(int(self._wall_clock()))
        headers = {"X-Last-Modified": modified_s, "X-Digest": digest}
        try:
            applied = await self._writer.make(
                partial(
                    self._changes.replace_file,
                    FILE,
                    partial(_render, sent, digest, modified_s, self._plugins()),
                )
            )
        except _UnchangedError:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        self._latest = Stored(applied.made.data, digest, modified_s)
        return Response(status_code=HTTPStatus.ACCEPTED, headers=headers)


class _UnchangedError(Exception):
    """The client has put this already."""


async def _document(request: Request) -> Mapping[str, object]:
    raw = await request.body()
    if not raw.strip():
        raise bad("invalid request body: empty request body")
    is_yaml = _wants_yaml(request.headers.get("content-type", ""))
    sent = await trio.to_thread.run_sync(_parse_yaml if is_yaml else parse_json, raw)
    if not isinstance(sent, dict):
        raise bad("invalid request body: an object is needed")
    for name in _METADATA:
        sent.pop(name, None)
    for name in sent:
        if name not in _NAMES:
            raise bad(f"invalid request body: unknown field '{name}'{nearest(name, _NAMES)}")
    for kind in ALL_COLLECTIONS:
        # Lua has one kind of table: an empty list comes as {}, too.
        if sent.get(kind) in (None, {}):
            sent.pop(kind, None)
        elif not isinstance(sent[kind], list):
            raise bad(f"invalid request body: {kind} must be a list")
    return sent


def _check_versions(sent: Mapping[str, object]) -> None:
    for name in (f"{kind}_conf_version" for kind in ALL_COLLECTIONS):
        _version(name, sent.get(name, 0))


def _check_kinds_of_items(sent: Mapping[str, object]) -> None:
    """Also of collections that will not be looked at, because their version says that nothing is new."""
    for kind in ALL_COLLECTIONS:
        for index, item in enumerate(_items(sent, kind)):
            if not isinstance(item, dict):
                raise bad(_no_object(kind, index).as_refusal())


def _parse_yaml(raw: bytes) -> object:
    try:
        text = raw.decode("utf-8-sig")
        return read_yaml(SourceText("the body", text, text)).data
    except UnicodeDecodeError as error:
        raise bad(f"invalid request body: {error.reason}") from error
    except ConfigError as error:
        raise bad(f"invalid request body: invalid yaml request body: {error.problems[0]}") from error


def _wants_yaml(media_type: str) -> bool:
    return media_type.startswith("application/yaml")


# In the worker thread


def _stored(survey: Survey) -> Stored:
    """What stands in our file.

    Raises:
      RequestError: 409, it is somebody else's file.
      ConfigError, UnicodeDecodeError: it cannot be read. Not if the survey was one to write by.
    """
    raw = survey.moment.state.contents.get(FILE)
    if raw is None:
        return Stored()
    text = raw.decode()
    if not text.strip():
        raise ConfigError((Problem(FILE, 1, 1, "", EMPTY),))
    head = _HEAD_PATTERN.match(text)
    if head is None:
        message = (
            f"{FILE}: was not written by PUT /apisix/admin/configs, which would replace it; rename it first"
        )
        raise RequestError(HTTPStatus.CONFLICT, message)
    body = text[head.end() :]
    data = read_yaml(SourceText(FILE, body, body)).data
    if not isinstance(data, dict | None):
        raise ConfigError((Problem(FILE, 1, 1, "", "expected a mapping of collections"),))
    digest = head[1] if _content_digest(body) == head[3] else ""
    return Stored(data or {}, digest, head[2])


def _render(
    sent: Mapping[str, object], digest: str, modified_s: str, plugins: PluginSet, survey: Survey
) -> tuple[bytes, Made]:
    stored = _stored(survey)
    if stored.digest == digest:
        raise _UnchangedError
    data = _new_data(sent, stored, plugins)
    _check_owners(data, survey)
    body = f"{render_block(data, indent=0)}\n"
    try:
        assert is_same(read_yaml(SourceText(FILE, body, body)).data, data), "what is read is what was written"
    except ConfigError as error:  # libyaml finds no colon behind a name of more than 1,024 characters
        raise bad("invalid request body: it holds a name that cannot be written as YAML") from error
    head = _HEAD.format(digest=digest, modified_s=modified_s, content=_content_digest(body))
    before, after = _digests(stored.data), _digests(data)
    changed = tuple(key for key in {**before, **after} if before.get(key) != after.get(key))
    return (head + body).encode(), Made(("configs", ""), data, concerns=changed)


def _new_data(sent: Mapping[str, object], stored: Stored, plugins: PluginSet) -> dict[str, object]:
    """The set as it will stand in the file: the objects of each collection, then all versions.

    Raises:
      RequestError: 400, a version goes back, or an object is wrong.
    """
    objects: dict[str, object] = {}
    versions: dict[str, object] = {}
    for kind in ALL_COLLECTIONS:
        name, before = f"{kind}_conf_version", stored.version(kind)
        version = versions[name] = _version(name, sent.get(name, before + 1))
        if version < before:
            raise bad(f"{name} must be greater than or equal to ({before})")
        items = stored.items(kind)
        if version != before:
            items = _items(sent, kind)
            for error in _errors_in(kind, items, plugins):
                raise bad(error.as_refusal())
        if items:
            objects[kind] = items
    return {**objects, **versions}


def _version(name: str, value: object) -> int:
    # The remainder of nan or an infinity is nan, and that is true.
    if not isinstance(value, int | float) or isinstance(value, bool) or value % 1:
        raise bad(f"{name} must be a number")
    return int(value)


def _check_owners(data: Mapping[str, object], survey: Survey) -> None:
    """Nobody's objects are taken over."""
    for key in _digests(data):
        other = survey.objects.get(key)
        if other is not None and other.entry.name != FILE:
            message = (
                f"nothing was written: {key[0]} {key[1]} is defined in {other.file}:{other.line} already"
            )
            raise RequestError(HTTPStatus.CONFLICT, message)


@attrs.frozen
class _Error:
    """What is wrong with one object of a set."""

    kind: str
    index: int
    id: str
    said: str
    is_duplicate: bool = False

    def as_refusal(self) -> str:
        """The `error_msg` of a PUT."""
        return (
            self.said if self.is_duplicate else f"invalid {self.kind} at index {self.index}, err: {self.said}"
        )

    def as_entry(self) -> Mapping[str, object]:
        """One of `errors`."""
        return {"resource_type": self.kind, "resource_id": self.id, "index": self.index, "error": self.said}


def _errors(sent: Mapping[str, object], plugins: PluginSet) -> Iterator[Mapping[str, object]]:
    for kind in ALL_COLLECTIONS:
        for error in _errors_in(kind, _items(sent, kind), plugins):
            yield error.as_entry()


def _errors_in(kind: str, items: Iterable[object], plugins: PluginSet) -> Iterator[_Error]:
    seen: set[str] = set()
    for index, item in enumerate(items):
        id_ = _id(item)
        if not isinstance(item, dict):
            yield _no_object(kind, index)
            continue
        if kind in COLLECTIONS and (said := refusal(kind, item, allow_times=True, plugins=plugins)):
            yield _Error(kind, index, id_, said)
        if id_ and id_ in seen:
            yield _Error(kind, index, id_, f"found duplicate id {id_} in {kind}", is_duplicate=True)
        seen.add(id_)


def _no_object(kind: str, index: int) -> _Error:
    return _Error(kind, index, "", "wrong type: expected object")


def _items(sent: Mapping[str, object], kind: str) -> list[object]:
    items = sent.get(kind, [])
    assert isinstance(items, list), "looked at before"
    return items


def _id(item: object) -> str:
    return id_of(item.get("id")) if isinstance(item, dict) else ""


def _digests(data: Mapping[str, object]) -> dict[Key, str]:
    """Of every object that this gateway knows and that has an id."""
    return {
        (kind, id_): digest_of(item)
        for kind in COLLECTIONS
        for item in _items(data, kind)
        if isinstance(item, dict) and (id_ := _id(item))
    }


def _content_digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:32]


def _shown(stored: Stored) -> Mapping[str, object]:
    """Every version, and the objects without their keys."""
    versions: dict[str, object] = {f"{kind}_conf_version": stored.version(kind) for kind in ALL_COLLECTIONS}
    objects = {
        kind: [without_keys(kind, item) if isinstance(item, dict) else item for item in stored.items(kind)]
        for kind in ALL_COLLECTIONS
        if stored.items(kind)
    }
    return {**objects, **versions}
