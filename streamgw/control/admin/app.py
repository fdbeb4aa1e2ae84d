"""Serves the admin side: a Starlette application on Hypercorn's Trio worker, in the caller's nursery.

Importing this costs 0.3 s (Starlette, Hypercorn): only `streamgw run` does.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from socket import AF_INET, AF_INET6, create_server
from typing import TYPE_CHECKING

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from streamgw.control.admin.connections import Bounds, serve_connections
from streamgw.core.model import Address

if TYPE_CHECKING:
    from socket import socket  # noqa: TID251  names the type of a socket that somebody else has made

_BOUNDS = Bounds()


class JSONResponse(Response):
    """A JSON body as APISIX writes it, without spaces; and a newline at the end: `curl` leaves a terminal usable."""

    media_type = "application/json"

    def __init__(self, content: object, status_code: int = HTTPStatus.OK) -> None:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_encode)
        # The name of a file need not be UTF-8. What is not has no UTF-8 here either, but it has a JSON escape.
        super().__init__(f"{text}\n".encode("utf-8", "backslashreplace"), status_code)


def build_app(routes: Sequence[BaseRoute], *, as_apisix: bool = False) -> Starlette:
    """An application whose errors have one shape, and whose bugs are logged.

    Args:
      routes: tried in this order.
      as_apisix: errors are `{"error_msg": "…"}`, and a wrong method is as unknown as a wrong path; otherwise
        `{"status": "error", "error": "…"}`.
    """
    handlers = {HTTPException: _refused_as_apisix if as_apisix else _refused, Exception: _bug}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


async def serve_admin(
    app: ASGIApp,
    bind: Address | socket,
    *,
    bounds: Bounds = _BOUNDS,
    tls: ssl.SSLContext | None = None,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled, or until `stop` is set and the requests under way are done.

    Port 0 asks the kernel for one; a socket is listening already, and is the caller's.

    Returns:
      After `stop`. `task_status` is told the address that clients can use.

    Raises:
      OSError: the address cannot be had.

    Cancellation:
      Requests are cut, and every socket that was opened here is closed.
    """
    with contextlib.closing(_open(bind)) as sock:
        task_status.started(Address(*sock.getsockname()[:2]))
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        await serve_connections(app, listener, bounds, tls=tls, stop=stop)


def _open(bind: Address | socket) -> socket:
    if isinstance(bind, Address):
        # Not in process/sockets.py: that is for the sockets of clients, which outlive their worker.
        sock = create_server((bind.host, bind.port), family=AF_INET6 if ":" in bind.host else AF_INET)
    else:
        sock = bind.dup()
    sock.setblocking(False)
    return sock


def _encode(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    raise TypeError(f"{type(value).__name__} has no JSON form")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this class"
    return JSONResponse({"status": "error", "error": error.detail.lower()}, error.status_code)


async def _refused_as_apisix(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this class"
    if error.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
        return JSONResponse({"error_msg": "not found"}, HTTPStatus.NOT_FOUND)
    return JSONResponse({"error_msg": error.detail}, error.status_code)


async def _bug(request: Request, error: Exception) -> Response:
    structlog.get_logger().error("admin_bug", method=request.method, path=request.url.path, exc_info=error)
    error_msg = {"status": "error", "error": "internal error", "error_msg": "internal error"}
    return JSONResponse(error_msg, HTTPStatus.INTERNAL_SERVER_ERROR)
