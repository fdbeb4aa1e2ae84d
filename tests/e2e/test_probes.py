"""The ready-made probes against the servers that they are for."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from streamgw.config.checks import ActiveSpec
from streamgw.config.strict import structure
from streamgw.core.model import Address
from streamgw.core.probe import Finding, Result
from streamgw.process.prober import make_context
from streamgw.process.probes import Target, run_probe
from tests.support.certificates import issue
from tests.support.child import find_program, running, wait_until
from tests.support.ports import Ports
from tests.support.servers import ROOT_PASSWORD, mariadb, nginx, postgresql, redis
from tests.support.udp_servers import dnsmasq

pytestmark = [pytest.mark.slow, pytest.mark.servers]

OK = Finding(Result.SUCCESS)


def ask(port: int, times: int = 3, name: str = "127.0.0.1", **fields: object) -> list[Finding]:
    """Probe a server as an upstream with these `checks.active` would."""
    active = structure({"timeout": 5, **fields}, ActiveSpec).build()

    async def probe() -> list[Finding]:
        context = make_context(active.probe.verify) if active.probe.kind in {"tls", "https"} else None
        target = Target(Address("127.0.0.1", port), name)
        return [await run_probe(active.probe, target, context) for _ in range(times)]

    return trio.run(probe)


def ready_made(name: str, **fields: object) -> dict[str, object]:
    return {"streamgw": {"probe": name, **fields}}


def test_redis(ports: Ports, tmp_path: Path) -> None:
    with redis(tmp_path, ports.take()) as server:
        assert ask(server.port, **ready_made("redis")) == [OK] * 3
        cli = [find_program("redis-cli", package="redis-tools"), "-p", str(server.port)]
        subprocess.run(
            [*cli, "CONFIG", "SET", "requirepass", "secret"], check=True, stdout=subprocess.DEVNULL
        )
        assert ask(server.port, **ready_made("redis")) == [OK] * 3

        # An HTTP check of it finds it sick: APISIX's default.
        (finding,) = ask(server.port, 1, type="http")
        assert finding.result is Result.TCP_FAILURE


def test_mariadb(ports: Ports, tmp_path: Path) -> None:
    with mariadb(tmp_path, ports.take()) as server, contextlib.ExitStack() as stack:
        assert ask(server.port, **ready_made("mysql")) == [OK] * 3
        assert ask(server.port, **ready_made("mysql", user="root")) == [OK] * 3

        client = [find_program("mariadb", package="mariadb-client"), "--no-defaults", "--protocol=tcp"]
        client += [f"--port={server.port}", "--host=127.0.0.1", "--user=root", f"--password={ROOT_PASSWORD}"]
        subprocess.run([*client, "--execute=SET GLOBAL max_connections=10"], check=True)

        def refused() -> Finding | None:
            # A connection that has ended may count for a while, and make room later: whoever gets in stays.
            while is_greeted(stack, server.port):
                pass
            (finding,) = ask(server.port, 1, **ready_made("mysql"))
            return None if finding == OK else finding

        finding = wait_until(refused, what="the server is full")
        assert finding.result is Result.TCP_FAILURE
        assert "Too many connections" in finding.why


def is_greeted(stack: contextlib.ExitStack, port: int) -> bool:
    """Come and stay; whether MariaDB says who it is, and not that there is no room."""
    taken = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    return taken.recv(5)[4:] == b"\x0a"


def test_postgresql(ports: Ports) -> None:
    with postgresql(ports.take()) as server:
        assert ask(server.port, **ready_made("postgresql")) == [OK] * 3
        assert ask(server.port, **ready_made("postgresql", user="postgres")) == [OK] * 3


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_dnsmasq(ports: Ports, tmp_path: Path, kind: str) -> None:
    with dnsmasq(tmp_path, ports.take_for_udp(), "192.0.2.1") as server:
        assert ask(server.port, type=kind, **ready_made("dns")) == [OK] * 3


def test_nginx_over_http_and_https(ports: Ports, tmp_path: Path) -> None:
    issue("web.test.com").write(tmp_path, "server")
    plain, secure = ports.take(), ports.take()
    config = f"""
    http {{
      access_log off;
      server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{secure} ssl;
        ssl_certificate {tmp_path}/server.pem;
        ssl_certificate_key {tmp_path}/server.key;
        location / {{ return 200 "fine"; }}
        location /sick {{ return 503; }}
        location /host {{ if ($host != "web.test.com") {{ return 404; }} return 200; }}
        location /post {{ if ($request_method != "POST") {{ return 404; }} return 200; }}
      }}
    }}"""
    with nginx(tmp_path, [plain, secure], config):
        assert ask(plain, type="http") == [OK] * 3
        assert (
            ask(plain, type="http", http_path="/sick") == [Finding(Result.HTTP_FAILURE, "answered 503")] * 3
        )
        assert ask(plain, type="http", http_path="/host", host="web.test.com") == [OK] * 3
        assert ask(plain, type="http", http_path="/post", http_method="POST", http_req_body="hi") == [OK] * 3
        assert ask(secure, type="https", https_verify_certificate=False) == [OK] * 3
        # Its CA is nobody's.
        (untrusted,) = ask(secure, 1, name="web.test.com", type="https")
        assert (untrusted.result, untrusted.why[:12]) == (Result.TCP_FAILURE, "certificate:")


def test_openssl_s_server(ports: Ports, tmp_path: Path) -> None:
    with s_server(tmp_path, ports.take()) as port:
        assert ask(port, type="tls", https_verify_certificate=False) == [OK] * 3
        (finding,) = ask(port, 1, type="tls", name="web.test.com")
        assert finding.why.startswith("certificate:")


@contextlib.contextmanager
def s_server(directory: Path, port: int) -> Iterator[int]:
    issue("web.test.com").write(directory, "server")
    program = find_program("openssl", package="openssl")
    files = ["-cert", f"{directory}/server.pem", "-key", f"{directory}/server.key"]
    command = [program, "s_server", "-accept", f"127.0.0.1:{port}", *files, "-quiet"]
    with running(command, log=directory / "s_server.log") as child:
        child.wait_until(lambda: ask(port, 1) == [OK] or None, what="accepts")
        yield port
