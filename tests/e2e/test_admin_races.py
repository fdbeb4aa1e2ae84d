"""Several who write at the same time: clients of the API, the command line, an editor. Nobody loses a change unknowingly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import httpx
import pytest
import yaml

from tests.support.admin_api import admin_settings, api_client, stored, to, without_times
from tests.support.gateway import Gateway, write_atomically
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

WRITERS = 4
TURNS = 15
SAVES = 100
SAVE_EVERY_S = 0.01
TOO_FAST = {409, 503}
"""The files were saved again each time that the gateway looked. Whoever asked may ask again."""


@attrs.frozen
class Scene:
    gateway: Gateway
    port: int
    api: httpx.Client

    def route(self) -> httpx.Response:
        return self.api.get("/stream_routes/x")

    def write_by_hand(self, text: str, name: str = "mine.yaml") -> None:
        """As an editor saves."""
        write_atomically(self.gateway.routes / name, text)

    def text(self, name: str = "mine.yaml") -> str:
        return (self.gateway.routes / name).read_text()


@pytest.fixture
def scene(gateway: Gateway, ports: Ports) -> Iterator[Scene]:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=admin_settings(port))
    with gateway.running(), api_client(port) as api:
        yield Scene(gateway, port, api)


def count_up(port: int) -> int:
    """Add one to a number in an object, as often as asked, each time to what is there; return how often somebody was first."""
    refused = 0
    with api_client(port) as api:
        for _ in range(TURNS):
            while True:
                shown = api.get("/stream_routes/x")
                value = without_times(shown.json()["value"])
                labels = {"count": str(int(value["labels"]["count"]) + 1)}
                etag = {"If-Match": shown.headers["etag"]}
                answer = api.put("/stream_routes/x", json={**value, "labels": labels}, headers=etag)
                if answer.status_code == 200:
                    break
                assert answer.status_code in {409, 412}, answer.text
                refused += 1
    return refused


def test_clients_that_name_the_version_lose_no_change_of_each_other(scene: Scene) -> None:
    stored(scene.api.put("/stream_routes/x", json=to(1, labels={"count": "0"})), status=201)

    with ThreadPoolExecutor(WRITERS) as pool:
        refused = list(pool.map(count_up, [scene.port] * WRITERS))

    assert scene.route().json()["value"]["labels"] == {"count": str(WRITERS * TURNS)}
    assert sum(refused) > 0, "nobody ever met another one: this test tests nothing"


def test_of_many_who_add_one_object_one_has_added_it(scene: Scene) -> None:
    def add(number: int) -> int:
        with api_client(scene.port) as api:
            body = to(1, desc=f"by {number}")
            return api.put("/stream_routes/x", json=body, headers={"If-None-Match": "*"}).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(add, range(8)))

    assert sorted(answers) == [201, *[412] * 7]
    assert scene.route().json()["value"]["desc"] == f"by {answers.index(201)}"


def test_the_command_line_and_the_api_keep_each_others_changes(scene: Scene) -> None:
    """The command line changes what it has read, or says that somebody was faster: the API writes all the time here."""
    stored(scene.api.put("/stream_routes/x", json=to(1)), status=201)
    status, number = 1, 0

    for word in ("disable", "enable", "disable", "enable"):
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(scene.gateway.cli, "route", word, "x", check=False)
            while not running.done():
                number += 1
                stored(scene.api.patch("/stream_routes/x", json={"desc": f"write {number}"}))
                assert scene.route().json()["value"]["desc"] == f"write {number}"
            said = running.result()
        if "nothing was written" not in said:
            status = 0 if word == "disable" else 1
        value = scene.route().json()["value"]
        assert (value["desc"], value.get("status", 1)) == (f"write {number}", status)

    scene.gateway.cli("route", "disable", "x", "--wait")
    value = scene.route().json()["value"]
    assert (value["desc"], value["status"]) == (f"write {number}", 0)


BY_HAND = """\
# Databases. Ask Ada before you change them.
stream_routes:
  - id: x   # the old one
    server_port: 3306
    upstream: {type: roundrobin, nodes: {"127.0.0.1:1": 1}}
  - id: y
    server_port: 3307
    upstream: {type: roundrobin, nodes: {"127.0.0.1:2": 1}}
