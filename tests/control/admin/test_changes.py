"""One change at a time, on a real directory: what is written, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from streamgw.config.compile import Loader
from streamgw.config.disk import Disk
from streamgw.config.plan import AlreadyExists
from streamgw.config.store import Store
from streamgw.config.survey import Located, Survey
from streamgw.control.admin.changes import ATTEMPTS, MAX_SHOWN, Changes, Made
from streamgw.control.admin.replies import RequestError, bad
from streamgw.core.model import Key, Listener

LISTENERS = (Listener("tcp", "127.0.0.1", 9100),)
ROUTE = {"upstream": {"nodes": {"127.0.0.1:1": 1}}}
R = ("stream_routes", "r")


class Scene:
    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.directory = directory
        self.store = Store(directory, disk=disk)
        self.changes = Changes(self.store, Loader(self.store, environ={}).check, lambda: LISTENERS)

    def put(self, key: Key, data: Mapping[str, object], **more: bool) -> Made:
        return self.changes.put(key, lambda survey: {**data, "id": key[1]}, **more)

    def refusal(self, act: Callable[[], object]) -> tuple[int, str]:
        before = Store(self.directory).read()
        with pytest.raises(RequestError) as caught:
            act()
        assert Store(self.directory).read() == before
        return caught.value.status, str(caught.value.content["error_msg"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def allow(survey: Survey, located: Located) -> None:
    assert survey.objects[located.key] is located


def test_an_object_comes_changes_and_goes(scene: Scene) -> None:
    made = scene.put(R, ROUTE)
    assert (made.key, made.is_new, made.data) == (R, True, {**ROUTE, "id": "r"})
    assert made.awaited == ((R, made.digest),)
    assert scene.changes.survey().objects[R].digest == made.digest

    again = scene.put(R, {**ROUTE, "desc": "x"})
    assert not again.is_new
    assert again.digest != made.digest

    gone = scene.changes.remove(R, allow)
    assert gone.awaited == ((R, None),)
    assert not scene.changes.survey().objects


def test_what_workers_will_run_is_awaited_not_what_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    changes = Changes(store, Loader(store, environ={"PORT": "9100"}).check, lambda: LISTENERS)

    made = changes.put(R, lambda survey: {**ROUTE, "id": "r", "server_port": "${{PORT}}"})

    assert made.awaited[0][1] != made.digest


def test_a_version_that_says_the_same_is_not_written(scene: Scene) -> None:
    scene.put(R, {**ROUTE, "create_time": 1, "update_time": 1})
    before = scene.store.read()

    made = scene.put(R, {**ROUTE, "create_time": 1, "update_time": 2})

    assert made.data["update_time"] == 1
    assert scene.store.read() == before


def test_what_is_wrong_with_the_object_is_the_clients_to_mend(scene: Scene) -> None:
    assert scene.refusal(lambda: scene.put(R, {"upstream_id": "none"})) == (
        400,
        "failed to fetch upstream info by upstream id [none], response code: 404",
    )
    # In the middle of a file of others, too.
    (scene.directory / "many.yaml").write_text("stream_routes: [{id: a}, {id: r}, {id: b}]")
    status, said = scene.refusal(lambda: scene.put(R, {"service_id": "none"}))
    assert (status, said) == (400, "failed to fetch service info by service id [none], response code: 404")


def test_a_variable_that_nobody_has_set_is_the_clients_to_mend(scene: Scene) -> None:
    assert scene.refusal(lambda: scene.put(R, {"desc": "${{NOBODY}}"})) == (
        400,
        "invalid configuration: can't find environment variable NOBODY",
    )


def test_what_is_wrong_elsewhere_is_a_conflict_that_names_the_place(scene: Scene) -> None:
    (scene.directory / "a.yaml").write_text("stream_routes:\n  - id: a\n    upstream_id: none\n")

    status, said = scene.refusal(lambda: scene.put(R, ROUTE))

    assert status == 409
    assert said == (
        "nothing was written: the configuration would not load: "
        f"{scene.directory}/a.yaml:3:18 stream_routes[0].upstream_id: no upstream has the id 'none'"
    )


def test_many_problems_elsewhere_are_counted(scene: Scene) -> None:
    items = ", ".join(f"{{id: {number}, upstream_id: none}}" for number in range(1, MAX_SHOWN + 3))
    (scene.directory / "a.yaml").write_text(f"stream_routes: [{items}]")

    _, said = scene.refusal(lambda: scene.put(R, ROUTE))

    assert said.endswith("; and 2 more")
    assert said.count("no upstream has the id") == MAX_SHOWN


def test_a_broken_object_can_be_mended(scene: Scene) -> None:
    (scene.directory / "a.yaml").write_text("stream_routes:\n  - id: r\n    upstream_id: none\n")

    assert not scene.put(R, ROUTE).is_new


def test_a_file_that_is_no_yaml_is_a_conflict(scene: Scene) -> None:
    (scene.directory / "a.yaml").write_text("stream_routes: [")

    for act in (lambda: scene.put(R, ROUTE), lambda: scene.changes.remove(R, allow), scene.changes.survey):
        status, said = scene.refusal(act)
        assert status == 409
        assert f"{scene.directory}/a.yaml: line 1: not YAML" in said
    assert not scene.changes.survey_to_show().objects


def test_what_is_wrong_beside_it_in_its_file_is_a_conflict(scene: Scene) -> None:
    (scene.directory / "a.yaml").write_text("stream_routes: [{id: r}, {id: x, upstream_id: none}]")

    status, said = scene.refusal(lambda: scene.put(R, ROUTE))

    assert (status, "stream_routes[1].upstream_id: no upstream has the id 'none'" in said) == (409, True)


def test_a_change_that_breaks_another_object_is_a_conflict(scene: Scene) -> None:
    scene.put(("upstreams", "u"), {"nodes": {"127.0.0.1:1": 1}})
    scene.put(R, {"upstream_id": "u", "tls_passthrough": True, "sni": "a.test"})

    status, said = scene.refusal(
        lambda: scene.put(("upstreams", "u"), {"nodes": {"127.0.0.1:1": 1}, "scheme": "tls"})
    )
    assert status == 409
    assert "stream_routes/r.yaml" in said

    # What nobody has checked for is found by the compile.
    status, said = scene.refusal(lambda: scene.changes.remove(("upstreams", "u"), allow))
    assert (status, "no upstream has the id 'u'" in said) == (409, True)


@pytest.mark.parametrize("id_", ["..", ".hidden", "a/b", "", "x" * 65, "a\0b"])
def test_an_id_that_is_no_file_name_is_refused(id_: str, scene: Scene) -> None:
    status, said = scene.refusal(lambda: scene.put(("stream_routes", id_), ROUTE))

    assert status == 400
    assert said.startswith('invalid configuration: property "id" validation failed: id ')


def test_what_yaml_cannot_say_is_refused(scene: Scene) -> None:
    status, said = scene.refusal(lambda: scene.put(R, {**ROUTE, "priority": float("inf")}))

    assert (status, "cannot be written as YAML" in said) == (400, True)


def test_an_object_that_cannot_be_changed_in_place_is_a_conflict(scene: Scene) -> None:
    (scene.directory / "a.yaml").write_text("stream_routes:\n  - server_port: 9100\n")

    status, said = scene.refusal(lambda: scene.put(("stream_routes", "a.yaml-1"), ROUTE))

    assert (status, said) == (
        409,
        f"nothing was written: {scene.directory}/a.yaml:2: has no id; write one into the file first",
    )


def test_what_is_not_there_cannot_be_removed(scene: Scene) -> None:
    with pytest.raises(RequestError) as caught:
        scene.changes.remove(R, allow)

    assert (caught.value.status, caught.value.content) == (404, {"message": "Key not found"})


def test_who_decides_may_refuse(scene: Scene) -> None:
    scene.put(R, ROUTE)

    def refuse(survey: Survey, located: Located) -> None:
        raise bad("no")

    assert scene.refusal(lambda: scene.changes.remove(R, refuse)) == (400, "no")


def test_what_is_there_is_not_added(scene: Scene) -> None:
    scene.put(R, ROUTE)

    with pytest.raises(AlreadyExists):
        scene.put(R, {**ROUTE, "desc": "x"}, if_absent=True)


def test_a_file_that_appears_where_a_new_one_would_be_is_looked_at_first(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    others = tmp_path / "stream_routes" / "r.yaml"

    class LateDisk(Disk):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            if not others.exists():
                others.write_text("stream_routes: [{id: other}]\n")

    scene = Scene(tmp_path, LateDisk())
    made = scene.put(R, ROUTE)

    assert made.is_new
    assert {key[1] for key in scene.changes.survey().objects} == {"r", "other"}


class EditorDisk(Disk):
    """An editor saves the file each time before ours is in place, a number of times."""

    def __init__(self, path: Path, times: int) -> None:
        self.path, self.times = path, times

    def sync(self, fd: int) -> None:
        super().sync(fd)
        if self.times:
            self.times -= 1
            self.path.write_text(f"stream_routes: [{{id: r, priority: {self.times}}}]")


def test_a_file_that_an_editor_saves_meanwhile_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("stream_routes: [{id: r}]")

    Scene(tmp_path, EditorDisk(path, ATTEMPTS - 1)).put(R, {"desc": "x"})
    assert "desc: x" in path.read_text()

    with pytest.raises(RequestError) as caught:
        Scene(tmp_path, EditorDisk(path, ATTEMPTS)).put(R, {"desc": "y"})
    assert caught.value.status == 409
    assert caught.value.content == {"error_msg": f"{tmp_path}: keeps changing; nothing was written"}


class RestlessDisk(Disk):
    """Somebody saves a file each time after it was looked at. Nobody waits."""

    def read(self, path: str) -> bytes:
        with Path(path).open("a") as file:
            file.write("#")
        return super().read(path)

    def pause(self, seconds: float) -> None:
        pass


def test_files_that_change_too_fast_to_be_read_are_a_reason_to_ask_again(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("stream_routes: [{id: r}]")
    scene = Scene(tmp_path, RestlessDisk())

    for act in (scene.changes.survey, lambda: scene.put(R, ROUTE)):
        with pytest.raises(RequestError) as caught:
            act()
        assert caught.value.status == 503
        assert caught.value.content == {"error_msg": f"{tmp_path}: keeps changing while it is read"}


class FullDisk(Disk):
    def write(self, fd: int, data: bytes | memoryview) -> int:
        raise OSError(28, "No space left on device")


class ReadOnlyDisk(Disk):
    def lock(self, path: Path) -> int | None:
        raise OSError(30, "Read-only file system", str(path))


@pytest.mark.parametrize(
    ("disk", "status", "said"),
    [
        (
            FullDisk(),
            500,
            "{directory}/stream_routes/r.yaml: No space left on device; nothing was written",
        ),
        (
            ReadOnlyDisk(),
            409,
            "nothing was written: {directory}: cannot be written to: Read-only file system",
        ),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_in_trouble_is_named(disk: Disk, status: int, said: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path, disk)

    assert scene.refusal(lambda: scene.put(R, ROUTE)) == (status, said.format(directory=tmp_path))


def test_a_configmap_is_a_conflict_with_the_reason(scene: Scene) -> None:
    (scene.directory / "..data").mkdir()
    (scene.directory / "..data" / "a.yaml").write_text("stream_routes: [{id: r}]")
    (scene.directory / "a.yaml").symlink_to("..data/a.yaml")

    status, said = scene.refusal(lambda: scene.put(R, ROUTE))

    assert (status, "change the ConfigMap or Secret instead" in said) == (409, True)


def test_a_whole_file_is_replaced(scene: Scene) -> None:
    content = b"stream_routes: [{id: a}]\n"

    made = scene.changes.replace_file(
        "set.yaml", lambda survey: (content, Made(("set", ""), concerns=(R, ("stream_routes", "a"))))
    )

    assert made.awaited[0] == (R, None)
    assert made.awaited[1][1] is not None
    assert (scene.directory / "set.yaml").read_bytes() == content


def test_what_is_wrong_in_a_whole_file_is_named_by_its_place(scene: Scene) -> None:
    def replace(text: bytes) -> Callable[[], object]:
        return lambda: scene.changes.replace_file("set.yaml", lambda survey: (text, Made(("set", ""))))

    assert scene.refusal(replace(b"stream_routes: [{id: a}, {id: b, upstream_id: none}]")) == (
        400,
        "invalid stream_routes at index 1, err: "
        "failed to fetch upstream info by upstream id [none], response code: 404",
    )
    assert scene.refusal(replace(b"stream_routes: 1"))[0] == 409
    (scene.directory / "a.yaml").write_text("stream_routes: [{id: x, sni: 1}]")
    assert scene.refusal(replace(b"stream_routes: []"))[0] == 409
