from __future__ import annotations

import ssl

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from fuzz.invariants import check_client_hello
from streamgw.core.errors import ParseError
from streamgw.core.wire import NeedMore, shown
from streamgw.core.wire.tls import (
    MAX_HELLO_BYTES,
    UNRECOGNIZED_NAME,
    ClientHello,
    alert,
    may_become_client_hello,
    parse_client_hello,
)
from tests.support.hello import (
    ALPN,
    ECH,
    SERVER_NAME,
    SUPPORTED_VERSIONS,
    Extension,
    body,
    hello,
    message,
    records,
    server_name_extension,
    vector,
)
from tests.support.tls_talker import serving

PLAIN = ClientHello("a.test.com", ("h2", "http/1.1"), ("TLSv1.3", "TLSv1.2"))
PLAIN_BYTES = hello(alpn=PLAIN.alpn)


def parse(buffer: bytes) -> ClientHello:
    """The hello, after a look that it ends with the buffer, and that more bytes change nothing."""
    found = parse_client_hello(buffer)
    assert isinstance(found, ClientHello)
    assert parse_client_hello(buffer + b"\x00\x16") == found
    assert isinstance(parse_client_hello(buffer[:-1]), NeedMore)
    return found


def with_extensions(*extensions: Extension) -> bytes:
    return records(message(body(extensions)))


def said_by_openssl(context: ssl.SSLContext, server_name: str | None = None) -> bytes:
    """What a real client sends first. No socket is needed for that."""
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def openssl_client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the default depends on who built this Python
    return context


def test_a_hello_tells_name_protocols_and_versions() -> None:
    assert parse(PLAIN_BYTES) == PLAIN


def test_the_hello_of_openssl_says_what_it_was_asked_to_say() -> None:
    context = openssl_client()
    context.set_alpn_protocols(["h2", "http/1.1"])

    assert parse(said_by_openssl(context, "a.test.com")) == PLAIN
    assert parse(said_by_openssl(context)).server_name is None
    assert parse(said_by_openssl(context, "127.0.0.1")).server_name is None


