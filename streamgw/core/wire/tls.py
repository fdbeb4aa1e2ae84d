"""The first message of a TLS client: which name it asks for, which protocols and versions it offers.

Whoever decides by these facts and whoever speaks TLS afterwards (OpenSSL here, the upstream behind a passthrough) must
read the same hello. So wherever two readers could come to different names, such as two server names, or an extension
that comes twice, the hello is refused rather than interpreted.

Source:
  RFC 8446 § 4.1.2, § 5.1 (records); RFC 6066 § 3 (server name); RFC 7301 § 3.1 (ALPN).
"""

from __future__ import annotations

import ipaddress
import re
import struct

import attrs

from streamgw.core.errors import ParseError
from streamgw.core.wire import NeedMore, shown

MAX_HELLO_BYTES = 65_536
"""Of the message, without the heads of its records. `preread_limit` is usually lower; this bounds the parser itself.
Post-quantum key shares of today make hellos of 2 kB, in the worst case some 20 kB."""

_RECORD_HEAD_BYTES = 5
_MAX_FRAGMENT_BYTES = 1 << 14
_HANDSHAKE, _MAJOR_VERSION = 0x16, 0x03
_CLIENT_HELLO = 1
_MESSAGE_HEAD_BYTES = 4
_MIN_BODY_BYTES = 2 + 32 + 1 + (2 + 2) + (1 + 1)
"""Version, random, no session id, one cipher suite, one compression method, no extensions."""
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS = 0, 16, 43
_HOST_NAME = 0

