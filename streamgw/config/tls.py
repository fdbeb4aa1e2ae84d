"""What documents say about TLS, as contexts: server certificates, and how to speak TLS to upstreams.

Everything is checked here, at load, where it can still be refused: a key that does not belong to its certificate must
never become a failed handshake. What is out of date is a warning, loud as it is: to refuse the whole reload for it would
block every other change at the very moment when somebody has to make one.

Source:
  APISIX `apisix/ssl.lua`, `apisix/schema_def.lua` (fields and error texts), `apisix/upstream.lua` (client_cert_id).
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Final

import attrs

from streamgw.config.contexts import (
    DEFAULT_CIPHERS,
    ClientInputs,
    Pair,
    ServerInputs,
    Version,
    make_client_context,
    make_server_context,
)
from streamgw.config.documents import Document
from streamgw.config.kept import Kept
from streamgw.config.pem import Pem, References, digest_of
from streamgw.config.schema import (
    ClientCASpec,
    ServiceSpec,
    SSLSpec,
    StreamRouteSpec,
    UpstreamSpec,
    UpstreamTLSSpec,
)
from streamgw.config.strict import Fault, Wrong, structure_rest
from streamgw.config.yaml_reader import Path
from streamgw.core.model import Certificate, Key, UpstreamTLS

if TYPE_CHECKING:
    # `cryptography` takes 0.1 s to import: only where there is a certificate.
    from streamgw.config import x509

SYSTEM: Final = "system"


@attrs.frozen
class TLSSettings:
    """`apisix.ssl`, `streamgw.tls`: what an object does not say itself."""

    protocols: tuple[Version, ...] = ("TLSv1.2", "TLSv1.3")
    ciphers: str = DEFAULT_CIPHERS
    session_tickets: bool = True
    trusted_certificate: str = SYSTEM
    """What upstreams are verified with that name no `ca_certs`: `system`, or the path of a PEM file."""
    expiry_warning_days: int = 21


@attrs.frozen
class _Examined:
    """A pair that is one."""

    chain: x509.Chain
    faults: tuple[str, ...]
    """What is wrong with the order of its chain."""


class Workshop:
    """What is kept from load to load: contexts, and what was found out about certificates. Not for two threads at once."""

    def __init__(self) -> None:
        self.contexts: Kept[ssl.SSLContext] = Kept()
        self.examined: Kept[_Examined] = Kept()
        self.chains: Kept[x509.Chain] = Kept()

    def finish(self, *, forget: bool) -> None:
        """A load is over: see `Kept.finish`."""
        for kept in (self.contexts, self.examined, self.chains):
            kept.finish(forget=forget)


@attrs.frozen
class Look:
    """One load: what it looks at, and when."""

    workshop: Workshop
    references: References
    settings: TLSSettings
    now: datetime
    is_complete: bool = True
    """False: a file cannot be read, and nobody knows which objects it would have defined."""


class Credentials:
    """Everything about TLS in the documents of one state."""

    def __init__(self, look: Look, documents: Sequence[Document]) -> None:
        self.faults: list[tuple[Document, Fault]] = []
        self.warnings: list[tuple[Document, Fault]] = []
        self.infos: dict[Key, x509.CertificateInfo] = {}
        """Of every enabled object of `ssls`: its first certificate."""
        self.certificates: list[Certificate] = []
        """Those for clients, in the order in which they are asked."""
        self.digests: set[str] = set()
        """Of everything that went into a context."""
        self._look = look
        self._client_pairs: dict[str, Pair | None] = {}
        self._upstreams: dict[Key, UpstreamTLS] = {}
        self._ssls = {
            document.key[1]: document.spec for document in documents if isinstance(document.spec, SSLSpec)
        }
        # Those with faults of their own, too: they are there.
        self._known = {document.key[1] for document in documents if document.key[0] == "ssls"}
        for document in documents:
            if document.key[0] == "ssls" and (spec := _ssl_of(document)).status:
                self._add_ssl(document, spec)
        for document in documents:
            self._add_upstream(document)
        self._warn_of_double_names(documents)

    def of_upstream(self, owner: Key) -> UpstreamTLS | None:
        """How the upstream that this object is or contains speaks TLS; None: it does not, or has a fault."""
        return self._upstreams.get(owner)

    def of_options(self, document: Document, path: Path, spec: UpstreamSpec) -> UpstreamTLS | None:
        """How an upstream in the options of a plugin speaks TLS; None: it does not, or has a fault."""
        if spec.scheme != "tls":
            return None
        return self._upstream_tls(document, (*path, "tls"), spec.tls or UpstreamTLSSpec())

    def entries(self) -> Iterator[tuple[str, Certificate]]:
        """Each name once, with the certificate that is served for it: the first in order."""
        seen: set[str] = set()
        for certificate in self.certificates:
            for name in certificate.names:
                if name not in seen:
                    seen.add(name)
                    yield name, certificate

    # Certificates

    def _add_ssl(self, document: Document, spec: SSLSpec) -> None:
        pairs = [self._pair(document, (spec.cert, ("cert",)), (spec.key, ("key",)))]
        if spec.type == "client":
            self._client_pairs[document.key[1]] = pairs[0]
            self._describe(document, pairs[0])
            return
        if len(spec.certs) == len(spec.keys):
            for number, (cert, key) in enumerate(zip(spec.certs, spec.keys, strict=True)):
                pairs.append(
                    self._pair(
                        document, (cert, ("certs", number)), (key, ("keys", number)), number=number + 1
                    )
                )
        good = tuple(pair for pair in pairs if pair is not None)
        client_ca = self._client_ca(document, spec)
        are_versions_known = spec.ssl_protocols is not None or "ssl_protocols" not in document.data
        if len(good) < len(pairs) or client_ca is None or not are_versions_known:
            return
        settings = self._look.settings
        protocols = spec.ssl_protocols or settings.protocols
        inputs = ServerInputs(
            pairs=good,
            protocols=protocols,
            ciphers=settings.ciphers,
            session_tickets=settings.session_tickets,
            client_ca=client_ca,
            client_depth=spec.client.depth if spec.client else 1,
        )
        self._add_certificate(document, spec, inputs)

    def _add_certificate(self, document: Document, spec: SSLSpec, inputs: ServerInputs) -> None:
        try:
            context = self._context(inputs, document.key[1])
        except Wrong as wrong:
            self._refuse(document, ("cert",), wrong)
            return
        info = self._describe(document, inputs.pairs[0])
        assert info is not None, "there is a pair"
        self._warn_of_names(document, spec, inputs.pairs)
        if spec.ssl_protocols and "TLSv1.1" in spec.ssl_protocols:
            message = "TLSv1.1 is obsolete (RFC 8996): ciphers of security level 0 are allowed for it"
            self._warn(document, ("ssl_protocols",), message)
        self.certificates.append(
            Certificate(
                id=document.key[1],
                source=document.source,
                names=spec.names,
                context=context,
                requires_client_certificate=bool(inputs.client_ca),
                not_after_s=info.not_after.timestamp(),
                issuer=info.issuer,
                fingerprint=info.fingerprint,
                # A client's own certificate may be anything, and so may the time that it takes to verify.
                signs_quickly=not inputs.client_ca and all(map(self._signs_quickly, inputs.pairs)),
            )
        )

    def _signs_quickly(self, pair: Pair) -> bool:
        from streamgw.config import x509  # noqa: PLC0415  see above

        return x509.describe(self._examine(pair).chain[0]).signs_quickly

    def _describe(self, document: Document, pair: Pair | None) -> x509.CertificateInfo | None:
        from streamgw.config import x509  # noqa: PLC0415  see above

        if pair is None:
            return None
        info = self.infos[document.key] = x509.describe(self._examine(pair).chain[0])
        return info

    def _client_ca(self, document: Document, spec: SSLSpec) -> bytes | None:
        """DER; empty: no client certificate is asked for; None: it is wrong."""
        if spec.client is None:
            return b""
        path = ("client", "ca")
        try:
            pem = self._resolve(document, spec.client.ca)
            return self._trust(document, path, pem)
        except Wrong as wrong:
            self._refuse(document, path, wrong, "failed to validate client_cert: ")
            return None

    def _warn_of_names(self, document: Document, spec: SSLSpec, pairs: Sequence[Pair]) -> None:
        from streamgw.config import x509  # noqa: PLC0415  see above

        for pair in pairs:
            missing = x509.uncovered(spec.names, self._examine(pair).chain[0])
            if missing:
                message = f"the certificate is not for {', '.join(missing)}: clients that verify refuse it"
                self._warn(document, ("snis",) if spec.snis else ("sni",), message)
                return

    def _warn_of_double_names(self, documents: Sequence[Document]) -> None:
        by_id = {document.key[1]: document for document in documents if document.key[0] == "ssls"}
        first: dict[str, Certificate] = {}
        for certificate in self.certificates:
            for position, name in enumerate(certificate.names):
                earlier = first.setdefault(name, certificate)
                if earlier is not certificate:
                    document = by_id[certificate.id]
                    path: Path = ("snis", position) if "snis" in document.data else ("sni",)
                    message = f"never served for '{name}': ssl {earlier.id} ({earlier.source}) comes first"
                    self._warn(document, path, message)

    # Upstreams

    def _add_upstream(self, document: Document) -> None:
        for path, spec in _upstreams(document):
            if spec.scheme == "tls":
                tls = self._upstream_tls(document, (*path, "tls"), spec.tls or UpstreamTLSSpec())
                if tls is not None:
                    self._upstreams[document.key] = tls
            elif spec.tls is not None and spec.tls.client_cert_id is not None:
                # It does nothing, but what it refers to has to be there, as in APISIX: it cannot be deleted either.
                self._client_pair_of(document, (*path, "tls"), spec.tls.client_cert_id)

    def _upstream_tls(self, document: Document, path: Path, spec: UpstreamTLSSpec) -> UpstreamTLS | None:
        before = len(self.faults)
        pair = self._client_pair(document, path, spec)
        ca = self._upstream_ca(document, path, spec) if spec.verify else None
        if len(self.faults) > before:
            return None
        try:
            context = self._context(ClientInputs(pair, spec.verify, ca, spec.alpn))
        except Wrong as wrong:
            self._refuse(document, (*path, "client_cert"), wrong)
            return None
        return UpstreamTLS(context, spec.server_name or "", spec.verify)

    def _client_pair(self, document: Document, path: Path, spec: UpstreamTLSSpec) -> Pair | None:
        if spec.client_cert is not None or spec.client_key is not None:
            return self._pair(
                document,
                (spec.client_cert, (*path, "client_cert")),
                (spec.client_key, (*path, "client_key")),
            )
        if spec.client_cert_id is None:
            return None
        return self._client_pair_of(document, path, spec.client_cert_id)

    def _client_pair_of(self, document: Document, path: Path, name: str) -> Pair | None:
        """The pair of a certificate object of type `client`."""
        found = self._ssls.get(name)
        said = f"failed to fetch ssl info by ssl id [{name}], "
        if found is None:
            if self._look.is_complete and name not in self._known:
                self._refuse(document, (*path, "client_cert_id"), Wrong(f"{said}response code: 404"))
        elif found.type != "client":
            self._refuse(document, (*path, "client_cert_id"), Wrong(f"{said}wrong ssl type"))
        elif not found.status:
            self._refuse(document, (*path, "client_cert_id"), Wrong(f"{said}it is disabled (status: 0)"))
        return self._client_pairs.get(name)

    def _upstream_ca(self, document: Document, path: Path, spec: UpstreamTLSSpec) -> bytes | None:
        value, at = spec.ca_certs, (*path, "ca_certs")
        try:
            if value is None:
                at = (*path, "verify")
                value = self._look.settings.trusted_certificate
                if value != SYSTEM:
                    return self._trust(document, at, self._look.references.read(FilePath(value)))
            if value == SYSTEM:
                return None
            return self._trust(document, at, self._resolve(document, value))
        except Wrong as wrong:
            self._refuse(document, at, wrong)
            return None

    # Both

    def _pair(
        self,
        document: Document,
        cert: tuple[str | None, Path],
        key: tuple[str | None, Path],
        *,
        number: int = 0,
    ) -> Pair | None:
        """A pair that belongs together; None if it is wrong, which is reported. A half that is None has been reported."""
        prefix = f"failed to handle cert-key pair[{number}]: " if number else ""
        texts = [self._half(document, value, path, prefix) for value, path in (cert, key)]
        pair = Pair(*("" if text is None else text.text for text in texts))
        try:
            examined = self._examine(pair)
        except Wrong as wrong:
            for fault in wrong.faults:
                is_key = fault.path == ("key",)
                text = texts[is_key]
                if text is None:
                    continue
                message = f"{fault.message} ({text.origin})" if text.origin else fault.message
                found = Wrong(attrs.evolve(fault, path=(), message=message))
                self._refuse(document, (cert, key)[is_key][1], found, prefix)
            return None
        if texts[1] is not None and texts[1].is_public:
            self._warn(document, key[1], f"every user of this machine can read the key in {texts[1].origin}")
        for message in (*examined.faults, *self._validity(examined.chain)):
            self._warn(document, cert[1], message)
        return pair

    def _half(self, document: Document, value: str | None, path: Path, prefix: str) -> Pem | None:
        if value is None:
            return None
        try:
            return self._resolve(document, value)
        except Wrong as wrong:
            self._refuse(document, path, wrong, prefix)
            return None

    def _examine(self, pair: Pair) -> _Examined:
        return self._look.workshop.examined.get(digest_of(pair.chain, pair.key), lambda: _examine(pair))

    def _trust(self, document: Document, path: Path, pem: Pem) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415  see above

        from streamgw.config import x509  # noqa: PLC0415  see above

        chain = self._look.workshop.chains.get(digest_of(pem.text), lambda: x509.parse_chain(pem.text))
        for message in self._validity(chain):
            self._warn(document, path, message)
        return b"".join(certificate.public_bytes(Encoding.DER) for certificate in chain)

    def _validity(self, chain: x509.Chain) -> Iterator[str]:
        from streamgw.config import x509  # noqa: PLC0415  see above

        return x509.validity_faults(chain, self._look.now, self._look.settings.expiry_warning_days)

    def _context(self, inputs: ServerInputs | ClientInputs, owner: str = "") -> ssl.SSLContext:
        """The same context for the same inputs; for clients' side of the same object only."""
        digest = digest_of(owner, inputs.digest())
        self.digests.add(digest)
        kept = self._look.workshop.contexts
        if isinstance(inputs, ServerInputs):
            return kept.get(digest, lambda: make_server_context(inputs))
        return kept.get(digest, lambda: make_client_context(inputs))

    def _resolve(self, document: Document, value: str) -> Pem:
        return self._look.references.resolve(value, FilePath(document.source.file).parent)

    def _refuse(self, document: Document, path: Path, wrong: Wrong, prefix: str = "") -> None:
        for fault in wrong.faults:
            message, words = prefix + fault.message, prefix + (fault.apisix or fault.message)
            self.faults.append((document, Fault(path, message, apisix=words, is_final=True)))

    def _warn(self, document: Document, path: Path, message: str) -> None:
        self.warnings.append((document, Fault(path, message)))


