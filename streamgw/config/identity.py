"""Who a client's certificate says it is: for the access log, and for plugins to decide by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from streamgw.core.model import ClientCertificate

if TYPE_CHECKING:
    from cryptography import x509


def read_client_certificate(der: bytes) -> ClientCertificate:
    """From the DER form of a certificate that a handshake has verified. Never raises.

    OpenSSL has let the client in already; a name that this library is stricter about leaves the fingerprint, which
    needs no reading.
    """
    from cryptography import x509  # noqa: PLC0415  a start without certificates needs none of it

    fingerprint = hashlib.sha256(der).hexdigest()
    try:
        certificate = x509.load_der_x509_certificate(der)
        return ClientCertificate(
            subject=certificate.subject.rfc4514_string(),
            sans=tuple(_sans(certificate)),
            fingerprint=fingerprint,
            serial=f"{certificate.serial_number:x}",
        )
    except ValueError:
        return ClientCertificate(subject="", sans=(), fingerprint=fingerprint, serial="")


def _sans(certificate: x509.Certificate) -> Iterator[str]:
    """Alternative names as OpenSSL prints them; kinds that are no text (other names) are left out."""
    from cryptography import x509  # noqa: PLC0415  as above

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    yield from (f"DNS:{name}" for name in names.get_values_for_type(x509.DNSName))
    yield from (f"IP:{name}" for name in names.get_values_for_type(x509.IPAddress))
    yield from (f"URI:{name}" for name in names.get_values_for_type(x509.UniformResourceIdentifier))
    yield from (f"email:{name}" for name in names.get_values_for_type(x509.RFC822Name))
