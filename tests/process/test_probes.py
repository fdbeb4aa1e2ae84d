"""One probe of a real server in this process that does one thing."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from streamgw.core.model import Address
from streamgw.core.probe import MAX_ANSWER_BYTES, Finding, Probe, ProbeKind, Request, Result, Step
from streamgw.process import probes
from streamgw.process.probes import Target, run_probe
from tests.support.certificates import CA_PEM, issue
from tests.support.namespace import run_with_few_ports
from tests.support.ports import Ports

Handler = Callable[[trio.abc.Stream], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Target]:
    """A server on a free port; what its handler raises when the client goes is nobody's business."""

    async def handle(stream: trio.abc.Stream) -> None:
        try:
            await handler(stream)
            await stream.aclose()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield _target(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def _target(port: int, name: str = "127.0.0.1") -> Target:
    return Target(Address("127.0.0.1", port), name)


@contextmanager
def udp_socket() -> Iterator[tuple[trio.socket.SocketType, Target]]:
    plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plain.bind(("127.0.0.1", 0))
    with trio.socket.from_stdlib_socket(plain) as sock:
        yield sock, _target(sock.getsockname()[1])


async def ask(probe: Probe, target: Target, context: ssl.SSLContext | None = None) -> tuple[Result, str]:
    with trio.fail_after(10):
        finding: Finding = await run_probe(probe, target, context)
    return finding.result, finding.why


def step(send: bytes = b"", expect: bytes | None = None) -> Step:
    return Step(send, None if expect is None else re.compile(expect, re.DOTALL))


async def silence(stream: trio.abc.Stream) -> None:
    await stream.receive_some()
    await trio.sleep_forever()


def replies(words: bytes) -> Handler:
    async def reply(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(words)
        await stream.receive_some()

    return reply


# ── Connections ──────────────────────────────────────────────────────────────────────────────────


async def test_whoever_accepts_is_well() -> None:
    async with serving(silence) as target:
        assert await ask(Probe(), target) == (Result.SUCCESS, "")


async def test_whoever_does_not_listen_is_not() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))

        assert await ask(Probe(), _target(bound.getsockname()[1])) == (
            Result.TCP_FAILURE,
            "connection refused",
        )


async def test_the_port_of_the_probe_goes_before_the_nodes() -> None:
    async with serving(silence) as target:
        elsewhere = _target(1)

        assert await ask(Probe(port=target.node.port), elsewhere) == (Result.SUCCESS, "")


async def test_ipv6_is_probed_too() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, silence, 0, host="::1"))
        port = listener.socket.getsockname()[1]

        assert await ask(Probe(), Target(Address("::1", port), "::1")) == (Result.SUCCESS, "")
        nursery.cancel_scope.cancel()


