"""What every parser of first bytes promises, whatever the bytes are. Shared by the fuzzers here and by tests/core/wire.

A parser may answer with a value, `NeedMore` or `ParseError`. Anything else that it raises is a finding, and so is an
answer that more bytes would take back: the session acts on the first one it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from streamgw.core.errors import ParseError
from streamgw.core.preread import parse_hello, parse_preface
from streamgw.core.wire import NeedMore
from streamgw.core.wire.mqtt import parse_connect
from streamgw.core.wire.proxy_protocol import may_become_proxy_header, parse_proxy_header
from streamgw.core.wire.tls import MAX_HELLO_BYTES, may_become_client_hello, parse_client_hello

T = TypeVar("T")
Answer = Literal["value", "need more", "refused"]

MAX_HELLO_ON_WIRE_BYTES = (5 + 1) * (4 + MAX_HELLO_BYTES)
"""Every byte of the message in a record of its own."""
MAX_PROXY_HEADER_BYTES = 16 + 0xFFFF
MAX_CONNECT_BYTES = 5 + (1 << 28) + 0xFFFF
"""A property block of the greatest length that can be told, and the identifier behind it."""
MAX_MESSAGE_LETTERS = 400


def check_client_hello(buffer: bytes) -> Answer:
    """Parse these bytes as a ClientHello and look at the answer. Returns which one it was."""
    found = settled(parse_client_hello, buffer, limit_bytes=MAX_HELLO_ON_WIRE_BYTES)
    assert may_become_client_hello(buffer) or isinstance(found, ParseError)
    assert same(answer(lambda data: parse_hello(data, "required"), buffer), found)
    if isinstance(found, ParseError):
        return "refused"
    if isinstance(found, NeedMore):
        return "need more"
    name = found.server_name
    assert name is None or (name == name.lower() and 0 < len(name) <= 253 and name.isascii())
    assert name is None or not (set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_."))
    assert name is None or all(0 < len(label) <= 63 for label in name.split("."))
    assert all(0 < len(protocol) <= 255 for protocol in found.alpn)
    return "value"


def check_proxy_header(buffer: bytes) -> Answer:
    """Parse these bytes as a PROXY header and look at the answer. Returns which one it was."""
    found = settled(parse_proxy_header, buffer, limit_bytes=MAX_PROXY_HEADER_BYTES)
    assert may_become_proxy_header(buffer) or isinstance(found, ParseError)
    preface = answer(lambda data: parse_preface(data, "required"), buffer)
    if isinstance(found, ParseError):
        assert isinstance(preface, ParseError)
        return "refused"
    if isinstance(found, NeedMore):
        assert preface == found
        return "need more"
    header, consumed = found
    assert 0 < consumed <= len(buffer)
    assert parse_proxy_header(buffer[:consumed]) == found, "what follows the header is not looked at"
    assert (header.client is None) == (header.server is None)
    return "value"


def check_mqtt_connect(buffer: bytes) -> Answer:
    """Parse these bytes as an MQTT CONNECT and look at the answer. Returns which one it was."""
    found = settled(parse_connect, buffer, limit_bytes=MAX_CONNECT_BYTES)
    if isinstance(found, ParseError):
        return "refused"
    if isinstance(found, NeedMore):
        return "need more"
    assert "\0" not in found.protocol_name + found.client_id
    assert 0 <= found.protocol_level <= 255
    return "value"


def answer(parse: Callable[[bytes], T], buffer: bytes) -> T | ParseError:
    """The three answers as values."""
    try:
        return parse(buffer)
    except ParseError as error:
        return error


def same(one: object, other: object) -> bool:
    """Whether two answers are the same; a refusal may be put in other words once more bytes are there."""
    return one == other or (isinstance(one, ParseError) and isinstance(other, ParseError))


def settled(parse: Callable[[bytes], T], buffer: bytes, *, limit_bytes: int) -> T | ParseError:
    """The answer for the whole buffer, after a look that no part of it had another and that more changes nothing.

    Args:
      parse: the parser.
      buffer: anything.
      limit_bytes: the parser never asks for more than this.
    """
    found = answer(parse, buffer)
    if isinstance(found, NeedMore):
        assert len(buffer) < found.at_least <= limit_bytes
        # One byte less than it asks for cannot be enough, whatever the bytes are.
        short = answer(parse, buffer + bytes(found.at_least - 1 - len(buffer)))
        assert isinstance(short, NeedMore | ParseError)
    else:
        assert same(answer(parse, buffer + b"\x00"), found)
        assert same(answer(parse, buffer + b"\xff\n"), found)
    if isinstance(found, ParseError):
        assert str(found).isprintable(), "it goes to the log"
        assert len(str(found)) <= MAX_MESSAGE_LETTERS
    for cut in (1, 2, 9, len(buffer) // 2, len(buffer) - 1):
        early = answer(parse, buffer[: max(0, cut)])
        assert isinstance(early, NeedMore) or same(early, found)
    return found
