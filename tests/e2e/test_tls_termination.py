"""TLS that ends at the gateway, with the clients that people have: openssl, curl, Python."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest
import trustme

from tests.support.certificates import CA_PEM, document, issue
from tests.support.child import find_program, run
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import named_origin
from tests.support.ports import Ports
from tests.support.servers import nginx
from tests.support.tls_clients import (
    TLSVisitor,
    is_refused,
    s_client,
    session_of,
    ssl_object,
    trusting,
    whom,
)

pytestmark = [pytest.mark.slow, pytest.mark.servers]

A, B = issue("a.test.com"), issue("b.test.com")
PARTNER = issue("a.test.com", "partner.test.com")
ALICE = issue("alice@test.com")


@attrs.frozen
class Scene:
    """One TLS listener; a.test.com leads to alpha, b.test.com to beta, partner.test.com wants a client certificate."""

    gateway: Gateway
    port: int
    directory: Path


@pytest.fixture(scope="module")
def origins(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Ports by name."""
    found, directory = {name: ports.take() for name in ("alpha", "beta")}, tmp_path_factory.mktemp("origins")
    with contextlib.ExitStack() as stack:
        for name, port in found.items():
            stack.enter_context(named_origin(directory, port, name))
        yield found


def _scene(directory: Path, ports: Ports, origins: Mapping[str, int]) -> Scene:
    scene = Scene(Gateway(directory / "gateway", ports), ports.take(), directory)
    scene.gateway.write_settings([{"addr": f"127.0.0.1:{scene.port}", "tls": True}])
    scene.gateway.write_routes(
        "routes.yaml",
        stream_route("a", origins["alpha"], sni="a.test.com"),
        stream_route("b", origins["beta"], sni="b.test.com"),
        stream_route("partner", origins["alpha"], sni="partner.test.com"),
        ssls=[
            ssl_object(A, "a.test.com"),
            ssl_object(B, "b.test.com"),
            ssl_object(PARTNER, "partner.test.com", client={"ca": CA_PEM}),
        ],
    )
    return scene


@pytest.fixture
def scene(tmp_path: Path, ports: Ports, origins: Mapping[str, int]) -> Scene:
    """Not started yet: to be changed first."""
    return _scene(tmp_path, ports, origins)


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, ports: Ports, origins: Mapping[str, int]
) -> Iterator[Scene]:
    """Shared by all who take it as it is."""
    scene = _scene(tmp_path_factory.mktemp("started"), ports, origins)
    with scene.gateway.running():
        yield scene


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_openssl_reaches_the_upstream_of_the_name_it_asks_for(started: Scene, version: str) -> None:
    option = "-" + version.lower().replace("v", "").replace(".", "_")

    for name, origin in (("a.test.com", "alpha"), ("b.test.com", "beta")):
        with s_client(started.directory, started.port, option, name=name) as client:
            assert session_of(client) == ("New", version)
            client.wait_for_line(origin)
            client.tell("hello over there\n")
            client.wait_for_line("hello over there")
            client.tell("Q\n")
            assert client.wait() == 0

    # Others, who share the gateway, hang up without a word.
    line = started.gateway.wait_for_access_line(
        lambda line: (line["route"], line["tls"], line["reason"]) == ("b", version, "closed"),
        what=f"route b, {version}, closed",
    )
    assert line["sni"] == "b.test.com"
    assert line["cipher"]


@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes_its_session_under_the_same_name(started: Scene, option: str) -> None:
    session = started.directory / "session.pem"

    with s_client(started.directory, started.port, option, "-sess_out", session, name="a.test.com") as client:
        assert session_of(client)[0] == "New"
        client.wait_for_line("alpha")
    with s_client(started.directory, started.port, option, "-sess_in", session, name="a.test.com") as client:
        assert session_of(client)[0] == "Reused"
        client.wait_for_line("alpha")


def test_without_a_name_and_without_a_fallback_the_client_is_told_so(scene: Scene) -> None:
    scene.gateway.write_routes("any.yaml", stream_route("any", 1))

    with scene.gateway.running():
        with s_client(scene.directory, scene.port) as client:
            client.wait_for_line("unrecognized name")

        line = scene.gateway.wait_for_access_line(lambda line: line["reason"] == "tls_failed", what="refused")
        assert line["fault"] == "client"
        assert "no server name" in line["detail"]


def test_without_a_name_the_fallback_decides_route_and_certificate(scene: Scene) -> None:
    listener = {"addr": f"127.0.0.1:{scene.port}", "tls": True, "fallback_sni": "b.test.com"}
    scene.gateway.write_settings([listener], apisix={"ssl": {"fallback_sni": "a.test.com"}})

    with scene.gateway.running(), TLSVisitor(scene.port, None) as visitor:
        assert visitor.greeting() == "beta"
        assert visitor.common_names == {"b.test.com"}


