"""TLS contexts: OpenSSL's side of a certificate, made once and kept while nothing of it changes.

* A key goes to OpenSSL through a memory file: Python's ssl loads keys from files only, and a key is never written to a
  disk by us.
* The key of session tickets lives in the context. So an object whose inputs did not change keeps its context (`digest`),
  and no two objects share one: a session resumed under another name would carry a client past that name's
  client-certificate rule.
* Where a client certificate is required no ticket is given out, and a session is resumed only if its certificate was
  accepted by a full handshake of this very context: see `ClientAuthentication`.

Source:
  OpenSSL SSL_CTX_set_options(3), X509_VERIFY_PARAM_set_depth(3); RFC 8446 § 4.6.1 (tickets), § 9.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from streamgw.config.pem import digest_of
from streamgw.config.strict import Wrong

Version = Literal["TLSv1.1", "TLSv1.2", "TLSv1.3"]
VERSIONS: Final[tuple[Version, ...]] = ("TLSv1.1", "TLSv1.2", "TLSv1.3")
_VERSIONS: Final[Mapping[str, ssl.TLSVersion]] = {
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
DEFAULT_CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
"""Mozilla's intermediate list, as in APISIX, without DHE: that would need parameters of its own. TLS 1.3 has its own."""
MAX_ACCEPTED: Final = 65_536
"""More than the 20,480 sessions that OpenSSL remembers per context."""

_CHAIN_TOO_LONG: Final = 22
"""X509_V_ERR_CERT_CHAIN_TOO_LONG."""


@attrs.frozen
class Pair:
    """A certificate with its chain, and its key, as PEM."""

    chain: str = attrs.field(repr=False)
    key: str = attrs.field(repr=False)


@attrs.frozen
class ServerInputs:
    """Everything that a server context is made of."""

    pairs: tuple[Pair, ...]
    protocols: tuple[Version, ...] = ("TLSv1.2", "TLSv1.3")
    ciphers: str = DEFAULT_CIPHERS
    session_tickets: bool = True
    client_ca: bytes = attrs.field(default=b"", repr=False)
    """DER, one after the other; empty: no client certificate is asked for."""
    client_depth: int = 1
    """Intermediate certificates between the client's and the CA's, at most."""

    def digest(self) -> str:
        """Equal digests: an equal context."""
        return digest_of(
            *(text for pair in self.pairs for text in (pair.chain, pair.key)),
            *self.protocols,
            self.ciphers,
            str(self.session_tickets),
            hashlib.sha256(self.client_ca).hexdigest(),
            str(self.client_depth),
        )


@attrs.frozen
class ClientInputs:
    """Everything that a context towards an upstream is made of."""

    pair: Pair | None = None
    verify: bool = False
    ca: bytes | None = attrs.field(default=None, repr=False)
    """DER, one after the other; None: what the system trusts."""
    alpn: tuple[str, ...] = ()

    def digest(self) -> str:
        """Equal digests: an equal context."""
        return digest_of(
            *((self.pair.chain, self.pair.key) if self.pair else ("", "")),
            str(self.verify),
            "system" if self.ca is None else hashlib.sha256(self.ca).hexdigest(),
            *self.alpn,
        )


def make_server_context(inputs: ServerInputs) -> ssl.SSLContext:
    """A context that terminates TLS.

    Raises:
      Wrong: OpenSSL does not take the ciphers or a certificate.
    """
    kind = ssl.SSLContext if not inputs.client_ca else ClientAuthentication
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    set_versions(context, inputs.protocols)
    set_ciphers(context, inputs.ciphers, inputs.protocols)
    # Renegotiation could change who the client is in the middle of a session (and TLS 1.3 has none).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    for pair in inputs.pairs:
        _load_pair(context, pair)
    if isinstance(context, ClientAuthentication):
        context.require(inputs.client_ca, inputs.client_depth)
    elif not inputs.session_tickets:
        _give_no_tickets(context)
    return context


