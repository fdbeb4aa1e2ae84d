from __future__ import annotations

import ipaddress

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from fuzz.invariants import check_proxy_header
from streamgw.core.errors import ParseError
from streamgw.core.model import UNIX_HOST, Address, Transport
from streamgw.core.wire import NeedMore
from streamgw.core.wire.proxy_protocol import (
    SIGNATURE_V2,
    ProxyHeader,
    build_v1,
    build_v2,
    may_become_proxy_header,
    parse_proxy_header,
)

UNKNOWN_V1 = ProxyHeader(1, "proxy", None, None, None)
CLIENT4, SERVER4 = Address("198.51.100.7", 56324), Address("203.0.113.1", 443)
CLIENT6, SERVER6 = Address("2001:db8::1", 56324), Address("2001:db8::2", 443)
LOCAL_SOCKET = Address(UNIX_HOST, 0)


def parse_whole(buffer: bytes) -> ProxyHeader:
    """The header, after a look that it ends with the buffer."""
    found = parse_proxy_header(buffer)
    assert isinstance(found, tuple)
    header, consumed = found
    assert consumed == len(buffer)
    return header


def v2(version_command: int, family: int, body: bytes, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE_V2 + bytes([version_command, family]) + size.to_bytes(2, "big") + body


def test_a_text_header_tells_both_addresses_and_ends_at_its_line() -> None:
    line = b"PROXY TCP4 198.51.100.7 203.0.113.1 56324 443\r\n"

    found = parse_proxy_header(line + b"hello")

    assert found == (ProxyHeader(1, "proxy", CLIENT4, SERVER4, "tcp"), len(line))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (b"2001:db8::1", "2001:db8::1"),
        (b"2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        (b"::ffff:198.51.100.7", "198.51.100.7"),
        (b"::ffff:c633:6407", "198.51.100.7"),
    ],
)
def test_ipv6_addresses_are_written_one_way_and_mapped_ones_folded(text: bytes, host: str) -> None:
    header = parse_whole(b"PROXY TCP6 " + text + b" ::1 1 2\r\n")

    assert header.client == Address(host, 1)
    assert header.server == Address("::1", 2)


