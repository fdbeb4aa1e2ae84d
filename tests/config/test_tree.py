"""Which files count, and reading them while others change them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamgw.config import tree
from streamgw.config.disk import Disk
from streamgw.config.tree import KeepsChanging, Tree, build_tree, explain, look_at, read_state
from streamgw.core.errors import StoreError


class MeddlingDisk(Disk):
    """Somebody else works in the directory: before each reading of a file, the next thing of a list happens."""

    def __init__(self, *deeds: object) -> None:
        self.deeds = list(deeds)
        self.pauses = 0

    def read(self, path: str) -> bytes:
        if self.deeds:
            deed = self.deeds.pop(0)
            assert callable(deed)
            deed()
        return super().read(path)

    def pause(self, seconds: float) -> None:
        assert seconds > 0
        self.pauses += 1


def read(directory: Path, disk: Disk | None = None) -> Tree:
    return build_tree(directory, read_state(directory, disk or MeddlingDisk()).contents)


def names(directory: Path) -> list[str]:
    return [file.path for file in read(directory).files]


def test_every_file_below_is_read_in_the_order_of_its_path(tmp_path: Path) -> None:
    for name in ("b.yaml", "a/z.yml", "a.json", "a/b/c.YAML", "Z.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")

    found = read(tmp_path)

    assert [file.path for file in found.files] == ["Z.yaml", "a.json", "a/b/c.YAML", "a/z.yml", "b.yaml"]
    assert found.files[0].name == f"{tmp_path}/Z.yaml"
    assert found.files[0].text == b"# Z.yaml"
    assert found.read() is found


@pytest.mark.parametrize(
    "name",
    [
        *(".a.yaml", ".#a.yaml", "#a.yaml", "#a.yaml#", "a.yaml~", "a.yaml.bak", ".a.yaml.swp", "4913", "a.yaml.tmp"),
        *("a.yaml.orig", "a.yaml.rej", "README.md", ".git/a.yaml", "..data/a.yaml", "old.bak/a.yaml", "d~/a.yaml"),
    ],
)  # fmt: skip
def test_what_editors_and_tools_leave_is_ignored(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("nonsense: [")

    assert names(tmp_path) == []


def test_the_revision_tells_states_apart_and_nothing_else(tmp_path: Path) -> None:
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "a.yaml").write_text("a: 1")
    one = read(tmp_path / "one").revision

    assert read(tmp_path / "two").revision == one
    (tmp_path / "two" / "a.yaml").rename(tmp_path / "two" / "b.yaml")
    assert read(tmp_path / "two").revision != one
    (tmp_path / "one" / "a.yaml").write_text("a: 2")
    assert read(tmp_path / "one").revision != one


def test_a_kubernetes_volume_is_read_through_its_links(tmp_path: Path) -> None:
    (tmp_path / "..2026_11_21").mkdir()
    (tmp_path / "..2026_11_21" / "a.yaml").write_text("a: 1")
    (tmp_path / "..data").symlink_to("..2026_11_21")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")

    assert names(tmp_path) == ["a.yaml"]


def test_a_directory_reached_twice_is_read_once_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "a.yaml").write_text("a: 1")
    (tmp_path / "alias").symlink_to("team")
    (tmp_path / "team" / "loop").symlink_to("..")

    assert names(tmp_path) == ["team/a.yaml"]


def test_files_that_a_writer_left_behind_are_named(tmp_path: Path) -> None:
    (tmp_path / ".a.yaml.streamgw-tmp").write_text("half")

    state = read_state(tmp_path, Disk())

    assert (state.entries, state.strays) == ((), (f"{tmp_path}/.a.yaml.streamgw-tmp",))


def test_what_did_not_change_is_taken_over_from_the_tree_before(tmp_path: Path) -> None:
    contents = {"a.yaml": b"a: 1", "b.yaml": b"b: 1"}
    before = build_tree(tmp_path, contents)

    after = build_tree(tmp_path, {**contents, "b.yaml": b"b: 2"}, before)

    assert after.files[0] is before.files[0]
    assert after == build_tree(tmp_path, {**contents, "b.yaml": b"b: 2"})
    assert build_tree(tmp_path, {"b.yaml": b"b: 1"}, after) == build_tree(tmp_path, {"b.yaml": b"b: 1"})


# Meanwhile


def test_a_file_that_vanishes_while_we_read_is_simply_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1")
    (tmp_path / "b.yaml").write_text("b: 1")

    found = read(tmp_path, MeddlingDisk((tmp_path / "a.yaml").unlink))

    assert [file.path for file in found.files] == ["b.yaml"]


def test_files_of_two_moments_are_never_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("old")
    (tmp_path / "b.yaml").write_text("old")

    def change_both() -> None:
        (tmp_path / "a.yaml").write_text("new")
        (tmp_path / "b.yaml").write_text("new!")

    disk = MeddlingDisk(lambda: None, change_both)
    found = read(tmp_path, disk)

    assert [file.text for file in found.files] == [b"new", b"new!"]
    assert disk.pauses == 1


def test_a_directory_that_is_replaced_meanwhile_is_read_anew(tmp_path: Path) -> None:
    directory = tmp_path / "routes.d"
    for name in ("routes.d", "next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yaml").write_text(name)

    def replace() -> None:
        directory.rename(tmp_path / "old")
        (tmp_path / "next").rename(directory)

    found = read(directory, MeddlingDisk(replace))

    assert [file.path for file in found.files] == ["next.yaml"]


def test_a_directory_that_keeps_changing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    deeds = [lambda: path.write_text(path.read_text() + "x")] * 100

    with pytest.raises(KeepsChanging, match="keeps changing while it is read"):
        read(tmp_path, MeddlingDisk(*deeds))


# Again


class CountingDisk(Disk):
    """Counts the files that are opened; the clock stands still."""

    def __init__(self, now_ns: int) -> None:
        self.opened: list[str] = []
        self.now = now_ns

    def read(self, path: str) -> bytes:
        self.opened.append(Path(path).name)
        return super().read(path)

    def now_ns(self) -> int:
        return self.now


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("old")
    written_ns = (tmp_path / "b.yaml").stat().st_ctime_ns
    disk = CountingDisk(written_ns + 10**10)
    first = read_state(tmp_path, disk)

    same = read_state(tmp_path, disk, first)
    assert same.contents is first.contents
    (tmp_path / "b.yaml").write_text("new")
    changed = read_state(tmp_path, disk, first)

    assert disk.opened == ["a.yaml", "b.yaml", "b.yaml"]
    assert changed.contents == {"a.yaml": b"old", "b.yaml": b"new"}


def test_one_file_looked_at_alone_is_what_the_listing_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("old")
    (entry,) = read_state(tmp_path, Disk()).entries

    assert look_at(entry.path, entry.name) == entry
    (tmp_path / "a.yaml").write_text("changed")
    assert look_at(entry.path, entry.name) != entry


def test_what_changed_just_before_is_read_again(tmp_path: Path) -> None:
    """Two changes within one tick of the file system's clock look alike when the size is the same."""
    (tmp_path / "a.yaml").write_text("old")
    disk = CountingDisk((tmp_path / "a.yaml").stat().st_ctime_ns + 10**9)
    first = read_state(tmp_path, disk)

    read_state(tmp_path, disk, first)

    assert disk.opened == ["a.yaml", "a.yaml"]


