"""The PROXY protocol, versions 1 and 2: who the client really is, told by the load balancer in front of us.

Source:
  https://github.com/haproxy/haproxy/blob/master/doc/proxy-protocol.txt, § 2.1 (text) and § 2.2 (binary).
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Literal

import attrs

from streamgw.core.errors import ParseError
from streamgw.core.model import UNIX_HOST, Address, Transport
from streamgw.core.wire import NeedMore, shown

SIGNATURE_V1 = b"PROXY "
SIGNATURE_V2 = b"\r\n\r\n\x00\r\nQUIT\n"

_MAX_V1_BYTES = 107
"""Of the whole line with its CRLF, so says the specification; two IPv6 addresses fit."""
_MIN_V1_BYTES = len(b"PROXY UNKNOWN\r\n")
_FIXED_V2_BYTES = 16

_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@attrs.frozen
class ProxyHeader:
    """What a PROXY header says. Whether to believe it is the session's business (the trust list)."""

    version: Literal[1, 2]
    command: Literal["proxy", "local"]
    """`local`: the load balancer speaks for itself (a health check); the addresses of the socket count."""
    client: Address | None
    """IPv4-mapped addresses folded; None when the sender does not know (UNKNOWN, UNSPEC) or spoke for itself. A client
    on a Unix socket is `unix:` with port 0, its path dropped."""
    server: Address | None
    """The address the client connected to, under the same rules."""
    transport: Transport | None
    """How the client connected there; None when unknown."""
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Version 2 extensions, (type, value), in the order sent, uninterpreted. Checking the CRC32C is optional by § 2.2.3;
    TCP has checked these bytes already."""


def may_become_proxy_header(buffer: bytes) -> bool:
    """Whether these first bytes are, or may still grow into, a PROXY header. True of no bytes at all."""
    return any(
        buffer.startswith(signature) or signature.startswith(buffer)
        for signature in (SIGNATURE_V1, SIGNATURE_V2)
    )


def parse_proxy_header(buffer: bytes) -> tuple[ProxyHeader, int] | NeedMore:
    """Read one header from the first bytes of a connection; what follows it is not looked at.

    Returns:
      The header and its length in bytes. NeedMore while it is incomplete: one byte more until the signature is decided
      (a client that is no load balancer may say little and then wait), exact once version 2 has told its length.

    Raises:
      ParseError: these bytes cannot become a PROXY header, whatever follows.
    """
    if buffer.startswith(SIGNATURE_V1):
        return _parse_v1(buffer)
    if buffer.startswith(SIGNATURE_V2):
        return _parse_v2(buffer)
    if may_become_proxy_header(buffer):
        return NeedMore(len(buffer) + 1)
    raise ParseError(f"not a PROXY header: {shown(buffer)}")


def build_v1(client: Address, server: Address) -> bytes:
    """The text header for a TCP client.

    Mixed families (an IPv6 client that a load balancer in front announced, on our IPv4 address) become TCP6 with the
    IPv4 address mapped: `UNKNOWN`, which HAProxy sends here, would lose the client. A Unix socket has no address to
    tell: `UNKNOWN`.
    """
    pair = _common_family(client, server)
    if pair is None:
        return b"PROXY UNKNOWN\r\n"
    client_ip, server_ip = pair
    return f"PROXY TCP{client_ip.version} {client_ip} {server_ip} {client.port} {server.port}\r\n".encode(
        "ascii"
    )


def build_v2(
    client: Address,
    server: Address,
    *,
    transport: Transport = "tcp",
    tlvs: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    """The binary header. Mixed families are mapped to IPv6, as HAProxy does; a Unix socket becomes LOCAL.

    Raises:
      ValueError: the extensions do not fit in 65,535 bytes.
    """
    pair = _common_family(client, server)
    if pair is None:
        command, family, addresses = 0x20, 0x00, b""
    else:
        client_ip, server_ip = pair
        command = 0x21
        family = (0x10 if client_ip.version == 4 else 0x20) | (0x1 if transport == "tcp" else 0x2)
        addresses = client_ip.packed + server_ip.packed + struct.pack("!HH", client.port, server.port)
    body = addresses + b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)
    if len(body) > 0xFFFF:
        raise ValueError(f"a PROXY header of {len(body)} bytes; the length field ends at 65535")
    return SIGNATURE_V2 + struct.pack("!BBH", command, family, len(body)) + body


def _common_family(client: Address, server: Address) -> tuple[_IPAddress, _IPAddress] | None:
    """Both addresses in one family, IPv4 mapped into IPv6 if need be. None when one is a Unix socket."""
    if UNIX_HOST in (client.host, server.host):
        return None
    ips = ipaddress.ip_address(client.host), ipaddress.ip_address(server.host)
    return ips if ips[0].version == ips[1].version else (_mapped(ips[0]), _mapped(ips[1]))


def _mapped(ip: _IPAddress) -> ipaddress.IPv6Address:
    return ip if isinstance(ip, ipaddress.IPv6Address) else ipaddress.IPv6Address(f"::ffff:{ip}")


def _parse_v1(buffer: bytes) -> tuple[ProxyHeader, int] | NeedMore:
    end = buffer.find(b"\n", 0, _MAX_V1_BYTES)
    if end < 0:
        if len(buffer) >= _MAX_V1_BYTES:
            raise ParseError(
                f"a PROXY line without an end in its first {_MAX_V1_BYTES} bytes: {shown(buffer)}"
            )
        missing = 1 if buffer.endswith(b"\r") else 2
        return NeedMore(min(max(_MIN_V1_BYTES, len(buffer) + missing), _MAX_V1_BYTES))
    if buffer[end - 1 : end] != b"\r":
        raise ParseError(f"a PROXY line that ends in LF alone: {shown(buffer)}")
    line = buffer[: end - 1].decode("ascii", "backslashreplace")
    words = line.split(" ")
    if words[1] == "UNKNOWN":
        return ProxyHeader(1, "proxy", None, None, None), end + 1
    if words[1] not in ("TCP4", "TCP6"):
        raise ParseError(
            f"a PROXY line with an unknown protocol: {words[1]!r}; expected TCP4, TCP6 or UNKNOWN"
        )
    if len(words) != 6:
        raise ParseError(
            f"a PROXY line with {len(words)} words; expected 6 separated by single spaces: {line!r}"
        )
    _, protocol, client_ip, server_ip, client_port, server_port = words
    client = Address(_v1_host(client_ip, protocol), _v1_port(client_port))
    server = Address(_v1_host(server_ip, protocol), _v1_port(server_port))
    return ProxyHeader(1, "proxy", client, server, "tcp"), end + 1


def _v1_host(text: str, protocol: str) -> str:
    kind = ipaddress.IPv4Address if protocol == "TCP4" else ipaddress.IPv6Address
    try:
        # A zone (`fe80::1%eth0`) means something on the sender's machine only; ipaddress would take it.
        ip = kind("" if "%" in text else text)
    except ValueError:
        raise ParseError(f"a PROXY line with {text!r} where {protocol} has an address") from None
    return _folded(ip)


def _v1_port(text: str) -> int:
    # Five digits at most, before int() is asked: leading zeros are forbidden, and so is everything else int() takes.
    if not (text.isdigit() and len(text) <= 5 and str(int(text)) == text and int(text) <= 0xFFFF):
        raise ParseError(f"a PROXY line with {text!r} where a port from 0 to 65535 should be")
    return int(text)


def _parse_v2(buffer: bytes) -> tuple[ProxyHeader, int] | NeedMore:
    if len(buffer) < _FIXED_V2_BYTES:
        return NeedMore(_FIXED_V2_BYTES)
    version_command, family_transport, length = struct.unpack_from("!BBH", buffer, len(SIGNATURE_V2))
    command = {0x20: "local", 0x21: "proxy"}.get(version_command)
    if command is None:
        raise ParseError(
            f"a PROXY v2 header with version and command 0x{version_command:02x}; expected 0x20 or 0x21"
        )
    end = _FIXED_V2_BYTES + length
    if command == "local":
        # The family is to be ignored, and the block discarded unread: it may hold anything.
        return (ProxyHeader(2, "local", None, None, None), end) if len(buffer) >= end else NeedMore(end)
    family, transport = _v2_family(family_transport)
    is_unspecified = family == _UNSPEC or transport is None
    address_length = _V2_ADDRESS_BYTES[family]
    if length < address_length and not is_unspecified:
        raise ParseError(f"a PROXY v2 header of {length} bytes; its address family needs {address_length}")
    if len(buffer) < end:
        return NeedMore(end)
    if is_unspecified:
        return ProxyHeader(2, "proxy", None, None, None), end
    body = bytes(buffer[_FIXED_V2_BYTES:end])
    client, server = _v2_addresses(family, body)
    return ProxyHeader(2, "proxy", client, server, transport, _parse_tlvs(body[address_length:])), end


_UNSPEC, _INET, _INET6, _UNIX = range(4)
_V2_ADDRESS_BYTES = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_V2_TRANSPORTS: dict[int, Transport | None] = {0: None, 1: "tcp", 2: "udp"}


def _v2_family(byte: int) -> tuple[int, Transport | None]:
    family, transport = byte >> 4, byte & 0x0F
    if family not in _V2_ADDRESS_BYTES or transport not in _V2_TRANSPORTS:
        raise ParseError(f"a PROXY v2 header with the reserved address family and transport 0x{byte:02x}")
    return family, _V2_TRANSPORTS[transport]


def _v2_addresses(family: int, body: bytes) -> tuple[Address, Address]:
    if family == _UNIX:
        return Address(UNIX_HOST, 0), Address(UNIX_HOST, 0)
    size = 4 if family == _INET else 16
    client_port, server_port = struct.unpack_from("!HH", body, 2 * size)
    client, server = (ipaddress.ip_address(body[at : at + size]) for at in (0, size))
    return Address(_folded(client), client_port), Address(_folded(server), server_port)


def _parse_tlvs(block: bytes) -> tuple[tuple[int, bytes], ...]:
    tlvs = []
    at = 0
    while at < len(block):
        if len(block) - at < 3:
            raise ParseError("a PROXY v2 header that ends inside the head of an extension")
        kind, length = struct.unpack_from("!BH", block, at)
        at += 3
        if length > len(block) - at:
            raise ParseError(
                f"a PROXY v2 header with an extension 0x{kind:02x} of {length} bytes where {len(block) - at} are left"
            )
        tlvs.append((kind, block[at : at + length]))
        at += length
    return tuple(tlvs)


def _folded(ip: _IPAddress) -> str:
    return str(ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else str(ip)
