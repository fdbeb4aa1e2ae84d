"""Who may use the Admin API, and what happens to those who use it badly: over real connections."""

from __future__ import annotations

import contextlib
import json
import socket
import string
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import httpx
import pytest

from tests.support.admin_api import BASE, KEY, VIEWER_KEY, Curl, admin_settings, api_client, stored, to
from tests.support.certificates import CA_PEM, OTHER_CA, issue
from tests.support.child import find_program, run
from tests.support.gateway import Gateway
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

BODY_LIMIT = 1_572_864
SERVER = issue("localhost", "127.0.0.1")
CLIENT = issue("operator@test.com")
STRANGER = issue("stranger@test.com", ca=OTHER_CA)


@attrs.frozen
class Scene:
    gateway: Gateway
    port: int
    api: httpx.Client
    curl: Curl

    def url(self, path: str = "/stream_routes") -> str:
        return f"http://127.0.0.1:{self.port}{BASE}{path}"

    def send(self, request: bytes, *, ends: bool = False) -> bytes:
        """Send these bytes, and with `ends` a FIN; read what comes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as sock:
            with contextlib.suppress(OSError):  # it may have been closed in the middle of the request
                sock.sendall(request)
                if ends:
                    sock.shutdown(socket.SHUT_WR)
            return _rest(sock)

    def files(self) -> list[str]:
        """Wherever they are, but for the lock, which the first write makes."""
        found = (path for path in self.gateway.directory.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if path.name != ".streamgw.lock")


def _rest(sock: socket.socket) -> bytes:
    """What comes until the server closes; nothing, if it closes by RST."""
    try:
        return b"".join(iter(lambda: sock.recv(65_536), b""))
    except ConnectionError:
        return b""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, ports: Ports) -> Iterator[Scene]:
    directory, port = tmp_path_factory.mktemp("access"), ports.take()
    gateway = Gateway(directory / "gateway", ports)
    limits = {"admin": {"request_timeout_s": 2}}
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=admin_settings(port), streamgw=limits)
    with gateway.running() as child, api_client(port) as api:
        yield Scene(gateway, port, api, Curl(directory))
        assert "admin_bug" not in child.output()


@pytest.fixture
def scene(shared: Scene) -> Scene:
    """One gateway for all, without objects."""
    for item in shared.api.get("/stream_routes").json()["list"]:
        assert shared.api.delete(f"/stream_routes/{item['value']['id']}").status_code == 200
    return shared


# Keys


@pytest.mark.parametrize(
    ("headers", "method", "why"),
    [
        ({}, "GET", "missing apikey"),
        ({}, "PUT", "missing apikey"),
        ({"X-API-KEY": ""}, "GET", "missing apikey"),
        ({"X-API-KEY": "wrong"}, "GET", "wrong apikey"),
        ({"X-API-KEY": KEY[:-1]}, "DELETE", "wrong apikey"),
        ({"X-API-KEY": KEY.upper()}, "GET", "wrong apikey"),
        ({"X-API-KEY": "\u00fc" * 32}, "GET", "wrong apikey"),
        ({"X-API-KEY": VIEWER_KEY}, "PUT", "invalid method for role viewer"),
        ({"X-API-KEY": VIEWER_KEY}, "DELETE", "invalid method for role viewer"),
        ({"X-API-KEY": VIEWER_KEY}, "PATCH", "invalid method for role viewer"),
        ({"X-API-KEY": VIEWER_KEY}, "POST", "invalid method for role viewer"),
    ],
)
def test_who_has_no_right_is_told_why(
    headers: Mapping[str, str], method: str, why: str, scene: Scene
) -> None:
    raw = {name: value.encode() for name, value in headers.items()}

    with httpx.Client(trust_env=False) as client:
        answer = client.request(method, scene.url("/stream_routes/1"), headers=raw, json=to(1))

    assert (answer.status_code, answer.json()) == (
        401,
        {"error_msg": "failed to check token", "description": why},
    )
    assert not list(scene.gateway.routes.rglob("1.yaml"))


def test_a_viewer_sees_everything_but_keys(scene: Scene) -> None:
    stored(scene.api.put("/stream_routes/1", json=to(1)), status=201)

    with api_client(scene.port, key=VIEWER_KEY) as viewer:
        for path in ("/stream_routes", "/stream_routes/1", "/configs", "/schema/upstream", "/plugins/list"):
            assert viewer.get(path).status_code == 200
        assert viewer.put("/configs", json={}, headers={"X-Digest": "1"}).status_code == 401
        assert viewer.put("/plugins/reload").status_code == 401


def test_whoever_is_not_allowed_by_address_gets_no_further(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    port = ports.take()
    settings = admin_settings(port, allow_admin=["192.0.2.0/24"])
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=settings)
    with gateway.running():
        answer = Curl(tmp_path)("-H", f"X-API-KEY: {KEY}", url=f"http://127.0.0.1:{port}{BASE}/stream_routes")

    assert answer.status == 403
    assert answer.headers["content-type"].startswith("text/html")


def test_without_a_key_only_the_loopback_may_be_listened_on(gateway: Gateway, ports: Ports) -> None:
    listen = {"ip": "0.0.0.0", "port": ports.take()}
    open_wide = {"admin_listen": listen, "admin_key_required": False, "admin_key": [], "allow_admin": []}
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment={"admin": open_wide})

    with gateway.running(wait=False) as child:
        assert child.wait() != 0

    assert "missing valid Admin API token" in child.output()


def test_an_empty_key_becomes_one_that_nobody_can_guess(gateway: Gateway, ports: Ports) -> None:
    port = ports.take()
    empty = [{"name": "admin", "key": "", "role": "admin"}]
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=admin_settings(port, admin_key=empty))
    with gateway.running():
        written = gateway.config.read_text()
        key = next(line.split(":", 1)[1].strip(" '\"") for line in written.splitlines() if "key: " in line)
        assert len(key) == 32
        assert set(key) <= set(string.ascii_letters)

        with api_client(port, key=key) as api, api_client(port, key="") as nobody:
            assert api.get("/stream_routes").status_code == 200
            assert nobody.get("/stream_routes").status_code == 401


# mTLS


def test_with_mtls_only_the_operators_certificate_opens(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    curl, port = find_program("curl", package="curl"), ports.take()
    for name, issued in (("server", SERVER), ("client", CLIENT), ("stranger", STRANGER)):
        issued.write(tmp_path, name)
    (tmp_path / "ca.pem").write_text(CA_PEM)
    mtls = {
        "admin_ssl_cert": f"{tmp_path}/server.pem",
        "admin_ssl_cert_key": f"{tmp_path}/server.key",
        "admin_ssl_ca_cert": f"{tmp_path}/ca.pem",
    }
    settings = admin_settings(port, https_admin=True, admin_api_mtls=mtls)
    gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=settings)

    def ask(*arguments: str, scheme: str = "https") -> tuple[int, str]:
        url = f"{scheme}://127.0.0.1:{port}{BASE}/stream_routes"
        common = [curl, "-sS", "--noproxy", "*", "--cacert", f"{tmp_path}/ca.pem", "-H", f"X-API-KEY: {KEY}"]
        done = run([*common, *arguments, url], check=False)
        return done.returncode, done.stdout

    def identity(name: str) -> list[str]:
        return ["--cert", f"{tmp_path}/{name}.pem", "--key", f"{tmp_path}/{name}.key"]

    with gateway.running():
        for version in ("--tls-max=1.2", "--tlsv1.3"):
            option = version.split("=")
            code, body = ask(*identity("client"), *option)
            assert (code, json.loads(body)) == (0, {"list": [], "total": 0})
            assert ask(*option)[0] != 0
            assert ask(*identity("stranger"), *option)[0] != 0
        assert ask(*identity("client"), "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0")[0] != 0
        assert ask(scheme="http")[1] == ""
        assert ask(*identity("client"), "-H", "X-API-KEY: wrong")[1].count("wrong apikey") <= 1


def test_mtls_without_a_certificate_does_not_start(gateway: Gateway, ports: Ports) -> None:
    gateway.write_settings(
        [f"127.0.0.1:{ports.take()}"], deployment=admin_settings(ports.take(), https_admin=True)
    )

    with gateway.running(wait=False) as child:
        assert child.wait() != 0

    assert "missing ssl cert for https admin" in child.output()


# Ids and texts


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "..%2fx",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fconf%2fconfig",
        "..",
        ".",
        ".hidden",
        "a/../../x",
        "a%2fb",
        "a%5cb",
        "a%00b",
        "%00",
        "a%0ab",
        "a%20b",
        "%20",
        "%ff%fe",
        "x" * 65,
        "%C3%A9",
        "é",
        "%F0%9F%98%80",
        "a%252fb",
        "con:a",
        "a$b",
        "*",
    ],
)
def test_no_id_leads_out_of_its_place(path: str, scene: Scene) -> None:
    before = scene.files()
    body = json.dumps(to(1)).encode()
    for method in ("PUT", "PATCH", "GET", "DELETE"):
        head = f"{method} {BASE}/stream_routes/{path} HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n"
        answer = scene.send(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

        assert answer.split()[1] in {b"400", b"404"}, answer

    assert scene.files() == before


@pytest.mark.parametrize("id_", ["a..b", "a.b-c_D9", "x" * 64, "-", "_", "0"])
def test_an_id_that_is_one_becomes_the_name_of_a_file(id_: str, scene: Scene) -> None:
    stored(scene.api.put(f"/stream_routes/{id_}", json=to(1)), status=201)

    assert (scene.gateway.routes / "stream_routes" / f"{id_}.yaml").is_file()
    assert stored(scene.api.get(f"/stream_routes/{id_}"))["id"] == id_


@pytest.mark.parametrize(
    "text",
    ["ünïcödé", "\U0001f600", "日本語", "\u2028\u2029", "a\x00b", "\x7f\x85", "\ufeff", "'\"\\#: ", "…" * 80],
)
def test_texts_come_back_as_they_were_sent(text: str, scene: Scene) -> None:
    for content in (json.dumps(to(1, desc=text)), json.dumps(to(1, desc=text), ensure_ascii=False)):
        answer = scene.api.put("/stream_routes/1", content=content.encode())

        assert answer.json()["value"]["desc"] == text
        assert stored(scene.api.get("/stream_routes/1"))["desc"] == text


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"a":1}{"b":2}',
        b"\xff\xfe{}",
        b"NaN",
        b'{"server_port":1e999}',
        b"[" * 50_000,
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        b"null",
        b"[]",
        b'"text"',
        b"0",
        b"remote_addr: 127.0.0.1",
        b'{"desc":"\\ud800"}',
        b'{"plugins":{"nope":{}}}',
        b'{"upstream":{"nodes":[null]}}',
        b'{"labels":{"a":{"b":[]}}}',
        b'{"":""}',
        b'{"__proto__":{}}',
        b"{" + b",".join(b'"f%d":1' % number for number in range(5_000)) + b"}",
    ],
)
def test_bodies_that_are_no_object_of_ours_are_refused(body: bytes, scene: Scene) -> None:
    answer = scene.api.put("/stream_routes/1", content=body)

    assert answer.status_code == 400
    assert answer.json()["error_msg"]
    assert scene.api.get("/stream_routes").json()["total"] == 0


# Sizes


def test_a_body_of_the_allowed_size_is_read_and_one_byte_more_is_not(scene: Scene) -> None:
    text = json.dumps(to(1))
    most = text + " " * (BODY_LIMIT - len(text))

    assert scene.api.put("/stream_routes/1", content=most).status_code == 201
    refused = scene.api.put("/stream_routes/1", content=most + " ")
    chunked = scene.api.put("/stream_routes/1", content=iter([most.encode(), b" "]))

    said = f"request size {BODY_LIMIT + 1} is greater than the maximum size {BODY_LIMIT} allowed"
    for answer in (refused, chunked):
        assert (answer.status_code, answer.json()) == (400, {"error_msg": f"invalid request body: {said}"})


def test_a_body_without_end_is_cut_off(scene: Scene) -> None:
    head = f"PUT {BASE}/stream_routes/1 HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n"
    endless = b"100000\r\n" + b" " * 0x100000 + b"\r\n"

    answer = scene.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + endless * 40)

    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert scene.api.get("/stream_routes").status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n" * 10_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(9_000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://other.test/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_request_costs_one_connection(request_: bytes, scene: Scene) -> None:
    answer = scene.send(request_, ends=True)

    if answer:
        status = answer.split()[1]
        assert status.startswith(b"4") or status in {b"501", b"505"}  # never 500
    assert scene.api.get("/stream_routes").status_code == 200


# Slow clients


def test_clients_that_drip_hold_nobody_up_and_are_cut_off(scene: Scene) -> None:
    """100 of them, in the middle of heads and of bodies."""
    head = f"PUT {BASE}/stream_routes/1 HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n"
    begun = [head.encode(), f"{head}Content-Length: 1000\r\n\r\n{{".encode()]
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", scene.port), 20)) for _ in range(100)
        ]
        for number, sock in enumerate(slow):
            sock.sendall(begun[number % 2])

        for number in range(20):
            assert scene.api.put("/stream_routes/2", json=to(number + 1)).is_success
            for sock in slow:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(b" ")

        ends = [_rest(sock) for sock in slow]
    assert all(end == b"" or end.split()[1] == b"408" for end in ends)
    assert scene.api.get("/stream_routes").json()["total"] == 1


def test_clients_that_do_not_read_hold_nobody_up(scene: Scene) -> None:
    for number in range(50):
        stored(scene.api.put(f"/stream_routes/big{number}", json=to(1, desc="x" * 256)), status=201)
    request = f"GET {BASE}/stream_routes HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", scene.port))
            sock.sendall(request * 100)

        assert scene.api.get("/stream_routes").json()["total"] == 50
        assert scene.api.delete("/stream_routes/big0").status_code == 200
