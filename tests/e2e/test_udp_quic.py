"""QUIC passes through untouched: aioquic on both sides, and a certificate that the gateway does not have."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted, QuicEvent, StreamDataReceived

from tests.support.certificates import CA_PEM, issue
from tests.support.collectors import until
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

MAX_DATAGRAM = 1200
"""Of QUIC: what every path has to carry (RFC 9000, § 14)."""


class Peer:
    """One end of a connection: the protocol is aioquic's, the datagrams go over a socket of ours."""

    def __init__(self, quic: QuicConnection, sock: trio.socket.SocketType) -> None:
        self.quic = quic
        self.sock = sock
        self.events: list[QuicEvent] = []
        self.received = b""

    async def run(self) -> None:
        """Serve timers and datagrams. The first ones may have been handed in before."""
        while True:
            await self.flush()
            try:
                with trio.move_on_at(self.quic.get_timer() or math.inf) as timer:
                    self.take(*await self.sock.recvfrom(65_536))
            except trio.ClosedResourceError:
                continue  # moved
            if timer.cancelled_caught:
                self.quic.handle_timer(trio.current_time())
                self._look()

    def move(self) -> None:
        """Go on from another port, as behind a NAT that has forgotten the one before."""
        self.sock.close()
        self.sock = datagram_socket()

    def take(self, datagram: bytes, peer: tuple[str, int]) -> None:
        self.quic.receive_datagram(datagram, peer, trio.current_time())
        self._look()

    async def flush(self) -> None:
        for datagram, peer in self.quic.datagrams_to_send(trio.current_time()):
            assert len(datagram) <= MAX_DATAGRAM
            await self.sock.sendto(datagram, peer)

    async def say(self, payload: bytes) -> bytes:
        """Send it on the stream, and return as much as was sent, when it has come back."""
        before = len(self.received)
        self.quic.send_stream_data(0, payload)
        await self.flush()
        await until(lambda: len(self.received) >= before + len(payload))
        return self.received[before:]

    def _look(self) -> None:
        while (event := self.quic.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, StreamDataReceived):
                self.received += event.data


class EchoPeer(Peer):
    """The server's end: each byte of a stream goes back on it."""

    def _look(self) -> None:
        told = len(self.events)
        super()._look()
        for event in self.events[told:]:
            if isinstance(event, StreamDataReceived):
                self.quic.send_stream_data(event.stream_id, event.data)


def datagram_socket() -> trio.socket.SocketType:
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 1 << 20)
    return sock


async def serve_echo(sock: trio.socket.SocketType, directory: Path) -> None:
    """Serve one connection."""
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=["echo"], max_datagram_size=MAX_DATAGRAM
    )
    configuration.load_cert_chain(directory / "node.pem", directory / "node.key")
    datagram, peer = await sock.recvfrom(65_536)
    connection_id = datagram[6 : 6 + datagram[5]]  # of the server, as the client chose it: RFC 9000, § 17.2
    quic = QuicConnection(configuration=configuration, original_destination_connection_id=connection_id)
    server = EchoPeer(quic, sock)
    server.take(datagram, peer)
    await server.run()


@asynccontextmanager
async def connected(port: int, directory: Path) -> AsyncIterator[Peer]:
    """A client that has verified whom it talks to."""
    configuration = QuicConfiguration(
        alpn_protocols=["echo"],
        server_name="node.test",
        verify_mode=ssl.CERT_REQUIRED,
        max_datagram_size=MAX_DATAGRAM,
    )
    configuration.load_verify_locations(cadata=CA_PEM.encode())
    client = Peer(QuicConnection(configuration=configuration), datagram_socket())
    client.quic.connect(("127.0.0.1", port), now=trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await until(lambda: any(isinstance(event, HandshakeCompleted) for event in client.events))
        yield client
        nursery.cancel_scope.cancel()
    client.sock.close()


@asynccontextmanager
async def through(gateway: Gateway, ports: Ports, directory: Path) -> AsyncIterator[Peer]:
    """A client that is connected with a server by way of the gateway."""
    node, port = ports.take_for_udp(), ports.take_for_udp()
    issue("node.test").write(directory, "node")
    gateway.write_settings([], [f"127.0.0.1:{port}"])
    gateway.write_routes("quic.yaml", stream_route("quic", node))
    with gateway.running(), datagram_socket() as sock:
        await sock.bind(("127.0.0.1", node))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_echo, sock, directory)
            async with connected(port, directory) as client:
                yield client
            nursery.cancel_scope.cancel()


async def test_quic_is_between_client_and_node(gateway: Gateway, ports: Ports, tmp_path: Path) -> None:
    payload = os.urandom(1 << 20)

    async with through(gateway, ports, tmp_path) as client:
        assert await client.say(payload) == payload
        sessions = gateway.status()["sessions"]

    assert sessions["total"] == 1
    assert min(sessions["bytes_up"], sessions["bytes_down"]) > len(payload)


async def test_a_client_whose_port_changes_keeps_its_connection(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    """RFC 9000, § 9: another session for the gateway, the same connection for both ends."""
    async with through(gateway, ports, tmp_path) as client:
        assert await client.say(b"from here") == b"from here"
        client.move()
        assert await client.say(b"from elsewhere") == b"from elsewhere"
        sessions = gateway.status()["sessions"]

    assert sessions["total"] == 2
    assert sum(isinstance(event, HandshakeCompleted) for event in client.events) == 1
