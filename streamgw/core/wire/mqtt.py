"""The first packet of an MQTT client: which protocol it speaks, and what it calls itself.

Only as far as the client identifier: what follows (will, user name, password) is not waited for and not looked at.

Source:
  MQTT 3.1.1 (OASIS, 2014) § 2.2, § 3.1; MQTT 5.0 (OASIS, 2019) § 1.5.5, § 3.1. MQTT 3.1 (IBM, 2010) calls itself `MQIsdp`,
  level 3.
"""

from __future__ import annotations

import attrs

from streamgw.core.errors import ParseError
from streamgw.core.wire import NeedMore, shown

_CONNECT = 0x10
"""Packet type 1; its flags are reserved and 0 (MQTT-2.2.2-2). APISIX takes everything from 0x10 to 0x20."""
_MAX_LENGTH_BYTES = 4
_BRIDGE = 0x80
"""Mosquitto sets this bit in the level of a connection between two brokers; the layout stays that of the level."""
_MAX_NAME_BYTES = 64
"""Names in use have 4 and 6. Keeps a stranger's bytes from being waited for as a name of 64 KiB."""


@attrs.frozen
class Connect:
    """What a client says first."""

    protocol_name: str
    """`MQTT`, or `MQIsdp` of version 3.1."""
    protocol_level: int
    """3 is 3.1, 4 is 3.1.1, 5 is 5.0."""
    client_id: str
    """Empty: the client leaves it to the server. Also of a level that nobody knows: then what follows has no layout."""


def parse_connect(buffer: bytes) -> Connect | NeedMore:
    """Read protocol name, level and client identifier from the first bytes of an MQTT connection.

    Returns:
      NeedMore until the identifier is there. `at_least` is the fewest bytes that can bring a new answer, so feeding byte by
      byte costs five tries or so.

    Raises:
      ParseError: these bytes cannot become a CONNECT packet, whatever follows.
    """
    try:
        return _parse(_Reader(buffer))
    except _Short as short:
        return NeedMore(short.at_least)


class _Short(Exception):
    """The buffer ends before what is asked for."""

    def __init__(self, at_least: int) -> None:
        super().__init__(at_least)
        self.at_least = at_least


class _Reader:
    """Reads on in a buffer, never beyond the end that the packet itself has told."""

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self._at = 0
        self._end: int | None = None

    def take(self, count: int) -> bytes:
        start, end = self._at, self._at + count
        if self._end is not None and end > self._end:
            raise ParseError(f"an MQTT CONNECT that is shorter than what is in it: {shown(self._buffer)}")
        if end > len(self._buffer):
            raise _Short(end)
        self._at = end
        return self._buffer[start:end]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def variable_number(self) -> int:
        """MQTT 5.0 § 1.5.5: seven bits per byte, the lowest first."""
        value = 0
        for position in range(_MAX_LENGTH_BYTES):
            byte = self.number(1)
            value |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                return value
        raise ParseError(f"an MQTT length of more than four bytes: {shown(self._buffer)}")

    def text(self, what: str, most_bytes: int = 0xFFFF) -> str:
        """MQTT 5.0 § 1.5.4: UTF-8 without U+0000, after its length."""
        length = self.number(2)
        if length > most_bytes:
            raise ParseError(f"an MQTT CONNECT with a {what} of {length} bytes")
        data = self.take(length)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise ParseError(f"an MQTT CONNECT whose {what} is no UTF-8 text: {shown(data)}")
        return text

    def end_after(self, count: int) -> None:
        self._end = self._at + count


def _parse(reader: _Reader) -> Connect:
    kind = reader.take(1)
    if kind[0] != _CONNECT:
        raise ParseError(f"not an MQTT CONNECT: {shown(kind)}")
    reader.end_after(reader.variable_number())
    name = reader.text("protocol name", _MAX_NAME_BYTES)
    level = reader.number(1)
    layout = level & ~_BRIDGE
    if layout not in {3, 4, 5}:
        return Connect(name, level, "")
    reader.take(3)  # flags, keep-alive
    if layout == 5:
        reader.take(reader.variable_number())  # properties
    return Connect(name, level, reader.text("client identifier"))