def test_the_hello_of_an_old_openssl_client_offers_its_one_version() -> None:
    context = openssl_client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    assert parse(said_by_openssl(context, "a.test.com")).versions == ("TLSv1.2",)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_openssl_understands_the_alert(newest: ssl.TLSVersion) -> None:
    context = openssl_client()
    context.maximum_version = newest
    received = ssl.MemoryBIO()
    client = context.wrap_bio(received, ssl.MemoryBIO(), server_hostname="a.test.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()

    received.write(UNRECOGNIZED_NAME)

    with pytest.raises(ssl.SSLError, match="unrecognized name"):
        client.do_handshake()


def test_an_alert_is_one_fatal_record() -> None:
    assert alert(40) == bytes.fromhex("15 0303 0002 02 28")


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("a.test.com", "a.test.com"),
        ("A.Test.COM", "a.test.com"),
        ("a.test.com.", "a.test.com"),
        ("localhost", "localhost"),
        ("outbound_.80_._.db.svc.cluster.local", "outbound_.80_._.db.svc.cluster.local"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("4.example", "4.example"),
        ("db-4", "db-4"),
        (".".join(["a" * 63] * 3 + ["b" * 61]), ".".join(["a" * 63] * 3 + ["b" * 61])),
        ("192.0.2.7", None),
        ("192.0.2.7.", None),
        ("2001:db8::1", None),
        ("[2001:DB8::1]", None),
        ("::ffff:192.0.2.7", None),
    ],
)
def test_a_name_is_folded_and_an_address_is_no_name(sent: str, name: str | None) -> None:
    assert parse(hello(sent)).server_name == name


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b".",
        b"..",
        b".test.com",
        b"a..test.com",
        b"a.test.com..",
        b"a.test.com\0",
        b"a.test.com\0.evil.example",
        b"a.test.com\n",
        b" a.test.com",
        b"*.test.com",
        b"a.test.com:443",
        b"127.0.0.1:443",
        b"http://a.test.com",
        "bücher.example".encode(),
        "bücher.example".encode("latin-1"),
        b"a" * 64,
        b".".join([b"a" * 63] * 4),
        b"a." * 2000,
    ],
)
def test_what_is_no_host_name_is_refused_rather_than_taken_for_none(sent: bytes) -> None:
    with pytest.raises(ParseError, match="server name is no host name: "):
        parse_client_hello(hello(sent))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "server name ends too early"),
        (b"\x00", "server name ends too early"),
        (b"\x00\x00", "server name ends too early"),
        (vector(2, b"\x00"), "server name ends too early"),
        (vector(2, b"\x00" + vector(2, b"a")) + b"x", "server name has 1 bytes too many"),
        (
            vector(2, b"\x00" + vector(2, b"a") + b"\x00" + vector(2, b"b")),
            "server name has 4 bytes too many",
        ),
        (vector(2, b"\x01" + vector(2, b"a")), r"server name of type 1; expected a host name \(0\)"),
        (b"\x00\x09\x00\x00\x01a", "server name ends too early"),
        (b"\x00\x04\x00\x00\x09a", "server name ends too early"),
    ],
)
def test_a_list_of_server_names_holds_exactly_one_host_name(data: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_client_hello(with_extensions((SERVER_NAME, data)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "list of protocols ends too early"),
        (b"\x00\x00", "list of protocols has 0 bytes where 2 are due"),
        (vector(2, b"\x01"), "list of protocols has 1 bytes where 2 are due"),
        (vector(2, b"\x02h"), "list of protocols ends too early"),
        (vector(2, b"\x02h2\x00"), "list of protocols has 0 bytes where 1 are due"),
        (vector(2, b"\x02h2") + b"x", "list of protocols has 1 bytes too many"),
    ],
)
def test_a_list_of_protocols_holds_names_and_nothing_else(data: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_client_hello(with_extensions((ALPN, data)))


def test_a_protocol_that_is_no_text_has_one_all_the_same() -> None:
    assert parse(hello(alpn=["\x0a\x0a", "\xff", "h2"])).alpn == ("\x0a\x0a", "\xff", "h2")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "list of versions ends too early"),
        (vector(1, b""), "list of versions has 0 bytes where 2 are due"),
        (vector(1, b"\x03\x04\x03"), "list of versions ends too early"),
        (vector(1, b"\x03\x04") + b"x", "list of versions has 1 bytes too many"),
    ],
)
def test_a_list_of_versions_holds_pairs_of_bytes(data: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_client_hello(with_extensions((SUPPORTED_VERSIONS, data)))


def test_versions_have_openssls_names_and_reserved_ones_are_left_out() -> None:
    offered = [0x1A1A, "TLSv1.3", 0x7F1C, "TLSv1.2", "TLSv1.1", "TLSv1", "SSLv3", 0xFAFA]

    assert parse(hello(versions=offered)).versions == (
        "TLSv1.3",
        "0x7f1c",
        "TLSv1.2",
        "TLSv1.1",
        "TLSv1",
        "SSLv3",
    )


def test_a_hello_of_old_needs_no_extensions() -> None:
    assert parse(records(message(body(None, legacy_version=0x0301)))) == ClientHello(None, (), ("TLSv1",))
    assert parse(records(message(body([])))) == ClientHello(None, (), ("TLSv1.2",))


def test_reserved_and_unknown_extensions_are_passed_over() -> None:
    grease = [(0x0A0A, b""), (0x1A1A, b"\x00"), (0xFF01, b"\x00")]

    assert parse(hello(alpn=PLAIN.alpn, extensions=grease)) == PLAIN


X25519, P256, P521, FFDHE_8192, KYBER_DRAFT, X25519_MLKEM_768, GREASE = (
    29,
    23,
    25,
    0x104,
    0x6399,
    0x11EC,
    0x3A3A,
)


def groups(*numbers: int) -> Extension:
    return 10, vector(2, b"".join(number.to_bytes(2, "big") for number in numbers))


def shares(*numbers: int) -> Extension:
    return 51, vector(2, b"".join(number.to_bytes(2, "big") + vector(2, b"key") for number in numbers))


@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param([], id="before TLS 1.3, where a client may leave it to us"),
        pytest.param([groups(P521, P256)], id="before TLS 1.3, where we choose"),
        pytest.param([groups(X25519, FFDHE_8192), shares(X25519)], id="one share"),
        pytest.param(
            [groups(GREASE, X25519_MLKEM_768, X25519), shares(GREASE, X25519_MLKEM_768, X25519)], id="Chrome"
        ),
        pytest.param([groups(KYBER_DRAFT, P256), shares()], id="no share yet"),
    ],
)
def test_keys_are_exchanged_quickly(extensions: list[Extension]) -> None:
    assert parse(with_extensions(*extensions)).is_quick


