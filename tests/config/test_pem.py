from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamgw.config.pem import MAX_BYTES, Pem, References, digest_of
from streamgw.config.strict import Wrong


def refusal(value: str, directory: Path, **environ: str) -> str:
    with pytest.raises(Wrong) as caught:
        References(environ).resolve(value, directory)
    (fault,) = caught.value.faults
    return fault.message


def test_a_text_stands_for_itself(tmp_path: Path) -> None:
    references = References({})

    assert references.resolve("-----BEGIN x://", tmp_path) == Pem("-----BEGIN x://")
    assert references.files == frozenset()


@pytest.mark.parametrize("scheme", ["$env", "$ENV"])
def test_a_variable_stands_for_its_value(scheme: str, tmp_path: Path) -> None:
    assert References({"KEY": "hush"}).resolve(f"{scheme}://KEY", tmp_path) == Pem("hush", "$KEY")


def test_a_file_is_looked_for_beside_the_one_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("hush")
    (tmp_path / "a.pem").chmod(0o600)
    references = References({})

    found = references.resolve("$file://../a.pem", tmp_path / "routes.d")

    assert found == Pem("hush", str(tmp_path / "a.pem"))
    assert references.resolve(f"$file://{tmp_path}/a.pem", Path("/")) == found
    assert references.files == {tmp_path / "a.pem"}


def test_a_link_is_watched_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a-1.pem").write_text("one")
    (tmp_path / "a.pem").symlink_to("a-1.pem")
    references = References({})

    assert references.read(tmp_path / "a.pem").text == "one"
    assert references.files == {tmp_path / "a.pem"}


def test_a_relative_name_is_shown_as_the_user_would_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    references = References({})

    with pytest.raises(Wrong) as caught:
        references.resolve("$file://../a.pem", Path("routes.d"))

    assert caught.value.faults[0].message == "a.pem: No such file or directory"
    assert references.files == {tmp_path / "a.pem"}, "a missing file is worth watching, too"


def test_one_load_sees_one_state_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("one")
    references = References({})
    references.read(tmp_path / "a.pem")

    (tmp_path / "a.pem").write_text("two")

    assert references.read(tmp_path / "a.pem").text == "one"


def test_what_everybody_may_read_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text("hush")
    (tmp_path / "a.key").chmod(0o644)

    found = References({}).read(tmp_path / "a.key")

    assert found.is_public
    assert "hush" not in repr(found)


def test_text_between_the_blocks_may_be_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(b"M\xfcller\n-----BEGIN")

    assert References({}).read(tmp_path / "a.pem").text.endswith("-----BEGIN")


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (MAX_BYTES + 1))
    os.mkfifo(tmp_path / "pipe")

    assert refusal("$env://NONE", tmp_path) == "can't find environment variable NONE"
    assert refusal("$secret://vault/1", tmp_path).startswith("$secret:// is not available")
    assert refusal("$file://none", tmp_path) == f"{tmp_path}/none: No such file or directory"
    assert refusal("$file://.", tmp_path) == f"{tmp_path}: not a regular file"
    assert refusal("$file://pipe", tmp_path) == f"{tmp_path}/pipe: not a regular file"
    assert refusal("$file://big", tmp_path) == f"{tmp_path}/big: larger than 1 MiB"
    assert refusal("$file://a\0.pem", tmp_path) == f"{tmp_path}/a\0.pem: not a path"


def test_where_one_text_ends_counts_for_a_digest() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of("a") != digest_of("a", "")
    assert digest_of("\udcfc") == digest_of("\udcfc")


def test_what_was_looked_up_can_be_compared_with_now(tmp_path: Path) -> None:
    environ = {"KEY": "one"}
    references = References(environ)
    (tmp_path / "a.pem").write_text("hush")
    references.resolve("$file://a.pem", tmp_path)
    references.resolve("$env://KEY", tmp_path)
    with pytest.raises(Wrong):
        references.resolve("$env://NONE", tmp_path)
    assert references.are_as_before()

    environ["KEY"] = "two"
    assert not references.are_as_before()

    environ["KEY"] = "one"
    (tmp_path / "a.pem").unlink()
    assert not references.are_as_before()
