"""The examples of APISIX's own pages, from their own text, by curl: each is accepted, and its route works at once.

`tests/e2e/seeds` holds the pages word for word. Only the ports and addresses that a test cannot have are replaced.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.support.admin_api import KEY, Curl, admin_settings, api_client
from tests.support.certificates import issue
from tests.support.gateway import Gateway
from tests.support.origin import TIMEOUT_S, named_origin, whom
from tests.support.ports import Ports
from tests.support.servers import nginx, write_server_tls
from tests.support.tls_clients import ssl_object
from tests.support.tls_clients import whom as whom_over_tls

pytestmark = [pytest.mark.slow, pytest.mark.servers]

SEEDS = Path(__file__).parent / "seeds"
PAGE = "apisix-stream-proxy.txt"
PAGE_3_7 = "apisix-stream-proxy-3.7.txt"
PAGE_L4 = "apisix-l4-traffic-3.8.txt"
FRONT = issue("a.test.com")
BEHIND = issue("behind.test.com")

_SAYS_THE_NAME = """\
stream {{
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {tls.cert};
    ssl_certificate_key {tls.key};
    return "$ssl_server_name\\n";
  }}
}}
"""


def examples(page: str) -> list[str]:
    """Every curl command on a page, as printed."""
    return re.findall(r"^ *(curl http.*?}')$", (SEEDS / page).read_text(), re.DOTALL | re.MULTILINE)


@attrs.frozen
class Scene:
    """A gateway with an Admin API and the listeners of the pages; origins alpha and beta, and one that speaks TLS."""

    gateway: Gateway
    curl: Curl
    admin: int
    listeners: Mapping[int, int]
    """Port on the page, and here."""
    tls_listener: int
    alpha: int
    beta: int
    over_tls: int

    def run(self, page: str, number: int, *, node: int | None = None) -> int:
        """Run one example with what it needs replaced, each thing exactly once; return the status of the answer."""
        command = examples(page)[number]
        replaced = {
            r"http://127.0.0.1:9[01]80/": f"http://127.0.0.1:{self.admin}/",
            r'"(127.0.0.1|192.168.4.10):(1995|3306)"': f'"127.0.0.1:{node or self.alpha}"',
            r'"127.0.0.1:5991"': f'"127.0.0.1:{self.beta}"',
            r'"server_port": 2000': f'"server_port": {self.listeners[2000]}',
            r'"server_port": 9101': f'"server_port": {self.listeners[9101]}',
            r'"remote_addr": "192.168.5.3"': '"remote_addr": "127.0.5.3"',
        }
        for pattern, text in replaced.items():
            command = re.sub(pattern, text, command)
        assert KEY in command
        assert not re.search(r"192\.168|:(1995|3306|5991|9080|9180)\b", command)
        return self.curl.shell(command).status

    def whom(self, port: int, *, host: str = "127.0.0.1", client: str = "127.0.0.1") -> str:
        """Who answers on the listener that has this port on the page."""
        there = (host, self.listeners[port])
        with socket.create_connection(there, TIMEOUT_S, (client, 0)) as sock, sock.makefile("rb") as file:
            try:
                return file.readline().decode().strip()
            except ConnectionResetError:
                return ""


@pytest.fixture(scope="module")
def origins(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, int]]:
    alpha, beta, over_tls = ports.take(), ports.take(), ports.take()
    directory = tmp_path_factory.mktemp("origins")
    config = _SAYS_THE_NAME.format(port=over_tls, tls=write_server_tls(directory, BEHIND))
    with (
        named_origin(directory, alpha, "alpha"),
        named_origin(directory, beta, "beta"),
        nginx(directory, [over_tls], config),
    ):
        yield alpha, beta, over_tls


@pytest.fixture(scope="module")
def shared(
    ports: Ports, origins: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("seeds")
    gateway = Gateway(directory / "gateway", ports)
    admin, tls_listener = ports.take(), ports.take()
    listeners = {9100: ports.take(), 2000: ports.take(), 9101: ports.take("127.0.0.10")}
    gateway.write_settings(
        [
            f"127.0.0.1:{listeners[9100]}",
            f"127.0.0.1:{listeners[2000]}",
            f"127.0.0.10:{listeners[9101]}",
            {"addr": f"127.0.0.1:{tls_listener}", "tls": True},
        ],
        deployment=admin_settings(admin),
    )
    with gateway.running():
        yield Scene(gateway, Curl(directory), admin, listeners, tls_listener, *origins)


@pytest.fixture
def scene(shared: Scene) -> Scene:
    """One gateway for all, without objects."""
    with api_client(shared.admin) as api:
        for kind in ("stream_routes", "ssls"):
            for item in api.get(f"/{kind}").json()["list"]:
                assert api.delete(f"/{kind}/{item['value']['id']}").status_code == 200
    return shared


def certify(scene: Scene) -> None:
    """As `Admin API's SSL section` of the pages says."""
    with api_client(scene.admin) as api:
        assert api.put("/ssls/1", json=ssl_object(FRONT, "a.test.com", id="1")).status_code == 201


def over_tls(scene: Scene) -> str:
    return whom_over_tls(scene.tls_listener, "a.test.com")


@pytest.mark.parametrize(
    ("page", "number", "works"),
    [
        (PAGE, 0, lambda scene: scene.whom(9100) == "alpha"),
        (PAGE, 1, lambda scene: scene.whom(2000) == "alpha" and scene.whom(9100) == ""),
        (PAGE, 2, lambda scene: over_tls(scene) == "alpha"),
        (PAGE, 3, lambda scene: over_tls(scene) == "beta" and scene.whom(9100) == ""),
        (PAGE_3_7, 0, lambda scene: scene.whom(9100, client="127.0.5.3") == "alpha" and not scene.whom(9100)),
        (PAGE_3_7, 1, lambda scene: scene.whom(2000) == "alpha" and scene.whom(9100) == ""),
        (PAGE_3_7, 2, lambda scene: scene.whom(9101, host="127.0.0.10") == "alpha" and not scene.whom(9100)),
        (PAGE_3_7, 3, lambda scene: over_tls(scene) == "alpha" == scene.whom(9100)),
        (PAGE_3_7, 4, lambda scene: over_tls(scene) == "beta" and scene.whom(9100) == ""),
    ],
)
def test_an_example_is_accepted_and_works(
    page: str, number: int, works: Callable[[Scene], bool], scene: Scene
) -> None:
    certify(scene)

    assert scene.run(page, number) == 201

    assert works(scene)


def test_the_route_to_a_tls_upstream_says_the_name_that_the_page_promises(scene: Scene) -> None:
    certify(scene)

    assert scene.run(PAGE_3_7, 5, node=scene.over_tls) == 201

    assert scene.whom(9100) == "apisix_backend"
    assert over_tls(scene) == "a.test.com"


def test_no_example_of_the_pages_is_left_out() -> None:
    assert (len(examples(PAGE)), len(examples(PAGE_3_7)), len(examples(PAGE_L4))) == (4, 6, 0)
    assert sum(path.read_text().count('curl "" ') for path in SEEDS.iterdir()) == 2


def test_all_examples_of_a_page_one_after_the_other_replace_one_route(scene: Scene) -> None:
    certify(scene)

    answers = [scene.run(PAGE, number) for number in range(4)]

    assert answers == [201, 200, 200, 200]
    assert over_tls(scene) == "beta"
    (file,) = (scene.gateway.routes / "stream_routes").iterdir()
    assert "sni: a.test.com" in file.read_text()


def test_without_listeners_the_answer_is_the_error_of_the_page(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    admin = ports.take()
    gateway.write_settings([], deployment=admin_settings(admin))
    (printed,) = re.findall(r"^(\{\"error_msg.*\})$", (SEEDS / PAGE_3_7).read_text(), re.MULTILINE)
    with gateway.running():
        url = f"http://127.0.0.1:{admin}/apisix/admin/stream_routes/1"
        answer = Curl(tmp_path)("-X", "PUT", "-H", f"X-API-KEY: {KEY}", "-d", '{"upstream": {}}', url=url)

    assert answer.status == 400
    assert answer.body.strip() == printed


# The page whose examples have lost their braces


def broken_bodies() -> list[str]:
    """What that page sends, as printed."""
    text = (SEEDS / PAGE_L4).read_text()
    return re.findall(r'^curl "" -X PUT -d \'\n(.*?"type": "roundrobin")', text, re.DOTALL | re.MULTILINE)


def repaired(body: str) -> str:
    """The same lines within braces, as on the page before they were lost."""
    lines = body.splitlines()
    nodes = lines.index('"nodes": {')
    return "\n".join(["{", *lines[: nodes + 2], "},", *lines[nodes + 2 :], "}", "}"])


def put(scene: Scene, body: str) -> tuple[int, Mapping[str, str]]:
    """The page puts the collection, without an id in the path."""
    body = body.replace('"mysql:3306"', f'"localhost:{scene.alpha}"').replace(
        '"server_addr": ""', '"server_addr": "127.0.0.1"'
    )
    body = body.replace('"server_port": 2000', f'"server_port": {scene.listeners[2000]}')
    url = f"http://127.0.0.1:{scene.admin}/apisix/admin/stream_routes"
    answer = scene.curl("-X", "PUT", "-H", f"X-API-KEY: {KEY}", "-d", body, url=url)
    return answer.status, answer.json()


def test_a_body_without_its_braces_is_refused_and_given_back(scene: Scene) -> None:
    for body in broken_bodies():
        status, said = put(scene, body)

        assert status == 400
        assert said["error_msg"].startswith("invalid request body: ")
        assert said["req_body"].startswith('"id": "stream-route-mysql"')
    assert whom(scene.listeners[9100]) == ""


def test_repaired_it_routes_to_the_name(scene: Scene) -> None:
    anywhere, only_there = map(repaired, broken_bodies())

    assert put(scene, anywhere)[0] == 201
    assert scene.whom(9100) == scene.whom(2000) == "alpha"

    assert put(scene, only_there)[0] == 200
    assert scene.whom(2000) == "alpha"
    assert scene.whom(9100) == ""