async def test_who_does_not_answer_the_connect_is_timed_out() -> None:
    # A backlog of nothing that is full: the kernel drops further SYNs.
    with trio.socket.socket() as full:
        await full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        async with await trio.open_tcp_stream(*address):
            probe = Probe(timeout_s=0.2)

            assert await ask(probe, _target(address[1])) == (Result.TIMEOUT, "did not connect within 0.2 s")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_machine_without_descriptors_does_not_call_its_nodes_sick(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_socket(*_: object) -> None:
        raise OSError(number, "none left")

    monkeypatch.setattr(probes.trio.socket, "socket", no_socket)

    result, _ = await ask(Probe(), _target(1))

    assert result is Result.NEITHER


_FEW_PORTS = """
import re, socket, trio
from streamgw.core.model import Address
from streamgw.core.probe import Probe, Step
from streamgw.process.probes import Target, run_probe

async def ask(probe):
    finding = await run_probe(probe, Target(Address("127.0.0.1", 5000), "a"), None)
    print(probe.kind, finding.result.name, finding.why)

node, udp_node = socket.create_server(("127.0.0.1", 5000)), socket.socket(type=socket.SOCK_DGRAM)
udp_node.bind(("127.0.0.1", 5000))
held = [socket.socket(type=kind) for kind in 4 * [socket.SOCK_STREAM, socket.SOCK_DGRAM]]
for each in held:
    each.connect(("127.0.0.1", 5000))
for probe in Probe(), Probe(kind="udp", talk=(Step(b"?", re.compile(b"!")),)):
    trio.run(ask, probe)
"""


@pytest.mark.slow
def test_a_machine_without_ports_does_not_call_its_nodes_sick() -> None:
    assert run_with_few_ports(_FEW_PORTS).splitlines() == [
        "tcp NEITHER no local port left to connect from",
        "udp NEITHER no local port left to send from",
    ]


_ITS_OWN_PORT = """
import re, trio
from streamgw.core.model import Address
from streamgw.core.probe import Probe, Step
from streamgw.process.probes import Target, run_probe

for probe in Probe(), Probe(kind="udp", talk=(Step(b"?", re.compile(rb"\\?")),)):
    print(trio.run(run_probe, probe, Target(Address("127.0.0.1", 40000), "a"), None).why)
"""


@pytest.mark.slow
def test_a_port_where_nobody_listens_is_not_well_because_the_probe_met_itself() -> None:
    assert run_with_few_ports(_ITS_OWN_PORT, ports="40000 40000").splitlines() == 2 * ["connection refused"]


# ── Talks ────────────────────────────────────────────────────────────────────────────────────────


async def test_every_step_of_a_talk_is_taken() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"220 he")
        await stream.send_all(b"llo\r\n")
        assert await stream.receive_some() == b"NOOP\r\n"
        await stream.send_all(b"250 ok\r\n")

    talk = (step(expect=b"220 hello"), step(b"NOOP\r\n", b"250"), step(b"QUIT\r\n"))
    async with serving(serve) as target:
        assert await ask(Probe(talk=talk), target) == (Result.SUCCESS, "")


async def test_another_answer_and_a_goodbye_is_a_failure_that_shows_it() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"-ERR\r\n")

    async with serving(serve) as target:
        assert await ask(Probe(talk=(step(b"PING\r\n", rb"\+PONG"),)), target) == (
            Result.TCP_FAILURE,
            "closed the connection: answered '-ERR\\r\\n'",
        )


async def test_another_answer_and_then_nothing_is_a_timeout(mock_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"-LOADING\r\n")
        mock_clock.jump(0.3)
        await stream.receive_some()

    async with serving(serve) as target:
        probe = Probe(timeout_s=0.2, talk=(step(b"PING\r\n", rb"\+PONG"),))

        assert await ask(probe, target) == (Result.TIMEOUT, "did not answer within 0.2 s")


async def test_who_talks_without_end_is_not_listened_to() -> None:
    async with serving(replies(b"x" * 4 * MAX_ANSWER_BYTES)) as target:
        result, why = await ask(Probe(talk=(step(b"a", b"y"),)), target)

    assert (result, why[:12]) == (Result.TCP_FAILURE, "answered 'xx")


async def test_who_hangs_up_by_reset_is_not_well() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some(1)  # the rest is unread: closing resets

    async with serving(serve) as target:
        assert await ask(Probe(talk=(step(b"hello", b"hello"),)), target) == (
            Result.TCP_FAILURE,
            "connection reset by peer",
        )


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "finding"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", (Result.SUCCESS, "")),
        (b"HTTP/1.1 503 Busy\r\n\r\n", (Result.HTTP_FAILURE, "answered 503")),
        (b"HTTP/1.1 418 Teapot\r\n\r\n", (Result.NEITHER, "answered 418")),
        (b"220 mail\r\n", (Result.TCP_FAILURE, "answered '220 mail\\r' instead of HTTP")),
    ],
)
async def test_a_status_decides(words: bytes, finding: tuple[Result, str]) -> None:
    async with serving(replies(words)) as target:
        assert await ask(Probe(kind="http"), target) == finding