def _examine(pair: Pair) -> _Examined:
    from streamgw.config import x509  # noqa: PLC0415  see above

    faults: list[Fault] = []
    try:
        chain = x509.parse_chain(pair.chain)
    except Wrong as wrong:
        faults += (fault.under(("cert",)) for fault in wrong.faults)
    try:
        key = x509.parse_key(pair.key)
    except Wrong as wrong:
        faults += (fault.under(("key",)) for fault in wrong.faults)
    if faults:
        raise Wrong(*faults)
    if not x509.is_pair(chain[0], key):
        subject = chain[0].subject.rfc4514_string()
        raise Wrong(Fault(("key",), f"this key does not belong to the certificate ({subject})"))
    return _Examined(chain, tuple(x509.chain_faults(chain)))


def _ssl_of(document: Document) -> SSLSpec:
    """What can be read of it: its certificates may have faults beside its own."""
    if isinstance(document.spec, SSLSpec):
        return document.spec
    spec = structure_rest(document.data, SSLSpec)
    client = document.data.get("client")
    if spec.client is None and isinstance(client, Mapping):
        with contextlib.suppress(Wrong):
            spec = attrs.evolve(spec, client=structure_rest(client, ClientCASpec))
    return spec


def rest_of_upstream(data: object) -> UpstreamSpec:
    """What can be read of an upstream that has faults: how it speaks TLS may have more."""
    if not isinstance(data, Mapping):
        return UpstreamSpec()
    spec, tls = structure_rest(data, UpstreamSpec), data.get("tls")
    if spec.tls is None and isinstance(tls, Mapping):
        spec = attrs.evolve(spec, tls=structure_rest(tls, UpstreamTLSSpec))
    return spec


def _upstreams(document: Document) -> Iterator[tuple[Path, UpstreamSpec]]:
    spec = document.spec
    if isinstance(spec, UpstreamSpec):
        yield (), spec
    elif isinstance(spec, StreamRouteSpec | ServiceSpec):
        if spec.upstream is not None:
            yield ("upstream",), spec.upstream
    elif document.key[0] == "upstreams":
        yield (), rest_of_upstream(document.data)
    elif document.key[0] in {"stream_routes", "services"}:
        yield ("upstream",), rest_of_upstream(document.data.get("upstream"))