# Trouble


def test_a_missing_directory_is_an_error_and_no_empty_state(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"routes\.d: No such file or directory"):
        read(tmp_path / "routes.d")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file: Not a directory"):
        read(tmp_path / "file")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("gone.yaml")

    with pytest.raises(StoreError, match=r"a\.yaml: a link to a file that is not there"):
        read(tmp_path)


@pytest.mark.parametrize("target", ["README", "x" * 300], ids=["to itself", "too long"])
def test_a_link_to_nowhere_by_a_name_that_does_not_count_is_ignored(tmp_path: Path, target: str) -> None:
    """One of them stopped every reload, although nobody would have read it."""
    (tmp_path / "README").symlink_to(target)
    (tmp_path / "a.yaml").write_text("a: 1")

    assert names(tmp_path) == ["a.yaml"]


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("a.yaml")

    with pytest.raises(StoreError, match=r"a\.yaml: Too many levels of symbolic links"):
        read(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")

    with pytest.raises(StoreError, match=r"a\.yaml: not a regular file"):
        read(tmp_path)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("12345678")
    (tmp_path / "b.yaml").touch()

    with monkeypatch.context() as patch:
        patch.setattr(tree, "MAX_FILE_BYTES", 7)
        with pytest.raises(StoreError, match=r"a\.yaml: larger than"):
            read(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tree, "MAX_FILES", 1)
        with pytest.raises(StoreError, match="more than 1 files"):
            read(tmp_path)


def test_an_error_without_a_file_is_explained_too() -> None:
    assert str(explain(OSError(28, "No space left on device"))) == "No space left on device"