async def test_the_request_names_the_node_as_it_is_written() -> None:
    heard: list[bytes] = []

    async def serve(stream: trio.abc.Stream) -> None:
        heard.append(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

    async with serving(serve) as target:
        request = Request(path="/health")
        await ask(Probe(kind="http", request=request), Target(target.node, "web.example"))
        await ask(Probe(kind="http", request=request, host="other.example"), target)

    assert [b"\r\nHost: web.example\r\n" in heard[0], b"\r\nHost: other.example\r\n" in heard[1]] == [
        True,
        True,
    ]
    assert heard[0].startswith(b"GET /health HTTP/1.1\r\n")


async def test_a_server_that_hangs_up_before_its_status_is_not_well() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()

    async with serving(serve) as target:
        assert await ask(Probe(kind="http"), target) == (
            Result.TCP_FAILURE,
            "closed the connection: answered nothing",
        )


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def serving_tls(tmp_path: Path, name: str, handler: Handler) -> AsyncIterator[Target]:
    issue(name).write(tmp_path, "server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")

    async def serve(stream: trio.abc.Stream) -> None:
        await handler(trio.SSLStream(stream, context, server_side=True, https_compatible=True))

    async with serving(serve) as target:
        yield Target(target.node, name)


def verifying() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=CA_PEM)


@pytest.mark.parametrize(("kind", "talk"), [("tls", ()), ("tls", (step(b"PING", rb"HTTP"),)), ("https", ())])
async def test_a_handshake_is_made_and_what_follows_is_inside(
    tmp_path: Path, kind: ProbeKind, talk: tuple[Step, ...]
) -> None:
    async with serving_tls(tmp_path, "db.example", replies(b"HTTP/1.1 200 OK\r\n\r\n")) as target:
        assert await ask(Probe(kind=kind, talk=talk), target, verifying()) == (Result.SUCCESS, "")


async def test_a_certificate_for_another_name_is_a_failure(tmp_path: Path) -> None:
    async with serving_tls(tmp_path, "db.example", silence) as target:
        result, why = await ask(Probe(kind="tls", host="other.example"), target, verifying())

    assert (result, why[:30]) == (Result.TCP_FAILURE, "certificate: Hostname mismatch")


async def test_a_server_without_tls_is_a_failure() -> None:
    async with serving(replies(b"220 mail\r\n")) as target:
        result, why = await ask(Probe(kind="tls"), target, verifying())

    assert (result, why[:5]) == (Result.TCP_FAILURE, "TLS: ")


async def test_a_server_that_hangs_up_in_the_handshake_is_a_failure() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()

    async with serving(serve) as target:
        result, _ = await ask(Probe(kind="tls"), target, verifying())

    assert result is Result.TCP_FAILURE


async def test_a_name_that_cannot_be_asked_for_is_a_failure() -> None:
    async with serving(silence) as target:
        result, why = await ask(Probe(kind="tls", host=".example"), target, verifying())

    assert result is Result.TCP_FAILURE
    assert "leading dot" in why


# ── UDP ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_datagram_that_is_answered_is_a_success() -> None:
    async def answer() -> None:
        for words in (b"something else", b"PONG"):
            _, client = await sock.recvfrom(100)
            await sock.sendto(b"noise", client)
            await sock.sendto(words, client)

    talk = (step(b"PING", b"else"), step(b"PING", b"PONG"), step(b"BYE"))
    with udp_socket() as (sock, target):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            assert await ask(Probe(kind="udp", talk=talk), target) == (Result.SUCCESS, "")


async def test_a_datagram_that_is_refused_is_a_failure() -> None:
    with Ports() as ports:
        target = _target(ports.take_for_udp())

        assert await ask(Probe(kind="udp", talk=(step(b"PING", b"PONG"),)), target) == (
            Result.TCP_FAILURE,
            "connection refused",
        )


async def test_a_datagram_that_is_not_answered_is_a_timeout() -> None:
    with udp_socket() as (_, target):
        probe = Probe(kind="udp", timeout_s=0.1, talk=(step(b"PING", b"PONG"),))

        assert await ask(probe, target) == (Result.TIMEOUT, "did not answer within 0.1 s")
