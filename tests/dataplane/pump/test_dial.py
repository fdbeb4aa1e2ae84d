"""Where to connect to, and what a connect that cannot begin says."""

from __future__ import annotations

import errno
import socket

import pytest

from streamgw.core.errors import ConnectFailed, Exhausted
from streamgw.core.model import Address
from streamgw.dataplane.pump.dial import sockaddr_for, start_connect
from streamgw.dataplane.pump.end import Socket, close
from tests.support.bridge import no_descriptor_left


def nobody_adopts(_end: Socket) -> None:
    raise AssertionError("a connect that never began must not be watched")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", (socket.AF_INET, ("192.0.2.1", 80))),
        ("2001:db8::1", (socket.AF_INET6, ("2001:db8::1", 80, 0, 0))),
        ("fe80::1%7", (socket.AF_INET6, ("fe80::1", 80, 0, 7))),
        ("fe80::1%lo", (socket.AF_INET6, ("fe80::1", 80, 0, socket.if_nametoindex("lo")))),
    ],
)
def test_where_to_connect_to(host: str, expected: object) -> None:
    assert sockaddr_for(host, 80) == expected


@pytest.mark.parametrize("host", ["localhost", "192.0.2", "1", "", "::x", "192.0.2.1%lo"])
def test_what_is_no_literal_is_not_looked_up(host: str) -> None:
    with pytest.raises(ConnectFailed, match="not an IP address"):
        start_connect(Address(host, 80), nobody_adopts)


def test_a_scope_that_does_not_exist_is_a_failed_connect() -> None:
    with pytest.raises(ConnectFailed, match="no such interface"):
        start_connect(Address("fe80::1%no-such-link", 80), nobody_adopts)


def test_an_address_without_a_route_fails_at_once() -> None:
    # 255.255.255.255 is refused by connect(2) itself: EACCES without SO_BROADCAST, or no route.
    with pytest.raises(ConnectFailed, match=r"permission denied|network is unreachable"):
        start_connect(Address("255.255.255.255", 80), nobody_adopts)


def test_without_a_descriptor_it_is_the_gateway_that_is_exhausted() -> None:
    with no_descriptor_left(), pytest.raises(Exhausted, match="too many open files"):
        start_connect(Address("127.0.0.1", 80), nobody_adopts)


def test_a_kernel_that_cannot_watch_it_is_exhausted_too() -> None:
    closed: list[Socket] = []

    def adopt(end: Socket) -> None:
        closed.append(end)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(Exhausted):
        start_connect(Address(*listening.getsockname()), adopt)
    assert closed[0].sock.fileno() == -1


def test_a_node_is_connected_to_without_waiting() -> None:
    adopted: list[Socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        end = start_connect(Address(*listening.getsockname()), adopted.append)
        accepted, _ = listening.accept()
        accepted.close()
    assert adopted == [end]
    assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    close(end.sock, reset=False)