@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param([groups(P521)], id="nothing better offered"),
        pytest.param([groups(FFDHE_8192, GREASE), shares()], id="nothing better offered, no share yet"),
        pytest.param([groups(X25519, FFDHE_8192), shares(FFDHE_8192, X25519)], id="a slow share first"),
        pytest.param(
            [groups(X25519, KYBER_DRAFT), shares(KYBER_DRAFT, X25519)], id="a share of who knows what"
        ),
        pytest.param([(10, b"\x00\x02\x00\x1d\x00")], id="half a group"),
        pytest.param([(10, b"")], id="no list of groups"),
        pytest.param([groups(X25519), (51, b"\x00\x05\x00\x1d\x00\x02k")], id="half a share"),
        pytest.param([groups(X25519), (51, b"\x00\x02\x00\x1d")], id="a share without a length"),
    ],
)
def test_keys_may_be_exchanged_slowly(extensions: list[Extension]) -> None:
    assert not parse(with_extensions(*extensions)).is_quick


@pytest.mark.parametrize(("curve", "is_quick"), [("prime256v1", True), ("secp521r1", False)])
def test_openssl_takes_the_group_that_a_hello_is_judged_by(curve: str, *, is_quick: bool) -> None:
    context = openssl_client()
    assert parse(said_by_openssl(context)).is_quick  # X25519, which not every Python lets one ask for
    context.set_ecdh_curve(curve)
    assert parse(said_by_openssl(context)).is_quick == is_quick


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [((P521, X25519), X25519), ((FFDHE_8192, P521, P256), P256), ((FFDHE_8192, P521), P521)],
)
def test_openssl_asks_for_its_own_first_choice_when_there_is_no_share(
    offered: tuple[int, ...], chosen: int
) -> None:
    signatures = (13, vector(2, b"\x04\x03"))
    sent = hello("pump.test", versions=["TLSv1.3"], extensions=[signatures, groups(*offered), shares()])
    context = serving()
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    received, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(received, said, server_side=True)
    received.write(sent)

    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()

    hello_retry_request = said.read()
    assert b"\x00\x33\x00\x02" + chosen.to_bytes(2, "big") in hello_retry_request
    assert parse(sent).is_quick == (chosen in (X25519, P256))


def test_with_an_encrypted_hello_the_outer_name_counts() -> None:
    outer = hello("public.example", extensions=[(ECH, b"\x00" + bytes(200))])

    assert parse(outer).server_name == "public.example"


@pytest.mark.parametrize("message_bytes", [2_000, 16_384, 20_000, MAX_HELLO_BYTES])
@pytest.mark.parametrize("record_bytes", [1_000, 16_384])
def test_a_post_quantum_hello_is_read_over_as_many_records_as_it_takes(
    message_bytes: int, record_bytes: int
) -> None:
    assert parse(hello(alpn=PLAIN.alpn, message_bytes=message_bytes, record_bytes=record_bytes)) == PLAIN


@pytest.mark.parametrize("record_bytes", [1, 2, 3, 4, 5, 45, 60])
def test_a_hello_may_be_cut_into_records_anywhere_its_head_included(record_bytes: int) -> None:
    assert parse(hello(alpn=PLAIN.alpn, record_bytes=record_bytes)) == PLAIN


