from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator

import attrs
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from streamgw.config import contexts
from streamgw.config.contexts import (
    ClientAuthentication,
    ClientInputs,
    Pair,
    ServerInputs,
    make_client_context,
    make_server_context,
    set_ciphers,
)
from streamgw.config.strict import Wrong
from tests.support.certificates import CA, CA_PEM, OTHER_CA, Issued, issue


def pair(issued: Issued) -> Pair:
    return Pair(issued.cert, issued.key)


def der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


PAIR = pair(issue("a.test"))
CA_DER = der(CA_PEM)
PLAIN = ServerInputs((PAIR,))
MUTUAL = ServerInputs((PAIR,), client_ca=CA_DER, client_depth=1)


def client(identity: Pair | None = None, version: str = "TLSv1.3") -> ssl.SSLContext:
    context = make_client_context(ClientInputs(identity, verify=True, ca=CA_DER))
    contexts.set_versions(context, [version])
    return context


def shake(
    server: ssl.SSLContext, client: ssl.SSLContext, *, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="a.test", session=session),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    open_ends = list(ends)
    while open_ends:
        for end in tuple(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    # TLS 1.3 sends its tickets after the handshake.
    ends[1].write(b"x")
    assert ends[0].read(1) == b"x"
    return ends


def test_a_server_speaks_the_versions_it_is_told() -> None:
    both = make_server_context(PLAIN)
    old = make_server_context(attrs.evolve(PLAIN, protocols=("TLSv1.2",)))

    assert shake(both, client())[0].version() == "TLSv1.3"
    assert shake(both, client(version="TLSv1.2"))[0].version() == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        shake(old, client())


def test_tls_1_1_is_spoken_to_those_who_ask_for_it() -> None:
    server = make_server_context(attrs.evolve(PLAIN, protocols=("TLSv1.1", "TLSv1.2")))
    old = client(version="TLSv1.1")
    set_ciphers(old, "ALL", ["TLSv1.1"])

    # Mozilla's list is for TLS 1.2: what it leaves for 1.1 is nothing.
    with pytest.raises(ssl.SSLError):
        shake(server, old)
    weak = attrs.evolve(PLAIN, protocols=("TLSv1.1", "TLSv1.2"), ciphers="ECDHE+AES")
    assert shake(make_server_context(weak), old)[0].version() == "TLSv1.1"


def test_ciphers_that_nobody_knows_are_refused() -> None:
    with pytest.raises(Wrong, match="OpenSSL knows none of these ciphers"):
        make_server_context(attrs.evolve(PLAIN, ciphers="XYZZY"))


def test_two_kinds_of_keys_serve_two_kinds_of_clients() -> None:
    rsa = pair(issue("a.test", key_type=trustme.KeyType.RSA))
    server = make_server_context(ServerInputs((PAIR, rsa)))

    def cipher(wanted: str) -> str:
        context = client(version="TLSv1.2")
        context.set_ciphers(wanted)
        found = shake(server, context)[0].cipher()
        assert found is not None
        return found[0]

    assert cipher("ECDHE-RSA-AES128-GCM-SHA256") == "ECDHE-RSA-AES128-GCM-SHA256"
    assert cipher("ECDHE-ECDSA-AES128-GCM-SHA256") == "ECDHE-ECDSA-AES128-GCM-SHA256"


def test_what_openssl_does_not_take_is_refused_without_showing_it() -> None:
    other = issue("a.test")

    with pytest.raises(Wrong) as caught:
        make_server_context(ServerInputs((Pair(PAIR.chain, other.key),)))

    (fault,) = caught.value.faults
    assert fault.message == "OpenSSL does not take it: key values mismatch"


def test_no_key_is_in_a_repr() -> None:
    assert "PRIVATE" not in repr(ServerInputs((PAIR,))) + repr(ClientInputs(PAIR))


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_sessions_are_resumed_unless_tickets_are_off(version: str) -> None:
    def is_resumed(inputs: ServerInputs) -> bool:
        server, customer = make_server_context(inputs), client(version=version)
        first, _ = shake(server, customer)
        return bool(shake(server, customer, session=first.session)[0].session_reused)

    assert is_resumed(PLAIN)
    # Without tickets TLS 1.2 still has numbers, which OpenSSL remembers.
    assert is_resumed(attrs.evolve(PLAIN, session_tickets=False)) == (version == "TLSv1.2")


def test_no_session_is_resumed_by_another_context() -> None:
    customer = client()
    first, _ = shake(make_server_context(PLAIN), customer)

    again, _ = shake(make_server_context(PLAIN), customer, session=first.session)

    assert not again.session_reused


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_who_has_no_certificate_or_one_of_another_authority_is_refused(version: str) -> None:
    server = make_server_context(MUTUAL)

    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake(server, client(version=version))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(server, client(pair(issue("me", ca=OTHER_CA)), version))


DIRECT, ONE, TWO = (
    pair(issue("me", ca=authority))
    for authority in (CA, CA.create_child_ca(), CA.create_child_ca().create_child_ca())
)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize(
    ("identity", "depth", "is_accepted"),
    [(DIRECT, 0, True), (ONE, 0, False), (ONE, 1, True), (TWO, 1, False), (TWO, 2, True)],
)
def test_a_chain_has_at_most_so_many_links(
    identity: Pair, depth: int, is_accepted: bool, version: str
) -> None:
    server = make_server_context(attrs.evolve(MUTUAL, client_depth=depth))

    if is_accepted:
        _, end = shake(server, client(identity, version))
        assert end.getpeercert()
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match="client certificate chain too long"):
            shake(server, client(identity, version))


