"""Real servers from Debian's packages, each in a directory of its own, on a port it is given, ready when yielded.

Every function is a context manager: leaving it ends the server. `prefix` stands before every command, so that a server
can live in a private network (tests/support/namespace.py). A program that is missing fails the test with the name of
the package: a test of the real thing that quietly does nothing is worse than none.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from tests.support.certificates import CA_PEM, Issued
from tests.support.child import Child, find_program, run, running
from tests.support.namespace import is_listening

LOOPBACK = "127.0.0.1"
ROOT_PASSWORD = "toor"
"""Of MariaDB's root: the password of the documentation that the project follows."""

Prefix = tuple[str, ...]


@attrs.frozen
class Server:
    """A server that answers."""

    host: str
    port: int
    directory: Path
    child: Child


@attrs.frozen
class ServerTLS:
    """What a server needs to speak TLS: files of its own."""

    ca: Path
    """Whom it believes; and what its clients verify it with."""
    cert: Path
    key: Path


def write_server_tls(directory: Path, issued: Issued) -> ServerTLS:
    """Put a certificate in files for a server."""
    issued.write(directory, "server")
    ca = directory / "server-ca.pem"
    ca.write_text(CA_PEM)
    return ServerTLS(ca, directory / "server.pem", directory / "server.key")


@attrs.frozen
class SSHServer(Server):
    """An sshd that lets the current user in with a key made for it."""

    key: Path

    def client(self, *command: str, port: int, host: str = LOOPBACK) -> list[str]:
        """The `ssh` command line that runs `command` through whatever listens on `port`."""
        ssh = find_program("ssh", package="openssh-client")
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ]
        flags = [word for option in options for word in ("-o", option)]
        me = f"{getpass.getuser()}@{host}"
        return [ssh, "-F", "none", "-i", str(self.key), "-p", str(port), *flags, me, *command]


@contextlib.contextmanager
def mariadb(
    directory: Path, port: int, *, prefix: Prefix = (), tls: ServerTLS | None = None
) -> Iterator[Server]:
    """MariaDB with one account: root, from 127.0.0.1, with ROOT_PASSWORD."""
    install = find_program("mariadb-install-db", package="mariadb-server")
    server = find_program("mariadbd", package="mariadb-server")
    admin = find_program("mariadb-admin", package="mariadb-client")
    data = directory / "data"
    # mariadbd refuses to run as root unless told that this is meant.
    user = [f"--user={getpass.getuser()}"]
    methods = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    run([install, "--no-defaults", f"--datadir={data}", *methods, *user], timeout_s=90)
    accounts = directory / "accounts.sql"
    accounts.write_text(
        f"CREATE OR REPLACE USER root@'{LOOPBACK}' IDENTIFIED BY '{ROOT_PASSWORD}';\n"
        f"GRANT ALL ON *.* TO root@'{LOOPBACK}' WITH GRANT OPTION;\n"
    )
    # A socket path may have 107 bytes at most, which pytest's directories can exceed: relative to the data directory.
    quick = ["--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"]
    where = [f"--datadir={data}", f"--bind-address={LOOPBACK}", f"--port={port}", "--socket=mariadb.sock"]
    secure = [f"--ssl-ca={tls.ca}", f"--ssl-cert={tls.cert}", f"--ssl-key={tls.key}"] if tls else []
    start = [*prefix, server, "--no-defaults", *where, *quick, *secure, f"--init-file={accounts}", *user]
    ping = [*prefix, admin, "--no-defaults", "--protocol=tcp", f"--host={LOOPBACK}", f"--port={port}"]
    ping += ["--user=root", f"--password={ROOT_PASSWORD}", "ping"]
    with running(start, log=directory / "mariadbd.log", cwd=directory) as child:
        child.wait_until(lambda: _succeeds(ping), what="answers ping", timeout_s=60)
        yield Server(LOOPBACK, port, directory, child)


