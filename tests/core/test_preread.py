from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.errors import ParseError
from streamgw.core.model import Address, ProxyProtocolIn, TLSIn
from streamgw.core.preread import Preface, parse_hello, parse_preface
from streamgw.core.wire import NeedMore
from streamgw.core.wire.tls import ClientHello
from tests.support.hello import hello

HEADER = b"PROXY TCP4 198.51.100.7 127.0.0.1 56324 9100\r\n"
MODES: list[ProxyProtocolIn] = ["optional", "required"]
HELLO = hello("a.test.com", alpn=["h2"])
TLS_MODES: list[TLSIn] = ["optional", "required"]


def test_off_looks_at_nothing_a_header_is_the_upstreams_business() -> None:
    assert parse_preface(HEADER, "off") == Preface(0, None)
    assert parse_preface(b"", "off") == Preface(0, None)


@pytest.mark.parametrize("mode", MODES)
def test_a_header_is_read_and_exactly_its_bytes_are_to_be_consumed(mode: ProxyProtocolIn) -> None:
    preface = parse_preface(HEADER + b"SELECT 1", mode)

    assert isinstance(preface, Preface)
    assert preface.consumed == len(HEADER)
    assert preface.header is not None
    assert preface.header.client == Address("198.51.100.7", 56324)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", [b"", b"P", b"PROX", b"\r\n\r\n"])
def test_what_may_still_become_a_header_is_waited_for_byte_by_byte(
    start: bytes, mode: ProxyProtocolIn
) -> None:
    assert parse_preface(start, mode) == NeedMore(len(start) + 1)


@pytest.mark.parametrize("start", [b"G", b"PRINT", b"\x16\x03\x01", b"\r\n\r\nQ"])
def test_other_first_bytes_are_plain_where_a_header_is_optional_and_wrong_where_it_is_required(
    start: bytes,
) -> None:
    assert parse_preface(start, "optional") == Preface(0, None)
    with pytest.raises(ParseError, match="not a PROXY header: '"):
        parse_preface(start, "required")


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_header_is_never_passed_on_as_data(mode: ProxyProtocolIn) -> None:
    with pytest.raises(ParseError, match="port"):
        parse_preface(b"PROXY TCP4 198.51.100.7 127.0.0.1 99999 9100\r\n", mode)


@given(st.binary(max_size=32) | st.integers(0, len(HEADER)).map(lambda cut: HEADER[:cut]))
def test_optional_never_refuses_what_required_would_wait_for(buffer: bytes) -> None:
    try:
        required: object = parse_preface(buffer, "required")
    except ParseError:
        required = ParseError
    try:
        optional: object = parse_preface(buffer, "optional")
    except ParseError:
        optional = ParseError

    assert optional == required or (optional == Preface(0, None) and required is ParseError)


def test_on_a_plain_listener_a_hello_is_data_like_any_other() -> None:
    assert parse_hello(HELLO, "off") is None
    assert parse_hello(b"", "off") is None


@pytest.mark.parametrize("mode", TLS_MODES)
def test_a_hello_is_read_from_whatever_has_arrived(mode: TLSIn) -> None:
    assert parse_hello(HELLO, mode) == ClientHello("a.test.com", ("h2",), ("TLSv1.3", "TLSv1.2"))
    assert parse_hello(HELLO[:-1], mode) == NeedMore(len(HELLO))


@pytest.mark.parametrize("mode", TLS_MODES)
@pytest.mark.parametrize("start", [b"", b"\x16"])
def test_what_may_still_become_a_tls_record_is_waited_for_byte_by_byte(start: bytes, mode: TLSIn) -> None:
    assert parse_hello(start, mode) == NeedMore(len(start) + 1)


@pytest.mark.parametrize("start", [b"G", b"\x00", b"\x15\x03", b"\x16\x02", b"SSH-2.0"])
def test_other_first_bytes_are_plain_where_tls_is_optional_and_wrong_where_it_is_required(
    start: bytes,
) -> None:
    assert parse_hello(start, "optional") is None
    with pytest.raises(ParseError, match="not a TLS ClientHello: '"):
        parse_hello(start, "required")


@pytest.mark.parametrize("mode", TLS_MODES)
def test_a_client_that_began_a_tls_record_is_never_taken_for_a_plain_one(mode: TLSIn) -> None:
    with pytest.raises(ParseError, match="type 2"):
        parse_hello(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", mode)
