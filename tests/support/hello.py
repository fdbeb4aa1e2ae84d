"""TLS ClientHellos to order, valid unless a test asks for nonsense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

VERSIONS = {"SSLv3": 0x0300, "TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
SERVER_NAME, ALPN, PADDING, SUPPORTED_VERSIONS, ECH = 0, 16, 21, 43, 0xFE0D

Extension = tuple[int, bytes]


def hello(
    server_name: str | bytes | None = "a.test.com",
    *,
    alpn: Sequence[str] = (),
    versions: Sequence[str | int] = ("TLSv1.3", "TLSv1.2"),
    extensions: Iterable[Extension] = (),
    message_bytes: int = 0,
    record_bytes: int = 16_384,
) -> bytes:
    """The bytes that a client would send first.

    Args:
      server_name: None: no such extension.
      alpn: empty: no such extension.
      versions: names or numbers; empty: no such extension, a TLS 1.2 client.
      extensions: further ones, as (type, data), before the others.
      message_bytes: padded to this size of the handshake message, as post-quantum key shares would.
      record_bytes: how many bytes of it go into one record.
    """
    found = list(extensions)
    if server_name is not None:
        found.append(server_name_extension(server_name))
    if alpn:
        names = b"".join(vector(1, name.encode("latin-1")) for name in alpn)
        found.append((ALPN, vector(2, names)))
    if versions:
        numbers = [VERSIONS[each] if isinstance(each, str) else each for each in versions]
        found.append(
            (SUPPORTED_VERSIONS, vector(1, b"".join(number.to_bytes(2, "big") for number in numbers)))
        )
    size = len(message(body(found)))
    if message_bytes > size:
        found.append((PADDING, bytes(max(0, message_bytes - size - 4))))
    return records(message(body(found)), record_bytes)


def server_name_extension(name: str | bytes, *, kind: int = 0) -> Extension:
    raw = name.encode("ascii") if isinstance(name, str) else name
    return SERVER_NAME, vector(2, bytes([kind]) + vector(2, raw))


def body(
    extensions: Iterable[Extension] | None,
    *,
    legacy_version: int = 0x0303,
    session_id: bytes = bytes(32),
    suites: bytes = b"\x13\x01\xc0\x2f",
    compression: bytes = b"\x00",
) -> bytes:
    """The inside of a ClientHello; `extensions=None` leaves the list out altogether."""
    start = (
        legacy_version.to_bytes(2, "big")
        + bytes(range(32))
        + vector(1, session_id)
        + vector(2, suites)
        + vector(1, compression)
    )
    if extensions is None:
        return start
    return start + vector(2, b"".join(kind.to_bytes(2, "big") + vector(2, data) for kind, data in extensions))


def message(body: bytes, *, kind: int = 1) -> bytes:
    """A handshake message."""
    return bytes([kind]) + vector(3, body)


def records(message: bytes, record_bytes: int = 16_384, *, minor: int = 1) -> bytes:
    """A handshake message cut into records; the minor version means nothing."""
    cuts = range(0, len(message), record_bytes)
    return b"".join(b"\x16\x03" + bytes([minor]) + vector(2, message[at : at + record_bytes]) for at in cuts)


def vector(head_bytes: int, data: bytes) -> bytes:
    """Data after its length."""
    return len(data).to_bytes(head_bytes, "big") + data
