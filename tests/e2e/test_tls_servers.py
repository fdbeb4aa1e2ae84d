"""Brokers and databases over TLS, with their own clients, each of which verifies whom it talks to.

MQTT and Redis speak TLS from the first byte, so that a gateway can end it or pass it through. MySQL and PostgreSQL (up to
version 16) begin in plain text and change to TLS in the middle of their protocol: to a gateway that is plain TCP, and the
client verifies the database's own certificate through it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.certificates import CA_PEM, OTHER_CA, issue
from tests.support.child import find_program, run, running
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import (
    ROOT_PASSWORD,
    Server,
    mariadb,
    mosquitto,
    postgresql,
    redis,
    write_server_tls,
)
from tests.support.tls_clients import ssl_object

pytestmark = [pytest.mark.slow, pytest.mark.servers]

# These clients look names up: the one that is always known stands for any.
NAME = "localhost"
FRONT, BEHIND = issue(NAME), issue(NAME)
WAYS = ["terminated", "passed through"]


@attrs.frozen
class Scene:
    """One port that ends TLS in front of a server's plain port, one that passes it through to its TLS port."""

    gateway: Gateway
    ports: dict[str, int]
    server_plain: int
    server_tls: int
    ca: Path


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Scene:
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_PEM)
    scene = Scene(gateway, {way: ports.take() for way in WAYS}, ports.take(), ports.take(), ca)
    gateway.write_settings(
        [
            {"addr": f"127.0.0.1:{scene.ports['terminated']}", "tls": True},
            {"addr": f"127.0.0.1:{scene.ports['passed through']}", "tls_passthrough": True},
        ]
    )
    ids = {"terminated": scene.server_plain, "passed through": scene.server_tls}
    gateway.write_routes(
        "routes.yaml",
        *(
            {**stream_route(way.replace(" ", "-"), port, sni=NAME), "server_port": scene.ports[way]}
            for way, port in ids.items()
        ),
        ssls=[ssl_object(FRONT, NAME)],
    )
    return scene


# Mosquitto


@pytest.fixture
def broker(scene: Scene, tmp_path: Path) -> Iterator[Server]:
    tls = write_server_tls(tmp_path, BEHIND)
    with mosquitto(tmp_path, scene.server_plain, tls=tls, tls_port=scene.server_tls) as server:
        yield server


def _publish(scene: Scene, way: str, *, host: str = NAME) -> subprocess.CompletedProcess[str]:
    program = find_program("mosquitto_pub", package="mosquitto-clients")
    where = ["-h", host, "-p", str(scene.ports[way]), "--cafile", str(scene.ca)]
    return run([program, *where, "-t", "greetings", "-m", f"hello, {way}", "-q", "1"], check=False)


@pytest.mark.parametrize("way", WAYS)
def test_mosquitto_publishes_and_subscribes(scene: Scene, broker: Server, tmp_path: Path, way: str) -> None:
    program = find_program("mosquitto_sub", package="mosquitto-clients")
    where = ["-h", NAME, "-p", str(scene.ports[way]), "--cafile", str(scene.ca)]
    listen = [program, *where, "-t", "greetings", "-C", "1", "-q", "1"]

    with scene.gateway.running(), running(listen, log=tmp_path / "sub.log") as subscriber:
        broker.child.wait_for_line("Sending SUBACK")
        published = _publish(scene, way)

        assert published.returncode == 0, published.stderr
        assert subscriber.wait() == 0
        assert subscriber.output().strip() == f"hello, {way}"


@pytest.mark.parametrize("way", WAYS)
def test_mosquitto_refuses_a_name_that_the_certificate_is_not_for(
    scene: Scene, broker: Server, way: str
) -> None:
    routes = [
        stream_route(str(port), port, server_port=scene.ports[each])
        for each, port in zip(WAYS, (scene.server_plain, scene.server_tls), strict=True)
    ]
    # By its address it sends no name: whatever is served then must be refused.
    settings = [
        {"addr": f"127.0.0.1:{scene.ports['terminated']}", "tls": True, "fallback_sni": NAME},
        {"addr": f"127.0.0.1:{scene.ports['passed through']}", "tls_passthrough": True},
    ]
    scene.gateway.write_settings(settings)
    scene.gateway.write_routes("routes.yaml", *routes, ssls=[ssl_object(FRONT, NAME)])

    with scene.gateway.running():
        published = _publish(scene, way, host="127.0.0.1")

        assert published.returncode != 0
        assert "A TLS error occurred" in published.stderr
        assert "CONNECT from" not in broker.child.output()


