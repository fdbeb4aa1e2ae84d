"""The system calls of the store, one by one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from streamgw.config.disk import Disk


def test_a_file_is_created_once_only(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "a"

    fd = disk.create(path, 0o600)
    assert disk.write(fd, b"hello") == 5
    disk.sync(fd)
    disk.close(fd)

    assert abs(disk.now_ns() - path.stat().st_mtime_ns) < 10**10
    assert disk.read(str(path)) == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        disk.create(path, 0o600)


def test_two_files_swap_their_names(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")

    assert Disk().exchange(one, other)

    assert (one.read_text(), other.read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError, match="missing"):
        Disk().exchange(one, tmp_path / "missing")


def test_where_names_cannot_be_swapped_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")

    with monkeypatch.context() as patch:
        patch.setattr(
            "streamgw.config.disk._RENAME_EXCHANGE", 1 << 30
        )  # as a file system that does not know it
        assert not Disk().exchange(one, other)
    with monkeypatch.context() as patch:
        patch.setattr("ctypes.CDLL", lambda *_, **__: object())  # as a C library without the call
        assert not Disk().exchange(one, other)

    assert (one.read_text(), other.read_text()) == ("1", "2")


@pytest.mark.parametrize("user", [0, 1000])
def test_a_file_takes_the_mode_and_where_it_may_the_owner_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    disk, model = Disk(), tmp_path / "model"
    model.touch()
    model.chmod(0o640)
    fd = disk.create(tmp_path / "a", 0o600)

    disk.adopt(fd, model.stat())
    disk.close(fd)

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert (tmp_path / "a").owner() == model.owner()


def test_a_link_does_not_replace_and_a_rename_does(tmp_path: Path) -> None:
    disk = Disk()
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")

    with pytest.raises(FileExistsError):
        disk.link(tmp_path / "new", tmp_path / "old")
    disk.link(tmp_path / "new", tmp_path / "second")
    disk.rename(tmp_path / "new", tmp_path / "old")
    disk.unlink(tmp_path / "second")
    disk.make_directory(tmp_path / "d")
    disk.make_directory(tmp_path / "d")
    disk.sync_directory(tmp_path)

    assert [entry.name for entry in disk.scan(str(tmp_path))] == ["d", "old"]
    assert (tmp_path / "old").read_bytes() == b"new"


def test_a_lock_is_held_by_one_until_it_is_closed(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "lock"

    held = disk.lock(path)
    assert held is not None
    assert disk.lock(path) is None
    disk.close(held)
    disk.pause(0)

    again = disk.lock(path)
    assert again is not None
    disk.close(again)
