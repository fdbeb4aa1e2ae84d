"""`/ui/`: our own page, or a single-page application that stands in a directory of the operator's.

The page is static and needs no key: it asks the person for one and sends it with what it asks of the API.
"""

from __future__ import annotations

import mimetypes
import os
import re
import stat
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

import attrs
import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

OWN_PAGE: Final = Path(__file__).with_name("ui")
FILE_LIMIT_BYTES: Final = 32 << 20
"""A file is sent from memory; a larger one is no part of a page."""

_INDEX: Final = "index.html"
_NAMED_BY_CONTENT: Final = re.compile(r"^assets/.*[-.][\w-]{8,}\.\w+$")
"""What Vite and its like put below assets/: the name changes with the content."""

_COMMON: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_OWN_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, nothing inline, and no text that becomes markup: the name of a route is anybody's words."""
_FOREIGN_POLICY: Final = "object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
"""What another application loads is its own business; nobody frames it."""


def build_page_routes(directory: Path | None = None) -> list[BaseRoute]:
    """`/ui` and everything below, for GET and HEAD.

    A path that is no file is answered with index.html where a browser navigates: the application's own addresses can be
    reloaded and bookmarked. A script or an image that is not there is a 404: index.html in its place would be run.

    Args:
      directory: of an application (`streamgw.admin.ui_dir`), looked at anew for each request; None: our own page.

    Source:
      APISIX serves its dashboard the same way: `/ui` → 301 to the relative `ui/`, then index.html for what is no file.
    """
    pages = _Pages(directory)
    return [
        Route("/ui", _to_the_directory, methods=["GET"]),
        Route("/ui/{path:path}", pages.answer, methods=["GET"]),
    ]


async def _to_the_directory(_request: Request) -> Response:
    # Relative, and not made absolute from the Host header: behind a proxy only the client knows the whole address.
    return RedirectResponse("ui/", HTTPStatus.MOVED_PERMANENTLY)


@attrs.frozen
class _File:
    body: bytes
    etag: str
    media_type: str


class _Pages:
    """The files of one directory, with an index for what is none of them."""

    def __init__(self, directory: Path | None) -> None:
        self._is_own = directory is None
        self._place = directory or OWN_PAGE
        policy = _OWN_POLICY if self._is_own else _FOREIGN_POLICY
        self._headers: Mapping[str, str] = {**_COMMON, "Content-Security-Policy": policy}

    async def answer(self, request: Request) -> Response:
        path: str = request.path_params["path"]
        file = await trio.to_thread.run_sync(_read, self._place, path or _INDEX)
        for_ever = file is not None and not self._is_own and _NAMED_BY_CONTENT.match(path)
        response = await self._fall_back(path, request) if file is None else _send(file, request)
        # no-cache: kept, but asked about each time; the ETag makes that a 304.
        caching = "public, max-age=31536000, immutable" if for_ever else "no-cache"
        response.headers.update({**self._headers, "Cache-Control": caching})
        return response

    async def _fall_back(self, path: str, request: Request) -> Response:
        if not _navigates(path, request):
            return PlainTextResponse("not found\n", HTTPStatus.NOT_FOUND)
        if self._is_own and "/" in path:
            # Our page links its files relatively, which works from /ui/ only.
            return RedirectResponse("../" * path.count("/"), HTTPStatus.FOUND)
        index = await trio.to_thread.run_sync(_read, self._place, _INDEX)
        if index is None:
            return PlainTextResponse(f"{self._place} has no {_INDEX}\n", HTTPStatus.NOT_FOUND)
        return _send(index, request)


def _read(directory: Path, path: str) -> _File | None:
    """A regular file inside the directory, wherever links lead; None for everything else. Blocks."""
    if any(part.startswith(".") or "\\" in part for part in path.split("/")):
        return None  # `..` in any spelling; and a .git or an .env that lies in the directory is nobody's page
    try:
        inside = os.path.realpath(directory)
        place = os.path.realpath(f"{inside}/{path}")
        status = os.stat(place)  # noqa: PTH116  # Path.resolve raises RuntimeError for a circle of links
        is_page = stat.S_ISREG(status.st_mode) and status.st_size <= FILE_LIMIT_BYTES
        if not is_page or not place.startswith(f"{inside}/"):
            return None
        body = Path(place).read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return _File(body, f'"{status.st_mtime_ns:x}-{status.st_size:x}"', media_type)


def _send(file: _File, request: Request) -> Response:
    # Not Starlette's FileResponse: it hears `http.disconnect` while Hypercorn is still ending the response, cancels
    # that, and the connection stays open until it idles out.
    known = request.headers.get("if-none-match", "")
    headers = {"ETag": file.etag}
    if file.etag in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


def _navigates(path: str, request: Request) -> bool:
    """Whether a person goes there. Ids may have dots, so that the path alone does not say."""
    return "text/html" in request.headers.get("accept", "") or "." not in path.rpartition("/")[2]
