"""The PROXY protocol by its specification: what it prints as examples and demands in so many words.

Source:
  https://github.com/haproxy/haproxy/blob/master/doc/proxy-protocol.txt; the section stands beside each vector.
"""

from __future__ import annotations

import pytest

from streamgw.core.errors import ParseError
from streamgw.core.model import Address
from streamgw.core.wire.proxy_protocol import ProxyHeader, build_v1, build_v2, parse_proxy_header

V2 = bytes.fromhex("0d0a0d0a000d0a515549540a")


def header(buffer: bytes) -> ProxyHeader:
    found = parse_proxy_header(buffer)
    assert isinstance(found, tuple)
    return found[0]


def length(buffer: bytes) -> int:
    found = parse_proxy_header(buffer)
    assert isinstance(found, tuple)
    return found[1]


# § 2.1: "worst case" lines, with the lengths that the specification counts (CRLF included in the 107 bytes).
WORST_TCP4 = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"
WORST_TCP6 = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"
WORST_UNKNOWN_SHORT = b"PROXY UNKNOWN\r\n"
WORST_UNKNOWN = WORST_TCP6.replace(b"TCP6", b"UNKNOWN")


@pytest.mark.parametrize(
    ("line", "size"), [(WORST_TCP4, 56), (WORST_TCP6, 104), (WORST_UNKNOWN_SHORT, 15), (WORST_UNKNOWN, 107)]
)
def test_the_longest_lines_of_the_text_format_are_as_long_as_it_says_and_are_read(
    line: bytes, size: int
) -> None:
    assert len(line) == length(line) == size


def test_the_longest_lines_name_the_addresses_they_show() -> None:
    assert header(WORST_TCP4).client == Address("255.255.255.255", 65535)
    assert header(WORST_TCP6).server == Address("ffff:" * 7 + "ffff", 65535)
    assert header(WORST_UNKNOWN).client is None


def test_the_example_of_a_request_behind_a_text_header() -> None:
    """§ 2.1: "An example of such a line before an HTTP request would look like this"."""
    line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    request = b"GET / HTTP/1.1\r\nHost: 192.168.0.11\r\n\r\n"

    assert header(line + request) == ProxyHeader(
        1, "proxy", Address("192.168.0.1", 56324), Address("192.168.0.11", 443), "tcp"
    )
    assert length(line + request) == len(line)
    assert build_v1(Address("192.168.0.1", 56324), Address("192.168.0.11", 443)) == line


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY\r\n",  # "exactly one space"
        b"proxy TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",  # "text matching exactly the following block"
        b"PROXY TCP4 192.168.0.1 192.168.0.11 056324 443\r\n",  # "Heading zeroes are not permitted"
        b"PROXY TCP4 192.168.0.1 192.168.0.11 65536 443\r\n",  # "in the range [0..65535] inclusive"
        b"PROXY TCP4 192.168.000.1 192.168.0.11 56324 443\r\n",  # the same of the bytes of an address
        b"PROXY TCP4 192.168.0.1  192.168.0.11 56324 443\r\n",  # "exactly one space"
        b"PROXY TCP6 1:::2 ::1 56324 443\r\n",  # "one double colon sequence"
    ],
)
def test_text_that_the_grammar_does_not_allow_is_refused(line: bytes) -> None:
    with pytest.raises(ParseError):
        parse_proxy_header(line)


def test_no_more_than_107_bytes_are_searched_for_the_end_of_the_line() -> None:
    """§ 2.1: "a 108-byte buffer is always enough to store all the line and a trailing zero"."""
    with pytest.raises(ParseError):
        parse_proxy_header(WORST_UNKNOWN[:-2] + b"x\r\n")


# § 2.2: the thirteenth byte is version and command, the fourteenth family and transport, then the length.
def test_the_binary_signature_and_the_order_of_its_fields() -> None:
    buffer = V2 + bytes.fromhex("21 11 000c c0a80001 c0a8000b dc04 01bb".replace(" ", ""))

    assert header(buffer) == ProxyHeader(
        2, "proxy", Address("192.168.0.1", 56324), Address("192.168.0.11", 443), "tcp"
    )
    assert build_v2(Address("192.168.0.1", 56324), Address("192.168.0.11", 443)) == buffer


