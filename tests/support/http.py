"""One HTTP exchange over a Trio stream, as plain as can be: what is sent and what comes back stay visible."""

import json
from typing import Any

import attrs
import trio

from streamgw.core.model import Address


@attrs.frozen
class Reply:
    status: int
    head: str
    """Status line and headers, lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def get(address: Address, path: str, *, method: str = "GET") -> Reply:
    return await exchange(
        address, f"{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode()
    )


async def exchange(address: Address, request: bytes) -> Reply:
    """Send these bytes on a connection of their own and read until the server closes it."""
    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(request)
        answer = b""
        with trio.fail_after(30):
            async for chunk in stream:
                answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return Reply(int(head.split()[1]), head.decode().lower(), body)
