"""Certificates as files have them: PEM texts, from an authority that lives as long as the tests."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import attrs
import trustme


@attrs.frozen
class Issued:
    """A certificate with its key."""

    cert: str
    """With the intermediate certificates, if there are any."""
    key: str

    def fields(self) -> dict[str, str]:
        return {"cert": self.cert, "key": self.key}

    def write(self, directory: Path, name: str = "a") -> None:
        """As `a.pem` and `a.key`, the key for its owner only."""
        (directory / f"{name}.pem").write_text(self.cert)
        key = directory / f"{name}.key"
        key.touch(0o600)
        key.write_text(self.key)


CA = trustme.CA()
CA_PEM = CA.cert_pem.bytes().decode()
OTHER_CA = trustme.CA()


def issue(
    *names: str,
    ca: trustme.CA = CA,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    key_type: trustme.KeyType = trustme.KeyType.ECDSA,
) -> Issued:
    """A certificate for these names."""
    leaf = ca.issue_cert(*names, not_before=not_before, not_after=not_after, key_type=key_type)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return Issued(chain.decode(), leaf.private_key_pem.bytes().decode())


def document(**collections: list[object]) -> str:
    """A file of routes. JSON is YAML."""
    return json.dumps(collections)
