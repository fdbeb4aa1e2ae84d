"""TLS towards the upstream: what it is told, what is believed, and what happens when it cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.support.certificates import CA, CA_PEM, OTHER_CA, issue
from tests.support.gateway import Gateway
from tests.support.origin import named_origin, whom
from tests.support.ports import Ports
from tests.support.servers import nginx, write_server_tls
from tests.support.tls_clients import Witness, is_refused, ssl_object
from tests.support.tls_clients import whom as whom_over_tls

pytestmark = [pytest.mark.slow, pytest.mark.servers]

OTHER_CA_PEM = OTHER_CA.cert_pem.bytes().decode()
BEHIND = issue("behind.test.com")
FRONT = issue("a.test.com")
GATEWAY = issue("gateway@test.com", ca=CA)

_SAYS_WHAT_IT_SEES = """\
stream {{
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {tls.cert};
    ssl_certificate_key {tls.key};
    ssl_client_certificate {tls.ca};
    ssl_verify_client optional;
    return "$ssl_server_name $ssl_client_verify\\n";
  }}
}}
"""
"""The name in the hello, and whether a client certificate came."""


@attrs.frozen
class Scene:
    """A plain listener, a TLS listener, a TLS server for behind.test.com, and a port for a plain origin beta."""

    gateway: Gateway
    plain: int
    secure: int
    server: int
    beta: int

    def write_upstream(self, tls: Mapping[str, object] | None, *ports: int) -> None:
        """One route to nodes on these ports, tried in this order; to the server, if none are named."""
        nodes = [
            {"host": "127.0.0.1", "port": port, "weight": 1, "priority": -place}
            for place, port in enumerate(ports or [self.server])
        ]
        upstream: dict[str, object] = {"type": "roundrobin", "scheme": "tls", "nodes": nodes}
        if tls is not None:
            upstream["tls"] = dict(tls)
        ssls = [ssl_object(FRONT, "a.test.com")]
        client = {"id": "ours", "type": "client", **GATEWAY.fields()}
        self.gateway.write_routes("routes.yaml", {"id": "1", "upstream": upstream}, ssls=[*ssls, client])


@pytest.fixture(scope="module")
def server(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory, port = tmp_path_factory.mktemp("behind"), ports.take()
    tls = write_server_tls(directory, BEHIND)
    with nginx(directory, [port], _SAYS_WHAT_IT_SEES.format(port=port, tls=tls)):
        yield port


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, server: int) -> Scene:
    scene = Scene(gateway, ports.take(), ports.take(), server, ports.take())
    gateway.write_settings([f"127.0.0.1:{scene.plain}", {"addr": f"127.0.0.1:{scene.secure}", "tls": True}])
    return scene


VERIFIED = {"verify": True, "ca_certs": CA_PEM, "server_name": "behind.test.com"}


def test_the_upstream_sees_the_name_of_the_client_or_a_dummy(scene: Scene) -> None:
    scene.write_upstream(None)

    with scene.gateway.running() as child:
        assert whom(scene.plain) == "apisix_backend NONE"
        assert whom_over_tls(scene.secure, "a.test.com") == "a.test.com NONE"

        # Whoever answers is believed, as by APISIX; here somebody is told.
        assert "not verified" in child.output()


def test_a_name_of_the_upstream_goes_first(scene: Scene) -> None:
    scene.write_upstream({"server_name": "behind.test.com"})

    with scene.gateway.running():
        assert whom(scene.plain) == "behind.test.com NONE"
        assert whom_over_tls(scene.secure, "a.test.com") == "behind.test.com NONE"


def test_an_upstream_that_is_who_it_should_be_is_verified(scene: Scene) -> None:
    scene.write_upstream(VERIFIED)

    with scene.gateway.running():
        assert whom(scene.plain) == "behind.test.com NONE"


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        ({**VERIFIED, "server_name": "other.test.com"}, "hostname mismatch"),
        ({**VERIFIED, "ca_certs": OTHER_CA_PEM}, "verify failed"),
        ({"verify": True, "server_name": "behind.test.com"}, "verify failed"),
    ],
    ids=["wrong name", "wrong authority", "not of the system's"],
)
def test_an_upstream_that_is_somebody_else_gets_nothing(
    scene: Scene, tls: Mapping[str, object], why: str
) -> None:
    scene.write_upstream(tls)

    with scene.gateway.running():
        assert whom(scene.plain) == ""

        line = scene.gateway.wait_for_access_line(lambda line: True, what="of the session")
        assert (line["reason"], line["fault"], line["phase"]) == ("tls_failed", "upstream", "connect")
        assert why in line["attempts"][0]["error"].lower()
        assert (line["bytes_up"], line["bytes_down"]) == (0, 0)


def test_without_a_name_of_its_own_the_upstream_must_be_for_the_clients(scene: Scene) -> None:
    scene.write_upstream({"verify": True, "ca_certs": CA_PEM})

    with scene.gateway.running():
        assert is_refused(scene.secure, "a.test.com")

        line = scene.gateway.wait_for_access_line(lambda line: True, what="of the session")
        assert line["reason"] == "tls_failed"
        assert "a.test.com" in line["attempts"][0]["error"]


def test_a_failed_handshake_is_followed_by_the_next_node(scene: Scene, ports: Ports, tmp_path: Path) -> None:
    """The first node is a plain server, the second has a certificate of somebody else, the third is right."""
    wrong = ports.take()
    tls = write_server_tls(tmp_path, issue("behind.test.com", ca=OTHER_CA))
    scene.write_upstream(VERIFIED, scene.beta, wrong, scene.server)

    with (
        named_origin(tmp_path, scene.beta, "beta"),
        nginx(tmp_path, [wrong], _SAYS_WHAT_IT_SEES.format(port=wrong, tls=tls)),
        scene.gateway.running(),
    ):
        assert whom(scene.plain) == "behind.test.com NONE"

        line = scene.gateway.wait_for_access_line(lambda line: True, what="of the session")
        assert line["reason"] == "closed"
        assert line["node"] == f"127.0.0.1:{scene.server}"
        assert [attempt["node"] for attempt in line["attempts"]] == [
            f"127.0.0.1:{scene.beta}",
            f"127.0.0.1:{wrong}",
        ]


@pytest.mark.parametrize("how", ["inline", "by id"])
def test_the_gateway_shows_a_client_certificate(scene: Scene, how: str) -> None:
    inline = {"client_cert": GATEWAY.cert, "client_key": GATEWAY.key}
    scene.write_upstream(inline if how == "inline" else {"client_cert_id": "ours"})

    with scene.gateway.running():
        assert whom(scene.plain) == "apisix_backend SUCCESS"


def test_a_node_that_says_nothing_is_given_up_within_the_connect_timeout(scene: Scene) -> None:
    with Witness() as silent:
        upstream = {
            "scheme": "tls",
            "timeout": {"connect": 0.5, "send": 5, "read": 5},
            "nodes": {f"127.0.0.1:{silent.port}": 1},
        }
        scene.gateway.write_routes("routes.yaml", {"id": "1", "upstream": upstream})
        with scene.gateway.running():
            assert whom(scene.plain) == ""

            line = scene.gateway.wait_for_access_line(lambda line: True, what="of the session")
            assert (line["reason"], line["fault"]) == ("tls_failed", "upstream")
            assert 0.5 <= line["duration_s"] < 5, "which is what it may take for anything else"


def test_a_proxy_header_goes_before_the_handshake(scene: Scene, ports: Ports, tmp_path: Path) -> None:
    port, tls = ports.take(), write_server_tls(tmp_path, BEHIND)
    config = _SAYS_WHAT_IT_SEES.replace(" ssl;", " ssl proxy_protocol;", 1).replace(
        "$ssl_client_verify", "$proxy_protocol_addr"
    )
    nodes = {f"127.0.0.1:{port}": 1}
    upstream = {"scheme": "tls", "tls": VERIFIED, "nodes": nodes, "proxy_protocol": "v2"}
    scene.gateway.write_routes("routes.yaml", {"id": "1", "upstream": upstream})

    with nginx(tmp_path, [port], config.format(port=port, tls=tls)), scene.gateway.running():
        assert whom(scene.plain) == "behind.test.com 127.0.0.1"