@pytest.mark.parametrize("minor", [0, 1, 3, 255])
def test_the_minor_version_of_a_record_says_nothing(minor: int) -> None:
    assert parse(records(message(body([server_name_extension("x")])), minor=minor)).server_name == "x"


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "not a TLS ClientHello: 'GET / HTTP/1.1\\\\r\\\\n'…"),
        (b"G", "not a TLS ClientHello: 'G'$"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not a TLS ClientHello: 'SSH-2.0-OpenSSH_'…"),
        (bytes.fromhex("802e 01 0301 0015 0000 0010"), r"not a TLS ClientHello: '\\x80\.\\x01"),
        (b"\x15\x03\x01\x00\x02\x02\x28", r"not a TLS ClientHello: '\\x15"),
        (b"\x17\x03\x03\x00\x10", r"not a TLS ClientHello: '\\x17"),
        (b"\x16\x02", r"not a TLS ClientHello: '\\x16\\x02'"),
        (b"\x16\xfe\xfd", r"not a TLS ClientHello: '\\x16\\xfe\\xfd'"),
        (records(message(b"", kind=0)), r"handshake message of type 0; expected a ClientHello \(1\)"),
        (records(message(body([]), kind=2)), r"handshake message of type 2; expected a ClientHello \(1\)"),
        (b"\x16\x03\x01\x00\x00", "TLS record of 0 bytes; expected 1 to 16384"),
        (b"\x16\x03\x01\x40\x01", "TLS record of 16385 bytes; expected 1 to 16384"),
        (b"\x16\x03\x01\xff\xff", "TLS record of 65535 bytes"),
        (records(b"\x01\x00\x00\x28"), "ClientHello of 40 bytes; expected 41 to 65536"),
        (records(b"\x01\x01\x00\x01"), "ClientHello of 65537 bytes; expected 41 to 65536"),
        (records(b"\x01\xff\xff\xff"), "ClientHello of 16777215 bytes"),
        (b"\x16\x03\x01\x00\x01\x01\x14\x03\x03\x00\x01\x01", r"interrupted by '\\x14\\x03\\x03"),
        (b"\x16\x03\x01\x00\x01\x01\x16\x02\x03\x00\x01\x01", r"interrupted by '\\x16\\x02\\x03"),
        (b"\x16\x03\x01\x00\x01\x01\x16\x03\x03\x00\x00", "TLS record of 0 bytes"),
    ],
)
def test_what_cannot_become_a_hello_is_refused_in_words_at_once(start: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_client_hello(start)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (body([(1, b""), (2, b""), (1, b"")]), "with extension 1 twice"),
        (body([server_name_extension("a"), server_name_extension("b")]), "with extension 0 twice"),
        (body([], session_id=bytes(33)), "impossible session id"),
        (body([], suites=b"\x13\x01\x13"), "list of cipher suites"),
        (body([], suites=b"") + bytes(9), "message has 0 bytes where 2 are due"),
        (body([], compression=b"") + bytes(9), "message has 0 bytes where 1 are due"),
        (body([]) + b"x", "message has 1 bytes too many"),
        (body(None) + b"\x00", "message ends too early"),
        (body(None) + b"\x00\x05\x00\x00\x00", "message ends too early"),
        (body(None) + vector(2, b"\x00"), "list of extensions ends too early"),
        (body(None) + vector(2, b"\x00\x00\x00\x05ab"), "list of extensions ends too early"),
        (bytes(34) + b"\xff" + bytes(10), "message ends too early"),
        (bytes(35) + b"\xff\xff" + bytes(10), "message ends too early"),
    ],
)
def test_a_length_that_lies_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_client_hello(records(b"\x01" + vector(3, body)))


@pytest.mark.parametrize(
    ("buffer", "at_least"),
    [
        (b"", 1),
        (b"\x16", 2),
        # The shortest hello has 45 bytes, in one record 50.
        (b"\x16\x03", 50),
        (PLAIN_BYTES[:5], 50),
        (PLAIN_BYTES[:8], 50),
        (PLAIN_BYTES[:9], len(PLAIN_BYTES)),
        (PLAIN_BYTES[:-1], len(PLAIN_BYTES)),
        # What does not fit in this record needs the head of another.
        (b"\x16\x03\x01\x00\x01", 5 + 1 + 5 + 44),
        (b"\x16\x03\x01\x00\x01\x01", 5 + 1 + 5 + 44),
        (b"\x16\x03\x01\x00\x04\x01\x00\x02", 5 + 4 + 5 + 41),
        (b"\x16\x03\x01\x00\x04\x01\x00\x02\x00", 5 + 4 + 5 + 512),
    ],
)
def test_it_asks_for_exactly_the_bytes_that_can_complete_it(buffer: bytes, at_least: int) -> None:
    assert parse_client_hello(buffer) == NeedMore(at_least)


def test_even_one_byte_per_record_is_tried_a_few_times_only() -> None:
    buffer = hello(message_bytes=16_000, record_bytes=1)
    had, tries = 0, 0

    while isinstance(found := parse_client_hello(buffer[:had]), NeedMore):
        had, tries = found.at_least, tries + 1

    assert isinstance(found, ClientHello)
    assert had == len(buffer) == 96_000
    assert tries < 60


@pytest.mark.parametrize(
    ("start", "may"),
    [
        (b"", True),
        (b"\x16", True),
        (b"\x16\x03", True),
        (b"\x16\x03\x01\x00", True),
        (b"\x16\x02", False),
        (b"\x15", False),
        (b"G", False),
    ],
)
def test_two_bytes_tell_a_tls_client(start: bytes, *, may: bool) -> None:
    assert may_become_client_hello(start) is may


