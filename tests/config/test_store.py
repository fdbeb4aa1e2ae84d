"""The directory as a place to put objects: atomically, beside editors, and never two writers at once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from streamgw.config.disk import Disk
from streamgw.config.documents import digest_of
from streamgw.config.edit import NotEditable
from streamgw.config.store import AlreadyExists, NotFound, NotWritable, Plan, Stale, Store
from streamgw.core.errors import StoreError
from streamgw.core.model import Key
from tests.support.crashing_disk import Crash, CrashingDisk

MYSQL = ("stream_routes", "mysql")
REDIS = ("stream_routes", "redis")
DATA = {"server_port": 3306, "upstream_id": "db"}

HAND_WRITTEN = """\
# Ask Ann before you touch this.
stream_routes:
  - id: mysql # the main one
    server_port: 3306
    upstream_id: db
  # and Redis
  - id: redis
    server_port: 6379
    upstream_id: cache
#END
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    return routes


def content(directory: Path) -> dict[str, str]:
    """Every file that a person would see."""
    return {file.path: file.text.decode() for file in Store(directory).read().files}


# Adding


def test_a_new_object_gets_a_file_of_its_own(directory: Path) -> None:
    written = Store(directory).put(MYSQL, DATA)

    assert written.path == directory / "stream_routes" / "mysql.yaml"
    assert written.digest == digest_of(DATA)
    assert written.path.read_text() == (
        "stream_routes:\n  - id: mysql\n    server_port: 3306\n    upstream_id: db\n"
    )
    assert [path.name for path in written.path.parent.iterdir()] == ["mysql.yaml"]


def test_a_file_that_holds_secrets_is_the_owners_alone(directory: Path) -> None:
    old = os.umask(0o022)
    try:
        route = Store(directory).put(MYSQL, DATA).path
        certificate = Store(directory).put(("ssls", "1"), {"cert": "a\nb\n"}).path
    finally:
        os.umask(old)

    assert stat.S_IMODE(route.stat().st_mode) == 0o644
    assert stat.S_IMODE(certificate.stat().st_mode) == 0o600


KEY = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n"


def test_so_is_every_new_file_with_a_private_key(directory: Path) -> None:
    with_key = {"type": "roundrobin", "nodes": {}, "tls": {"client_key": KEY}}

    path = Store(directory).put(("upstreams", "mtls"), with_key).path

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_gets_a_private_key_is_its_owners_alone_from_then_on(directory: Path) -> None:
    store = Store(directory)
    path = store.put(("upstreams", "mtls"), {"type": "roundrobin", "nodes": {}}).path
    path.chmod(0o654)

    store.put(("upstreams", "mtls"), {"type": "roundrobin", "nodes": {}, "tls": {"client_key": KEY}})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    path.chmod(0o640)  # whoever knows what is in it may let others read it
    store.put(("upstreams", "mtls"), {"type": "chash", "nodes": {}, "tls": {"client_key": KEY}})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_object_is_added_only_once(directory: Path) -> None:
    Store(directory).put(MYSQL, DATA, if_absent=True)

    with pytest.raises(
        AlreadyExists, match=r"stream_routes/mysql\.yaml:2: stream_routes mysql is there already"
    ):
        Store(directory).put(MYSQL, {"server_port": 1}, if_absent=True)


def test_a_file_of_that_name_with_something_else_in_it_is_left_alone(directory: Path) -> None:
    (directory / "stream_routes").mkdir()
    (directory / "stream_routes" / "mysql.yaml").write_text(HAND_WRITTEN.replace("mysql", "mariadb"))

    written = Store(directory).put(MYSQL, DATA)

    assert written.path.name == "mysql-2.yaml"
    assert len(content(directory)) == 2


@pytest.mark.parametrize("id_", ["", ".", "..", ".hidden", "a/b", "a b", "ü", "x" * 65, "a\n"])
def test_an_id_that_is_no_file_name_is_refused(directory: Path, id_: str) -> None:
    with pytest.raises(StoreError, match="expected 1 to 64 letters"):
        Store(directory).put(("stream_routes", id_), DATA)