@contextlib.contextmanager
def postgresql(port: int, *, prefix: Prefix = (), certificate: Issued | None = None) -> Iterator[Server]:
    """PostgreSQL that trusts user postgres. In a directory of its own: it must belong to whom the server runs as."""
    binaries = _postgresql_binaries()
    directory = Path(tempfile.mkdtemp(prefix="streamgw-postgresql-"))
    try:
        as_user: list[str] = []
        secure: list[str] = []
        if certificate is not None:
            tls = write_server_tls(directory, certificate)
            secure = ["-c", "ssl=on", "-c", f"ssl_cert_file={tls.cert}", "-c", f"ssl_key_file={tls.key}"]
        if os.geteuid() == 0:
            # The server refuses root, and a key that is not its own. Debian's package made this user.
            account = pwd.getpwnam("postgres")
            for path in (directory, *directory.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
            setpriv = find_program("setpriv", package="util-linux")
            as_user = [
                setpriv,
                "--reuid=postgres",
                "--regid=postgres",
                "--init-groups",
                "--pdeathsig=KILL",
                "--",
            ]
        data = directory / "data"
        init = [*as_user, f"{binaries}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"]
        run(init, timeout_s=90, cwd=directory)
        where = ["-D", str(data), "-h", LOOPBACK, "-p", str(port), "-k", str(directory)]
        start = [*prefix, *as_user, f"{binaries}/postgres", *where, "-F", *secure]
        ready = [*prefix, f"{binaries}/pg_isready", "-h", LOOPBACK, "-p", str(port), "-q"]
        with running(start, log=directory / "postgres.log", name="postgres", cwd=directory) as child:
            child.wait_until(lambda: _succeeds(ready), what="pg_isready")
            yield Server(LOOPBACK, port, directory, child)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def redis(
    directory: Path, port: int, *, prefix: Prefix = (), tls: ServerTLS | None = None, tls_port: int = 0
) -> Iterator[Server]:
    """Redis that keeps nothing on disk.

    Args:
      tls: for `tls_port`, where it asks for no client certificate. `port` stays plain.
    """
    server = find_program("redis-server", package="redis-server")
    client = find_program("redis-cli", package="redis-tools")
    start = [*prefix, server, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--appendonly", "no"]
    if tls is not None:
        start += ["--tls-port", str(tls_port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(tls.ca)]
        start += ["--tls-cert-file", str(tls.cert), "--tls-key-file", str(tls.key)]
    ping = [*prefix, client, "-h", LOOPBACK, "-p", str(port), "ping"]
    with running([*start, "--dir", directory], log=directory / "redis.log") as child:
        child.wait_until(lambda: _succeeds(ping), what="answers PING")
        yield Server(LOOPBACK, port, directory, child)


@contextlib.contextmanager
def sshd(directory: Path, port: int, *, prefix: Prefix = ()) -> Iterator[SSHServer]:
    """OpenSSH with a host key and a user key of its own; no password, no PAM."""
    server = find_program("sshd", package="openssh-server")
    keygen = find_program("ssh-keygen", package="openssh-client")
    if os.geteuid() == 0:
        # The privilege separation directory that Debian's service makes at start; sshd refuses to run without.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host_key", "user_key"):
        run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", directory / name])
    config = directory / "sshd_config"
    config.write_text(
        f"ListenAddress {LOOPBACK}:{port}\n"
        f"HostKey {directory}/host_key\n"
        f"AuthorizedKeysFile {directory}/user_key.pub\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "StrictModes no\n"  # the key's directory may be anybody's
        "UsePAM no\n"
        "PidFile none\n"
    )
    with running([*prefix, server, "-D", "-e", "-f", config], log=directory / "sshd.log") as child:
        _wait_for_listener(child, port, prefix)
        yield SSHServer(LOOPBACK, port, directory, child, directory / "user_key")


@contextlib.contextmanager
def mosquitto(
    directory: Path, port: int, *, prefix: Prefix = (), tls: ServerTLS | None = None, tls_port: int = 0
) -> Iterator[Server]:
    """Mosquitto, open to everybody, that keeps nothing on disk.

    Args:
      tls: for `tls_port`. `port` stays plain.
    """
    program = find_program("mosquitto", package="mosquitto")
    # As root it would become user mosquitto, who may not read the key.
    lines = ["allow_anonymous true", f"user {getpass.getuser()}", f"listener {port} {LOOPBACK}"]
    if tls is not None:
        lines += [f"listener {tls_port} {LOOPBACK}", f"certfile {tls.cert}", f"keyfile {tls.key}"]
    config = directory / "mosquitto.conf"
    config.write_text("\n".join(lines) + "\n")
    with running([*prefix, program, "-c", config, "-v"], log=directory / "mosquitto.log") as child:
        for each in (port, tls_port) if tls is not None else (port,):
            _wait_for_listener(child, each, prefix)
        yield Server(LOOPBACK, port, directory, child)


@contextlib.contextmanager
def iperf3(directory: Path, port: int, *, prefix: Prefix = ()) -> Iterator[Server]:
    """An iperf3 server: one test at a time."""
    program = find_program("iperf3", package="iperf3")
    command = [*prefix, program, "--server", "--bind", LOOPBACK, "--port", str(port), "--forceflush"]
    with running(command, log=directory / "iperf3.log") as child:
        _wait_for_listener(child, port, prefix)
        yield Server(LOOPBACK, port, directory, child)


@contextlib.contextmanager
def nginx(directory: Path, ports: Sequence[int], config: str, *, prefix: Prefix = ()) -> Iterator[Server]:
    """nginx with one worker.

    Args:
      ports: what `config` listens on; all are waited for.
      config: the `http {}` or `stream {}` part; the rest is added here.
    """
    program = find_program("nginx", package="nginx libnginx-mod-stream")
    path = directory / "nginx.conf"
    path.write_text(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
        "daemon off;\nmaster_process off;\n"
        f"pid {directory}/nginx.pid;\nerror_log stderr;\nevents {{}}\n{config}\n"
    )
    with running([*prefix, program, "-p", directory, "-c", path], log=directory / "nginx.log") as child:
        for port in ports:
            _wait_for_listener(child, port, prefix)
        yield Server(LOOPBACK, ports[0], directory, child)


@contextlib.contextmanager
def haproxy(directory: Path, ports: Sequence[int], config: str, *, prefix: Prefix = ()) -> Iterator[Server]:
    """HAProxy with short timeouts.

    Args:
      ports: what `config` binds; all are waited for.
      config: the `listen`, `frontend` and `backend` sections.
    """
    program = find_program("haproxy", package="haproxy")
    path = directory / "haproxy.cfg"
    timeouts = "timeout connect 5s\n    timeout client 30s\n    timeout server 30s"
    path.write_text(f"defaults\n    mode tcp\n    {timeouts}\n\n{config}\n")
    with running([*prefix, program, "-db", "-f", path], log=directory / "haproxy.log") as child:
        for port in ports:
            _wait_for_listener(child, port, prefix)
        yield Server(LOOPBACK, ports[0], directory, child)


def _wait_for_listener(child: Child, port: int, prefix: Prefix) -> None:
    child.wait_until(lambda: is_listening(port, prefix=prefix), what=f"listens on port {port}")


def _succeeds(command: Sequence[str]) -> bool:
    return run(command, check=False).returncode == 0


def _postgresql_binaries() -> Path:
    """Debian keeps the server's programs out of PATH, one directory per major version: take the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.fail("postgres is not installed: apt-get install postgresql", pytrace=False)
    return found[-1].parent
