"""PostgreSQL behind the gateway: psql, a COPY both ways, and pgbench's many short transactions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.child import find_program, run
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_ROWS = 50_000


@pytest.fixture
def port(gateway: Gateway, ports: Ports, postgresql_server: Server) -> int:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"])
    gateway.write_routes("postgresql.yaml", stream_route("postgresql", postgresql_server.port))
    return port


def _psql(port: int, *commands: str, stdin: bytes = b"") -> str:
    psql = find_program("psql", package="postgresql-client")
    words = [word for command in commands for word in ("--command", command)]
    where = ["--host", "127.0.0.1", "--port", str(port), "--username", "postgres"]
    done = run([psql, *where, "--no-psqlrc", "--tuples-only", "--no-align", *words], stdin=stdin)
    return done.stdout.strip()


def test_psql_runs_a_query(gateway: Gateway, port: int) -> None:
    with gateway.running():
        assert _psql(port, "SELECT 6 * 7") == "42"


def test_rows_copied_in_come_out_the_same(gateway: Gateway, port: int) -> None:
    rows = "".join(f"{number}\t{'x' * (number % 97)}\n" for number in range(_ROWS))

    with gateway.running():
        _psql(port, "CREATE TABLE copied (number int, word text)")
        _psql(port, r"\copy copied FROM STDIN", stdin=rows.encode())
        back = _psql(port, r"\copy (SELECT * FROM copied ORDER BY number) TO STDOUT")
        _psql(port, "DROP TABLE copied")

    assert back + "\n" == rows


def test_pgbench_loses_no_transaction(gateway: Gateway, port: int, postgresql_server: Server) -> None:
    pgbench = find_program("pgbench", package="postgresql", directory=str(_binaries(postgresql_server)))
    where = ["--host", "127.0.0.1", "--port", str(port), "--username", "postgres"]

    with gateway.running():
        run([pgbench, *where, "--initialize", "--quiet", "postgres"])
        # --connect: a new connection for each transaction.
        done = run([pgbench, *where, "--client=8", "--transactions=25", "--connect", "postgres"])

    assert "number of transactions actually processed: 200/200" in done.stdout


def _binaries(server: Server) -> Path:
    """Where the running server's program lives: pgbench stands beside it."""
    return Path(f"/proc/{server.child.pid}/exe").resolve().parent