def test_the_refusal_looks_like_one_of_openssl() -> None:
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake(make_server_context(MUTUAL), client(TWO))

    said = "client certificate chain too long: 2 intermediates, depth 1"
    assert (caught.value.reason, caught.value.verify_message) == ("CERTIFICATE_VERIFY_FAILED", said)
    assert (caught.value.library, caught.value.verify_code) == ("SSL", 22)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def finish(*ends: ssl.SSLSocket) -> None:
    open_ends = list(ends)
    while open_ends:
        for end in tuple(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass


@pytest.mark.parametrize("identity", [ONE, TWO])
def test_the_rule_holds_on_sockets_too(identity: Pair, sockets: tuple[socket.socket, socket.socket]) -> None:
    server, customer = make_server_context(MUTUAL), client(identity)
    with (
        server.wrap_socket(sockets[0], server_side=True, do_handshake_on_connect=False) as one,
        customer.wrap_socket(sockets[1], server_hostname="a.test", do_handshake_on_connect=False) as other,
    ):
        if identity is ONE:
            finish(one, other)
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                finish(one, other)


def test_who_must_show_a_certificate_gets_no_ticket() -> None:
    server, customer = make_server_context(MUTUAL), client(ONE)
    first, _ = shake(server, customer)

    assert not shake(server, customer, session=first.session)[0].session_reused
    with_number = client(ONE, "TLSv1.2")
    first, _ = shake(server, with_number)
    assert not first.session.has_ticket
    assert shake(server, with_number, session=first.session)[0].session_reused


def test_a_session_is_resumed_only_by_whose_certificate_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain is not to be had any more when a session is resumed; a too long one must not come back that way."""
    server, customer = make_server_context(MUTUAL), client(TWO, "TLSv1.2")
    assert isinstance(server, ClientAuthentication)
    server.client_depth = 2
    first, _ = shake(server, customer)
    monkeypatch.setattr(contexts, "MAX_ACCEPTED", 1)
    shake(server, client(DIRECT, "TLSv1.2"))

    with pytest.raises(ssl.SSLCertVerificationError, match="resumed session is not known"):
        shake(server, customer, session=first.session)


def test_an_upstream_is_verified_only_if_that_is_asked_for() -> None:
    stranger = make_server_context(ServerInputs((pair(issue("a.test", ca=OTHER_CA)),)))

    shake(stranger, make_client_context(ClientInputs()))
    for ca in (CA_DER, None, b""):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(stranger, make_client_context(ClientInputs(verify=True, ca=ca)))


def test_an_upstream_is_offered_protocols() -> None:
    server = make_server_context(PLAIN)
    server.set_alpn_protocols(["h2", "mqtt"])

    found, _ = shake(server, make_client_context(ClientInputs(alpn=("mqtt", "x"))))

    assert found.selected_alpn_protocol() == "mqtt"


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs: attrs.evolve(inputs, pairs=(PAIR, PAIR)),
        lambda inputs: attrs.evolve(inputs, protocols=("TLSv1.3",)),
        lambda inputs: attrs.evolve(inputs, ciphers="ALL"),
        lambda inputs: attrs.evolve(inputs, session_tickets=False),
        lambda inputs: attrs.evolve(inputs, client_ca=CA_DER),
        lambda inputs: attrs.evolve(inputs, client_depth=2),
    ],
)
def test_everything_that_makes_a_server_context_is_in_its_digest(
    change: Callable[[ServerInputs], ServerInputs],
) -> None:
    assert change(PLAIN).digest() != PLAIN.digest()
    assert attrs.evolve(PLAIN).digest() == PLAIN.digest()


def test_everything_that_makes_a_client_context_is_in_its_digest() -> None:
    several = [
        ClientInputs(),
        ClientInputs(PAIR),
        ClientInputs(verify=True),
        ClientInputs(ca=b""),
        ClientInputs(alpn=("a",)),
        ClientInputs(alpn=("a", "b")),
    ]

    assert len({inputs.digest() for inputs in several}) == len(several)
