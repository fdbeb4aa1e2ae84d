from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from streamgw.control.admin.replies import (
    MAX_DEPTH,
    SMALL_BYTES,
    PlainTextError,
    RequestError,
    json_body,
    json_reply,
    key_not_found,
    not_found,
    parse_json,
)


@pytest.mark.parametrize("raw", [b"", b" \n"])
def test_nothing_is_nothing(raw: bytes) -> None:
    assert parse_json(raw) is None


def test_a_body_is_json() -> None:
    assert parse_json('{"a": ["ü", 1.5, null, "😀"]}'.encode()) == {"a": ["ü", 1.5, None, "😀"]}


@pytest.mark.parametrize(
    ("raw", "number"), [(b"9100.0", 9100), (b"-1e3", -1000), (b"-0.0", 0), (b"1.5", 1.5), (b"1e300", 1e300)]
)
def test_a_whole_number_is_an_integer_however_it_is_written(raw: bytes, number: float) -> None:
    parsed = parse_json(raw)

    assert (parsed, type(parsed)) == (number, type(number))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b'{"a": NaN}', "NaN is no JSON value"),
        (b'{"a": -Infinity}', "-Infinity is no JSON value"),
        (b'{"a": 1e999}', "Out of range float values"),
        (rb'{"a": "\ud800"}', "surrogates not allowed"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_what_no_file_could_hold_is_refused_and_given_back(raw: bytes, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_json(raw)

    assert caught.value.status == 400
    assert str(caught.value.content["error_msg"]).startswith("invalid request body: ")
    assert said in str(caught.value.content["error_msg"])
    assert caught.value.content["req_body"] == raw.decode("utf-8", "replace")


def test_depth_has_a_limit() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)

    with pytest.raises(RequestError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_json(b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1))


def request_of(body: bytes) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body}

    return Request({"type": "http", "method": "PUT", "path": "/", "headers": []}, receive)


async def test_small_and_large_bodies_are_parsed_alike() -> None:
    large = {"a": "x" * SMALL_BYTES}

    assert await json_body(request_of(b'{"a": "small"}')) == {"a": "small"}
    assert await json_body(request_of(json.dumps(large).encode())) == large


def test_answers_have_apisix_shapes() -> None:
    assert json.loads(key_not_found().reply().body) == {"message": "Key not found"}
    assert json.loads(not_found().reply().body) == {"error_msg": "not found"}
    plain = PlainTextError(400, "page_size must be between 10 and 500").reply()
    assert (plain.body, plain.media_type) == (b"page_size must be between 10 and 500", "text/plain")


def test_an_answer_is_one_line_of_json_whatever_is_in_it() -> None:
    reply = json_reply({"é": "\ud800"}, 201, headers={"ETag": '"1"'})

    assert reply.body == '{"é":"\\ud800"}\n'.encode()
    assert (reply.status_code, reply.headers["etag"]) == (201, '"1"')
