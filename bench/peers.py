"""The proxies that are compared: as many workers each, defaults, one access-log line per connection into a file.

Each has a plain port and one that terminates TLS 1.2 and 1.3 with the same P-256 certificate. Sessions are resumed by
tickets, which is everybody's default; who also keeps a cache of sessions by default keeps it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import attrs
import click
import trustme

from bench.build import build

ORIGIN_PORT = 9000
MESSAGE = b"E" + b"." * 63
"""The origin sends back what begins with an E."""
_TLS = 10
"""From a proxy's plain port to its TLS port."""
STATUS = 30
"""From streamgw's plain port to the one of its status: there may be several gateways."""
_UDP_SESSION = 20
"""From a proxy's plain port, which it has over UDP too, to the UDP port where a session ends with its first answer."""
_SEARCH_PATH = "/usr/local/sbin:/usr/sbin:/sbin:" + os.environ.get("PATH", "")
_START_TRIES = 200
_START_PAUSE_S = 0.05

_NGINX = """\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes {workers};
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 32768; }}
stream {{
  {further}
  log_format line '$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time';
  access_log {directory}/access.log line;
  server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{origin}; }}
  server {{
    listen 127.0.0.1:{tls_port} ssl;
    ssl_certificate {directory}/bench.pem;
    ssl_certificate_key {directory}/bench.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets on;
    proxy_pass 127.0.0.1:{origin};
  }}
  server {{ listen 127.0.0.1:{port} udp; proxy_pass 127.0.0.1:{origin}; }}
  server {{ listen 127.0.0.1:{udp_session_port} udp; proxy_responses 1; proxy_pass 127.0.0.1:{origin}; }}
}}
"""

_HAPROXY = """\
global
    nbthread {workers}
    maxconn 6000
    log stdout format raw local0
defaults
    mode tcp
    log global
    option tcplog
    option splice-auto
    timeout connect 10s
    timeout client 10m
    timeout server 10m
listen bench
    bind 127.0.0.1:{port}
    bind 127.0.0.1:{tls_port} ssl crt {directory}/bench-both.pem ssl-min-ver TLSv1.2
    server origin 127.0.0.1:{origin}
"""

_STREAMGW = """\
apisix:
  status: {{ip: 127.0.0.1, port: {status_port}}}
  stream_proxy:
    tcp:
      - "127.0.0.1:{port}"
      - {{addr: "127.0.0.1:{tls_port}", tls: true}}
    udp:
      - "127.0.0.1:{port}"
      - "127.0.0.1:{udp_session_port}"
streamgw:
  workers: {workers}
  relay: {relay}
  limits: {{max_sessions: 16384}}
  access_log:
    path: {directory}/access.log
"""

_ROUTE = """\
stream_routes:
  - id: session
    server_port: {udp_session_port}
    udp: {{responses: 1}}
    upstream:
      type: roundrobin
      nodes: {{"127.0.0.1:{origin}": 1}}
  - id: bench
    upstream:
      type: roundrobin
      timeout: {{connect: 60, send: 3600, read: 3600}}
      nodes: {{"127.0.0.1:{origin}": 1}}
ssls:
  - id: bench
    sni: bench.test
    cert: $file://../bench.pem
    key: $file://../bench.key
"""


@attrs.frozen
class Peer:
    """Something that listens and leads to the origin."""

    name: str
    port: int
    tls_port: int | None
    """None: it does not terminate TLS."""
    udp_port: int | None
    """None: it does not speak UDP."""
    udp_session_port: int | None
    pid: int | None
    """None: the origin itself, reached directly."""
    version: str
    is_for_bulk: bool = False
    """Differs from another peer in nothing but how it moves much data."""


@contextmanager
def running_origin(load: Path, load_udp: Path) -> Iterator[Peer]:
    """The origins that every proxy leads to; as a peer they show what the machine does without a proxy."""
    port = ORIGIN_PORT
    with (
        _running([str(load), "origin", str(port)], port, Path(os.devnull)),
        _running([str(load_udp), "origin", str(port)], port, Path(os.devnull)),
    ):
        yield Peer("direct", port, None, port, port, None, "")


@contextmanager
def running_streamgw(
    directory: Path, *, workers: int = 1, port: int = ORIGIN_PORT + 1, relay: str = "pump"
) -> Iterator[Peer]:
    """Whatever else is in `routes.d` below the directory already runs too, before the bench's own routes."""
    _write_certificate(directory)
    ports = {"port": port, "tls_port": port + _TLS, "udp_session_port": port + _UDP_SESSION}
    settings = _STREAMGW.format(
        **ports, status_port=port + STATUS, directory=directory, workers=workers, relay=relay
    )
    (directory / "config.yaml").write_text(settings)
    (directory / "routes.d").mkdir(exist_ok=True)
    (directory / "routes.d" / "bench.yaml").write_text(_ROUTE.format(**ports, origin=ORIGIN_PORT))
    files = ["-c", str(directory / "config.yaml"), "-r", str(directory / "routes.d")]
    command = [sys.executable, "-m", "streamgw", "run", *files]
    with _running(command, port, directory / "log") as pid:
        version = _version([sys.executable, "-m", "streamgw", "--version"])
        yield Peer("streamgw", port, port + _TLS, port, port + _UDP_SESSION, pid, version)


