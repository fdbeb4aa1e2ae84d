"""A batch as the body of a request, and which answers count."""

from __future__ import annotations

import json

import attrs
import pytest
import trio

from streamgw import __version__
from streamgw.core.batch import OverHTTP
from streamgw.process import post as module
from streamgw.process.post import BadAnswer, post, read_rest
from tests.support.collectors import Receiver, Request, receiving

TWO = (b'{"a": 1}', b'{"b": 2}')


async def ask(receiver: Receiver, records: tuple[bytes, ...] = TWO, **settings: object) -> None:
    to = OverHTTP(host="127.0.0.1", port=receiver.port, **settings)
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(to.host, to.port) as stream:
            await post(stream, to, records)


async def test_a_batch_is_one_request() -> None:
    async with receiving() as receiver:
        await ask(receiver, target="/in?key=x", authorization="Bearer y")

    assert receiver.requests == [
        Request(
            method="POST",
            target="/in?key=x",
            headers={
                "host": f"127.0.0.1:{receiver.port}",
                "user-agent": f"streamgw/{__version__}",
                "content-type": "application/json",
                "content-length": "19",
                "connection": "close",
                "authorization": "Bearer y",
            },
            body=b'[{"a": 1},{"b": 2}]',
        )
    ]


@pytest.mark.parametrize(
    ("form", "records", "body", "kind"),
    [
        ("object", TWO[:1], b'{"a": 1}', "application/json"),
        ("array", TWO[:1], b'[{"a": 1}]', "application/json"),
        ("array", TWO, b'[{"a": 1},{"b": 2}]', "application/json"),
        ("lines", TWO, b'{"a": 1}\n{"b": 2}', "text/plain"),
    ],
)
async def test_the_body_has_one_of_three_forms(
    form: str, records: tuple[bytes, ...], body: bytes, kind: str
) -> None:
    async with receiving() as receiver:
        await ask(receiver, records, form=form)

    (request,) = receiver.requests
    assert request.body == body
    assert request.headers["content-type"] == kind
    assert "authorization" not in request.headers
    assert form == "lines" or json.loads(body)


@attrs.define
class Wire(trio.abc.Stream):
    """A connection on which a server says what the test says, whatever it is sent."""

    answers: list[bytes | type[Exception]]
    sent: bytes = b""
    is_broken: bool = False
    """For what is sent."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self.is_broken:
            raise trio.BrokenResourceError("broken pipe")
        self.sent += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError("nobody asks")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        del max_bytes
        answer = self.answers.pop(0) if self.answers else b""
        if isinstance(answer, bytes):
            return answer
        raise answer("reset")

    async def aclose(self) -> None:
        raise AssertionError("the connection is the caller's")


@pytest.mark.parametrize(
    ("to", "host"),
    [
        (OverHTTP(host="logs.test", port=80), b"logs.test"),
        (OverHTTP(host="logs.test", port=443, tls=True), b"logs.test"),
        (OverHTTP(host="logs.test", port=443), b"logs.test:443"),
        (OverHTTP(host="2001:db8::1", port=8080), b"[2001:db8::1]:8080"),
    ],
)
async def test_the_host_has_its_port_unless_it_is_the_usual_one(to: OverHTTP, host: bytes) -> None:
    wire = Wire([b"HTTP/1.1 200 OK\r\n\r\n"])

    await post(wire, to, TWO)

    assert b"\r\nHost: " + host + b"\r\n" in wire.sent


TO = OverHTTP(host="logs.test", port=80)


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/1.0 201 Created\r\n\r\n"],
        [b"HTTP/1.1 1", b"00 Continue\r\n\r\nHTTP/1.1 202 Acc", b"epted\r\n\r\n"],
        [b"HTTP/1.1 299 Odd\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk"],
        [b"HTTP/1.1 200 OK\r\n\r\n", trio.BrokenResourceError],
    ],
    ids=["with a body", "1.0", "in pieces", "a body nobody reads", "a reset after it"],
)
async def test_2xx_is_success_whatever_follows(answer: list[bytes | type[Exception]]) -> None:
    wire = Wire(answer)

    await post(wire, TO, TWO)
    await read_rest(wire, within_s=10)


@pytest.mark.parametrize("status", [b"301", b"304", b"400", b"401", b"429", b"500", b"503"])
async def test_another_status_is_a_failure_redirects_too(status: bytes) -> None:
    head = b"HTTP/1.1 " + status + b" X\r\nLocation: http://elsewhere.test/\r\n\r\n"

    with pytest.raises(BadAnswer, match=f"answered {status.decode()}"):
        await post(Wire([head]), TO, TWO)


@pytest.mark.parametrize(
    "answer",
    [[], [b"HTTP/1.1 2"], [trio.BrokenResourceError]],
    ids=["end", "half an answer", "reset"],
)
async def test_no_answer_is_a_failure(answer: list[bytes | type[Exception]]) -> None:
    with pytest.raises(BadAnswer, match="closed without an answer"):
        await post(Wire(answer), TO, TWO)


async def test_what_is_no_http_is_a_failure() -> None:
    with pytest.raises(BadAnswer, match="illegal status line"):
        await post(Wire([b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n"]), TO, TWO)


async def test_a_request_that_is_no_http_is_not_sent() -> None:
    wire = Wire([])

    with pytest.raises(BadAnswer, match="Illegal header value"):
        await post(wire, attrs.evolve(TO, authorization="Basic\nX: y"), TWO)

    assert not wire.sent


async def test_a_head_has_an_end() -> None:
    endless = [b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"y" * 1000 + b"\r\n"] * 40]

    with pytest.raises(BadAnswer, match="Receive buffer too long"):
        await post(Wire(endless), TO, TWO)


async def test_interim_answers_have_an_end() -> None:
    endless = [b"HTTP/1.1 102 Processing\r\n\r\n" * 100] * 100

    with pytest.raises(BadAnswer, match="more than 16384 bytes before an answer"):
        await post(Wire(endless), TO, TWO)


async def test_an_answer_that_came_before_the_request_was_sent_counts() -> None:
    with pytest.raises(BadAnswer, match="answered 413"):
        await post(Wire([b"HTTP/1.1 413 Too large\r\n\r\n"], is_broken=True), TO, TWO)


@pytest.mark.parametrize("answer", [[], [trio.BrokenResourceError]])
async def test_a_connection_that_breaks_over_the_request_is_a_failure(
    answer: list[bytes | type[Exception]],
) -> None:
    with pytest.raises(trio.BrokenResourceError, match="broken pipe"):
        await post(Wire(answer, is_broken=True), TO, TWO)


async def test_of_an_endless_body_no_more_is_read_than_is_decent() -> None:
    wire = Wire([b"x" * 16384] * 100)

    await read_rest(wire, within_s=10)

    assert len(wire.answers) == 100 - module.REST_LIMIT_BYTES // 16384