# Redis


@pytest.mark.parametrize("way", WAYS)
def test_redis_answers_over_tls(scene: Scene, tmp_path: Path, way: str) -> None:
    tls = write_server_tls(tmp_path, BEHIND)
    program = find_program("redis-cli", package="redis-tools")
    where = [
        "-h",
        "127.0.0.1",
        "-p",
        str(scene.ports[way]),
        "--tls",
        "--sni",
        NAME,
        "--cacert",
        str(scene.ca),
    ]

    with (
        redis(tmp_path, scene.server_plain, tls=tls, tls_port=scene.server_tls),
        scene.gateway.running(),
    ):
        assert run([program, *where, "SET", "way", way]).stdout.strip() == "OK"
        assert run([program, *where, "GET", "way"]).stdout.strip() == way


def test_redis_cli_refuses_a_certificate_of_another_authority(scene: Scene, tmp_path: Path) -> None:
    stranger = issue(NAME, ca=OTHER_CA)
    scene.gateway.write_routes(
        "routes.yaml", stream_route("any", scene.server_plain), ssls=[ssl_object(stranger, NAME)]
    )
    program = find_program("redis-cli", package="redis-tools")
    where = ["-h", "127.0.0.1", "-p", str(scene.ports["terminated"]), "--tls", "--sni", NAME]

    with redis(tmp_path, scene.server_plain), scene.gateway.running():
        done = run([program, *where, "--cacert", scene.ca, "PING"], check=False)

        assert "certificate verify failed" in done.stdout + done.stderr


# MariaDB and PostgreSQL: TLS inside of their protocols


@pytest.fixture(scope="module")
def database(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("mariadb-tls")
    with mariadb(directory, ports.take(), tls=write_server_tls(directory, BEHIND)) as server:
        yield server


@pytest.fixture
def plain_port(gateway: Gateway, ports: Ports) -> int:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"])
    return port


def _mysql(host: str, port: int, ca: Path) -> subprocess.CompletedProcess[str]:
    mysql = find_program("mysql", package="mariadb-client")
    where = ["--protocol=tcp", f"--host={host}", f"--port={port}"]
    who = ["--user=root", f"--password={ROOT_PASSWORD}"]
    verify = [f"--ssl-ca={ca}", "--ssl-verify-server-cert"]
    ask = "--execute=SHOW STATUS LIKE 'Ssl_version'"
    return run(
        [mysql, "--no-defaults", "--skip-column-names", "--batch", *where, *who, *verify, ask], check=False
    )


def test_mysql_verifies_the_database_through_the_gateway(
    gateway: Gateway, plain_port: int, database: Server, tmp_path: Path
) -> None:
    gateway.write_routes("routes.yaml", stream_route("mariadb", database.port))
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_PEM)

    with gateway.running():
        done = _mysql(NAME, plain_port, ca)
        assert done.stdout.split() == ["Ssl_version", "TLSv1.3"], done.stderr

        # 127.0.0.1 is not what the certificate is for.
        refused = _mysql("127.0.0.1", plain_port, ca)
        assert refused.returncode != 0
        assert "TLS/SSL error" in refused.stderr


def test_psql_verifies_the_database_through_the_gateway(
    gateway: Gateway, plain_port: int, ports: Ports, tmp_path: Path
) -> None:
    psql = find_program("psql", package="postgresql-client")
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_PEM)
    where = f"port={plain_port} hostaddr=127.0.0.1 user=postgres sslmode=verify-full sslrootcert={ca}"
    ask = ["--no-psqlrc", "--tuples-only", "--no-align", "--command"]
    ask += ["SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"]

    with postgresql(ports.take(), certificate=issue("db.test.com")) as server:
        gateway.write_routes("routes.yaml", stream_route("postgresql", server.port))
        with gateway.running():
            done = run([psql, f"{where} host=db.test.com", *ask])
            assert done.stdout.strip() == "TLSv1.3"

            refused = run([psql, f"{where} host=other.test.com", *ask], check=False)
            assert refused.returncode != 0
            assert "does not match host name" in refused.stderr
