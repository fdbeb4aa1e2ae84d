"""Who may ask, and how much: what stands before the handlers of the HTTP servers. Plain ASGI, outermost first:

```
Headers         Server, on every reply
└─ Access       Admin API: allow_admin, CORS, the key and its role, X-API-VERSION
   LocalNames   control API: no key, but no foreign web page either
   └─ Limits    the size of a body, the time it may take, requests at a time
      └─ handlers
```

Source:
  APISIX `apisix/admin/init.lua` (`check_token`, `cors_admin`, `run`), `apisix/core/request.lua` (`get_body`).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import attrs
import trio
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamgw.config.endpoints import AdminSettings, Role
from streamgw.control.admin.app import JSONResponse
from streamgw.core.model import Network

API_PATH = "/apisix/admin"
DRAIN_LIMIT_BYTES = 16 << 20
"""A body that is too large is still read up to here: a client that is cut off while it sends never sees the answer."""

_FORBIDDEN = """\
<html>
<head><title>403 Forbidden</title></head>
<body>
<center><h1>403 Forbidden</h1></center>
</body>
</html>
"""
_PREFLIGHT = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET, PUT, OPTIONS, DELETE, PATCH",
    "Access-Control-Max-Age": "3600",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Allow-Credentials": "true",
}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Expose-Headers": "*",
    "Access-Control-Max-Age": "3600",
}


class Headers:
    """Adds headers to every reply, refusals of a WebSocket included."""

    def __init__(self, app: ASGIApp, headers: Iterable[tuple[str, str]]) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app(scope, receive, _adding(send, self._headers))


def _adding(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"].endswith(("response.start", "websocket.accept")):
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_with


class Access:
    """The door of the Admin API. The settings are those of the moment.

    Free of the key: `HEAD /apisix/admin` (clients look for the version there), preflights, and the files of the page.

    Where no key is asked for, a web page in the operator's browser must not be able to use the API: no CORS then, and the
    checks of `LocalNames`.
    """

    def __init__(
        self,
        app: ASGIApp,
        get_settings: Callable[[], AdminSettings],
        *,
        get_hosts: Callable[[], Collection[str]] = tuple,
        refused: Counter[str] | None = None,
    ) -> None:
        self._app = app
        self._get_settings = get_settings
        self._get_hosts = get_hosts
        self.refused = Counter[str]() if refused is None else refused
        """By reason, for the metrics."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        settings = self._get_settings()
        refusal = self._refusal(HTTPConnection(scope), settings)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        headers = {"X-API-VERSION": settings.version} | _cors(settings)
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._app(scope, receive, _adding(send, raw))

    def _refusal(self, request: HTTPConnection, settings: AdminSettings) -> Response | None:
        """What is answered here already; None: let it in."""
        if not _is_allowed(request, settings.allowed):
            self.refused["address"] += 1
            return HTMLResponse(_FORBIDDEN, HTTPStatus.FORBIDDEN)
        method = request.scope.get("method", "GET")
        if method == "OPTIONS" and _cors(settings):
            return PlainTextResponse("", headers=_PREFLIGHT)
        if _is_free(request.scope["path"], method):
            return None
        given, is_cookie = _token(request)
        # What the browser adds on its own, or nothing at all, proves nothing about who wrote the request.
        is_proven = settings.is_key_required and not is_cookie
        if not is_proven and (foreign := why_foreign(request, self._get_hosts())):
            self.refused["foreign"] += 1
            return JSONResponse({"error_msg": foreign}, HTTPStatus.FORBIDDEN)
        if settings.is_key_required and (why := _why_not(given, method, settings)):
            self.refused["key"] += 1
            answer = JSONResponse(
                {"error_msg": "failed to check token", "description": why}, HTTPStatus.UNAUTHORIZED
            )
            answer.headers.update(_cors(settings))
            return answer
        return None


def _cors(settings: AdminSettings) -> dict[str, str]:
    return _CORS if settings.has_cors and settings.is_key_required else {}


def _why_not(given: str, method: str, settings: AdminSettings) -> str:
    """What is wrong with a key; empty: nothing."""
    if not given:
        return "missing apikey"
    role = _role_of(given, settings)
    if role is None:
        return "wrong apikey"
    return "invalid method for role viewer" if role == "viewer" and method != "GET" else ""


def _is_free(path: str, method: str) -> bool:
    if path == "/ui" or path.startswith("/ui/"):
        return method in {"GET", "HEAD"}
    return path == API_PATH and method == "HEAD"


def _is_allowed(request: HTTPConnection, allowed: Collection[Network]) -> bool:
    if not allowed:
        return True
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in allowed)