def test_a_message_shows_sixteen_bytes_as_ascii() -> None:
    assert shown(b"GET / HTTP/1.1\r\n\r\n") == "'GET / HTTP/1.1\\r\\n'…"
    assert shown(b"\xff") == "'\\xff'"


names = st.from_regex(r"[a-z_-]{1,20}(\.[a-z0-9_-]{0,19}[a-z]){0,4}", fullmatch=True)
protocols = st.lists(st.text(st.characters(max_codepoint=255), min_size=1, max_size=20), max_size=5)
grease = st.lists(st.sampled_from([0x0A0A, 0x1A1A, 0xFAFA]), unique=True).map(
    lambda kinds: [(kind, b"\x00") for kind in kinds]
)
hellos = st.builds(
    hello,
    st.none() | names,
    alpn=protocols,
    versions=st.lists(st.sampled_from(["TLSv1.3", "TLSv1.2", "TLSv1", 0x2A2A]), max_size=4),
    extensions=grease,
    message_bytes=st.sampled_from([0, 300, 600]),
    record_bytes=st.integers(1, 400),
)


@given(names, protocols, grease, st.integers(1, 400), st.sampled_from([0, 600]))
def test_what_was_put_in_comes_out(
    name: str, alpn: list[str], extensions: list[Extension], record_bytes: int, message_bytes: int
) -> None:
    sent = hello(
        name, alpn=alpn, extensions=extensions, record_bytes=record_bytes, message_bytes=message_bytes
    )

    assert parse(sent) == ClientHello(name, tuple(alpn), ("TLSv1.3", "TLSv1.2"))


@pytest.mark.parametrize("record_bytes", [1, 7, 16_384])
def test_byte_by_byte_is_the_same_as_whole(record_bytes: int) -> None:
    sent = hello(alpn=PLAIN.alpn, record_bytes=record_bytes)

    for cut in range(len(sent)):
        part = parse_client_hello(sent[:cut])

        assert isinstance(part, NeedMore)
        assert cut < part.at_least <= len(sent)
    assert parse_client_hello(sent) == PLAIN


@given(hellos, st.data())
def test_any_part_asks_for_more_and_never_for_more_than_there_is(sent: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(sent) - 1))

    part = parse_client_hello(sent[:cut])

    assert isinstance(part, NeedMore)
    assert cut < part.at_least <= len(sent)
    assert isinstance(parse_client_hello(sent), ClientHello)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A hello that is cut, followed by garbage, or has bytes changed."""
    buffer = bytearray(draw(hellos))
    for at, value in draw(
        st.lists(st.tuples(st.integers(0, len(buffer) - 1), st.integers(0, 255)), max_size=3)
    ):
        buffer[at] = value
    cut = draw(st.just(len(buffer)) | st.integers(0, len(buffer)))
    return bytes(buffer[:cut]) + draw(st.binary(max_size=40))


@given(damaged() | st.binary(max_size=200) | st.binary(max_size=100).map(b"\x16\x03\x01".__add__))
@example(b"\x16\x03\x01\x00\x01")
def test_whatever_comes_is_a_value_need_more_or_a_refusal(buffer: bytes) -> None:
    event(check_client_hello(buffer))


def name_that_openssl_reads(buffer: bytes) -> str | None:
    """The server name that a server would see in these bytes; None when it sees none, or wants more, or refuses."""
    seen: list[str | None] = []

    def refuse(_: object, name: str | None, __: object) -> int:
        seen.append(name)
        return ssl.ALERT_DESCRIPTION_ACCESS_DENIED

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = refuse
    received = ssl.MemoryBIO()
    received.write(buffer)
    with pytest.raises(ssl.SSLError):  # by our refusal, at the latest
        context.wrap_bio(received, ssl.MemoryBIO(), server_side=True).do_handshake()
    return seen[0] if seen else None


@given(damaged())
@example(hello("127.0.0.1"))
@example(hello("A.Test.com."))
def test_openssl_never_reads_another_name_than_we_do(buffer: bytes) -> None:
    try:
        found = parse_client_hello(buffer)
    except ParseError:
        return  # OpenSSL never sees it

    read = name_that_openssl_reads(buffer)

    event(f"{type(found).__name__}, OpenSSL reads {'a name' if read else 'none'}")
    if read is not None:
        assert isinstance(found, ClientHello)
        assert found.server_name == (None if read == "127.0.0.1" else read.lower().removesuffix("."))
