"""Every path below /apisix/admin leads somewhere, or says that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.admin_desk import ROUTE, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "nope", 404, "Unsupported resource type: nope"),
        ("GET", "nope/1/2", 404, "Unsupported resource type: nope"),
        ("GET", "", 404, "not found"),
        ("HEAD", "stream_routes", 404, ""),
        ("PUT", "", 404, "not found"),
        ("GET", "%2e%2e/%2e%2e/etc/passwd", 404, "Unsupported resource type: .."),
    ],
)
async def test_what_is_not_here_is_not_found(
    method: str, path: str, status: int, said: str, desk: Desk
) -> None:
    answer = await desk.ask(method, path)

    assert answer.status_code == status
    if said:
        assert answer.json() == {"error_msg": said}


async def test_every_resource_has_its_place(desk: Desk) -> None:
    for path in ("stream_routes", "upstreams", "services", "ssls", "plugin_metadata", "secrets", "routes"):
        assert await desk.get(path) == {"list": [], "total": 0}
    assert await desk.get("plugins/list") == []
    assert (await desk.get("schema/upstream"))["title"] == "upstream"
    assert (await desk.ask("HEAD", "configs")).status_code == 200


async def test_the_api_describes_itself(desk: Desk) -> None:
    document = await desk.get("openapi.json")

    assert document["openapi"].startswith("3.1")
    assert any("stream_routes" in path for path in document["paths"])
    assert (await desk.put("openapi.json", {})).status_code == 404


async def test_a_body_that_is_no_json_comes_back_with_the_reason(desk: Desk) -> None:
    answer = await desk.put("stream_routes/1", b'{"a": ')

    assert answer.status_code == 400
    assert answer.json()["error_msg"].startswith("invalid request body: Expecting value")
    assert answer.json()["req_body"] == '{"a": '


async def test_a_body_without_a_meaning_is_not_read(desk: Desk) -> None:
    """ADC says `Content-Type: application/json` with every GET."""
    assert (await desk.ask("GET", "stream_routes", b"{")).status_code == 200
    assert (await desk.ask("DELETE", "stream_routes/1", b"{")).status_code == 404


async def test_secrets_are_of_the_environment(desk: Desk) -> None:
    assert (await desk.ask("GET", "secrets/vault/1")).json() == {"message": "Key not found"}
    for method in ("PUT", "POST", "PATCH", "DELETE"):
        answer = await desk.ask(method, "secrets/vault/1", {"uri": "x"} if method[0] == "P" else None)
        assert (answer.status_code, "$env://NAME" in answer.json()["error_msg"]) == (400, True)


async def test_the_janitor_runs_until_it_is_cancelled(desk: Desk) -> None:
    await desk.put("stream_routes/1?ttl=1", ROUTE)
    desk.clock.now += 2

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.api.run)
            while desk.files():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