def _token(request: HTTPConnection) -> tuple[str, bool]:
    """The key that the request brings, and whether it is the browser that added it."""
    query = parse_qs(request.scope.get("query_string", b"").decode("latin-1")).get("api_key")
    if query:
        return query[0], False
    if given := request.headers.get("x-api-key"):
        return given, False
    cookies = cookie_parser(request.headers.get("cookie", ""))
    return cookies.get("x_api_key", ""), "x_api_key" in cookies


def _role_of(given: str, settings: AdminSettings) -> Role | None:
    """Compares with every key, in the same time whichever it is, and how much of it is right."""
    found: Role | None = None
    for each in settings.keys:
        if hmac.compare_digest(each.key.encode(), given.encode(errors="replace")) and each.key:
            found = each.role
    return found


class LocalNames:
    """Lets requests in that no foreign web page can have made. For what asks for no key.

    A page on any site can send requests to the loopback of whoever looks at it. Two things give it away: the header
    `Origin`, which a browser adds to whatever is not a plain read; and, when the page's own name was made to lead to our
    address (DNS rebinding), that name in the header `Host`.
    """

    def __init__(self, app: ASGIApp, get_hosts: Callable[[], Collection[str]] = tuple) -> None:
        self._app = app
        self._get_hosts = get_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        answer: ASGIApp = self._app
        if why := why_foreign(HTTPConnection(scope), self._get_hosts()):
            answer = JSONResponse({"error_msg": why}, HTTPStatus.FORBIDDEN)
        await answer(scope, receive, send)


def why_foreign(request: HTTPConnection, hosts: Collection[str]) -> str:
    """Why a web page of somebody else may have made this request; empty: it has not.

    Args:
      request: of any method.
      hosts: names that are ours, besides addresses and localhost.
    """
    host = request.headers.get("host", "")
    if host and not _is_own(host, hosts):
        return "this Host is not known here: use an address, localhost, or a name of streamgw.admin.hosts"
    origin = request.headers.get("origin")
    # No parsing, which raises for some: a browser writes an origin in one way (RFC 6454 § 6.2).
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        return "requests of web pages on other origins are not answered"
    return ""


def _is_own(host: str, hosts: Collection[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        if name == "localhost" or name in hosts:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@attrs.frozen
class RequestLimits:
    """What one request may cost."""

    body_limit_bytes: int = 1_572_864
    """APISIX's."""
    timeout_s: float = 30.0
    """For the body, and for a place among `max_requests`."""
    max_requests: int = 64


class _TooLarge(Exception):
    """A body beyond the limit, all or enough of it read."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class _Gone(Exception):
    """The client hung up before its request was complete."""


class Limits:
    """Reads the whole body, within size and time, before a handler starts: a slow client occupies none.

    How long an answer may take to be sent is bounded below HTTP: `connections.Bounds`.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits
        self._slots = trio.Semaphore(limits.max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer: ASGIApp
        limit = self._limits.body_limit_bytes
        try:
            with trio.fail_after(self._limits.timeout_s):
                body = await _read_body(HTTPConnection(scope), receive, limit)
        except _Gone:
            return
        except _TooLarge as error:
            text = f"request size {error.size_bytes} is greater than the maximum size {limit} allowed"
            answer = JSONResponse({"error_msg": f"invalid request body: {text}"}, HTTPStatus.BAD_REQUEST)
        except trio.TooSlowError:
            text = f"the request was not complete after {self._limits.timeout_s:g} s"
            answer = JSONResponse({"error_msg": text}, HTTPStatus.REQUEST_TIMEOUT)
        else:
            await self._pass_on(scope, _replayed(body, receive), send)
            return
        await answer(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        with trio.move_on_after(self._limits.timeout_s) as waiting:
            await self._slots.acquire()
        if waiting.cancelled_caught:
            text = "too many requests at the same time"
            busy = JSONResponse({"error_msg": text}, HTTPStatus.SERVICE_UNAVAILABLE)
            await busy(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._slots.release()


async def _read_body(request: HTTPConnection, receive: Receive, limit_bytes: int) -> bytes:
    declared = int(request.headers.get("content-length", "0"))  # the server has checked that it is a number
    if declared > max(limit_bytes, DRAIN_LIMIT_BYTES):
        raise _TooLarge(declared)
    body = bytearray()
    size_bytes = 0
    more = True
    while more and size_bytes <= max(limit_bytes, DRAIN_LIMIT_BYTES):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        piece = message.get("body", b"")
        size_bytes += len(piece)
        if size_bytes <= limit_bytes:
            body += piece
        more = message.get("more_body", False)
    if size_bytes > limit_bytes:
        raise _TooLarge(max(declared, size_bytes))
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """As if the body had come in one piece."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
