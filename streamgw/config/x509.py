"""What certificates say: names, issuer, dates, whether a key belongs to one, whether a chain is a chain.

Imported only where there is a certificate: `cryptography` takes a tenth of a second to import.

Source:
  RFC 5280 (certificates), RFC 6125 § 6.4.3 and RFC 9525 § 6.3 (wildcards: the whole left-most label, one label).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from streamgw.config.strict import Fault, Wrong

Chain: TypeAlias = tuple[x509.Certificate, ...]

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_QUICK_KEYS = frozenset({"ECDSA P-256", "Ed25519", "RSA 2048"})
"""In µs of CPU for the longest step of a handshake (OpenSSL 3.0, X25519): 150, 200, 430. P-384 takes 700, RSA 3072 2,000."""
_ENCRYPTED_BY_APISIX = (
    "failed to parse key: no PEM text; a key that APISIX has encrypted (apisix.data_encryption) cannot be read: "
    "write the key itself, $file://path or $env://NAME"
)

_NO_KEY = "PEM_read_bio_PrivateKey() failed"


@attrs.frozen
class CertificateInfo:
    """A certificate for people: what `streamgw ssl list` shows."""

    names: tuple[str, ...]
    """Subject alternative names: DNS names and addresses."""
    subject: str
    """RFC 4514: `CN=a.test,O=Example`."""
    issuer: str
    not_before: datetime
    """UTC."""
    not_after: datetime
    """UTC."""
    fingerprint: str
    """SHA-256 of the DER form, lower-case hex."""
    serial: str
    """Lower-case hex."""
    key_type: str
    """`RSA 2048`, `ECDSA P-256`, `Ed25519`."""

    @property
    def signs_quickly(self) -> bool:
        """Less than half a millisecond of CPU for a signature by its key."""
        return self.key_type in _QUICK_KEYS

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires; negative when it has."""
        return (self.not_after - now) // timedelta(days=1)


def parse_chain(pem: str) -> Chain:
    """Every certificate of a PEM text, in its order.

    Raises:
      Wrong: there is none, or one that is no certificate.
    """
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem.encode("utf-8", "surrogateescape")))
        for certificate in chain:
            _names(certificate)
            certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.UnsupportedGeneralNameType, x509.DuplicateExtension):
        raise _unreadable(
            "failed to parse cert: ", "no certificate in PEM form", "PEM_read_bio_X509_AUX() failed"
        ) from None
    return chain


def parse_key(pem: str) -> PrivateKeyTypes:
    """The private key of a PEM text.

    Raises:
      Wrong: it is none, is encrypted, or is of a kind that is not known. Never with any of the text.
    """
    if "-----BEGIN" not in pem:
        said = "failed to decrypt previous encrypted key"
        raise Wrong(Fault((), _ENCRYPTED_BY_APISIX, apisix=said, is_final=True))
    try:
        # Validating an RSA key holds the GIL, and with it every session, for 31 ms (2048 bits) to 200 ms (4096). It is
        # compared with its certificate anyway, and OpenSSL loads it once more.
        return serialization.load_pem_private_key(
            pem.encode("utf-8", "surrogateescape"), password=None, unsafe_skip_rsa_key_validation=True
        )
    except TypeError:
        raise _unreadable("failed to parse key: ", "it is encrypted with a password", _NO_KEY) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unreadable("failed to parse key: ", "no private key in PEM form", _NO_KEY) from None


def _unreadable(what: str, ours: str, apisix: str) -> Wrong:
    return Wrong(Fault((), what + ours, apisix=what + apisix, is_final=True))


def is_pair(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    """Whether the key is the certificate's."""
    return _public(certificate.public_key()) == _public(key.public_key())


def describe(certificate: x509.Certificate) -> CertificateInfo:
    """What a person wants to know."""
    return CertificateInfo(
        names=_names(certificate),
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        serial=f"{certificate.serial_number:x}",
        key_type=_key_type(certificate.public_key()),
    )


def describe_pem(pem: str) -> CertificateInfo:
    """The first certificate of a PEM text.

    Raises:
      Wrong: as `parse_chain`.
    """
    return describe(parse_chain(pem)[0])


def chain_faults(chain: Chain) -> Iterator[str]:
    """Where a certificate is not issued by the one behind it. Clients that build no chains themselves fail then."""
    for number, (certificate, issuer) in enumerate(itertools.pairwise(chain), start=1):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            yield (
                f"certificate {number} of the chain ({certificate.subject.rfc4514_string()}) is not issued by "
                f"the next one ({issuer.subject.rfc4514_string()})"
            )


def validity_faults(chain: Chain, now: datetime, warning_days: int) -> Iterator[str]:
    """What is out of date, or will be within so many days."""
    for number, certificate in enumerate(chain):
        what = "the certificate" if number == 0 else f"certificate {number + 1} of the chain"
        info_of = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        days = (info_of[1] - now) // timedelta(days=1)
        if now >= info_of[1]:
            yield f"{what} HAS EXPIRED at {_shown(info_of[1])}: clients refuse it"
        elif now < info_of[0]:
            yield f"{what} is not valid before {_shown(info_of[0])}: clients refuse it"
        elif days < warning_days:
            yield f"{what} expires in {days} day{'' if days == 1 else 's'}, at {_shown(info_of[1])}"


def uncovered(names: Sequence[str], certificate: x509.Certificate) -> tuple[str, ...]:
    """Those of the configured names that a client would not accept this certificate for."""
    covered = {name.lower().removesuffix(".") for name in _names(certificate)}
    return tuple(name for name in names if name != "*" and not _covers(covered, name))


def _covers(covered: set[str], name: str) -> bool:
    _, dot, parent = name.partition(".")
    return name in covered or (not name.startswith("*") and bool(dot) and f"*.{parent}" in covered)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = found.get_values_for_type(x509.IPAddress)
    return (*found.get_values_for_type(x509.DNSName), *map(str, addresses))


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_type(key: PublicKeyTypes) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {_CURVES.get(key.curve.name, key.curve.name)}"
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
