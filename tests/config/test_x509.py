from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509 as library
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from streamgw.config import x509
from streamgw.config.strict import Wrong
from tests.support.certificates import CA, CA_PEM, issue

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def refusal(pem: str, what: str = "cert") -> str:
    with pytest.raises(Wrong) as caught:
        x509.parse_chain(pem) if what == "cert" else x509.parse_key(pem)
    (fault,) = caught.value.faults
    return fault.message


def self_signed(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> library.Certificate:
    name = library.Name([library.NameAttribute(NameOID.COMMON_NAME, "alone")])
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    return (
        library.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(255)
        .not_valid_before(NOON)
        .not_valid_after(NOON + timedelta(days=30))
        .sign(key, algorithm)
    )


def test_a_certificate_is_described_for_people() -> None:
    info = x509.describe_pem(
        issue("a.test", "*.b.test", "10.0.0.1", not_before=NOON, not_after=NOON + timedelta(days=30)).cert
    )

    assert info.names == ("a.test", "*.b.test", "10.0.0.1")
    assert info.issuer.startswith("OU=Testing CA")
    assert (info.not_before, info.not_after) == (NOON, NOON + timedelta(days=30))
    assert (info.days_left(NOON), info.days_left(NOON + timedelta(days=31))) == (30, -1)
    assert re.fullmatch("[0-9a-f]{64}", info.fingerprint)
    assert re.fullmatch("[0-9a-f]+", info.serial)
    assert info.key_type == "ECDSA P-256"


@pytest.mark.parametrize(
    ("key", "shown", "signs_quickly"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ECDSA P-256", True),
        (ec.generate_private_key(ec.SECP384R1()), "ECDSA P-384", False),
        (ec.generate_private_key(ec.SECP256K1()), "ECDSA secp256k1", False),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519", True),
    ],
)
def test_keys_have_the_names_that_people_use(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, shown: str, *, signs_quickly: bool
) -> None:
    info = x509.describe(self_signed(key))

    assert (info.key_type, info.subject, info.serial, info.names) == (shown, "CN=alone", "ff", ())
    assert info.signs_quickly == signs_quickly


def test_an_rsa_key_has_its_size() -> None:
    assert x509.describe_pem(issue("a", key_type=trustme.KeyType.RSA).cert).key_type == "RSA 2048"


@pytest.mark.parametrize("pem", ["", "hush", CA_PEM.replace("M", "N", 3), CA_PEM[:200], issue("a").key])
def test_what_is_no_certificate_is_refused(pem: str) -> None:
    assert refusal(pem) == "failed to parse cert: no certificate in PEM form"


def test_what_is_no_key_is_refused_and_not_shown() -> None:
    key = x509.parse_key(issue("a").key)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    ).decode()

    assert "a key that APISIX has encrypted" in refusal("aHVzaA==" * 20, "key")
    assert refusal(locked, "key") == "failed to parse key: it is encrypted with a password"
    assert refusal(CA_PEM, "key") == "failed to parse key: no private key in PEM form"


def test_a_key_belongs_to_one_certificate() -> None:
    one, other = issue("a"), issue("a")
    (certificate,) = x509.parse_chain(one.cert)

    assert x509.is_pair(certificate, x509.parse_key(one.key))
    assert not x509.is_pair(certificate, x509.parse_key(other.key))


def test_a_chain_out_of_order_is_named() -> None:
    middle = CA.create_child_ca()
    chain = x509.parse_chain(issue("a", ca=middle).cert + CA_PEM)
    assert len(chain) == 3

    assert list(x509.chain_faults(chain)) == []
    (said,) = x509.chain_faults((chain[0], chain[2]))
    assert re.fullmatch(
        r"certificate 1 of the chain \(.+\) is not issued by the next one \(.+Testing CA.+\)", said
    )


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (NOON + timedelta(days=3), []),
        (NOON + timedelta(days=9), ["the certificate expires in 21 days, at 2026-12-21 12:00 UTC"]),
        (NOON + timedelta(days=28, hours=1), ["the certificate expires in 1 day, at 2026-12-21 12:00 UTC"]),
        (NOON + timedelta(days=30), ["the certificate HAS EXPIRED at 2026-12-21 12:00 UTC: clients refuse it"]),
        (NOON - timedelta(days=1), ["the certificate is not valid before 2026-11-21 12:00 UTC: clients refuse it"]),
    ],
)  # fmt: skip
def test_dates_are_compared_with_now(now: datetime, said: list[str]) -> None:
    chain = x509.parse_chain(issue("a", not_before=NOON, not_after=NOON + timedelta(days=30)).cert)

    assert list(x509.validity_faults(chain, now, 22)) == said


def test_a_certificate_further_up_may_have_expired_too() -> None:
    good = x509.parse_chain(issue("a", not_after=NOON + timedelta(days=3000)).cert)
    bad = x509.parse_chain(issue("b", not_before=NOON - timedelta(2), not_after=NOON - timedelta(1)).cert)

    (said,) = x509.validity_faults(good + bad, NOON, 21)

    assert said.startswith("certificate 2 of the chain HAS EXPIRED")


def test_a_name_that_the_certificate_is_not_for_is_found() -> None:
    (certificate,) = x509.parse_chain(issue("a.test", "*.B.test").cert)

    def uncovered(*names: str) -> tuple[str, ...]:
        return x509.uncovered(names, certificate)

    assert uncovered("a.test", "x.b.test", "*.b.test", "*") == ()
    assert uncovered("b.test", "x.y.b.test", "*.a.test", "test", "*b.test") == (
        "b.test",
        "x.y.b.test",
        "*.a.test",
        "test",
        "*b.test",
    )