"""


def test_what_an_editor_has_saved_meanwhile_is_not_overwritten(scene: Scene) -> None:
    scene.write_by_hand(BY_HAND)
    shown = scene.route()
    edited = BY_HAND.replace("3306", "3316")
    scene.write_by_hand(edited)

    answer = scene.api.put("/stream_routes/x", json=to(9), headers={"If-Match": shown.headers["etag"]})

    assert answer.status_code == 412
    assert answer.json()["error_msg"].startswith("nothing was written")
    assert scene.text() == edited


def test_what_an_editor_saves_again_and_again_is_never_undone_by_the_api(scene: Scene) -> None:
    """Both change one file as fast as they can. Whatever the API writes was made from what the editor saved last."""
    scene.write_by_hand(BY_HAND)
    scene.route()
    over, written = threading.Event(), []

    def write() -> None:
        with api_client(scene.port) as api:
            while not over.is_set():
                answer = api.patch("/stream_routes/x", json={"desc": f"write {len(written)}"})
                assert answer.status_code in {200, *TOO_FAST}, answer.text
                written.append(answer.status_code)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(write)
        try:
            for number in range(SAVES):
                text = scene.text()
                scene.write_by_hand(f"# save {number}\n{text[text.index('# Databases') :]}")
                begun = len(written)
                while len(written) == begun and not running.done():
                    pass  # a write that began before the save: it shows for the moment in which names are swapped
                while len(written) < begun + 2 and not running.done():
                    assert scene.text().startswith(f"# save {number}\n")
        finally:
            over.set()
        running.result()

    assert written.count(200) >= SAVES


def test_a_change_by_the_api_leaves_every_other_byte_of_a_persons_file(scene: Scene) -> None:
    scene.write_by_hand(BY_HAND)

    stored(scene.api.patch("/stream_routes/y", json={"server_port": 3399}))

    before, after = BY_HAND.splitlines(), scene.text().splitlines()
    assert after[:5] == before[:5]
    assert yaml.safe_load(scene.text())["stream_routes"][1]["server_port"] == 3399


def test_half_an_edit_is_neither_applied_nor_lost(scene: Scene) -> None:
    scene.write_by_hand(BY_HAND)
    shown = scene.route()
    half = BY_HAND.replace('nodes: {"127.0.0.1:2": 1}}', "nodes: {")
    scene.write_by_hand(half)

    refused = [
        scene.api.put("/stream_routes/x", json=to(9)),
        scene.api.put("/stream_routes/z", json=to(9)),
        scene.api.patch(
            "/stream_routes/y", json={"desc": "new"}, headers={"If-Match": shown.headers["etag"]}
        ),
        scene.api.delete("/stream_routes/x"),
    ]

    for answer in refused:
        assert answer.status_code == 409
        assert "mine.yaml" in answer.json()["error_msg"]
    assert scene.text() == half
    assert not (scene.gateway.routes / "stream_routes").exists()
    scene.write_by_hand(BY_HAND)
    stored(scene.api.put("/stream_routes/z", json=to(9)), status=201)


def test_an_editor_who_works_beside_the_api_loses_nothing(scene: Scene) -> None:
    """Other files come, change and go while the API writes its own."""
    is_over, pause_s, number, met, saved = threading.Event(), SAVE_EVERY_S, 0, 0, 0

    def edit() -> None:
        nonlocal saved
        while not is_over.wait(pause_s):
            saved += 1
            scene.write_by_hand(BY_HAND.replace("3306", str(10_000 + saved)).replace("id: x", "id: hand"))
            assert str(10_000 + saved) in scene.text()

    with ThreadPoolExecutor(1) as pool:
        editing = pool.submit(edit)
        try:
            # Until they have met often enough, however fast either is here.
            while not editing.done() and (number < 60 or met <= 10):
                assert number < 1000, f"they hardly met: {met} times in {number} writes and {saved} saves"
                number += 1
                saved_before = saved
                answer = scene.api.put("/stream_routes/x", json=to(1, desc=f"write {number}"))
                assert answer.status_code in {200, 201, *TOO_FAST}, answer.text
                is_too_fast = answer.status_code in TOO_FAST
                pause_s = min(1.0, 2 * pause_s) if is_too_fast else max(SAVE_EVERY_S, pause_s / 2)
                shown = scene.route()
                if answer.is_success and shown.is_success:
                    assert shown.json()["value"]["desc"] == f"write {number}"
                    met += saved > saved_before
        finally:
            is_over.set()
        editing.result()

    assert scene.api.get("/stream_routes/hand").json()["value"]["server_port"] == 10_000 + saved


def test_what_only_can_be_read_is_refused_with_the_reason(scene: Scene, ports: Ports) -> None:
    """As a ConfigMap: each file is a link to somewhere else."""
    (scene.gateway.directory / "data").mkdir()
    target = scene.gateway.directory / "data" / "mapped.yaml"
    write_atomically(target, BY_HAND)
    (scene.gateway.routes / "mapped.yaml").symlink_to(target)

    answer = scene.api.patch("/stream_routes/x", json={"desc": "new"})

    assert answer.status_code == 409
    assert "mapped.yaml" in answer.json()["error_msg"]
    assert target.read_text() == BY_HAND