@contextmanager
def running_streamgw_sockmap(directory: Path, *, workers: int = 1) -> Iterator[Peer]:
    """Small messages pass through the kernel alone. Not among those that are measured unless it is named."""
    with running_streamgw(directory, workers=workers, port=ORIGIN_PORT + 5, relay="sockmap") as peer:
        yield attrs.evolve(peer, name="streamgw-sockmap")


@contextmanager
def running_nginx(directory: Path, *, workers: int = 1) -> Iterator[Peer]:
    with _running_nginx(directory, ORIGIN_PORT + 2, workers, "") as peer:
        yield peer


@contextmanager
def running_nginx_64k(directory: Path, *, workers: int = 1) -> Iterator[Peer]:
    """As somebody sets it up who knows that bulk is what it will do."""
    with _running_nginx(directory, ORIGIN_PORT + 4, workers, "proxy_buffer_size 64k;") as peer:
        yield attrs.evolve(peer, name="nginx-64k", is_for_bulk=True)


@contextmanager
def _running_nginx(directory: Path, port: int, workers: int, further: str) -> Iterator[Peer]:
    program = _find("nginx", "nginx libnginx-mod-stream")
    _write_certificate(directory)
    config = directory / "nginx.conf"
    ports = {"port": port, "tls_port": port + _TLS, "udp_session_port": port + _UDP_SESSION}
    text = _NGINX.format(**ports, origin=ORIGIN_PORT, directory=directory, workers=workers, further=further)
    config.write_text(text)
    with _running([program, "-p", str(directory), "-c", str(config)], port, directory / "log") as pid:
        version = _version([program, "-v"])
        yield Peer("nginx", port, port + _TLS, port, port + _UDP_SESSION, pid, version)


@contextmanager
def running_haproxy(directory: Path, *, workers: int = 1) -> Iterator[Peer]:
    port = ORIGIN_PORT + 3
    program = _find("haproxy", "haproxy")
    _write_certificate(directory)
    config = directory / "haproxy.cfg"
    ports = {"port": port, "tls_port": port + _TLS, "origin": ORIGIN_PORT}
    config.write_text(_HAPROXY.format(**ports, directory=directory, workers=workers))
    with _running([program, "-db", "-f", str(config)], port, directory / "access.log") as pid:
        yield Peer("haproxy", port, port + _TLS, None, None, pid, _version([program, "-v"]))


STARTERS: Mapping[str, Callable[..., AbstractContextManager[Peer]]] = {
    "streamgw": running_streamgw,
    "streamgw-sockmap": running_streamgw_sockmap,
    "nginx": running_nginx,
    "nginx-64k": running_nginx_64k,
    "haproxy": running_haproxy,
}


@contextmanager
def running_peers(names: Sequence[str], *, workers: int = 1) -> Iterator[list[Peer]]:
    """The origin (`direct`) and proxies by name, each in a directory of its own.

    Raises:
      click.BadParameter: there is no such peer.
    """
    unknown = set(names) - {"direct", *STARTERS}
    if unknown:
        raise click.BadParameter(f"unknown: {', '.join(sorted(unknown))}", param_hint="--peers")
    with tempfile.TemporaryDirectory(prefix="streamgw-bench-") as directory, ExitStack() as stack:
        origin = stack.enter_context(running_origin(build("load"), build("load_udp")))
        running = []
        for name in names:
            own = Path(directory) / name
            own.mkdir()
            start = STARTERS.get(name)
            running.append(origin if start is None else stack.enter_context(start(own, workers=workers)))
        yield running


def _write_certificate(directory: Path) -> None:
    """A P-256 certificate for bench.test and its key: as two files, and as one, which HAProxy wants."""
    pair = trustme.CA().issue_cert("bench.test", key_type=trustme.KeyType.ECDSA)
    chain = b"".join(blob.bytes() for blob in pair.cert_chain_pems)
    for name, content in {
        "bench.pem": chain,
        "bench.key": pair.private_key_pem.bytes(),
        "bench-both.pem": chain + pair.private_key_pem.bytes(),
    }.items():
        file = directory / name
        file.touch(0o600)
        file.write_bytes(content)


@contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[int]:
    """Run a program while the block lasts; the block begins when it answers."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(process, port, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(_START_TRIES):
        if process.poll() is not None:
            sys.exit(f"bench: {process.args!r} ended with {process.returncode}:\n{log.read_text()}")
        if is_answered(port):
            return
        time.sleep(_START_PAUSE_S)
    sys.exit(f"bench: nobody answers on port {port}:\n{log.read_text()}")


def is_answered(port: int) -> bool:
    """Whether a message comes back. Who listens need not serve yet: sockets are opened first."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(MESSAGE)
        return sock.recv(len(MESSAGE), socket.MSG_WAITALL) == MESSAGE
    return False


def _find(name: str, package: str) -> str:
    program = shutil.which(name, path=_SEARCH_PATH)
    if program is None:
        sys.exit(f"bench: {name} is not installed: apt-get install {package} (or leave it out: --peers)")
    return program


def _version(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return (said.stdout + said.stderr).strip().split("\n")[0]