@pytest.mark.parametrize(
    ("family", "addresses_bytes"), [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216), (0x32, 216)]
)
def test_the_size_of_the_address_block_of_every_family(family: int, addresses_bytes: int) -> None:
    """§ 2.2: "Address length is 2*4 + 2*2 = 12 bytes", 36 and 216."""
    whole = V2 + bytes([0x21, family]) + addresses_bytes.to_bytes(2, "big") + bytes(addresses_bytes)
    short = V2 + bytes([0x21, family]) + (addresses_bytes - 1).to_bytes(2, "big") + bytes(addresses_bytes)

    assert length(whole) == 16 + addresses_bytes
    with pytest.raises(ParseError):
        parse_proxy_header(short)


def test_local_uses_the_real_endpoints_and_skips_the_block() -> None:
    """§ 2.2: "must use the real connection endpoints and discard the protocol block including the family"."""
    buffer = V2 + bytes([0x20, 0x11, 0x00, 0x0C]) + bytes(range(12))

    assert header(buffer) == ProxyHeader(2, "local", None, None, None)
    assert length(buffer + b"rest") == 28


@pytest.mark.parametrize("block", [b"", bytes(12), bytes(300)])
def test_unspec_is_accepted_and_the_real_endpoints_are_used(block: bytes) -> None:
    """§ 2.2: "Only the UNSPEC protocol byte (\\x00) is mandatory to implement on the receiver"."""
    buffer = V2 + bytes([0x21, 0x00]) + len(block).to_bytes(2, "big") + block

    assert header(buffer) == ProxyHeader(2, "proxy", None, None, None)
    assert length(buffer + b"rest") == 16 + len(block)


def test_a_lone_line_feed_or_carriage_return_ends_no_line() -> None:
    """§ 2.1: "must not tolerate a single CR or LF character to end the line"."""
    line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443"

    for end in (b"\n", b"\rGET / HTTP/1.1\r\n"):
        with pytest.raises(ParseError):
            parse_proxy_header(line + end)


@pytest.mark.parametrize("version_command", [0x01, 0x10, 0x11, 0x22, 0x2F, 0x31, 0xFF])
def test_other_versions_and_unassigned_commands_are_dropped(version_command: int) -> None:
    """§ 2.2: "Receivers must drop connections presenting unexpected values here"."""
    with pytest.raises(ParseError):
        parse_proxy_header(V2 + bytes([version_command, 0x11, 0, 12]) + bytes(12))


@pytest.mark.parametrize("family", [0x41, 0xF1, 0x13, 0x1F])
def test_unassigned_families_and_transports_are_refused(family: int) -> None:
    """§ 2.2: "other values are unspecified … and must be rejected as invalid by receivers"."""
    with pytest.raises(ParseError):
        parse_proxy_header(V2 + bytes([0x21, family, 0, 216]) + bytes(216))


def test_bytes_beyond_the_addresses_are_extensions() -> None:
    """§ 2.2.1 to § 2.2.5: ALPN, AUTHORITY, NOOP and UNIQUE_ID, each with its type, length and value."""
    extensions = (
        bytes.fromhex("010002") + b"h2",
        bytes.fromhex("02000a") + b"db.example",
        bytes.fromhex("040003") + bytes(3),
        bytes.fromhex("050004") + b"\xde\xad\xbe\xef",
    )
    block = bytes(12) + b"".join(extensions)

    found = header(V2 + bytes([0x21, 0x11]) + len(block).to_bytes(2, "big") + block)

    assert found.tlvs == ((0x01, b"h2"), (0x02, b"db.example"), (0x04, bytes(3)), (0x05, b"\xde\xad\xbe\xef"))


def test_a_length_up_to_the_largest_is_skipped_whole() -> None:
    """§ 2.2: "the length of the protocol header in bytes is always exactly 16 + this value"."""
    noop = bytes.fromhex("04") + (65535 - 12 - 3).to_bytes(2, "big") + bytes(65535 - 12 - 3)

    assert length(V2 + bytes.fromhex("2111ffff") + bytes(12) + noop + b"rest") == 16 + 65535