def test_openssl_shows_its_client_certificate(started: Scene) -> None:
    ALICE.write(started.directory, "alice")
    mine = ("-cert", started.directory / "alice.pem", "-key", started.directory / "alice.key")

    with s_client(started.directory, started.port, *mine, name="partner.test.com") as client:
        client.wait_for_line("alpha")

    line = started.gateway.wait_for_access_line(lambda line: line["route"] == "partner", what="partner")
    assert line["client_sans"] == ["email:alice@test.com"]
    assert len(line["client_fingerprint"]) == 64
    assert line["client_subject"]


def test_curl_verifies_the_gateway_and_fetches_from_a_plain_server(
    scene: Scene, ports: Ports, tmp_path: Path
) -> None:
    web = ports.take()
    config = f'http {{ access_log off; server {{ listen 127.0.0.1:{web}; return 200 "plain behind\\n"; }} }}'
    scene.gateway.write_routes(
        "routes.yaml", stream_route("web", web), ssls=[ssl_object(A, "a.test.com", "*.web.test.com")]
    )
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_PEM)
    curl = [find_program("curl", package="curl"), "--silent", "--show-error", "--cacert", str(ca)]

    with nginx(tmp_path, [web], config), scene.gateway.running():
        for name, code in (("a.test.com", 0), ("x.web.test.com", 60), ("nobody.test.com", 35)):
            where = ["--resolve", f"{name}:{scene.port}:127.0.0.1", f"https://{name}:{scene.port}/"]
            done = run([*curl, *where], check=False)

            # 60: the certificate is not for that name; 35: no certificate at all.
            assert (done.returncode, done.stdout) == (code, "plain behind\n" if not code else ""), done.stderr


def test_python_speaks_every_version_that_is_offered(started: Scene) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with TLSVisitor(started.port, "a.test.com", trusting(versions=(version, version))) as visitor:
            assert visitor.greeting() == "alpha"
            assert visitor.echo("hello") == "hello"


def test_an_object_may_narrow_the_versions(scene: Scene) -> None:
    narrow = ssl_object(A, "a.test.com", ssl_protocols=["TLSv1.3"])
    scene.gateway.write_routes(
        "routes.yaml", {**stream_route("a", 1), "upstream": {"nodes": {}}}, ssls=[narrow]
    )
    old = trusting(versions=(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2))

    with scene.gateway.running():
        assert is_refused(scene.port, "a.test.com", old)

        line = scene.gateway.wait_for_access_line(lambda line: line["reason"] == "tls_failed", what="refused")
        assert "protocol" in line["detail"]


def test_rsa_and_ecdsa_stand_beside_each_other(scene: Scene) -> None:
    rsa = issue("a.test.com", key_type=trustme.KeyType.RSA)
    both = ssl_object(A, "a.test.com", certs=[rsa.cert], keys=[rsa.key])
    alpha = stream_route("a", 1)
    scene.gateway.write_routes("routes.yaml", alpha, ssls=[both])
    served = {}

    with scene.gateway.running():
        for kind, ciphers in (
            ("ecdsa", "ECDHE-ECDSA-AES128-GCM-SHA256"),
            ("rsa", "ECDHE-RSA-AES128-GCM-SHA256"),
        ):
            context = trusting(versions=(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2))
            context.set_ciphers(ciphers)
            with TLSVisitor(scene.port, "a.test.com", context) as visitor:
                served[kind] = visitor.serial

    assert served["ecdsa"] != served["rsa"]


def test_names_are_compared_without_case_and_trailing_dot(started: Scene) -> None:
    careless = trusting()
    careless.check_hostname = False

    assert whom(started.port, "A.Test.COM", careless) == "alpha"
    assert whom(started.port, "b.test.com.", careless) == "beta"


def test_a_thousand_kilobytes_come_back_whole(started: Scene) -> None:
    line = "0123456789" * 100_000

    with TLSVisitor(started.port, "a.test.com") as visitor:
        assert visitor.greeting() == "alpha"
        assert visitor.echo(line) == line


def test_keys_are_in_no_log(scene: Scene) -> None:
    with scene.gateway.running() as child:
        whom(scene.port, "a.test.com")
        assert is_refused(scene.port, "partner.test.com")
        scene.gateway.write_routes(
            "broken.yaml", ssls=[{"id": "x", "sni": "x", "cert": A.cert, "key": B.key}]
        )
        scene.gateway.wait_for_status(lambda status: status["config"]["state"] == "rejected", what="rejected")

        said = (
            child.output() + scene.gateway.access_log.read_text() + document(status=[scene.gateway.status()])
        )
        for secret in (A.key, B.key, PARTNER.key):
            assert not any(part in said for part in secret.splitlines()[1:-1])