def test_keys_that_make_no_sense_are_refused(directory: Path) -> None:
    with pytest.raises(StoreError, match=r"'\.\./x' is no collection"):
        Store(directory).put(("../x", "a"), DATA)
    with pytest.raises(StoreError, match="its data says that its id is other"):
        Store(directory).put(MYSQL, {"id": "other"})


def test_a_value_that_yaml_cannot_hold_names_the_file(directory: Path) -> None:
    with pytest.raises(NotEditable, match=r"mysql\.yaml: stream_routes mysql holds a value"):
        Store(directory).put(MYSQL, {"priority": float("nan")})


# Changing


def test_an_object_in_a_hand_written_file_is_changed_where_it_stands(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)

    written = Store(directory).put(MYSQL, {"server_port": 3307, "upstream_id": "db"})

    assert written.path == directory / "mine.yaml"
    assert content(directory) == {"mine.yaml": HAND_WRITTEN.replace("3306", "3307")}


def test_a_file_keeps_its_mode_and_its_byte_order_mark(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HAND_WRITTEN.encode())
    path.chmod(0o604)

    Store(directory).put(MYSQL, {"server_port": 3307, "upstream_id": "db"})

    assert path.read_bytes() == b"\xef\xbb\xbf" + HAND_WRITTEN.replace("3306", "3307").encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_putting_what_is_there_writes_nothing(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(HAND_WRITTEN)
    before = path.stat()

    assert Store(directory).put(MYSQL, DATA).path == path

    assert path.stat() == before


def test_a_digest_guards_against_changes_by_others(directory: Path) -> None:
    store = Store(directory)
    first = store.put(MYSQL, DATA).digest
    store.put(MYSQL, {"server_port": 1}, if_match=first)

    with pytest.raises(Stale, match="not the version that was expected"):
        store.put(MYSQL, {"server_port": 2}, if_match=first)
    with pytest.raises(Stale):
        store.put(REDIS, {"server_port": 2}, if_match=first)
    with pytest.raises(Stale):
        store.delete(MYSQL, if_match=first)

    found = store.find(MYSQL)
    assert found is not None
    assert found.data == {"id": "mysql", "server_port": 1}


# Removing


def test_a_removed_object_takes_its_own_file_along(directory: Path) -> None:
    store = Store(directory)
    path = store.put(MYSQL, DATA).path

    assert store.delete(MYSQL) == path

    assert content(directory) == {}


def test_a_hand_written_file_stays_even_when_it_is_empty(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)
    store = Store(directory)

    store.delete(MYSQL)
    store.delete(REDIS)

    assert content(directory) == {
        "mine.yaml": "# Ask Ann before you touch this.\nstream_routes: []\n  # and Redis\n#END\n"
    }
    with pytest.raises(NotFound, match="no stream_routes redis"):
        store.delete(REDIS)


# Reading


def test_a_state_that_has_not_changed_is_the_same_object(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)
    os.utime(directory / "mine.yaml", ns=(0, 0))
    store = Store(directory, disk=LateDisk())

    tree = store.read()

    assert store.read() is tree
    store.put(MYSQL, {})
    assert store.read() != tree


class LateDisk(Disk):
    """It is an hour later than the stamps of the files say."""

    def now_ns(self) -> int:
        return super().now_ns() + 3600 * 10**9


# Finding


def test_after_a_write_the_store_knows_the_state_without_looking(directory: Path) -> None:
    store = Store(directory)
    assert store.latest().files == ()  # nobody has looked: it does

    store.put(MYSQL, DATA)
    (directory / "by-hand.yaml").write_text(HAND_WRITTEN)

    assert [file.path for file in store.latest().files] == ["stream_routes/mysql.yaml"]
    assert [file.path for file in store.read().files] == ["by-hand.yaml", "stream_routes/mysql.yaml"]
    assert store.latest() is store.read()


def test_a_look_that_took_longer_than_a_write_does_not_forget_it(directory: Path) -> None:
    class WritingDisk(Disk):
        """Somebody writes through the store right after a look at the directory has begun."""

        def scan(self, path: str) -> list[os.DirEntry[str]]:
            entries = super().scan(path)
            if writes:
                store.put(writes.pop(), DATA)
            return entries

    writes: list[Key] = []
    store = Store(directory, disk=WritingDisk())
    store.read()
    writes.append(MYSQL)

    assert store.read().files == (), "what it has looked at"
    assert [file.path for file in store.latest().files] == ["stream_routes/mysql.yaml"]


def test_the_store_tells_its_own_writes_from_those_of_others(directory: Path) -> None:
    store = Store(directory)
    by_hand = directory / "by-hand.yaml"
    by_hand.write_text(HAND_WRITTEN)

    own = store.put(("stream_routes", "own"), DATA).path
    assert store.is_as_written(str(own))
    assert not store.is_as_written(str(by_hand))

    own.write_text("stream_routes: []\n")
    assert not store.is_as_written(str(own))
    own.unlink()
    own.mkdir()
    assert not store.is_as_written(str(own))
    own.rmdir()
    assert not store.is_as_written(str(own))

    store.put(("stream_routes", "own"), DATA)
    store.delete(("stream_routes", "own"))
    assert store.is_as_written(str(own))  # not there, as we left it


def test_the_store_remembers_a_bounded_number_of_its_writes(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamgw.config.store.MAX_WRITTEN", 2)
    store = Store(directory)

    paths = [str(store.put(("stream_routes", id_), DATA).path) for id_ in "abc"]

    assert [store.is_as_written(path) for path in paths] == [False, True, True]


def test_objects_are_found_with_file_and_line(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)
    (directory / "other.json").write_text(
        r'{"stream_routes": [{"id": "r\u0065d", "server_port": 1}], "upstreams": []}'
    )
    store = Store(directory)

    redis, red = store.find(REDIS), store.find(("stream_routes", "red"))

    assert redis is not None
    assert red is not None
    assert (redis.file, redis.line, redis.data["server_port"]) == (f"{directory}/mine.yaml", 7, 6379)
    assert HAND_WRITTEN[redis.start : redis.end].startswith("id: redis")
    assert red.file == f"{directory}/other.json"
    assert store.find(("upstreams", "redis")) is None
    assert [found.key[1] for found in store.objects("stream_routes")] == ["mysql", "redis", "red"]


def test_an_object_that_is_defined_twice_is_not_touched(directory: Path) -> None:
    (directory / "a.yaml").write_text(HAND_WRITTEN)
    (directory / "b.yaml").write_text(HAND_WRITTEN)

    with pytest.raises(StoreError, match=r"more than once: .*/a\.yaml:3 and .*/b\.yaml:3"):
        Store(directory).put(MYSQL, DATA)


@pytest.mark.parametrize("text", [b"stream_routes: [{id: mysql}", b"# mysql \xff"])
def test_a_broken_file_that_may_define_it_is_named(directory: Path, text: bytes) -> None:
    (directory / "a.yaml").write_bytes(text)

    with pytest.raises(NotEditable, match=r"a\.yaml: (line 1: not YAML|not UTF-8)"):
        Store(directory).put(MYSQL, DATA)
    assert Store(directory).put(REDIS, DATA).path.exists()


# Looking before writing


def test_a_preview_is_what_the_write_will_leave(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)
    store = Store(directory)
    steps = [
        (lambda: store.preview_put(MYSQL, {"server_port": 1}), lambda: store.put(MYSQL, {"server_port": 1})),
        (lambda: store.preview_put(("upstreams", "db"), {}), lambda: store.put(("upstreams", "db"), {})),
        (lambda: store.preview_delete(MYSQL), lambda: store.delete(MYSQL)),
        (lambda: store.preview_delete(("upstreams", "db")), lambda: store.delete(("upstreams", "db"))),
    ]

    for preview, write in steps:
        before = store.read()
        expected = preview()
        assert store.read() == before
        write()
        assert store.read() == expected
    with pytest.raises(AlreadyExists):
        store.preview_put(REDIS, {}, if_absent=True)


# Planned, checked and made


def test_what_was_planned_and_checked_is_made(directory: Path) -> None:
    store = Store(directory)
    seen: list[str] = []

    store.change(
        lambda survey: store.plan_put(survey, MYSQL, DATA),
        lambda plan: seen.extend(file.path for file in plan.after.files),
    )

    assert seen == ["stream_routes/mysql.yaml"]
    assert store.survey().objects[MYSQL].digest == digest_of(DATA)
    store.change(lambda survey: store.plan_delete(survey, MYSQL), lambda plan: None)
    assert content(directory) == {}
    store.change(lambda survey: store.plan_file(survey, "a.yaml", b"services: []"), lambda plan: None)
    assert content(directory) == {"a.yaml": "services: []"}


def test_what_is_shown_may_be_broken_and_what_is_planned_by_may_not(directory: Path) -> None:
    store = Store(directory)
    store.put(MYSQL, DATA)
    store.survey()
    (directory / "broken.yaml").write_text("stream_routes: [")

    assert set(store.survey_to_show().objects) == {MYSQL}
    with pytest.raises(NotEditable, match=r"broken\.yaml"):
        store.survey()


def test_what_a_check_refuses_is_not_made(directory: Path) -> None:
    store = Store(directory)

    def refuse(plan: Plan) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.change(lambda survey: store.plan_put(survey, MYSQL, DATA), refuse)

    assert content(directory) == {}
    store.put(MYSQL, DATA)  # and the lock is free


def test_after_a_write_of_our_own_only_that_file_is_read(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)
    os.utime(directory / "mine.yaml", ns=(0, 0))
    disk = CountingDisk()
    store = Store(directory, disk=disk)
    store.read()
    disk.read_files.clear()

    store.put(("upstreams", "db"), {})
    written = store.read()

    assert {file.path for file in written.files} == {"mine.yaml", "upstreams/db.yaml"}
    assert set(disk.read_files) <= {f"{directory}/upstreams/db.yaml"}
    assert written == Store(directory).read()


class CountingDisk(LateDisk):
    """Remembers which files were opened."""

    def __init__(self) -> None:
        self.read_files: list[str] = []

    def read(self, path: str) -> bytes:
        self.read_files.append(path)
        return super().read(path)


# Files that are not ours to write


def test_a_configmap_is_not_edited(directory: Path) -> None:
    (directory / "..2026").mkdir()
    (directory / "..2026" / "mine.yaml").write_text(HAND_WRITTEN)
    (directory / "..data").symlink_to("..2026")
    (directory / "mine.yaml").symlink_to("..data/mine.yaml")

    with pytest.raises(NotEditable, match=r"mine\.yaml: comes from a Kubernetes volume"):
        Store(directory).put(MYSQL, {})
    with pytest.raises(NotEditable, match="Kubernetes"):
        Store(directory).delete(MYSQL)


def test_a_link_is_not_replaced_by_a_file(directory: Path) -> None:
    shared = directory.parent / "shared.yaml"
    shared.write_text(HAND_WRITTEN)
    (directory / "mine.yaml").symlink_to(shared)

    with pytest.raises(NotEditable, match=r"mine\.yaml: a link to .*/shared\.yaml; edit that file instead"):
        Store(directory).put(MYSQL, {})


class FullDisk(Disk):
    """No space is left."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        raise OSError(28, "No space left on device")


class FailingDisk(Disk):
    """It breaks when everything is in place."""

    def sync_directory(self, path: Path) -> None:
        raise OSError(5, "Input/output error")


class ReadOnlyDisk(Disk):
    """Mounted read-only: not even the lock can be made."""

    def lock(self, path: Path) -> int | None:
        raise OSError(30, "Read-only file system", str(path))


def test_a_full_disk_leaves_the_old_file_and_no_other(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)

    with pytest.raises(
        StoreError, match=r"routes\.d/mine\.yaml: No space left on device; nothing was written$"
    ):
        Store(directory, disk=FullDisk()).put(MYSQL, {})

    assert sorted(path.name for path in directory.iterdir()) == [".streamgw.lock", "mine.yaml"]
    assert content(directory) == {"mine.yaml": HAND_WRITTEN}


def test_what_an_open_file_says_names_the_directory(directory: Path) -> None:
    with pytest.raises(StoreError, match=r"routes\.d: Input/output error$"):
        Store(directory, disk=FailingDisk()).put(MYSQL, DATA)


def test_a_directory_that_cannot_be_written_to_is_named(directory: Path) -> None:
    with pytest.raises(NotWritable, match=r"routes\.d: cannot be written to: Read-only file system"):
        Store(directory, disk=ReadOnlyDisk()).put(MYSQL, DATA)
    with pytest.raises(StoreError, match=r"gone: cannot be written to: No such file or directory"):
        Store(directory / "gone").put(MYSQL, DATA)


# Beside others


class EditorDisk(Disk):
    """An editor saves a file at the last moment: after we wrote ours, before it is in place."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._path.write_text(self._text)


def test_what_an_editor_saves_meanwhile_is_not_overwritten(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(HAND_WRITTEN)

    with pytest.raises(Stale, match=r"mine\.yaml: changed meanwhile; nothing was written"):
        Store(directory, disk=EditorDisk(path, "# mine!\n")).put(MYSQL, {})

    assert content(directory) == {"mine.yaml": "# mine!\n"}
    assert not list(directory.glob(".*tmp"))


class QuickEditorDisk(Disk):
    """An editor puts something in place between our last look and our write, and again before we can take that back."""

    def __init__(self, *puts: Callable[[Path], None]) -> None:
        self._puts = [*puts]

    def exchange(self, one: Path, other: Path) -> bool:
        if self._puts:
            self._puts.pop(0)(other)
        return super().exchange(one, other)


def save_as_editors_do(path: Path, text: str = "# mine!\n") -> None:
    beside = path.with_name(".mine.yaml.swx")
    beside.write_text(text)
    beside.rename(path)


def test_what_an_editor_saves_at_the_very_last_moment_is_put_back(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(HAND_WRITTEN)

    with pytest.raises(Stale, match=r"mine\.yaml: changed meanwhile; nothing was written"):
        Store(directory, disk=QuickEditorDisk(save_as_editors_do)).put(MYSQL, {})

    assert content(directory) == {"mine.yaml": "# mine!\n"}
    assert not list(directory.glob(".*tmp"))


def test_so_is_what_it_saves_while_that_is_put_back(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(HAND_WRITTEN)
    again = partial(save_as_editors_do, text="# mine, and longer than before\n")

    with pytest.raises(Stale):
        Store(directory, disk=QuickEditorDisk(save_as_editors_do, again)).put(MYSQL, {})

    assert content(directory) == {"mine.yaml": "# mine, and longer than before\n"}
    assert not list(directory.glob(".*tmp"))


def test_so_is_whatever_else_is_there_then(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(HAND_WRITTEN)

    def replace_by_a_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    with pytest.raises(Stale):
        Store(directory, disk=QuickEditorDisk(replace_by_a_pipe)).put(MYSQL, {})

    assert path.is_fifo()


class PlainDisk(Disk):
    """Cannot swap names."""

    def exchange(self, one: Path, other: Path) -> bool:
        return False


def test_where_names_cannot_be_swapped_the_file_is_replaced_by_a_rename(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)

    Store(directory, disk=PlainDisk()).put(MYSQL, {"priority": 1})

    assert "priority: 1" in (directory / "mine.yaml").read_text()
    assert not list(directory.glob(".*tmp"))


def test_a_file_that_appears_meanwhile_is_not_overwritten(directory: Path) -> None:
    path = directory / "stream_routes" / "mysql.yaml"

    with pytest.raises(AlreadyExists, match="appeared meanwhile"):
        Store(directory, disk=EditorDisk(path, "# mine!\n")).put(MYSQL, DATA)

    assert content(directory) == {"stream_routes/mysql.yaml": "# mine!\n"}


class BusyDisk(Disk):
    """Another writer holds the lock for a number of looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def lock(self, path: Path) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 else super().lock(path)

    def pause(self, seconds: float) -> None:
        assert seconds > 0


def test_a_writer_waits_for_another_but_not_for_ever(directory: Path) -> None:
    assert Store(directory, disk=BusyDisk(5)).put(MYSQL, DATA).path.exists()

    with pytest.raises(StoreError, match=r"\.streamgw\.lock: another writer has held it for 10 s"):
        Store(directory, disk=BusyDisk(10_000)).put(REDIS, DATA)


_WRITER = """
import sys
from pathlib import Path
from streamgw.config.store import Store
directory, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = Store(directory)
sys.stdin.read(1)
for number in range(count):
    data = dict(store.find(("stream_routes", name)).data)
    store.put(("stream_routes", name), {**data, "priority": number})
    store.put(("stream_routes", f"{name}-{number}"), {"server_port": 1}, if_absent=True)
"""


def test_two_processes_that_write_to_one_file_lose_nothing(directory: Path) -> None:
    (directory / "mine.yaml").write_text(HAND_WRITTEN)
    command = [sys.executable, "-c", _WRITER, str(directory)]
    writers = [
        subprocess.Popen([*command, name, "20"], stdin=subprocess.PIPE, text=True)
        for name in ("mysql", "redis")
    ]

    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("x")
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]

    found = content(directory)
    assert found.pop("mine.yaml") == HAND_WRITTEN.replace(
        "# the main one\n", "# the main one\n    priority: 19\n"
    ).replace("id: redis\n", "id: redis\n    priority: 19\n")
    assert len(found) == 40


# Crashes


@pytest.mark.parametrize("deed", ["add", "change", "remove", "remove with its file"])
def test_a_crash_between_any_two_steps_leaves_the_old_or_the_new_state(tmp_path: Path, deed: str) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")  # noqa: T201  # pytest shows it when the test fails
    random = Random(seed)
    outcomes = []
    for step in range(50):
        directory = tmp_path / str(step)
        directory.mkdir()
        (directory / "mine.yaml").write_text(HAND_WRITTEN)
        store = Store(directory)
        store.put(("stream_routes", "own"), DATA)
        new = store.preview_put(("upstreams", "1"), DATA) if deed == "add" else store.preview_put(MYSQL, {})
        if deed.startswith("remove"):
            key = MYSQL if deed == "remove" else ("stream_routes", "own")
            new = store.preview_delete(key)
        old = store.read()
        disk = CrashingDisk(step, random=random)
        crashing = Store(directory, disk=disk)

        try:
            if deed == "add":
                crashing.put(("upstreams", "1"), DATA)
            elif deed == "change":
                crashing.put(MYSQL, {})
            else:
                crashing.delete(key)
        except Crash:
            outcomes.append({old: "old", new: "new"}[store.read()])
        else:
            assert store.read() == new
            break
        # Whoever writes next cleans up, and is not in the way of itself.
        store.put(("stream_routes", "next"), DATA)
        assert not list(directory.rglob(".*streamgw-tmp"))

    assert outcomes == sorted(outcomes, reverse=True), "once new, never old again"
    assert set(outcomes) == {"old", "new"}
