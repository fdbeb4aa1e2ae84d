from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from streamgw.config.identity import read_client_certificate

ALICE = x509.Name(
    [
        x509.NameAttribute(NameOID.COMMON_NAME, "alice"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
    ]
)


def certificate(*names: x509.GeneralName) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(ALICE)
        .issuer_name(ALICE)
        .public_key(key.public_key())
        .serial_number(0xBEEF)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_every_kind_of_name_is_told_apart() -> None:
    der = certificate(
        x509.DNSName("alice.example"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.UniformResourceIdentifier("spiffe://example/alice"),
        x509.RFC822Name("alice@example.org"),
    )

    found = read_client_certificate(der)

    assert found.subject == "O=Example,CN=alice"
    assert found.sans == (
        "DNS:alice.example",
        "IP:10.0.0.1",
        "URI:spiffe://example/alice",
        "email:alice@example.org",
    )
    assert found.serial == "beef"
    assert found.fingerprint == hashlib.sha256(der).hexdigest()


def test_a_certificate_without_alternative_names_has_its_subject() -> None:
    assert read_client_certificate(certificate()).sans == ()


def test_what_cannot_be_read_still_has_a_fingerprint() -> None:
    found = read_client_certificate(b"not DER")

    assert (found.subject, found.serial) == ("", "")
    assert found.fingerprint == hashlib.sha256(b"not DER").hexdigest()
