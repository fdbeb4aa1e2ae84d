"""What a write will do, before it does anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgw.config.disk import Disk
from streamgw.config.documents import digest_of
from streamgw.config.edit import NotEditable
from streamgw.config.plan import AlreadyExists, NotFound, Planner, Stale, check_key, digest_in, place_in
from streamgw.config.survey import Surveyor
from streamgw.config.tree import Moment, build_tree, read_state
from streamgw.core.errors import StoreError
from streamgw.core.model import Key

MYSQL = ("stream_routes", "mysql")
FILE = """\
stream_routes:
  - id: redis
    server_port: 6379
  # the main one
  - id: mysql
    server_port: 3306
"""


class Scene:
    """A directory with one hand-written file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "mine.yaml").write_text(FILE)
        self.planner = Planner(directory)

    def now(self) -> Moment:
        state = read_state(self.directory, Disk())
        return Moment(state, build_tree(self.directory, state.contents))

    def put(self, key: Key, data: dict[str, object], **more: object) -> object:
        moment = self.now()
        found = Surveyor(self.directory).find(key, moment.state)
        return self.planner.put(key, data, found, moment, **more)

    def delete(self, key: Key, **more: object) -> object:
        moment = self.now()
        found = Surveyor(self.directory).find(key, moment.state)
        return self.planner.delete(key, found, moment, **more)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_plan_touches_nothing(scene: Scene) -> None:
    before = scene.now().tree

    scene.put(MYSQL, {"server_port": 1})
    scene.put(("upstreams", "new"), {})
    scene.delete(MYSQL)

    assert scene.now().tree == before


def test_a_new_object_gets_a_file_of_its_own(scene: Scene) -> None:
    plan = scene.put(("ssls", "a"), {"status": 0})

    assert plan.name == "ssls/a.yaml"
    assert plan.change.path == scene.directory / "ssls" / "a.yaml"
    assert plan.change.content == b"ssls:\n  - id: a\n    status: 0\n"
    assert (plan.change.replaces, plan.change.mode) == (None, 0o600)
    assert [file.path for file in plan.after.files] == ["mine.yaml", "ssls/a.yaml"]
    assert not plan.changes_nothing


def test_a_name_that_is_taken_is_not_used(scene: Scene) -> None:
    (scene.directory / "upstreams").mkdir()
    (scene.directory / "upstreams" / "a.yaml").write_text("upstreams: [{id: b}]")

    assert scene.put(("upstreams", "a"), {}).name == "upstreams/a-2.yaml"


def test_an_object_is_changed_where_it_stands(scene: Scene) -> None:
    plan = scene.put(MYSQL, {"server_port": 3307})

    assert plan.change.content.decode() == FILE.replace("3306", "3307")
    assert plan.change.replaces is not None
    assert scene.put(MYSQL, {"server_port": 3306}).changes_nothing


def test_a_file_with_a_secret_in_it_is_its_owners(scene: Scene) -> None:
    logger = {"plugins": {"http-logger": {"auth_header": "Bearer x"}}}
    referring = {"plugins": {"http-logger": {"auth_header": "$env://TOKEN"}}}

    new, harmless = scene.put(("services", "a"), logger), scene.put(("services", "a"), referring)
    changed, again = scene.put(MYSQL, logger), scene.put(MYSQL, referring)

    assert (new.change.mode, harmless.change.mode) == (0o600, 0o644)
    assert (changed.change.is_narrowed, again.change.is_narrowed) == (True, False)
    (scene.directory / "mine.yaml").write_bytes(changed.change.content)
    assert not scene.put(MYSQL, {**logger, "desc": "x"}).change.is_narrowed, (
        "its mode was somebody's decision"
    )


def test_a_secret_of_one_kind_makes_no_room_for_another(scene: Scene) -> None:
    """A hand-written file had a credential that everybody could read, and then a private key beside it."""
    (scene.directory / "loggers.yaml").write_text(
        "services:\n  - id: a\n    plugins: {http-logger: {auth_header: Bearer x}}\nupstreams:\n  - id: u\n"
    )
    key = "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n"

    assert scene.put(("upstreams", "u"), {"tls": {"client_key": key}}).change.is_narrowed


