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
_FIXED_BYTES = 2 + 32
"""Version and random, before what has a length of its own."""
_SERVER_NAME, _GROUPS, _ALPN, _SUPPORTED_VERSIONS, _KEY_SHARES = 0, 10, 16, 43, 51
_HOST_NAME = 0
_NAME_HEAD_BYTES = 2 + 1 + 2
"""Of a list of one server name: the list's length, the type, the name's length."""

_P256, _X25519 = 23, 29
_QUICK_GROUPS = frozenset({_P256, _X25519})
_RESERVED = frozenset(range(0x0A0A, 0x10000, 0x1010))
"""GREASE, RFC 8701."""
_QUICK_SHARES = _QUICK_GROUPS | _RESERVED | {0x11EB, 0x11EC}
"""The hybrids of these two with ML-KEM-768 among them: some 0.1 ms more, where OpenSSL knows them at all (3.5)."""

_record_head = struct.Struct("!BBBH").unpack_from
_extension_head = struct.Struct("!HH").unpack_from
_name_head = struct.Struct("!HBH").unpack_from

_VERSIONS = {0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
"""As OpenSSL calls them."""

_EXTENSIONS_END_EARLY = "a TLS ClientHello whose list of extensions ends too early"

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
    is_quick: bool = attrs.field(default=True, eq=False)
    """Whatever OpenSSL makes of it, keys are exchanged by X25519 or P-256: 0.05 ms. A client may ask for ffdhe8192, which
    takes 13 ms, by offering nothing better, or by offering a share of it."""


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
    if len(buffer) > _RECORD_HEAD_BYTES + _MESSAGE_HEAD_BYTES:
        # Nearly always it is one message in one record.
        kind, major, _, length = _record_head(buffer)
        message_bytes = int.from_bytes(buffer[6:9], "big")
        is_whole = length == _MESSAGE_HEAD_BYTES + message_bytes <= len(buffer) - _RECORD_HEAD_BYTES
        is_hello = kind == _HANDSHAKE and major == _MAJOR_VERSION and buffer[5] == _CLIENT_HELLO
        if (
            is_whole
            and is_hello
            and _MIN_BODY_BYTES <= message_bytes <= _MAX_FRAGMENT_BYTES - _MESSAGE_HEAD_BYTES
        ):
            start = _RECORD_HEAD_BYTES + _MESSAGE_HEAD_BYTES
            return buffer[start : start + message_bytes]
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
    kind, major, _, length = _record_head(buffer, at)
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

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str, at: int = 0) -> None:
        self._data = data
        self._at = at
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
    block = _Block(body, "message", _FIXED_BYTES)
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
        (_version_name(int.from_bytes(body[:2], "big")),) if versions is None else _parse_versions(versions),
        _is_quick(extensions.get(_GROUPS), extensions.get(_KEY_SHARES, b"")),
    )


def _parse_extensions(data: bytes) -> dict[int, bytes]:
    """By type. The loop that every hello goes through a dozen times: it does without a `_Block`."""
    extensions: dict[int, bytes] = {}
    at, size = 0, len(data)
    while at < size:
        start = at + 4
        if start > size:
            raise ParseError(_EXTENSIONS_END_EARLY)
        kind, length = _extension_head(data, at)
        at = start + length
        if at > size:
            raise ParseError(_EXTENSIONS_END_EARLY)
        if kind in extensions:
            raise ParseError(f"a TLS ClientHello with extension {kind} twice")
        extensions[kind] = data[start:at]
    return extensions


def _is_quick(groups: bytes | None, shares: bytes) -> bool:
    """See `ClientHello.is_quick`. What is malformed is not quick: OpenSSL refuses it, in its own words.

    OpenSSL takes the client's first share that it can use; without any it asks for its own first choice among the
    client's groups, and so it does before TLS 1.3 (`OP_CIPHER_SERVER_PREFERENCE`). Its first choices are these groups.
    """
    if groups is not None and (
        len(groups) % 2 or _QUICK_GROUPS.isdisjoint(struct.unpack(f"!{len(groups) // 2}H", groups)[1:])
    ):
        return False
    at, size = 2, len(shares)
    while at + 4 <= size:
        group, length = _extension_head(shares, at)
        if group not in _QUICK_SHARES:
            return False
        at += 4 + length
    return at == size or not shares


def _parse_server_name(data: bytes) -> str | None:
    """One host name and nothing else.

    The list and its types were meant to be extensible; no other type was ever defined, and OpenSSL accepts none.
    """
    size = len(data)
    if size > _NAME_HEAD_BYTES and _name_head(data) == (size - 2, _HOST_NAME, size - _NAME_HEAD_BYTES):
        name = data[_NAME_HEAD_BYTES:]
    else:
        name = _parse_name_list(data)
    text = name.decode("latin-1").lower().removesuffix(".")
    if _is_ip_address(text):
        return None
    if not (name.isascii() and _NAME.fullmatch(text)):
        raise ParseError(f"a TLS ClientHello whose server name is no host name: {shown(name)}")
    return text


def _parse_name_list(data: bytes) -> bytes:
    """The same step by step, for what is no list of one name: to say what it is."""
    extension = _Block(data, "server name")
    entries = _Block(extension.vector(2), "server name")
    extension.end()
    kind = entries.number(1)
    if kind != _HOST_NAME:
        raise ParseError(f"a TLS ClientHello with a server name of type {kind}; expected a host name (0)")
    name = entries.vector(2)
    entries.end()
    return name


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
    numbers = extension.vector(1, minimum=2)
    extension.end()
    if len(numbers) % 2:
        raise ParseError("a TLS ClientHello whose list of versions ends too early")
    return tuple(
        _version_name(version)
        for version in struct.unpack(f"!{len(numbers) // 2}H", numbers)
        if version not in _RESERVED
    )


def _version_name(number: int) -> str:
    return _VERSIONS.get(number) or f"0x{number:04x}"
