"""What a request to the Admin API means, request by request, without a port."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.admin_desk import NOW, ROUTE, UPSTREAM, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    return Desk(routes)


async def test_an_object_that_is_put_becomes_a_file_that_a_person_can_read(desk: Desk) -> None:
    body = {"remote_addr": "127.0.0.1", "desc": "test-desc", **ROUTE}

    answer = await desk.put("stream_routes/1", body)

    assert answer.status_code == 201
    assert answer.json() == {
        "key": "/apisix/stream_routes/1",
        "value": {**body, "id": "1", "create_time": int(NOW), "update_time": int(NOW)},
    }
    assert desk.files() == {
        "stream_routes/1.yaml": (
            'stream_routes:\n  - id: "1"\n    desc: test-desc\n    remote_addr: 127.0.0.1\n    upstream:\n'
            '      nodes:\n        "127.0.0.1:1995": 1\n      type: roundrobin\n'
            "    create_time: 1700000000\n    update_time: 1700000000\n"
        )
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [("stream_routes", ROUTE), ("upstreams", UPSTREAM), ("services", {"upstream": UPSTREAM})],
)
async def test_every_kind_goes_there_and_back(path: str, body: object, desk: Desk) -> None:
    assert (await desk.put(f"{path}/a", body)).status_code == 201
    assert (await desk.put(f"{path}/a", body)).status_code == 200
    assert (await desk.ask("GET", f"{path}/a")).status_code == 200
    assert (await desk.get(path))["total"] == 1
    assert (await desk.ask("DELETE", f"{path}/a")).json() == {"deleted": "a", "key": f"/apisix/{path}/a"}
    assert (await desk.ask("GET", f"{path}/a")).json() == {"message": "Key not found"}
    assert desk.files() == {}
