"""An HTTP request with a batch as its body, and the little of the answer that matters: its status."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import h11
import trio

from streamgw import __version__
from streamgw.core.batch import OverHTTP
from streamgw.core.errors import StreamgwError

HEAD_LIMIT_BYTES = 16 << 10
"""Of an answer, interim ones included. More is a failure."""
REST_LIMIT_BYTES = 64 << 10
"""Of an answer's body, which is read only so that the server is not reset in the middle of it."""
_CHUNK_BYTES = 16 << 10


class BadAnswer(StreamgwError):
    """The server did not take the batch: what it said instead."""


async def post(stream: trio.abc.Stream, to: OverHTTP, records: Sequence[bytes]) -> None:
    """Ask once, on a connection that is for nothing else, and stays open. Follows no redirect.

    Raises:
      BadAnswer: another status than 2xx, none, no HTTP, or a head that is too long; or the request would be no HTTP.
      trio.BrokenResourceError: the connection broke before the answer.
    """
    try:
        status = await _ask(stream, to, records)
    except h11.ProtocolError as error:
        raise BadAnswer(str(error)) from error
    if not 200 <= status < 300:
        raise BadAnswer(f"answered {status}")


async def _ask(stream: trio.abc.Stream, to: OverHTTP, records: Sequence[bytes]) -> int:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT_BYTES)
    body = _body(to, records)
    request = h11.Request(method="POST", target=to.target, headers=_headers(to, len(body)))
    events = (request, h11.Data(data=body), h11.EndOfMessage())
    unsent: trio.BrokenResourceError | None = None
    try:
        await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
    except trio.BrokenResourceError as error:
        unsent = error  # a server that refuses by the head alone may have said so
    return await _status(stream, connection, unsent)


def _body(to: OverHTTP, records: Sequence[bytes]) -> bytes:
    match to.form:
        case "object":
            (record,) = records
            return record
        case "array":
            return b"[" + b",".join(records) + b"]"
        case "lines":
            return b"\n".join(records)


def _headers(to: OverHTTP, length: int) -> list[tuple[str, str]]:
    host = f"[{to.host}]" if ":" in to.host else to.host
    is_usual = to.port == (443 if to.tls else 80)
    headers = [
        ("Host", host if is_usual else f"{host}:{to.port}"),
        ("User-Agent", f"streamgw/{__version__}"),
        ("Content-Type", "text/plain" if to.form == "lines" else "application/json"),
        ("Content-Length", str(length)),
        ("Connection", "close"),
    ]
    return [*headers, ("Authorization", to.authorization)] if to.authorization else headers


async def _status(
    stream: trio.abc.Stream, connection: h11.Connection, unsent: trio.BrokenResourceError | None
) -> int:
    """Of the final answer. `unsent`: why there may be none."""
    received = 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            return event.status_code
        if event is not h11.NEED_DATA:
            continue  # 1xx
        chunk = b""
        with contextlib.suppress(trio.BrokenResourceError):
            chunk = bytes(await stream.receive_some(_CHUNK_BYTES))
        received += len(chunk)
        if not chunk:
            raise unsent or BadAnswer("closed without an answer")
        if received > HEAD_LIMIT_BYTES + _CHUNK_BYTES:
            raise BadAnswer(f"more than {HEAD_LIMIT_BYTES} bytes before an answer")
        connection.receive_data(chunk)


async def read_rest(stream: trio.abc.Stream, *, within_s: float) -> None:
    """See the server end its answer. What happens counts no more: the batch has arrived."""
    rest = 0
    with trio.move_on_after(within_s), contextlib.suppress(trio.BrokenResourceError):
        while rest < REST_LIMIT_BYTES and (chunk := await stream.receive_some(_CHUNK_BYTES)):
            rest += len(chunk)
