"""Real servers that speak UDP, as `tests/support/servers.py` runs those that speak TCP: each on a port it is given.

Leaving the block ends the server. Each reads only the configuration that is written here.
"""

from __future__ import annotations

import contextlib
import getpass
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.child import Child, find_program, run, running
from tests.support.namespace import is_listening
from tests.support.servers import LOOPBACK, Prefix, Server, ServerTLS

LONG_NAME = "long.test"
"""A name with more text than fits into a datagram of 512 bytes."""
RADIUS_SECRET = "testing123"
RADIUS_USER, RADIUS_PASSWORD = "bob", "hello"


def is_receiving(port: int, *, prefix: Prefix = ()) -> bool:
    """Whether something receives UDP on a port of any local address."""
    ss = find_program("ss", package="iproute2")
    return bool(run([*prefix, ss, "-Hlun", f"sport = :{port}"]).stdout.strip())


def _wait_for_receiver(child: Child, port: int, prefix: Prefix) -> None:
    child.wait_until(lambda: is_receiving(port, prefix=prefix), what=f"receives on UDP port {port}")


@contextlib.contextmanager
def dnsmasq(directory: Path, port: int, address: str, *, prefix: Prefix = ()) -> Iterator[Server]:
    """dnsmasq that says `address` of every name below `test`, and knows nobody to ask about others."""
    program = find_program("dnsmasq", package="dnsmasq-base")
    alone = ["--no-daemon", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--pid-file="]
    where = [f"--port={port}", f"--listen-address={LOOPBACK}", "--bind-interfaces"]
    start = [*prefix, program, *alone, *where, f"--user={getpass.getuser()}", f"--address=/test/{address}"]
    with running(start, log=directory / "dnsmasq.log") as child:
        _wait_for_receiver(child, port, prefix)
        yield Server(LOOPBACK, port, directory, child)


@contextlib.contextmanager
def unbound(
    directory: Path, port: int, address: str, *, prefix: Prefix = (), proxy_protocol: bool = False
) -> Iterator[Server]:
    """unbound that says `address` of `a.test`, and a long text of LONG_NAME, over UDP and TCP.

    Args:
      proxy_protocol: every client has to announce itself by a PROXY header of v2, over UDP in each datagram. Questions are
        logged with the client that they are said to come from.
    """
    program = find_program("unbound", package="unbound")
    config = directory / "unbound.conf"
    texts = "\n".join(
        f"""  local-data: '{LONG_NAME}. 60 TXT "{number:02}{"x" * 98}"'""" for number in range(20)
    )
    announced = f"  proxy-protocol-port: {port}\n  log-queries: yes" if proxy_protocol else ""
    config.write_text(f"""\
server:
  interface: {LOOPBACK}@{port}
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  verbosity: 1
  num-threads: 1
  do-not-query-localhost: no
{announced}
  local-zone: "test." static
  local-data: "a.test. 60 A {address}"
{texts}
remote-control:
  control-enable: no
""")
    with running([*prefix, program, "-d", "-p", "-c", config], log=directory / "unbound.log") as child:
        _wait_for_receiver(child, port, prefix)
        yield Server(LOOPBACK, port, directory, child)


def dig(port: int, name: str, *words: str, host: str = LOOPBACK, prefix: Prefix = ()) -> str:
    """What dig prints."""
    program = find_program("dig", package="bind9-dnsutils")
    return run([*prefix, program, f"@{host}", "-p", str(port), name, *words]).stdout


def dnsperf(directory: Path, port: int, names: Sequence[str], *words: str) -> dict[str, str]:
    """Ask for names over and over; return its statistics: `Queries lost` → `0 (0.00%)`."""
    program = find_program("dnsperf", package="dnsperf")
    questions = directory / "questions"
    questions.write_text("".join(f"{name} A\n" for name in names))
    said = run([program, "-s", LOOPBACK, "-p", str(port), "-d", questions, *words], timeout_s=90).stdout
    lines = (line.split(":", 1) for line in said.splitlines() if line.startswith("  ") and ":" in line)
    return {name.strip(): value.strip() for name, value in lines}


@attrs.frozen
class SyslogServer(Server):
    """rsyslog that writes one line per message."""

    messages: Path

    def received(self) -> list[str]:
        """`<priority> <tag> <message>` of each, in the order of arrival."""
        return self.messages.read_text().splitlines() if self.messages.exists() else []


@contextlib.contextmanager
def rsyslog(
    directory: Path,
    port: int,
    *,
    prefix: Prefix = (),
    tcp_port: int = 0,
    tls: ServerTLS | None = None,
    line: str = "%pri% %programname%%msg%",
) -> Iterator[SyslogServer]:
    """rsyslog that receives over UDP and writes to a file at once.

    Args:
      tcp_port: where it receives over TCP too; 0: it does not.
      tls: it speaks TLS there, and asks for no certificate.
      line: what it writes of a message, in the language of its templates.
    """
    program = find_program("rsyslogd", package="rsyslog")
    config, messages = directory / "rsyslog.conf", directory / "messages"
    tcp, drivers = "", ""
    if tcp_port:
        options = ""
        if tls is not None:
            if not any(Path("/usr/lib").glob("*/rsyslog/lmnsd_ossl.so")):
                pytest.fail("rsyslog cannot speak TLS: apt-get install rsyslog-openssl", pytrace=False)
            options = ' streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon"'
            files = (("Ca", tls.ca), ("Cert", tls.cert), ("Key", tls.key))
            drivers = "".join(f' defaultNetstreamDriver{name}File="{file}"' for name, file in files)
        tcp = f'module(load="imtcp"{options})\ninput(type="imtcp" address="{LOOPBACK}" port="{tcp_port}")'
    config.write_text(f"""\
global(workDirectory="{directory}"{drivers})
module(load="imudp")
template(name="line" type="string" string="{line}\\n")
input(type="imudp" address="{LOOPBACK}" port="{port}")
{tcp}
action(type="omfile" file="{messages}" template="line")
""")
    start = [*prefix, program, "-n", "-f", config, "-i", "NONE"]
    with running(start, log=directory / "rsyslog.log") as child:
        _wait_for_receiver(child, port, prefix)
        if tcp_port:
            child.wait_until(
                lambda: is_listening(tcp_port, prefix=prefix), what=f"listens on port {tcp_port}"
            )
        yield SyslogServer(LOOPBACK, port, directory, child, messages)


def logger(port: int, *words: str, prefix: Prefix = ()) -> None:
    """Send one message."""
    program = find_program("logger", package="bsdutils")
    run([*prefix, program, "--udp", "--server", LOOPBACK, "--port", str(port), "--rfc5424", *words])


@contextlib.contextmanager
def freeradius(directory: Path, port: int, *, prefix: Prefix = ()) -> Iterator[Server]:
    """FreeRADIUS that knows one user, and everybody on this machine by one secret."""
    program = find_program("freeradius", package="freeradius")
    users = directory / "users"
    users.write_text(
        f'{RADIUS_USER} Cleartext-Password := "{RADIUS_PASSWORD}"\n    Reply-Message = "Hello, %{{User-Name}}"\n'
    )
    config = directory / "radiusd.conf"
    config.write_text(f"""\
prefix = /usr
libdir = /usr/lib/freeradius
logdir = {directory}
run_dir = {directory}
db_dir = {directory}
log {{
  destination = stdout
}}
thread pool {{
  start_servers = 1
  max_servers = 1
  min_spare_servers = 1
  max_spare_servers = 1
}}
client localhost {{
  ipaddr = {LOOPBACK}
  secret = {RADIUS_SECRET}
  require_message_authenticator = no
}}
modules {{
  pap {{
  }}
  files {{
    filename = {users}
  }}
}}
server default {{
  listen {{
    type = auth
    ipaddr = {LOOPBACK}
    port = {port}
  }}
  authorize {{
    files
    pap
  }}
  authenticate {{
    pap
  }}
}}
""")
    with running(
        [*prefix, program, "-f", "-l", "stdout", "-d", directory], log=directory / "radius.log"
    ) as child:
        _wait_for_receiver(child, port, prefix)
        yield Server(LOOPBACK, port, directory, child)


def radclient(port: int, password: str = RADIUS_PASSWORD, *, prefix: Prefix = ()) -> str:
    """Ask whether our user may come in; return everything that radclient prints. An answer of no is an exit code too."""
    program = find_program("radclient", package="freeradius-utils")
    request = f'User-Name = "{RADIUS_USER}", User-Password = "{password}"'.encode()
    words = ["-x", "-r", "1", "-t", "20", f"{LOOPBACK}:{port}", "auth", RADIUS_SECRET]
    done = run([*prefix, program, *words], stdin=request, check=False)
    return done.stdout + done.stderr


@contextlib.contextmanager
def sipp_server(directory: Path, port: int, *, prefix: Prefix = ()) -> Iterator[Server]:
    """SIPp that answers calls."""
    program = find_program("sipp", package="sip-tester")
    start = [*prefix, program, "-sn", "uas", "-i", LOOPBACK, "-p", str(port), "-nostdin"]
    with running(start, log=directory / "sipp-uas.log", cwd=directory, env={"TERM": "dumb"}) as child:
        _wait_for_receiver(child, port, prefix)
        yield Server(LOOPBACK, port, directory, child)


def sipp_calls(directory: Path, port: int, own_port: int, count: int) -> str:
    """Make so many calls; return its statistics. Fails the test when one does not go through.

    Args:
      own_port: where it listens for answers.
    """
    program = find_program("sipp", package="sip-tester")
    words = ["-sn", "uac", "-i", LOOPBACK, "-p", str(own_port), "-m", str(count), "-r", "50", "-d", "100"]
    done = run(
        [program, f"{LOOPBACK}:{port}", *words, "-nostdin", "-timeout", "30"],
        cwd=directory,
        env={"TERM": "dumb"},
        timeout_s=60,
    )
    return done.stdout


def iperf3_udp(port: int, *words: str) -> dict[str, Any]:
    """The `end` of an iperf3 client's report."""
    program = find_program("iperf3", package="iperf3")
    done = run([program, "--client", LOOPBACK, "--port", str(port), "--udp", "--json", *words], timeout_s=60)
    end: dict[str, Any] = json.loads(done.stdout)["end"]
    return end