def test_what_is_there_is_not_added(scene: Scene) -> None:
    with pytest.raises(AlreadyExists, match=r"mine\.yaml:5: stream_routes mysql is there already"):
        scene.put(MYSQL, {}, if_absent=True)


def test_only_the_version_that_is_known_is_changed(scene: Scene) -> None:
    known = digest_of({"server_port": 3306})

    assert scene.put(MYSQL, {"server_port": 1}, if_match=known)
    assert scene.delete(MYSQL, if_match=known)
    with pytest.raises(Stale, match="not the version that was expected"):
        scene.put(MYSQL, {"server_port": 1}, if_match="other")
    with pytest.raises(Stale):
        scene.delete(("upstreams", "none"), if_match=known)


def test_the_last_object_of_a_file_of_its_own_takes_the_file_along(scene: Scene) -> None:
    (scene.directory / "services").mkdir()
    own = scene.directory / "services" / "s.yaml"
    own.write_text("services: [{id: s}]")
    assert scene.delete(("services", "s")).change.content == b""
    assert [file.path for file in scene.delete(("services", "s")).after.files] == ["mine.yaml"]

    own.write_text("services: [{id: s}, {name: without an id}]")
    assert b"without an id" in scene.delete(("services", "s")).change.content


def test_what_is_not_there_cannot_be_deleted(scene: Scene) -> None:
    with pytest.raises(NotFound, match="no services s"):
        scene.delete(("services", "s"))


def test_an_object_without_an_id_is_left_to_its_author(scene: Scene) -> None:
    (scene.directory / "b.yaml").write_text("stream_routes:\n  - server_port: 1\n")
    moment = scene.now()
    found = Surveyor(scene.directory).survey(moment).objects["stream_routes", "b.yaml-1"]

    with pytest.raises(NotEditable, match=r"b\.yaml:2: has no id; write one into the file first"):
        scene.planner.put(found.key, {}, found, moment)
    with pytest.raises(NotEditable, match="has no id"):
        scene.planner.delete(found.key, found, moment)


def test_a_whole_file_is_put_in_place(scene: Scene) -> None:
    plan = scene.planner.file("configs.yaml", b"a: 1", scene.now())
    assert (plan.name, plan.change.replaces, plan.change.mode) == ("configs.yaml", None, 0o600)

    (scene.directory / "configs.yaml").write_text("stream_routes: []")
    plan = scene.planner.file("configs.yaml", b"a: 1", scene.now())
    assert plan.change.replaces is not None
    assert plan.after.files[0].text == b"a: 1"


def test_links_are_not_replaced(scene: Scene) -> None:
    shared = scene.directory / "..data"
    shared.mkdir()
    (shared / "configs.yaml").write_text("services: [{id: s}]")
    (scene.directory / "configs.yaml").symlink_to("..data/configs.yaml")
    with pytest.raises(NotEditable, match=r"configs\.yaml: comes from a Kubernetes volume"):
        scene.planner.file("configs.yaml", b"", scene.now())

    (scene.directory / "configs.yaml").unlink()
    (scene.directory / "other").write_text("services: [{id: s}]")
    (scene.directory / "configs.yaml").symlink_to("other")
    with pytest.raises(NotEditable, match=r"a link to .*/other; edit that file instead"):
        scene.delete(("services", "s"))


@pytest.mark.parametrize(
    "key", [("../x", "a"), ("services", "../x"), ("services", ".a"), ("services", "x" * 65)]
)
def test_a_key_that_is_no_file_name_is_refused(key: Key, scene: Scene) -> None:
    with pytest.raises(StoreError):
        check_key(key)
    with pytest.raises(StoreError):
        scene.put(key, {})


def test_an_id_inside_that_is_another_is_refused(scene: Scene) -> None:
    with pytest.raises(StoreError, match="its data says that its id is other"):
        scene.put(MYSQL, {"id": "other"})


def test_an_object_is_found_in_a_text() -> None:
    assert place_in(FILE.encode(), MYSQL) == 1
    assert digest_in(FILE.encode(), MYSQL) == digest_of({"server_port": 3306})
