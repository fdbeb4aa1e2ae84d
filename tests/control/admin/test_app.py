import json
import os
import socket

import pytest
import structlog
import trio

from streamgw.control.admin.app import JSONResponse, serve_admin
from streamgw.control.admin.connections import HEAD_LIMIT_BYTES, IDLE_TIMEOUT_S
from streamgw.control.admin.control import build_status_app
from streamgw.core.model import Address
from tests.support.fake_gateway import FakeGateway
from tests.support.http import exchange, get

ANYWHERE = Address("127.0.0.1", 0)


def is_listening(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_it_says_where_it_listens(host: str, nursery: trio.Nursery) -> None:
    address = await nursery.start(serve_admin, build_status_app(FakeGateway()), Address(host, 0))

    assert address.host == host
    assert (await get(address, "/status")).status == 200


async def test_cancellation_leaves_no_socket() -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_admin, build_status_app(FakeGateway()), ANYWHERE)
        nursery.cancel_scope.cancel()

    assert not is_listening(address)


async def test_cancelled_before_it_began_it_leaves_no_socket_either() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with trio.CancelScope() as scope:
            scope.cancel()
            await serve_admin(build_status_app(FakeGateway()), listening)

        assert listening.fileno() >= 0


async def test_it_serves_on_a_socket_that_the_caller_keeps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve_admin, build_status_app(FakeGateway()), listening)
            status = (await get(address, "/status")).status
            nursery.cancel_scope.cancel()

        assert status == 200
        assert address.port == listening.getsockname()[1]
        assert is_listening(address)


async def test_told_to_stop_it_ends_by_itself() -> None:
    stop = trio.Event()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(
                lambda task_status: serve_admin(
                    build_status_app(FakeGateway()), ANYWHERE, stop=stop, task_status=task_status
                )
            )
            assert is_listening(address)
            stop.set()

    assert not is_listening(address)


async def test_an_address_in_use_is_the_callers_to_explain() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        await serve_admin(build_status_app(FakeGateway()), Address("127.0.0.1", other.getsockname()[1]))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing/here", 404), ("POST", "/status", 405)],
    ids=["path", "method"],
)
async def test_errors_have_one_shape(method: str, path: str, status: int, nursery: trio.Nursery) -> None:
    address = await nursery.start(serve_admin, build_status_app(FakeGateway()), ANYWHERE)

    reply = await get(address, path, method=method)

    assert reply.status == status
    assert reply.json()["status"] == "error"


async def test_a_bug_in_a_page_is_logged_and_costs_one_reply(nursery: trio.Nursery) -> None:
    gateway = FakeGateway(body={"bug": True})
    address = await nursery.start(serve_admin, build_status_app(gateway), ANYWHERE)

    with structlog.testing.capture_logs() as logs:
        reply = await get(address, "/streamgw/v1/status")

    assert (reply.status, reply.json()["error"]) == (500, "internal error")
    assert [(line["event"], line["path"]) for line in logs] == [("admin_bug", "/streamgw/v1/status")]
    assert (await get(address, "/status")).status == 200


async def test_requests_leave_no_line_in_any_log(
    nursery: trio.Nursery, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    address = await nursery.start(serve_admin, build_status_app(FakeGateway()), ANYWHERE)

    await get(address, "/status")
    await exchange(address, b"not http\r\n\r\n")

    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if "hypercorn" in record.name] == []


async def test_a_head_beyond_the_limit_is_refused(nursery: trio.Nursery) -> None:
    address = await nursery.start(serve_admin, build_status_app(FakeGateway()), ANYWHERE)

    reply = await exchange(address, b"GET /status HTTP/1.1\r\nX: " + b"x" * (2 * HEAD_LIMIT_BYTES))

    assert reply.status == 431


async def test_half_a_request_does_not_hold_a_connection(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    # Real sockets on a virtual clock: it jumps only while every task sleeps, so the order of things is real.
    autojump_clock.autojump_threshold = 0.05
    address = await nursery.start(serve_admin, build_status_app(FakeGateway()), ANYWHERE)
    began_at = trio.current_time()

    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(b"GET /status HTTP/1.1\r\nHost:")
        assert await stream.receive_some() == b""

    assert trio.current_time() - began_at == pytest.approx(IDLE_TIMEOUT_S, abs=1)


def test_a_value_without_a_json_form_is_a_bug_of_ours() -> None:
    with pytest.raises(TypeError, match="complex has no JSON form"):
        JSONResponse({"value": 1j})


def test_the_name_of_a_file_may_be_anything() -> None:
    """A problem in such a file was rejected, and the status that would say so was an internal error."""
    name = os.fsdecode(b"\xe9t\xe9.yaml")

    assert json.loads(JSONResponse({"file": name}).body) == {"file": name}


def test_a_reply_ends_with_a_newline() -> None:
    assert json.loads(JSONResponse({"é": 1}).body) == {"é": 1}
    assert JSONResponse({}).body == b"{}\n"
