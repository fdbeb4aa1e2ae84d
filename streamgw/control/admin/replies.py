"""What the resources of the Admin API answer with, in APISIX's shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

import trio
from starlette.requests import Request
from starlette.responses import Response

from streamgw.core.errors import StreamgwError

MAX_DEPTH = 64
"""Objects and lists within each other in a body. The deepest that means anything has 9."""
SMALL_BYTES = 16 << 10
"""A larger body is parsed in a worker thread."""


class RequestError(StreamgwError):
    """What a client asked for is not done. Carries the answer.

    Source:
      APISIX: `error_msg` in a 4xx; a missing key is etcd's `message`; `page_size` alone is plain text.
    """

    def __init__(self, status: int, content: str | Mapping[str, object]) -> None:
        super().__init__(content if isinstance(content, str) else str(content))
        self.status = status
        self.content = {"error_msg": content} if isinstance(content, str) else content

    def reply(self) -> Response:
        """The answer."""
        return json_reply(self.content, self.status)


class PlainTextError(RequestError):
    """As RequestError, in plain text."""

    def reply(self) -> Response:
        """The answer."""
        return Response(str(self), self.status, media_type="text/plain")


def bad(message: str) -> RequestError:
    """400."""
    return RequestError(HTTPStatus.BAD_REQUEST, message)


def key_not_found() -> RequestError:
    """There is no such object."""
    return RequestError(HTTPStatus.NOT_FOUND, {"message": "Key not found"})


def not_found() -> RequestError:
    """There is no such path, or not with this method."""
    return RequestError(HTTPStatus.NOT_FOUND, "not found")


def json_reply(
    content: object, status: int = HTTPStatus.OK, *, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON as APISIX writes it, without spaces; and a newline at the end: `curl` leaves a terminal usable."""
    # A lone surrogate has no UTF-8, but it has a JSON escape, and that is what this makes of it.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    return Response(text.encode("utf-8", "backslashreplace"), status, dict(headers or {}), "application/json")


def as_v2(action: str, content: Mapping[str, object]) -> Mapping[str, object]:
    """An answer about objects in the shape of `admin_api_version: v2`, which is etcd's.

    Source:
      APISIX `apisix/admin/v3_adapter.lua`: what it makes of this in v3.
    """
    if "list" in content:
        node = {"dir": True, "nodes": content["list"]}
        return {"action": action, "count": content["total"], "node": node}
    names = {"key", "value", "createdIndex", "modifiedIndex"} & content.keys()
    if "deleted" in content:
        return {"action": action, **content, "node": {}}
    node = {name: content[name] for name in content if name in names}
    return {"action": action, **{name: content[name] for name in content if name not in names}, "node": node}


async def json_body(request: Request) -> object:
    """The body; None: there is none.

    Raises:
      RequestError: 400, it is not JSON, or nothing that a file could hold.
    """
    raw = await request.body()
    if len(raw) <= SMALL_BYTES:
        return parse_json(raw)
    return await trio.to_thread.run_sync(parse_json, raw)


def parse_json(raw: bytes) -> object:
    """A body that should be JSON; None: it is empty.

    Raises:
      RequestError: 400, with the text in `req_body`, as APISIX gives it back.
    """
    if not raw.strip():
        return None
    try:
        text = raw.decode("utf-8")
        data = json.loads(text, parse_float=_number, parse_constant=_refuse_constant)
        text.encode()
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        content = {"error_msg": f"invalid request body: {said}", "req_body": raw.decode("utf-8", "replace")}
        raise RequestError(HTTPStatus.BAD_REQUEST, content) from error
    if _is_deeper(data, MAX_DEPTH):
        raise bad(f"invalid request body: nested more than {MAX_DEPTH} deep")
    return cast("object", data)


def _number(text: str) -> int | float:
    """`9100.0` is the integer 9100, as in JSON Schema and in Lua; from 2**53 on nobody can tell."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else number


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON value")


def _is_deeper(data: object, depth: int) -> bool:
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return depth < 0 or any(_is_deeper(item, depth - 1) for item in inner)