@pytest.mark.parametrize("line", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN what ever  \xff it says\r\n"])
def test_unknown_names_nobody_whatever_follows_the_word(line: bytes) -> None:
    assert parse_whole(line) == UNKNOWN_V1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", "ends in LF alone: 'PROXY TCP4 1.2.3'…"),
        (b"PROXY \n", "ends in LF alone: 'PROXY \\\\n'$"),
        (b"PROXY \r\n", "unknown protocol: ''"),
        (b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", "unknown protocol: 'UDP4'; expected TCP4, TCP6 or UNKNOWN"),
        (b"PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n", "unknown protocol: 'tcp4'"),
        (b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "unknown protocol: ''"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", "5 words"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", "7 words"),
        (b"PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n", "7 words"),
        (b"PROXY TCP4\r\n", "2 words"),
        (b"PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n", "'1.2.3.256' where TCP4 has an address"),
        (b"PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n", "'1.2.3.04'"),
        (b"PROXY TCP4 ::1 5.6.7.8 1 2\r\n", "'::1' where TCP4"),
        (b"PROXY TCP6 ::1 5.6.7.8 1 2\r\n", "'5.6.7.8' where TCP6"),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "'fe80::1%eth0'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", "'01' where a port from 0 to 65535 should be"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", "'65536'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 " + b"9" * 60 + b"\r\n", "where a port"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n", "'-1'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1_0 2\r\n", "'1_0'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 \xd9\xa1 2\r\n", "where a port"),
        (b"PROXY TCP4 " + b"1" * 97, "without an end in its first 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "without an end in its first 107 bytes"),
        (b"GET / HTTP/1.1\r\n", "not a PROXY header: 'GET / HTTP/1.1\\\\r\\\\n'$"),
        (b"GET /index.html HTTP/1.1\r\n", "not a PROXY header: 'GET /index.html '…"),
    ],
)
def test_a_text_header_is_refused_in_words(line: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_proxy_header(line)


def test_the_longest_line_is_taken_and_one_byte_more_is_not() -> None:
    longest = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"

    assert len(longest) == 107
    assert parse_whole(longest) == UNKNOWN_V1
    assert parse_proxy_header(longest[:106]) == NeedMore(107)
    assert parse_proxy_header(longest[:105]) == NeedMore(107)


def test_a_text_header_asks_for_no_byte_beyond_its_line() -> None:
    assert parse_proxy_header(b"PROXY ") == NeedMore(15)
    assert parse_proxy_header(b"PROXY TCP4 1.2.3.4") == NeedMore(20)
    assert parse_proxy_header(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r") == NeedMore(32)


@pytest.mark.parametrize(
    ("family", "addresses", "client", "server", "transport"),
    [
        (0x11, bytes([198, 51, 100, 7, 203, 0, 113, 1]), CLIENT4, SERVER4, "tcp"),
        (0x12, bytes([198, 51, 100, 7, 203, 0, 113, 1]), CLIENT4, SERVER4, "udp"),
        (
            0x21,
            ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("2001:db8::2").packed,
            CLIENT6,
            SERVER6,
            "tcp",
        ),
        (
            0x22,
            ipaddress.ip_address("::ffff:198.51.100.7").packed + ipaddress.ip_address("2001:db8::2").packed,
            CLIENT4,
            SERVER6,
            "udp",
        ),
    ],
)
def test_a_binary_header_tells_both_addresses(
    family: int, addresses: bytes, client: Address, server: Address, transport: Transport
) -> None:
    ports = (56324).to_bytes(2, "big") + (443).to_bytes(2, "big")

    assert parse_whole(v2(0x21, family, addresses + ports)) == ProxyHeader(
        2, "proxy", client, server, transport
    )


@pytest.mark.parametrize(("family", "transport"), [(0x31, "tcp"), (0x32, "udp")])
def test_a_client_on_a_unix_socket_has_no_path_left(family: int, transport: Transport) -> None:
    body = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")

    header = parse_whole(v2(0x21, family, body))

    assert header == ProxyHeader(2, "proxy", LOCAL_SOCKET, LOCAL_SOCKET, transport)


def test_extensions_are_kept_in_their_order() -> None:
    body = bytes(12) + b"\x02\x00\x0bexample.com" + b"\xe0\x00\x00" + b"\x02\x00\x01x"

    assert parse_whole(v2(0x21, 0x11, body)).tlvs == ((0x02, b"example.com"), (0xE0, b""), (0x02, b"x"))


@pytest.mark.parametrize("family", [0x00, 0x11, 0x45, 0xFF])
def test_local_ignores_the_family_and_discards_its_block_unread(family: int) -> None:
    assert parse_whole(v2(0x20, family, b"any\xffthing")) == ProxyHeader(2, "local", None, None, None)


@pytest.mark.parametrize("family", [0x00, 0x01, 0x02, 0x10, 0x20, 0x30])
def test_an_unspecified_family_or_transport_names_nobody(family: int) -> None:
    assert parse_whole(v2(0x21, family, bytes(216))) == ProxyHeader(2, "proxy", None, None, None)
    assert parse_whole(v2(0x21, family, b"")) == ProxyHeader(2, "proxy", None, None, None)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (v2(0x11, 0x11, bytes(12)), "version and command 0x11; expected 0x20 or 0x21"),
        (v2(0x22, 0x11, bytes(12)), "version and command 0x22"),
        (v2(0x21, 0x41, bytes(12)), "reserved address family and transport 0x41"),
        (v2(0x21, 0x13, bytes(12)), "reserved address family and transport 0x13"),
        (v2(0x21, 0x11, bytes(11)), "of 11 bytes; its address family needs 12"),
        (v2(0x21, 0x21, bytes(35)), "of 35 bytes; its address family needs 36"),
        (v2(0x21, 0x31, bytes(215)), "of 215 bytes; its address family needs 216"),
        (v2(0x21, 0x11, b"", length=11), "of 11 bytes"),
        (v2(0x21, 0x11, bytes(14)), "ends inside the head of an extension"),
        (v2(0x21, 0x11, bytes(12) + b"\x02\x00\x05abcd"), "extension 0x02 of 5 bytes where 4 are left"),
    ],
)
def test_a_binary_header_is_refused_in_words(header: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_proxy_header(header)


def test_a_binary_header_asks_for_exactly_what_it_needs() -> None:
    header = v2(0x21, 0x11, bytes(12))

    assert parse_proxy_header(header[:11]) == NeedMore(12)
    assert parse_proxy_header(header[:12]) == NeedMore(16)
    assert parse_proxy_header(header[:15]) == NeedMore(16)
    assert parse_proxy_header(header[:16]) == NeedMore(28)
    assert parse_proxy_header(header[:27]) == NeedMore(28)
    assert parse_proxy_header(v2(0x20, 0, b"", length=65535)) == NeedMore(16 + 65535)


@pytest.mark.parametrize("start", [b"", b"P", b"PROXY", b"PROXY x", b"\r", SIGNATURE_V2, SIGNATURE_V2 + b"!"])
def test_the_beginning_of_a_header_may_become_one(start: bytes) -> None:
    assert may_become_proxy_header(start)


@pytest.mark.parametrize("start", [b"p", b"PROXY\t", b"SSH-2.0", b"\r\nP", b"\x16"])
def test_another_beginning_may_not(start: bytes) -> None:
    assert not may_become_proxy_header(start)


@pytest.mark.parametrize(
    ("client", "server", "line"),
    [
        (CLIENT4, SERVER4, b"PROXY TCP4 198.51.100.7 203.0.113.1 56324 443\r\n"),
        (CLIENT6, SERVER6, b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"),
        (CLIENT6, SERVER4, b"PROXY TCP6 2001:db8::1 ::ffff:cb00:7101 56324 443\r\n"),
        (CLIENT4, SERVER6, b"PROXY TCP6 ::ffff:c633:6407 2001:db8::2 56324 443\r\n"),
        (LOCAL_SOCKET, SERVER4, b"PROXY UNKNOWN\r\n"),
        (CLIENT4, LOCAL_SOCKET, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_the_text_header_we_send(client: Address, server: Address, line: bytes) -> None:
    assert build_v1(client, server) == line


def test_the_binary_header_we_send() -> None:
    assert build_v2(CLIENT4, SERVER4) == v2(
        0x21, 0x11, bytes([198, 51, 100, 7, 203, 0, 113, 1]) + b"\xdc\x04\x01\xbb"
    )
    assert build_v2(CLIENT4, SERVER4, transport="udp")[13] == 0x12
    assert build_v2(CLIENT6, SERVER6)[13] == 0x21
    assert build_v2(CLIENT4, SERVER6, transport="udp")[13] == 0x22
    assert build_v2(LOCAL_SOCKET, SERVER4) == v2(0x20, 0x00, b"")
    assert build_v2(LOCAL_SOCKET, SERVER4, tlvs=((1, b"h2"),)) == v2(0x20, 0x00, b"\x01\x00\x02h2")


def test_extensions_that_do_not_fit_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="65541 bytes; the length field ends at 65535"):
        build_v2(CLIENT4, SERVER4, tlvs=((1, bytes(65526)),))


ips = st.ip_addresses().map(str)
addresses = st.builds(Address, ips, st.integers(0, 65535))
tlv_lists = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=20)), max_size=3).map(tuple)
transports: st.SearchStrategy[Transport] = st.sampled_from(["tcp", "udp"])
built = st.builds(build_v1, addresses, addresses) | st.builds(
    build_v2, addresses, addresses, transport=transports, tlvs=tlv_lists
)


def folded(address: Address) -> Address:
    ip = ipaddress.ip_address(address.host)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return Address(str(mapped or ip), address.port)


@given(addresses, addresses, transports, tlv_lists)
def test_what_we_build_we_read_back(
    client: Address, server: Address, transport: Transport, tlvs: tuple[tuple[int, bytes], ...]
) -> None:
    text, binary = build_v1(client, server), build_v2(client, server, transport=transport, tlvs=tlvs)

    assert len(text) <= 107
    assert parse_whole(text) == ProxyHeader(1, "proxy", folded(client), folded(server), "tcp")
    assert parse_whole(binary) == ProxyHeader(2, "proxy", folded(client), folded(server), transport, tlvs)


@given(built, st.binary(max_size=8))
def test_fed_byte_by_byte_it_waits_as_told_and_ends_the_same(header: bytes, after: bytes) -> None:
    stream = header + after
    size = tries = 0

    while isinstance(found := parse_proxy_header(stream[:size]), NeedMore):
        assert size < found.at_least <= len(header)
        size, tries = found.at_least, tries + 1

    assert found == parse_proxy_header(stream)
    assert found[1] == len(header)
    for shorter in range(len(header)):
        assert isinstance(parse_proxy_header(header[:shorter]), NeedMore)


@given(built, st.data(), st.binary(max_size=120))
def test_cut_anywhere_and_followed_by_garbage_it_is_a_header_or_more_is_needed_or_it_is_refused(
    header: bytes, data: st.DataObject, garbage: bytes
) -> None:
    cut = data.draw(st.integers(0, len(header)))

    event(check_proxy_header(header[:cut] + garbage))


@given(st.binary(max_size=300))
def test_garbage_after_a_signature_never_breaks_the_parser(garbage: bytes) -> None:
    for signature in (
        b"PROXY ",
        b"PROXY TCP4 ",
        b"PROXY TCP6 ",
        SIGNATURE_V2,
        SIGNATURE_V2 + b"\x21\x11\x00",
    ):
        check_proxy_header(signature + garbage)