def make_client_context(inputs: ClientInputs) -> ssl.SSLContext:
    """A context that speaks TLS to nodes. TLS 1.2 and 1.3.

    Raises:
      Wrong: OpenSSL does not take the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.check_hostname = inputs.verify
    context.verify_mode = ssl.CERT_REQUIRED if inputs.verify else ssl.CERT_NONE
    if inputs.verify and inputs.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    elif inputs.verify and inputs.ca:
        context.load_verify_locations(cadata=inputs.ca)
    if inputs.pair is not None:
        _load_pair(context, inputs.pair)
    if inputs.alpn:
        context.set_alpn_protocols(list(inputs.alpn))
    return context


def set_versions(context: ssl.SSLContext, protocols: Sequence[str]) -> None:
    """Allow exactly these versions, which have no gap between them."""
    versions = sorted(_VERSIONS[protocol] for protocol in protocols)
    with warnings.catch_warnings():
        # TLS 1.1 is deprecated, and whoever writes it in a file is told so in our own words.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = versions[0]
        context.maximum_version = versions[-1]


def set_ciphers(context: ssl.SSLContext, ciphers: str, protocols: Sequence[str]) -> None:
    """Choose the ciphers of TLS 1.2 and below.

    Raises:
      Wrong: OpenSSL knows none of them.
    """
    try:
        # Its signatures are SHA-1, which OpenSSL 3 refuses from level 1 on.
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0" if "TLSv1.1" in protocols else ciphers)
    except ssl.SSLError:
        raise Wrong("OpenSSL knows none of these ciphers") from None


class ClientAuthentication(ssl.SSLContext):
    """A context that wants a client certificate, and counts the links of its chain.

    Python's ssl cannot limit the depth in OpenSSL (there is no SSL_CTX_set_verify_depth), so the handshake of every
    socket and object made from this context ends with a look at the chain that was verified. A resumed session has no
    such chain. So there are no tickets, which would be good for hours; and the sessions that TLS 1.2 resumes by their
    number out of OpenSSL's memory count only if a full handshake of this context accepted their certificate.
    """

    client_depth: int = 1

    def require(self, ca: bytes, depth: int) -> None:
        """Ask for a certificate that leads to one of these CAs, with at most so many in between."""
        self.verify_mode = ssl.CERT_REQUIRED
        self.load_verify_locations(cadata=ca)
        self.client_depth = depth
        self._accepted: dict[bytes, None] = {}
        self._lock = threading.Lock()  # handshakes run in threads
        self.sslsocket_class = _Socket
        self.sslobject_class = _Object
        _give_no_tickets(self)

    def check(self, side: Any) -> None:  # noqa: ANN401  an SSLSocket or an SSLObject, which share no class
        """Called when a handshake is complete.

        Raises:
          SSLCertVerificationError: the chain is too long, or is not known.
        """
        certificate = side.getpeercert(binary_form=True)
        fingerprint = hashlib.sha256(certificate or b"").digest()
        if side.session_reused:
            with self._lock:
                is_known = fingerprint in self._accepted
            if not is_known:
                raise _refusal("client certificate of a resumed session is not known")
            return
        between = len(_verified_chain(side)) - 2
        if between > self.client_depth:
            message = f"client certificate chain too long: {between} intermediates, depth {self.client_depth}"
            raise _refusal(message)
        with self._lock:
            self._accepted.pop(fingerprint, None)
            self._accepted[fingerprint] = None
            if len(self._accepted) > MAX_ACCEPTED:
                del self._accepted[next(iter(self._accepted))]


def _refusal(message: str) -> ssl.SSLCertVerificationError:
    """As OpenSSL's own: whoever catches it asks for these attributes, which Python sets in C only."""
    error = ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, message)
    error.library, error.reason = "SSL", "CERTIFICATE_VERIFY_FAILED"
    error.verify_code, error.verify_message = _CHAIN_TOO_LONG, message
    return error


class _Socket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        assert isinstance(self.context, ClientAuthentication), "only that makes these"
        self.context.check(self)


class _Object(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        assert isinstance(self.context, ClientAuthentication), "only that makes these"
        self.context.check(self)


def _verified_chain(side: Any) -> Sequence[object]:  # noqa: ANN401  see `check`
    # Public from Python 3.13 on; before that the C object has it already.
    source = side if hasattr(side, "get_verified_chain") else side._sslobj  # noqa: SLF001
    chain: Sequence[object] = source.get_verified_chain()
    return chain


def _give_no_tickets(context: ssl.SSLContext) -> None:
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


def _load_pair(context: ssl.SSLContext, pair: Pair) -> None:
    with _memory_file(pair.chain) as chain, _memory_file(pair.key) as key:
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(chain, key, password="")
        except ssl.SSLError as error:
            reason = (error.reason or "unknown").lower().replace("_", " ")
            raise Wrong(f"OpenSSL does not take it: {reason}") from None


@contextlib.contextmanager
def _memory_file(text: str) -> Iterator[str]:
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
