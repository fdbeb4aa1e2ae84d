"""Asking a running gateway, over and over, and hearing what happens there."""

from __future__ import annotations

import functools
import http.client
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import SplitResult, quote, urlsplit

import attrs
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream

from streamgw.core.errors import StreamgwError

TIMEOUT_S: Final = 5.0
SILENCE_S: Final = 60.0
"""The gateway breaks a silence of the feed after 20 s: without a word for this long, nobody is there."""
MESSAGE_LIMIT_BYTES: Final = 1 << 20
ANSWER_LIMIT_BYTES: Final = 64 << 20
SESSION_LIMIT: Final = 1000
KINDS: Final = "session_opened,session_closed,reload"
_NO_FEED: Final = (HandshakeError, OSError, trio.BrokenResourceError, trio.TooSlowError)

Answer = Mapping[str, Any]


class Unreachable(StreamgwError):
    """Nobody answers, or who answers is no streamgw. Trying again may help."""


class Denied(StreamgwError):
    """The key is missing, wrong, or not enough."""


@attrs.frozen
class Admin:
    """The control handlers of a gateway.

    Args:
      url: up to the handlers: `http://127.0.0.1:9180/streamgw/v1`.
      has_feed: of the Admin API; the control API has none.
    """

    url: str
    key: str = attrs.field(default="", repr=False)
    has_feed: bool = True

    async def status(self) -> Answer:
        """What `/streamgw/v1/status` says.

        Raises:
          Unreachable, Denied
        """
        return await self._ask("GET", "status", has="config")

    async def sessions(self) -> Answer:
        """`sessions`, at most SESSION_LIMIT of them, and `total`.

        Raises:
          Unreachable, Denied
        """
        return await self._ask("GET", f"sessions?limit={SESSION_LIMIT}", has="sessions")

    async def kill(self, session_id: str) -> bool:
        """End one session. False: it had ended already.

        Raises:
          Unreachable, Denied
        """
        return await self._ask("DELETE", f"sessions/{quote(session_id, safe='')}") is not _MISSING

    async def listen(self, *, on_open: Callable[[], None], on_event: Callable[[Answer], None]) -> None:
        """Hear what happens from now on, until the gateway ends it.

        Raises:
          Unreachable: also in the middle, when the gateway has gone without a word.
        """
        parts = urlsplit(self.url)
        failure: Exception | None = None
        # Not open_websocket_url: trio-websocket 0.12 leaves the socket open when the server refuses the handshake.
        try:
            async with await _connect(parts) as stream, trio.open_nursery() as nursery:
                with trio.fail_after(TIMEOUT_S):
                    socket = await wrap_client_stream(
                        nursery,
                        stream,
                        parts.netloc,
                        f"{parts.path}/events?kinds={KINDS}",
                        extra_headers=[(b"X-API-KEY", self.key.encode())] if self.key else [],
                        max_message_size=MESSAGE_LIMIT_BYTES,
                    )
                on_open()
                failure = await _hear(socket, on_event)
                nursery.cancel_scope.cancel()
        except* _NO_FEED as group:
            failure = group
        if failure is not None:
            raise Unreachable(f"no live feed at {self.url}: {_first(failure)}") from failure

    async def _ask(self, method: str, path: str, *, has: str = "") -> Answer:
        ask = functools.partial(self._exchange, method, path)
        # A thread that hangs for its 5 s must not keep `q` waiting.
        answer = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        if has and has not in answer:
            raise Unreachable(f"what answers at {self.url} is no streamgw")
        return answer

    def _exchange(self, method: str, path: str) -> Answer:
        try:
            parts = urlsplit(f"{self.url}/{path}")
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
            headers = {"Accept": "application/json", **({"X-API-KEY": self.key} if self.key else {})}
            try:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request(method, target, headers=headers)
                response = connection.getresponse()
                body = response.read(ANSWER_LIMIT_BYTES)
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unreachable(f"no gateway answers at {self.url}: {error}") from error
        return _understand(self.url, method, response.status, body)


_MISSING: Final[Answer] = {}


def _understand(url: str, method: str, status: int, body: bytes) -> Answer:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        said = answer.get("error_msg") if isinstance(answer, dict) else None
        raise Denied(f"{url} refuses: {said or f'HTTP {status}'}")
    if status == HTTPStatus.NOT_FOUND and method == "DELETE":
        return _MISSING
    if status != HTTPStatus.OK or not isinstance(answer, dict):
        raise Unreachable(f"what answers at {url} is no streamgw (HTTP {status})")
    return answer


async def _connect(parts: SplitResult) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    host = parts.hostname or ""
    with trio.fail_after(TIMEOUT_S):
        if parts.scheme != "https":
            return await trio.open_tcp_stream(host, parts.port or 80)
        return await trio.open_ssl_over_tcp_stream(host, parts.port or 443, https_compatible=True)


async def _hear(socket: WebSocketConnection, on_event: Callable[[Answer], None]) -> Exception | None:
    """Until the gateway ends it (None), or goes wrong."""
    while True:
        message: str | bytes = ""
        with trio.move_on_after(SILENCE_S):
            try:
                message = await socket.get_message()
            except ConnectionClosed:
                return None
        if not message:
            return trio.TooSlowError(f"silent for {SILENCE_S:g} s")
        try:
            event = json.loads(message)
        except ValueError as error:
            return error
        if isinstance(event, dict):
            on_event(event)


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
