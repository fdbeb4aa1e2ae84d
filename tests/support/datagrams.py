"""The outer ends of UDP sessions: an upstream with a name, a client, and one that sends as fast as it can."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Self

from tests.support.child import Child, running
from tests.support.gateway import PLAIN

TIMEOUT_S = 20.0
_THIS = (sys.executable, "-m", "tests.support.datagrams")
LARGEST = 65_507
"""The most bytes that a datagram can carry over IPv4."""


@contextlib.contextmanager
def datagram_origin(
    directory: Path, port: int, name: str, *, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()
) -> Iterator[Child]:
    """Run one as a child that answers each datagram with its name, a space and what came; ready when yielded."""
    command = [*prefix, *_THIS, "serve", host, str(port), name]
    with running(command, log=directory / f"{name}.log", name=f"origin {name}", env=PLAIN) as child:
        child.wait_for_line("listening")
        yield child


@contextlib.contextmanager
def datagram_flood(directory: Path, port: int, *, source: str) -> Iterator[Child]:
    """Run a child that sends small datagrams from one address and port, without a pause, and reads no answer."""
    command = [*_THIS, "flood", str(port), source]
    with running(command, log=directory / "flood.log", name="flood", env=PLAIN) as child:
        child.wait_for_line("flooding")
        yield child


class DatagramClient:
    """One client address and port, for as long as the block lasts.

    Connected: the kernel drops whatever does not come from the address that was asked, as most clients do.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, source: str = "") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.settimeout(TIMEOUT_S)
        if source:
            self.sock.bind((source, 0))
        self.sock.connect((host, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, text: str) -> str:
        """Send a datagram, and return the one that comes back."""
        self.send(text)
        return self.answer()

    def ask_again(self, text: str, *, every_s: float) -> str:
        """As resolvers do where a datagram may be lost: send again until the answer is there. It has to say `text`."""
        self.sock.settimeout(every_s)
        for _ in range(round(TIMEOUT_S / every_s)):
            self.send(text)
            with contextlib.suppress(TimeoutError):
                while not (answer := self.answer()).endswith(text):
                    pass  # to a question before this one, which was asked twice
                return answer
        raise TimeoutError(text)

    def send(self, text: str) -> None:
        self.sock.send(text.encode())

    def answer(self) -> str:
        return self.sock.recv(LARGEST).decode()


def _serve(host: str, port: int, name: str) -> NoReturn:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            payload, client = sock.recvfrom(LARGEST)
            # What does not fit any more is not answered: a client that waits for it fails.
            with contextlib.suppress(OSError):
                sock.sendto(f"{name} ".encode() + payload, client)


def _flood(port: int, source: str) -> NoReturn:
    with DatagramClient(port, source=source) as client:
        sys.stdout.write("flooding\n")
        sys.stdout.flush()
        while True:
            client.sock.send(bytes(64))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", host, port, name]:
            _serve(host, int(port), name)
        case ["flood", port, source]:
            _flood(int(port), source)
