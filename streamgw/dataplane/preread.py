"""Look at a client's first bytes without taking them: a PROXY header, a ClientHello.

The kernel's receive buffer is the preread buffer: whoever takes the socket next finds an untouched stream. Only a PROXY
header is ever consumed, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs
import trio

from streamgw.core.errors import PrereadTimeout, PrereadTooLong
from streamgw.core.wire import NeedMore
from streamgw.dataplane.pump import End, Pump

T = TypeVar("T")


@attrs.frozen
class Bounds:
    """How long and how much is waited for. Both limits end the session of a client that owes the bytes."""

    deadline: float
    """trio.current_time()."""
    limit_bytes: int
    timeout_s: float
    """What the deadline came from, for messages."""


async def look(
    pump: Pump,
    end: End,
    parse: Callable[[bytes], T | NeedMore],
    bounds: Bounds,
    *,
    what: str,
    is_owed: Callable[[bytes], bool],
) -> T | None:
    """Peek until `parse` has its answer.

    Args:
      pump: holds the end.
      end: of the client.
      parse: pure; asked again whenever there is more, with everything from the first byte on.
      bounds: silence and size.
      what: is waited for, in messages: `a PROXY header`.
      is_owed: whether a client that has sent this much must send the rest. Otherwise silence is an answer too: None.

    Raises:
      ParseError: by `parse`.
      PrereadTimeout, PrereadTooLong: it is owed and did not come, or asks for more than is allowed.
      PeerReset: the client reset the connection.
    """
    at_least = 1
    while True:
        buffer = await pump.peek(end, at_least, deadline=bounds.deadline)
        found = parse(buffer[: bounds.limit_bytes])  # what came early counts like what is waited for
        if not isinstance(found, NeedMore):
            return found
        if len(buffer) < at_least:
            if not is_owed(buffer):
                return None
            if trio.current_time() < bounds.deadline:
                raise PrereadTimeout(f"the client closed after {len(buffer)} bytes of {what}")
            noun = what.removeprefix("a ").removeprefix("an ")
            raise PrereadTimeout(f"no whole {noun} within {bounds.timeout_s:g} s")
        at_least = found.at_least
        if at_least > bounds.limit_bytes:
            raise PrereadTooLong(f"{what} of {at_least} bytes; the limit is {bounds.limit_bytes}")
