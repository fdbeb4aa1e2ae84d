"""What an active check says to a node and expects of it: written step by step, or ready made for a protocol.

A ready-made probe asks as little as shows that the server serves, and leaves nothing behind in it that would count
against the gateway.

Source:
  redis.io/docs/reference/protocol-spec; MySQL "Connection Phase"; PostgreSQL "Message Formats" and pg_isready; RFC 5321;
  RFC 4511 section 4.2; RFC 1035 section 4.1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

import attrs

from streamgw.config.strict import Fault, Stated, Wrong, shown
from streamgw.core.probe import MAX_ANSWER_BYTES, Step

ReadyMade: TypeAlias = Literal["redis", "mysql", "postgresql", "smtp", "ldap", "dns"]
DEFAULT_USER = "streamgw"


def _hex(value: object) -> bytes:
    if type(value) is str:
        try:
            data = bytes.fromhex(value)
        except ValueError:
            pass
        else:
            if 0 < len(data) <= MAX_ANSWER_BYTES:
                return data
    raise Wrong(f"expected bytes in hexadecimal like '0d 0a', got {shown(value)}")


def _pattern(value: object) -> re.Pattern[bytes]:
    if type(value) is str and value:
        try:
            return re.compile(value.encode(), re.DOTALL)
        except re.error as error:
            raise Wrong(f"not a regular expression: {error}") from None
    raise Wrong(f"expected a regular expression, got {shown(value)}")


def _words(value: object) -> str:
    if type(value) is str and 0 < len(value) <= MAX_ANSWER_BYTES:
        return value
    raise Wrong(f"expected 1 to {MAX_ANSWER_BYTES} characters, got {shown(value)}")


Words: TypeAlias = Annotated[
    str, Stated(_words, {"type": "string", "minLength": 1, "maxLength": MAX_ANSWER_BYTES})
]
Hex: TypeAlias = Annotated[bytes, Stated(_hex, {"type": "string", "pattern": r"^\s*(?:[0-9a-fA-F]{2}\s*)+$"})]
Pattern: TypeAlias = Annotated[re.Pattern[bytes], Stated(_pattern, {"type": "string", "minLength": 1})]


@attrs.frozen(kw_only=True)
class TalkSpec:
    """One step: say something, then wait for an answer. Either may be left out."""

    send: Words | None = None
    """Text, as it stands."""
    send_hex: Hex | None = None
    """Bytes."""
    expect: Words | None = None
    """Text that must stand in the answer."""
    expect_hex: Hex | None = None
    """Bytes that must stand in the answer."""
    expect_regex: Pattern | None = None
    """A regular expression (Python's, on bytes; a dot is any byte) that must be found in the answer."""

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        said = [name for name in ("send", "send_hex") if getattr(self, name) is not None]
        expected = [
            name for name in ("expect", "expect_hex", "expect_regex") if getattr(self, name) is not None
        ]
        for names in (said, expected):
            if len(names) > 1:
                yield Fault((names[1],), f"'{names[0]}' and '{names[1]}' exclude each other", at_key=True)
        if not said and not expected:
            yield Fault((), "expected something to send or to expect")

    @property
    def says_something(self) -> bool:
        """It does not only listen."""
        return self.send is not None or self.send_hex is not None

    def build(self) -> Step:
        """As the prober knows it."""
        send = self.send.encode() if self.send is not None else self.send_hex or b""
        expect = self.expect_regex
        plain = self.expect.encode() if self.expect is not None else self.expect_hex
        if plain is not None:
            expect = re.compile(re.escape(plain), re.DOTALL)
        return Step(send, expect)


def ready_made(name: ReadyMade, *, over_udp: bool, user: str | None) -> tuple[Step, ...]:
    """The talk of that name."""
    who = (DEFAULT_USER if user is None else user).encode()
    if name == "mysql":
        return _mysql(who)
    if name == "postgresql":
        return _postgresql(who)
    if name == "dns":
        return _dns(over_udp=over_udp)
    return _FIXED[name]


def _step(send: bytes, expect: bytes) -> Step:
    return Step(send, re.compile(expect, re.DOTALL))


_FIXED: Mapping[str, tuple[Step, ...]] = {
    # A server that wants a password is one that serves. One that is loading its data says -LOADING, a replica that lost
    # its master -MASTERDOWN: neither serves.
    "redis": (_step(b"PING\r\n", rb"\A(?:\+PONG|-NOAUTH|-NOPERM)"),),
    "smtp": (
        _step(b"", rb"\A220[ -]"),
        _step(b"EHLO streamgw\r\n", rb"(?:\A|\n)250 "),
        _step(b"QUIT\r\n", rb"\A221"),
    ),
    # An anonymous bind: messageID 1, version 3. The answer: BindResponse with resultCode success, or one of those with
    # which a server says that it wants another kind of bind (RFC 4511, 4.1.9: 7, 8, 13, 48, 49, 53).
    "ldap": (
        _step(
            bytes.fromhex("300c020101600702010304008000"),
            rb"\A0(?:[\x00-\x7f]|[\x81-\x84].{1,4}?)\x02\x01\x01a(?:[\x00-\x7f]|[\x81-\x84].{1,4}?)\x0a\x01[\x00\x07\x08\x0d\x30\x31\x35]",
        ),
    ),
}

_CLIENT_LONG_PASSWORD, _CLIENT_PROTOCOL_41, _CLIENT_SECURE_CONNECTION = 0x1, 0x200, 0x8000


def _mysql(user: bytes) -> tuple[Step, ...]:
    """The greeting, then a login without a password.

    A client that goes away after the greeting counts as a failed handshake, and a server blocks a host after 100 of
    those in a row (`max_connect_errors`): the sessions' too, as they come from the same address. A login that is denied
    does not count, and it shows as well that the server serves.
    """
    capabilities = _CLIENT_LONG_PASSWORD | _CLIENT_PROTOCOL_41 | _CLIENT_SECURE_CONNECTION
    login = struct.pack("<IIB23x", capabilities, 1 << 24, 33) + user + b"\0" + b"\0"
    packet = len(login).to_bytes(3, "little") + b"\x01" + login
    greeting = rb"\A.{3}\x00\x0a"
    # OK, or "use another method", or an error: 1045 and its kin say who may not come in, and so does 1698.
    # 1040 is "too many connections", 1129 "host is blocked".
    answer = rb"\A.{3}.(?:\x00|\xfe|\xff(?!\x10\x04|\x69\x04))"
    return (_step(b"", greeting), _step(packet, answer), Step(b"\x01\x00\x00\x00\x01"))


def _postgresql(user: bytes) -> tuple[Step, ...]:
    """What pg_isready does: a startup packet. A server that starts or stops answers with error 57P03; any other answer is
    one of a server that serves, also "no such user".
    """
    words = b"user\0" + user + b"\0database\0" + user + b"\0application_name\0streamgw health check\0\0"
    startup = struct.pack(">II", len(words) + 8, 3 << 16) + words
    answer = rb"\A(?:R|E.{4}S[^\x00]*\x00(?:V[^\x00]*\x00)?C(?!57P03)[0-9A-Z]{5}\x00)"
    return (_step(startup, answer), Step(b"X\x00\x00\x00\x04"))


def _dns(*, over_udp: bool) -> tuple[Step, ...]:
    """Who serves the root? Every server can say something to that: the answer, or that it refuses. SERVFAIL is none."""
    query = struct.pack(">HHHHHH", 0x7367, 0x0100, 1, 0, 0, 0) + b"\0" + struct.pack(">HH", 2, 1)
    answer = rb"sg[\x80-\xff][\x00\x10\x20\x30\x80\x90\xa0\xb0\x03\x13\x23\x33\x83\x93\xa3\xb3\x05\x15\x25\x35\x85\x95\xa5\xb5]"
    if over_udp:
        return (_step(query, rb"\A" + answer),)
    return (_step(len(query).to_bytes(2, "big") + query, rb"\A.." + answer),)
