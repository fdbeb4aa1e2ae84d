"""The Admin API on the wire: what only shows once requests are bytes on a connection."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import httpx
import pytest

from streamgw import __version__
from tests.support.admin_api import BASE, KEY, VIEWER_KEY, Curl, admin_settings, api_client, stored, to
from tests.support.gateway import Gateway
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-credentials": "true",
    "access-control-expose-headers": "*",
    "access-control-max-age": "3600",
}


@attrs.frozen
class Scene:
    gateway: Gateway
    port: int
    api: httpx.Client
    curl: Curl

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{BASE}{path}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, ports: Ports) -> Iterator[Scene]:
    directory, port = tmp_path_factory.mktemp("wire"), ports.take()
    gateway = Gateway(directory / "gateway", ports)
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=admin_settings(port))
    with gateway.running(), api_client(port) as api:
        yield Scene(gateway, port, api, Curl(directory))


@pytest.fixture
def scene(shared: Scene) -> Scene:
    """One gateway for all, without objects."""
    for kind in ("stream_routes", "upstreams"):
        for item in shared.api.get(f"/{kind}").json()["list"]:
            assert shared.api.delete(f"/{kind}/{item['value']['id']}").status_code == 200
    return shared


def talk(port: int, request: bytes) -> tuple[int, Mapping[str, str], bytes]:
    """Send these bytes, and read until the server closes: status, headers in lower case, body."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(request)
        answer = b"".join(iter(lambda: sock.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().lower().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body


# A life of an object


def test_an_object_from_put_to_delete(scene: Scene) -> None:
    route = to(1, remote_addr="127.0.0.1", desc="test-desc")

    put = scene.api.put("/stream_routes/1", json=route)
    value = stored(put, status=201)
    assert value == {
        **route,
        "id": "1",
        "create_time": value["create_time"],
        "update_time": value["create_time"],
    }
    assert put.json()["key"] == "/apisix/stream_routes/1"

    got = scene.api.get("/stream_routes/1")
    assert stored(got) == value
    assert set(got.json()) == {"key", "value", "createdIndex", "modifiedIndex"}
    assert got.headers["etag"] == put.headers["etag"]
    assert scene.api.get("/stream_routes").json() == {"list": [got.json()], "total": 1}

    patched = scene.api.patch("/stream_routes/1", json={"desc": None, "name": "one"})
    assert (patched.status_code, patched.json()["value"]["name"]) == (200, "one")
    assert "desc" not in patched.json()["value"]
    posted = scene.api.post("/stream_routes", json=to(2))
    assert len(stored(posted, status=201)["id"]) == 20

    gone = scene.api.delete("/stream_routes/1")
    assert (gone.status_code, gone.json()) == (200, {"deleted": "1", "key": "/apisix/stream_routes/1"})
    missing = scene.api.get("/stream_routes/1")
    assert (missing.status_code, missing.json()) == (404, {"message": "Key not found"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "content"),
    [
        ("PUT", "/stream_routes/1", {"remote_addr": ":/8"}, 400, {"error_msg": "invalid remote_addr: :/8"}),
        ("PUT", "/stream_routes", {}, 400, {"error_msg": "missing stream route id"}),
        ("PUT", "/upstreams/1", {"id": "2"}, 400, {"error_msg": "wrong upstream id"}),
        ("POST", "/services/1", {}, 400, {"error_msg": "wrong service id, do not need it"}),
        ("PUT", "/stream_routes/1", None, 400, {"error_msg": "missing configurations"}),
        ("PATCH", "/stream_routes/1", None, 400, {"error_msg": "missing new configuration"}),
        ("DELETE", "/ssls", None, 400, {"error_msg": "missing ssl id"}),
        ("DELETE", "/ssls/9", None, 404, {"message": "Key not found"}),
        ("GET", "/nonsense", None, 404, {"error_msg": "Unsupported resource type: nonsense"}),
        ("GET", "", None, 404, {"error_msg": "not found"}),
        ("GET", "/", None, 404, {"error_msg": "not found"}),
        ("TRACE", "/stream_routes", None, 404, {"error_msg": "not found"}),
        ("GET", "/routes", None, 200, {"list": [], "total": 0}),
        ("GET", "/secrets", None, 200, {"list": [], "total": 0}),
        (
            "GET",
            "/plugins/nope?subsystem=stream",
            None,
            404,
            {"error_msg": "plugin not found in subsystem stream"},
        ),
        ("GET", "/schema/nope", None, 400, {"error_msg": "not found schema: nope"}),
    ],
)
def test_a_row_of_apisixs_tables(
    method: str, path: str, body: object, status: int, content: object, scene: Scene
) -> None:
    answer = (
        scene.api.request(method, path, json=body) if body is not None else scene.api.request(method, path)
    )

    assert (answer.status_code, answer.json()) == (status, content)
    assert answer.headers["content-type"] == "application/json"


# Headers


def test_every_answer_says_what_it_is(scene: Scene) -> None:
    for answer in (
        scene.api.get("/stream_routes"),
        scene.api.get("/nonsense"),
        scene.api.put("/upstreams/1"),
    ):
        assert answer.headers["server"] == f"streamgw/{__version__}"
        assert answer.headers["x-api-version"] == "v3"
        assert {name: answer.headers.get(name) for name in CORS} == CORS
        assert int(answer.headers["content-length"]) == len(answer.content)

    refused = scene.api.get("/stream_routes", headers={"X-API-KEY": "wrong"})
    assert "x-api-version" not in refused.headers
    assert refused.headers["access-control-allow-origin"] == "*"


def test_head_of_the_api_tells_the_version_without_a_key(scene: Scene) -> None:
    answer = scene.curl("--head", url=scene.url(""))

    assert answer.status == 200
    assert answer.headers["server"] == f"streamgw/{__version__}"
    assert scene.curl("--head", url=scene.url("/stream_routes")).status == 401


def test_a_head_has_the_length_of_a_get_and_no_body(scene: Scene) -> None:
    request = (
        f"HEAD {BASE}/configs HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\nConnection: close\r\n\r\n"
    )

    status, _, body = talk(scene.port, request.encode())

    assert (status, body) == (200, b"")


def test_a_browser_asks_first(scene: Scene) -> None:
    answer = scene.api.options(
        "/stream_routes/1",
        headers={
            "X-API-KEY": "",
            "Origin": "https://dashboard.test",
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type,x-api-key",
        },
    )

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "*"
    assert "PATCH" in answer.headers["access-control-allow-methods"]


def test_the_version_of_another_product_may_be_told(gateway: Gateway, ports: Ports, tmp_path: Path) -> None:
    port = ports.take()
    gateway.write_settings(
        [f"127.0.0.1:{ports.take()}"],
        deployment=admin_settings(port),
        streamgw={"admin": {"server_header": "APISIX/3.13.0"}},
    )
    with gateway.running():
        answer = Curl(tmp_path)("--head", url=f"http://127.0.0.1:{port}{BASE}")

    assert answer.headers["server"] == "apisix/3.13.0"


# Bytes


def test_one_connection_serves_many_requests(scene: Scene) -> None:
    with socket.create_connection(("127.0.0.1", scene.port), 20) as sock, sock.makefile("rb") as file:
        for number in range(50):
            body = json.dumps(to(number + 1)).encode()
            head = f"PUT {BASE}/stream_routes/1 HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n"
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

            assert file.readline().split()[1] == (b"200" if number else b"201")
            headers = dict(
                line.decode().lower().strip().split(": ", 1) for line in iter(file.readline, b"\r\n")
            )
            assert f"127.0.0.1:{number + 1}".encode() in file.read(int(headers["content-length"]))


def test_requests_that_come_in_one_piece_are_answered_in_their_order(scene: Scene) -> None:
    request = f"GET {BASE}/upstreams/{{}} HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n{{}}\r\n"
    for id_ in ("a", "b"):
        assert scene.api.put(f"/upstreams/{id_}", json=to(1)["upstream"]).status_code == 201

    with socket.create_connection(("127.0.0.1", scene.port), 20) as sock:
        sock.sendall((request.format("a", "") + request.format("b", "Connection: close\r\n")).encode())
        answers = b"".join(iter(lambda: sock.recv(65_536), b""))

    assert answers.count(b"HTTP/1.1 200") == 2
    assert 0 < answers.index(b"/apisix/upstreams/a") < answers.index(b"/apisix/upstreams/b")


def test_whoever_takes_gzip_gets_a_body_that_can_be_read(scene: Scene) -> None:
    scene.api.put("/upstreams/1", json={**to(1)["upstream"], "desc": "x" * 200})  # type: ignore[dict-item]  # a mapping

    answer = scene.curl("--compressed", "-H", f"X-API-KEY: {KEY}", url=scene.url("/upstreams/1"))

    assert answer.json()["value"]["desc"] == "x" * 200


def test_a_body_in_chunks_of_odd_sizes_is_one_body(scene: Scene) -> None:
    body = json.dumps(to(1, desc="é" * 100), ensure_ascii=False).encode()
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = f"PUT {BASE}/stream_routes/1 HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n"

    status, _, answer = talk(
        scene.port, f"{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks
    )

    assert status == 201
    assert json.loads(answer)["value"]["desc"] == "é" * 100


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_curl_may_ask_before_it_sends_a_long_body(expect: str, scene: Scene, tmp_path: Path) -> None:
    nodes = {f"127.0.{number // 250}.{number % 250}:80": 1 for number in range(2000)}
    (tmp_path / "body.json").write_text(json.dumps({"upstream": {"type": "roundrobin", "nodes": nodes}}))
    arguments = ["-X", "PUT", "-H", f"X-API-KEY: {KEY}", "-H", expect, "-d", f"@{tmp_path}/body.json"]

    answer = scene.curl(*arguments, url=scene.url("/stream_routes/1"))

    assert answer.status == 201
    assert answer.json()["value"]["upstream"]["nodes"] == nodes


def test_a_wrong_key_is_told_before_the_body_is_asked_for(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text(" " * 1_000_000)
    arguments = [
        "-X",
        "PUT",
        "-H",
        "X-API-KEY: no",
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",  # else curl sends it after a second
        "30",
        "-d",
        f"@{tmp_path}/body.json",
    ]

    answer = scene.curl(*arguments, url=scene.url("/stream_routes/1"))

    assert answer.status == 401


@pytest.mark.parametrize("keep_alive", ["", "Connection: keep-alive\r\n"])
def test_http_1_0_is_spoken_too(keep_alive: str, scene: Scene) -> None:
    request = f"GET {BASE}/stream_routes HTTP/1.0\r\nX-API-KEY: {KEY}\r\n{keep_alive}\r\n"

    status, headers, body = talk(scene.port, request.encode())

    assert status == 200
    assert "transfer-encoding" not in headers
    assert json.loads(body) == {"list": [], "total": 0}


@pytest.mark.parametrize("way", ["header", "query", "cookie"])
def test_the_key_may_come_in_three_ways(way: str, scene: Scene) -> None:
    arguments = {"header": ["-H", f"X-API-KEY: {VIEWER_KEY}"], "cookie": ["-b", f"x_api_key={VIEWER_KEY}"]}
    query = f"?api_key={VIEWER_KEY}" if way == "query" else ""

    assert scene.curl(*arguments.get(way, []), url=scene.url(f"/upstreams{query}")).status == 200
