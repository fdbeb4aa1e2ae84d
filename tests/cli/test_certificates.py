"""Certificates between files and objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgw.cli.certificates import CERTIFICATE, KEY, names_in, read_card, read_pem
from streamgw.cli.failure import Failure
from streamgw.config.documents import Document
from streamgw.config.pem import References
from streamgw.core.model import Source
from tests.support.certificates import issue


def test_of_a_file_with_everything_each_takes_its_own(tmp_path: Path) -> None:
    issued = issue("a.test")
    file = tmp_path / "all.pem"
    prose = "Bag Attributes\r\n    friendlyName: ü\r\n\r\n"
    file.write_text(prose + issued.key + prose + issued.cert.replace("\n", "\r\n"), encoding="utf-8")

    assert read_pem(file, CERTIFICATE) == issued.cert
    assert read_pem(file, KEY) == issued.key
    assert names_in(file) == ["a.test"]


def test_a_file_without_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text(issue("a.test").cert)

    with pytest.raises(Failure, match=r"a\.pem: no private key in PEM form") as failure:
        read_pem(tmp_path / "a.pem", KEY)
    assert failure.value.exit_code == 65

    with pytest.raises(Failure, match="No such file") as failure:
        read_pem(tmp_path / "b.pem", KEY)
    assert failure.value.exit_code == 74

    (tmp_path / "c.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(Failure, match=r"c\.pem: failed to parse cert") as failure:
        names_in(tmp_path / "c.pem")
    assert failure.value.exit_code == 65


def test_an_object_is_described_as_far_as_it_can_be_read() -> None:
    data: dict[str, object] = {"snis": 5, "certs": "x", "cert": issue("a.test").cert, "key": "k"}
    document = Document(("ssls", "a"), Source("routes.d/a.yaml", 2), 0, data, digest="", spec=None)

    card = read_card(document, References({}))

    assert card.names == ()
    assert [info.names for info in card.pairs] == [("a.test",)]
    assert not card.wants_client_certificate
    assert card.trouble == ""
