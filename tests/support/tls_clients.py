"""Clients that speak TLS, from well-behaved to hostile, and an upstream that only counts who comes."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.support.certificates import CA_PEM, Issued
from tests.support.child import Child, find_program, running
from tests.support.servers import Prefix

TIMEOUT_S = 20.0
LOOPBACK = "127.0.0.1"


def trusting(
    ca_pem: str = CA_PEM,
    *,
    identity: Issued | None = None,
    versions: tuple[ssl.TLSVersion, ssl.TLSVersion] = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
) -> ssl.SSLContext:
    """How a careful client speaks: the certificate has to lead to this authority and be for the name that was asked for.

    Args:
      ca_pem: the authority.
      identity: the client certificate to show.
      versions: lowest and highest.
    """
    context = ssl.create_default_context(cadata=ca_pem)
    context.minimum_version, context.maximum_version = versions
    if identity is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(identity.key + identity.cert)
            file.flush()
            context.load_cert_chain(file.name)
    return context


class TLSVisitor:
    """A client's connection to a named origin (tests/support/origin.py) over TLS. A context manager; closes its socket.

    Args:
      host_name: sent, and compared with the certificate. None: sends none, and compares nothing.
      session: to be resumed.

    Raises:
      ssl.SSLError, ConnectionError: the handshake failed. With TLS 1.3 a client that is refused for its certificate
        learns of it only when it reads.
    """

    def __init__(
        self,
        port: int,
        host_name: str | None,
        context: ssl.SSLContext | None = None,
        *,
        session: ssl.SSLSession | None = None,
    ) -> None:
        context = context or trusting()
        if host_name is None:
            context.check_hostname = False
        plain = socket.create_connection((LOOPBACK, port), timeout=TIMEOUT_S)
        try:
            # A FIN that no close_notify came before is an error here, not an end.
            self.socket = context.wrap_socket(
                plain, server_hostname=host_name, session=session, suppress_ragged_eofs=False
            )
        except BaseException:
            plain.close()
            raise
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def greeting(self) -> str:
        """The first line: the origin's name."""
        while b"\n" not in self._received:
            chunk = self.socket.recv(65_536)
            if not chunk:
                break
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def echo(self, text: str) -> str:
        """Say a line, return the line that comes back."""
        self.socket.sendall(f"{text}\n".encode())
        return self.greeting()

    def rest(self) -> bytes:
        """Everything up to the end, which has to be a close_notify."""
        received = self._received
        while chunk := self.socket.recv(65_536):
            received += chunk
        return received

    @property
    def serial(self) -> str:
        """Of the certificate that was served: upper-case hex."""
        certificate = self.socket.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])

    @property
    def common_names(self) -> set[str]:
        """The host names that the served certificate is for."""
        certificate = self.socket.getpeercert()
        assert certificate is not None
        return {str(entry[1]) for entry in certificate["subjectAltName"]}


def whom(port: int, host_name: str | None, context: ssl.SSLContext | None = None) -> str:
    """Connect over TLS, and return the name of the origin that answers."""
    with TLSVisitor(port, host_name, context) as visitor:
        return visitor.greeting()


def is_refused(port: int, host_name: str | None, context: ssl.SSLContext | None = None) -> bool:
    """Whether a client comes no further than the handshake: refused in it, or (TLS 1.3) at the first look after it."""
    try:
        with TLSVisitor(port, host_name, context) as visitor:
            return visitor.greeting() == ""
    except (ssl.SSLError, ConnectionError):
        return True


# openssl s_client


@contextlib.contextmanager
def s_client(
    directory: Path, port: int, *options: str | Path, name: str | None = None, prefix: Prefix = ()
) -> Iterator[Child]:
    """`openssl s_client` that verifies what it is served. `tell` it lines, `wait_for_line` what comes back.

    Args:
      options: more of them.
      name: sent, and compared with the certificate. None: sends none (`-noservername`).
    """
    openssl = find_program("openssl", package="openssl")
    ca = directory / "ca.pem"
    ca.write_text(CA_PEM)
    names = ["-noservername"] if name is None else ["-servername", name, "-verify_hostname", name]
    command = [*prefix, openssl, "s_client", "-connect", f"{LOOPBACK}:{port}", "-CAfile", str(ca)]
    command += ["-verify_return_error", *names, *map(str, options)]
    log = directory / "s_client.log"
    log.unlink(missing_ok=True)
    with running(command, log=log, name="openssl s_client", talk=True) as child:
        yield child


