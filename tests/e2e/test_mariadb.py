"""MariaDB behind the gateway, as APISIX's documentation of the stream proxy shows it."""

from __future__ import annotations

import subprocess

import attrs
import pytest

from tests.support.child import find_program, run
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import ROOT_PASSWORD, Server

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_BLOB_BYTES = 4_000_000


@attrs.frozen
class Scene:
    """The documentation's two listeners, and its route: only 127.0.0.10 and the second port lead to the server."""

    gateway: Gateway
    open_port: int
    """9100 there: listens everywhere, no route asks for it."""
    mysql_port: int
    """127.0.0.10:9101 there."""


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, mariadb_server: Server) -> Scene:
    scene = Scene(gateway, ports.take(), ports.take("127.0.0.10"))
    gateway.write_settings([scene.open_port, f"127.0.0.10:{scene.mysql_port}"])
    match = {"server_addr": "127.0.0.10", "server_port": scene.mysql_port}
    gateway.write_routes("mysql.yaml", stream_route("1", mariadb_server.port, **match))
    return scene


def _mysql(host: str, port: int, statement: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    mysql = find_program("mysql", package="mariadb-client")
    where = ["--protocol=tcp", f"--host={host}", f"--port={port}"]
    who = ["--user=root", f"--password={ROOT_PASSWORD}"]
    flags = ["--no-defaults", "--skip-column-names", "--batch"]
    return run([mysql, *flags, *where, *who, f"--execute={statement}"], check=check)


def test_the_listener_that_the_route_names_leads_to_the_server(scene: Scene) -> None:
    with scene.gateway.running():
        answer = _mysql("127.0.0.10", scene.mysql_port, "SELECT 6 * 7")

        assert answer.stdout.strip() == "42"
        line = scene.gateway.wait_for_access_line(lambda line: line["route"] == "1", what="route 1")
        assert line["reason"] == "closed"
        assert line["bytes_down"] > 0


def test_the_other_listener_gives_error_2013(scene: Scene) -> None:
    with scene.gateway.running():
        answer = _mysql("127.0.0.1", scene.open_port, "SELECT 1", check=False)

        assert answer.returncode != 0
        assert "ERROR 2013 (HY000)" in answer.stderr
        assert "reading initial communication packet" in answer.stderr
        line = scene.gateway.wait_for_access_line(lambda line: line["reason"] == "no_route", what="no_route")
        assert line["bytes_down"] == 0


def test_a_large_row_comes_back_whole(scene: Scene) -> None:
    with scene.gateway.running():
        answer = _mysql("127.0.0.10", scene.mysql_port, f"SELECT REPEAT('streamgw', {_BLOB_BYTES // 8})")

        assert answer.stdout.strip() == "streamgw" * (_BLOB_BYTES // 8)