_VERSIONS = {0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
"""As OpenSSL calls them."""

# Underscores are in no host name of RFC 952, but in the names of services that meshes and containers send.
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*", re.DOTALL)


@attrs.frozen
class ClientHello:
    """What a client says before anything is agreed upon. Nothing of it is proven."""

    server_name: str | None
    """Lower case, without a trailing dot. None: the client sent none, or an IP address, which is not a name (RFC 6066).
    With Encrypted ClientHello it is the outer, public name: the inner one is for the holder of the key."""
    alpn: tuple[str, ...]
    """In the client's order. Names are bytes; read as Latin-1, so that every one has a text and none share one."""
    versions: tuple[str, ...]
    """`TLSv1.3`, in the client's order; without that extension the one highest version it speaks. Reserved values
    (GREASE, RFC 8701) left out, unknown ones as `0x7f1c`."""


def may_become_client_hello(buffer: bytes) -> bool:
    """Whether these first bytes are, or may still grow into, a TLS handshake record. True of no bytes at all.

    Two bytes decide, as in nginx and HAProxy: the minor version says nothing (RFC 8446 § 5.1).
    """
    return not buffer or (buffer[0] == _HANDSHAKE and buffer[1:2] in (b"", bytes([_MAJOR_VERSION])))


def parse_client_hello(buffer: bytes) -> ClientHello | NeedMore:
    """Read server name, ALPN and versions from the first bytes of a TLS connection.

    The hello may span several records; bytes after it are ignored.

    Returns:
      NeedMore until the whole message is there: one byte more until a TLS record is recognized, then the fewest that can
      complete it. However small the records are cut, trying again at `at_least` costs a logarithmic number of tries.

    Raises:
      ParseError: these bytes cannot become a ClientHello, whatever follows. Among these is a server name that is no
        host name: to treat it as none would serve the fallback's certificate and routes to somebody who asked for
        something else.
    """
    if not may_become_client_hello(buffer):
        raise ParseError(f"not a TLS ClientHello: {shown(buffer)}")
    if len(buffer) < 2:
        return NeedMore(len(buffer) + 1)
    body = _join_records(buffer)
    return body if isinstance(body, NeedMore) else _parse_body(body)


def alert(description: int) -> bytes:
    """A fatal alert in plain text, as a record: what a client may be told before keys are agreed upon."""
    return struct.pack("!BHHBB", 0x15, 0x0303, 2, 2, description)


UNRECOGNIZED_NAME = alert(112)
"""No certificate for the server name (RFC 6066 § 3)."""


def _join_records(buffer: bytes) -> bytes | NeedMore:
    """The body of the hello, put together from its records."""
    message = bytearray()
    missing = _missing(message)
    at = 0
    while True:
        start = at + _RECORD_HEAD_BYTES
        if len(buffer) < start:
            return NeedMore(start + missing)
        at = start + _fragment_bytes(buffer, at)
        message += buffer[start:at]
        missing = _missing(message)
        if missing <= 0:
            return bytes(message[_MESSAGE_HEAD_BYTES : len(message) + missing])
        if len(buffer) < at:
            to_come = at - len(buffer)
            return NeedMore(
                len(buffer) + missing if missing <= to_come else at + _RECORD_HEAD_BYTES + missing - to_come
            )


def _fragment_bytes(buffer: bytes, at: int) -> int:
    """The length that the record's head tells."""
    kind, major, _, length = struct.unpack_from("!BBBH", buffer, at)
    if kind != _HANDSHAKE or major != _MAJOR_VERSION:
        raise ParseError(f"a TLS ClientHello interrupted by {shown(buffer[at : at + _RECORD_HEAD_BYTES])}")
    # RFC 8446 § 5.1 forbids empty handshake records: they would let a client grow the buffer for ever.
    if not 1 <= length <= _MAX_FRAGMENT_BYTES:
        raise ParseError(f"a TLS record of {length} bytes; expected 1 to {_MAX_FRAGMENT_BYTES}")
    return int(length)


def _missing(message: bytearray) -> int:
    """How many bytes the message lacks at least; negative: so many are of the next one."""
    if message and message[0] != _CLIENT_HELLO:
        raise ParseError(f"a TLS handshake message of type {message[0]}; expected a ClientHello (1)")
    if len(message) < _MESSAGE_HEAD_BYTES:
        return _MESSAGE_HEAD_BYTES + _MIN_BODY_BYTES - len(message)
    length = int.from_bytes(message[1:_MESSAGE_HEAD_BYTES], "big")
    if not _MIN_BODY_BYTES <= length <= MAX_HELLO_BYTES:
        raise ParseError(
            f"a TLS ClientHello of {length} bytes; expected {_MIN_BODY_BYTES} to {MAX_HELLO_BYTES}"
        )
    return _MESSAGE_HEAD_BYTES + length - len(message)


class _Block:
    """Bytes whose end is known: a length that reaches beyond it is a lie."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise ParseError(f"a TLS ClientHello whose {self._what} ends too early")
        return self._data[start : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, head_bytes: int, *, minimum: int = 0) -> bytes:
        """Data after its own length (RFC 8446 § 3.4)."""
        data = self.take(self.number(head_bytes))
        if len(data) < minimum:
            raise ParseError(
                f"a TLS ClientHello whose {self._what} has {len(data)} bytes where {minimum} are due"
            )
        return data

    def end(self) -> None:
        if self:
            raise ParseError(
                f"a TLS ClientHello whose {self._what} has {len(self._data) - self._at} bytes too many"
            )


def _parse_body(body: bytes) -> ClientHello:
    block = _Block(body, "message")
    legacy_version = block.number(2)
    block.take(32)  # random
    session_id = block.vector(1)
    suites = block.vector(2, minimum=2)
    block.vector(1, minimum=1)  # compression methods
    if len(session_id) > 32 or len(suites) % 2:
        raise ParseError("a TLS ClientHello with an impossible session id or list of cipher suites")
    extensions = _parse_extensions(block.vector(2)) if block else {}
    block.end()
    names = extensions.get(_SERVER_NAME)
    protocols = extensions.get(_ALPN)
    versions = extensions.get(_SUPPORTED_VERSIONS)
    return ClientHello(
        None if names is None else _parse_server_name(names),
        () if protocols is None else _parse_alpn(protocols),
        (_version_name(legacy_version),) if versions is None else _parse_versions(versions),
    )


def _parse_extensions(data: bytes) -> dict[int, bytes]:
    block = _Block(data, "list of extensions")
    extensions: dict[int, bytes] = {}
    while block:
        kind = block.number(2)
        if kind in extensions:
            raise ParseError(f"a TLS ClientHello with extension {kind} twice")
        extensions[kind] = block.vector(2)
    return extensions


def _parse_server_name(data: bytes) -> str | None:
    """One host name and nothing else.

    The list and its types were meant to be extensible; no other type was ever defined, and OpenSSL accepts none.
    """
    extension = _Block(data, "server name")
    entries = _Block(extension.vector(2), "server name")
    extension.end()
    kind = entries.number(1)
    if kind != _HOST_NAME:
        raise ParseError(f"a TLS ClientHello with a server name of type {kind}; expected a host name (0)")
    name = entries.vector(2)
    entries.end()
    text = name.decode("latin-1").lower().removesuffix(".")
    if _is_ip_address(text):
        return None
    if not (name.isascii() and _NAME.fullmatch(text)):
        raise ParseError(f"a TLS ClientHello whose server name is no host name: {shown(name)}")
    return text


def _is_ip_address(text: str) -> bool:
    # Asked only of what looks like one: ipaddress takes longer than the rest of the name.
    if not (":" in text or text[-1:].isdigit()):
        return False
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _parse_alpn(data: bytes) -> tuple[str, ...]:
    extension = _Block(data, "list of protocols")
    names = _Block(extension.vector(2, minimum=2), "list of protocols")
    extension.end()
    protocols = []
    while names:
        protocols.append(names.vector(1, minimum=1).decode("latin-1"))
    return tuple(protocols)


def _parse_versions(data: bytes) -> tuple[str, ...]:
    extension = _Block(data, "list of versions")
    numbers = _Block(extension.vector(1, minimum=2), "list of versions")
    extension.end()
    versions = []
    while numbers:
        version = numbers.number(2)
        # GREASE: 0x0a0a, 0x1a1a, … 0xfafa.
        if version & 0x0F0F != 0x0A0A:
            versions.append(_version_name(version))
    return tuple(versions)


def _version_name(number: int) -> str:
    return _VERSIONS.get(number) or f"0x{number:04x}"