def session_of(child: Child) -> tuple[str, str]:
    """What `openssl s_client` says of its handshake: `New` or `Reused`, and the version."""
    line = child.wait_until(
        lambda: re.search(r"^(New|Reused), (TLSv[\d.]+), Cipher is", child.output(), re.MULTILINE),
        what="has shaken hands",
    )
    return line[1], line[2]


# The bytes themselves


class Handwritten:
    """A client whose TLS is genuine, and whose bytes go out the way a test wants them to.

    Args:
      context: None: a careful client's.
    """

    def __init__(self, port: int, host_name: str, context: ssl.SSLContext | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or trusting()).wrap_bio(self._incoming, self._outgoing, server_hostname=host_name)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.hello = self._outgoing.read()
        """The ClientHello, as one record."""
        self.socket = socket.create_connection((LOOPBACK, port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes, *, piece_bytes: int = 0) -> None:
        """Send these bytes, each piece in a segment of its own (0: all at once)."""
        step = piece_bytes or len(data)
        for at in range(0, len(data), step):
            self.socket.sendall(data[at : at + step])

    def finish(self) -> None:
        """The rest of the handshake, once the hello is out."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def write(self, data: bytes) -> None:
        """Say something to the upstream."""
        self.tls.write(data)
        self._flush()

    def say_goodbye(self) -> None:
        """Send a close_notify, and go on listening, which Python's sockets cannot."""
        with contextlib.suppress(ssl.SSLWantReadError):  # for the peer's, which comes in its own time
            self.tls.unwrap()
        self._flush()

    def read(self) -> bytes:
        """What the upstream says next; nothing after a close_notify.

        Raises:
          ssl.SSLError: an alert.
          ConnectionError: cut off.
        """
        while True:
            try:
                return self.tls.read(65_536)
            except ssl.SSLWantReadError:
                self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    def _fill(self) -> None:
        received = self.socket.recv(65_536)
        if not received:
            raise ConnectionResetError("the gateway closed the connection")
        self._incoming.write(received)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())


def recut(record: bytes, count: int) -> bytes:
    """One TLS record as `count` records with the same message in them."""
    head, message = record[:3], record[5:]
    assert len(message) == int.from_bytes(record[3:5], "big"), "one record"
    size = -(-len(message) // count)
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(head + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def last_words(port: int, data: bytes = b"", *, ends: bool = False) -> bytes:
    """Connect, say this, and return everything until the gateway closes.

    Args:
      ends: say EOF after it.
    """
    with socket.create_connection((LOOPBACK, port), timeout=TIMEOUT_S) as sock:
        sock.sendall(data)
        if ends:
            sock.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while chunk := sock.recv(65_536):
                received += chunk
        except ConnectionResetError:
            pass
        return received


# An upstream


class Witness:
    """An upstream that accepts nobody, so that the kernel keeps everybody who ever connected: the queue is the record.

    A context manager; closes its sockets.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server((LOOPBACK, 0), backlog=128)
        self._listening.settimeout(TIMEOUT_S)
        self.port: int = self._listening.getsockname()[1]
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
        self._listening.close()

    def accept(self) -> socket.socket:
        """Wait for the next connection. It is closed with the witness."""
        accepted = self._held.enter_context(self._listening.accept()[0])
        accepted.settimeout(TIMEOUT_S)
        return accepted

    def let_go(self) -> None:
        """Close every connection accepted so far."""
        self._held.close()

    def visitors(self) -> int:
        """How many are waiting to be accepted; they are, so each is counted once."""
        self._listening.setblocking(False)
        count = 0
        try:
            while True:
                self._held.enter_context(self._listening.accept()[0])
                count += 1
        except BlockingIOError:
            return count
        finally:
            self._listening.settimeout(TIMEOUT_S)


def ssl_object(certificate: Issued, *names: str, **fields: object) -> dict[str, object]:
    """One entry of `ssls:`, with its values inline."""
    id_ = fields.pop("id", names[0].replace("*", "any"))
    return {"id": id_, "snis": list(names), **certificate.fields(), **fields}


def alerts_in(data: bytes) -> Sequence[int]:
    """The descriptions of the alerts in plain text that a gateway said before it closed."""
    found = []
    while len(data) >= 7 and data[0] == 0x15:
        found.append(data[6])
        data = data[5 + int.from_bytes(data[3:5], "big") :]
    return found
