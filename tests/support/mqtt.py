"""MQTT packets as clients send them."""

from __future__ import annotations


def connect(
    client_id: str = "sensor-1",
    *,
    name: str = "MQTT",
    level: int = 4,
    properties: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    """A CONNECT. `properties` None: those of the level, which are none before 5; `after`: user name, password, will."""
    body = text(name) + bytes([level, 0x02, 0x00, 0x3C])
    if properties is None and level & 0x7F == 5:
        properties = b""
    if properties is not None:
        body += variable_number(len(properties)) + properties
    body += text(client_id) + after
    return b"\x10" + variable_number(len(body)) + body


def text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def variable_number(value: int) -> bytes:
    done = b""
    while value > 0x7F:
        done += bytes([value & 0x7F | 0x80])
        value >>= 7
    return done + bytes([value])
