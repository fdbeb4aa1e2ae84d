"""Keys go in and never come out, wherever they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.admin_desk import Desk
from tests.support.key_places import MARK, PLACES, PLUGINS


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    desk = Desk(routes)
    desk.plugins = PLUGINS
    return desk


@pytest.mark.parametrize("place", PLACES)
async def test_no_answer_has_a_key(place: str, desk: Desk) -> None:
    """Of a choice of traffic-split the viewer, and everybody on the machine, could read it."""
    (collection, id_), data = PLACES[place]
    path = f"{collection}/{id_}"

    answers = [
        await desk.put(path, data),
        await desk.ask("GET", path),
        await desk.ask("GET", collection),
        await desk.ask("PATCH", path, {"desc": "x"}),
        await desk.ask("PATCH", f"{path}/labels", {"x": "y"}),
        await desk.ask("GET", path),
    ]

    assert [answer.status_code for answer in answers] == [201, *[200] * 5]
    assert not any(MARK in answer.text for answer in answers)
    assert all("BEGIN CERTIFICATE" in answer.text for answer in answers)
    (content,) = desk.files().values()
    assert MARK in content
    assert (desk.routes / f"{path}.yaml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("accept", ["application/json", "application/yaml"])
async def test_the_whole_set_has_no_key_either(place: str, accept: str, desk: Desk) -> None:
    (collection, id_), data = PLACES[place]
    document = {collection: [{"id": id_, **data}]}

    put = await desk.put("configs", document, headers={"X-Digest": "d"})
    got = await desk.ask("GET", "configs", headers={"Accept": accept})

    assert (put.status_code, got.status_code) == (202, 200)
    assert MARK in desk.files()["configs.yaml"]
    assert MARK not in put.text + got.text
    assert "BEGIN CERTIFICATE" in got.text


@pytest.mark.parametrize("place", [place for place in PLACES if place != "of a plugin that is off"])
async def test_what_was_read_is_refused_without_its_key(place: str, desk: Desk) -> None:
    """Nobody loses a key by writing what was read."""
    (collection, id_), data = PLACES[place]
    path = f"{collection}/{id_}"
    await desk.put(path, data)
    before = desk.files()

    read = (await desk.get(path))["value"]
    sent = {name: value for name, value in read.items() if name not in {"create_time", "update_time"}}
    answer = await desk.put(path, sent)

    assert answer.status_code == 400
    assert desk.files() == before


async def test_a_credential_of_a_plugin_is_in_a_file_for_its_owner(desk: Desk) -> None:
    logger = {"http-logger": {"uri": "https://logs.test/in", "auth_header": "Bearer hush"}}

    answers = [
        await desk.put("stream_routes/clear", {"plugins": logger}),
        await desk.put("stream_routes/none", {"plugins": {}}),
        await desk.ask("PATCH", "stream_routes/none", {"plugins": logger}),
        await desk.put("stream_routes/plain", {"plugins": {}}),
    ]

    assert [answer.is_success for answer in answers] == [True] * 4
    modes = {file.stem: file.stat().st_mode & 0o777 for file in desk.routes.glob("*/*.yaml")}
    assert modes == {"clear": 0o600, "none": 0o600, "plain": 0o644}
