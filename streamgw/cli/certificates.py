"""Certificates between files and objects: what `ssl add` writes, and what `ssl list` reads."""

from __future__ import annotations

import ipaddress
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Final

import attrs
import click

from streamgw.cli.failure import DATA, IO_ERROR, Failure
from streamgw.config.documents import Document
from streamgw.config.pem import References
from streamgw.config.strict import Wrong
from streamgw.config.x509 import CertificateInfo, describe_pem

CERTIFICATE: Final = "certificate"
KEY: Final = "private key"
_BLOCKS: Final = {
    kind: re.compile(rf"-----BEGIN ({label})-----.*?-----END \1-----", re.DOTALL)
    for kind, label in ((CERTIFICATE, "(?:X509 |TRUSTED )?CERTIFICATE"), (KEY, "(?:[A-Z]+ )?PRIVATE KEY"))
}


def read_pem(path: Path, kind: str) -> str:
    """The certificates, or the keys, of a PEM file, and nothing else of it: a file may hold both, and prose.

    Raises:
      Failure: it cannot be read, or has none.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise Failure(IO_ERROR, f"error: {path}: {error.strerror}") from error
    blocks = [found[0] for found in _BLOCKS[kind].finditer(text)]
    if not blocks:
        raise Failure(DATA, f"error: {path}: no {kind} in PEM form", "nothing was written")
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return "\n".join(lines) + "\n"


def names_in(path: Path) -> list[str]:
    """The host names that the first certificate of a file is for.

    Raises:
      Failure: it cannot be read.
      click.UsageError: it names no host.
    """
    try:
        info = describe_pem(read_pem(path, CERTIFICATE))
    except Wrong as wrong:
        raise Failure(DATA, f"error: {path}: {wrong.faults[0].message}", "nothing was written") from wrong
    names = [name for name in info.names if not _is_address(name)]
    if not names:
        raise click.UsageError(f"{path} names no host (subjectAltName): give --sni")
    return names


@attrs.frozen
class Card:
    """One object of `ssls:` for people, as far as it can be read."""

    document: Document
    names: tuple[str, ...]
    pairs: tuple[CertificateInfo, ...]
    """The first certificate of each pair."""
    trouble: str = ""
    """Why a pair is missing."""

    @property
    def wants_client_certificate(self) -> bool:
        """Whether its clients have to prove who they are."""
        return "client" in self.document.data

    def days_left(self, now: datetime) -> int | None:
        """Of the pair that expires first; None if none could be read."""
        return min((info.days_left(now) for info in self.pairs), default=None)


def read_card(document: Document, references: References) -> Card:
    """Look at the certificates of an object. The keys are not looked at."""
    data = document.data
    names = data.get("snis") or ([data["sni"]] if "sni" in data else [])
    certs = data.get("certs") or []
    pairs: list[CertificateInfo] = []
    trouble = ""
    for value in [data.get("cert"), *(certs if isinstance(certs, list) else [])]:
        try:
            text = references.resolve(str(value or ""), Path(document.source.file).parent).text
            pairs.append(describe_pem(text))
        except Wrong as wrong:
            trouble = trouble or wrong.faults[0].message
    return Card(document, tuple(map(str, names)) if isinstance(names, list) else (), tuple(pairs), trouble)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def references() -> References:
    """Where certificates that an object only names are found: one look for a whole command."""
    return References(os.environ)
