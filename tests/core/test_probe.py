"""What a probe asks over HTTP, and what an answer means; HTTP itself is from RFC 9112."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.probe import MAX_ANSWER_BYTES, Finding, Probe, Request, Result, Step, why_unanswered


def test_a_request_names_the_host_and_asks_for_one_answer() -> None:
    assert Request().encode("db.example") == (
        b"GET / HTTP/1.1\r\nHost: db.example\r\nUser-Agent: streamgw health check\r\nConnection: close\r\n\r\n"
    )


def test_a_body_comes_with_its_length() -> None:
    said = Request("POST", "/check", body="ä").encode("a")

    assert said.startswith(b"POST /check HTTP/1.1\r\n")
    assert said.endswith("Content-Length: 2\r\n\r\nä".encode())


def test_headers_of_the_user_go_before_ours() -> None:
    headers = ("host: other", "USER-AGENT: me", "Connection: keep-alive", "Content-Length: 1", "X-Probe: yes")

    assert Request(headers=headers, body="a").encode("a") == (
        b"GET / HTTP/1.1\r\nhost: other\r\nUSER-AGENT: me\r\nConnection: keep-alive\r\nContent-Length: 1\r\n"
        b"X-Probe: yes\r\n\r\na"
    )


@pytest.mark.parametrize(
    ("said", "finding"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: a\r\n", Finding(Result.SUCCESS)),
        (b"HTTP/1.0 302\r\n", Finding(Result.SUCCESS)),
        (b"HTTP/1.1 503 Busy\r\n", Finding(Result.HTTP_FAILURE, "answered 503")),
        (b"HTTP/1.1 418 Teapot\r\n", Finding(Result.NEITHER, "answered 418")),
        (b"HTTP/1.1 20 OK\r\n", Finding(Result.TCP_FAILURE, "answered 'HTTP/1.1 20 OK\\r' instead of HTTP")),
        (b"220 mail ESMTP\r\n", Finding(Result.TCP_FAILURE, "answered '220 mail ESMTP\\r' instead of HTTP")),
        (b"HTTP/1.1 200 OK", None),
        (b"", None),
    ],
)
def test_the_first_line_decides(said: bytes, finding: Finding | None) -> None:
    assert Probe(kind="http").judge(said) == finding


def test_a_line_without_end_is_no_answer() -> None:
    finding = Probe(kind="http").judge(b"x" * MAX_ANSWER_BYTES)

    assert finding is not None
    assert finding.result is Result.TCP_FAILURE


@given(st.binary(max_size=200))
def test_whatever_a_server_says_has_a_meaning_once_its_line_has_ended(said: bytes) -> None:
    assert Probe(kind="http").judge(said + b"\n") is not None


def test_a_step_is_answered_when_what_it_expects_is_there() -> None:
    step = Step(expect=re.compile(b"PONG"))

    assert not step.is_answered(b"+PO")
    assert step.is_answered(b"+PONG\r\n")
    assert Step(send=b"QUIT").is_answered(b"")


def test_what_was_said_instead_is_shown_short() -> None:
    assert why_unanswered(b"") == "answered nothing"
    assert why_unanswered(b"-ERR\r\n") == "answered '-ERR\\r\\n'"
    assert len(why_unanswered(b"x" * 1000)) < 80
