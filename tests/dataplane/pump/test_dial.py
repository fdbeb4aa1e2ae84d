"""Where to connect to, and what a connect that cannot begin says."""

from __future__ import annotations

import errno
import socket

import pytest

from streamgw.core.errors import ConnectFailed, Exhausted, NoPortLeft
from streamgw.core.model import Address
from streamgw.dataplane.pump.dial import connect_failure, meets_itself, sockaddr_for, start_connect
from streamgw.dataplane.pump.end import Socket, close
from tests.support.bridge import no_descriptor_left
from tests.support.namespace import run_with_few_ports


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


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC])
def test_a_kernel_that_cannot_watch_it_is_exhausted_too(number: int) -> None:
    closed: list[Socket] = []

    def adopt(end: Socket) -> None:
        closed.append(end)
        raise OSError(number, "no")

    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(Exhausted):
        start_connect(Address(*listening.getsockname()), adopt)
    assert closed[0].sock.fileno() == -1


_FEW_PORTS = """
import socket
from streamgw.core.errors import ConnectFailed
from streamgw.core.model import Address
from streamgw.dataplane.pump.dial import start_connect

def connect(host, port):
    try:
        ends.append(start_connect(Address(host, port), lambda _: None))
    except ConnectFailed as error:
        print(host, port, type(error).__name__, error.reason, error.fault)

ends = []
with socket.create_server(("127.0.0.1", 5000)), socket.create_server(("127.0.0.1", 5001)):
    for host, port in 5 * [("127.0.0.1", 5000)] + [("127.0.0.1", 5001), ("::1", 5000)]:
        connect(host, port)
"""


@pytest.mark.slow
def test_no_port_left_for_a_node_is_the_gateways_and_leaves_the_others_theirs() -> None:
    """28,000 sessions of a node that was well, and it was called sick. IPv6 that is off has the same errno, and is no lack."""
    assert run_with_few_ports(_FEW_PORTS).splitlines() == [
        "127.0.0.1 5000 NoPortLeft exhausted gateway",
        "::1 5000 ConnectFailed connect_failed upstream",
    ]


_ITS_OWN_PORT = """
from streamgw.core.errors import ConnectFailed
from streamgw.core.model import Address
from streamgw.dataplane.pump.dial import start_connect

try:
    start_connect(Address("127.0.0.1", 40000), lambda _: None)
except ConnectFailed as error:
    print(error)
"""


@pytest.mark.slow
def test_a_port_where_nobody_listens_is_not_answered_by_the_socket_that_connects_to_it() -> None:
    """The kernel may choose that very port to connect from: a client read what it had written to a node that was down."""
    assert run_with_few_ports(_ITS_OWN_PORT, ports="40000 40000") == "connection refused\n"


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("::1", "::"),
        ("::ffff:127.0.0.1", "::ffff:0.0.0.0"),
    ],
)
def test_who_is_connected_to_where_it_connects_from_meets_itself(host: str, written: str) -> None:
    family, _ = sockaddr_for(host, 0)

    with socket.socket(family) as sock, socket.socket(family) as other:
        sock.bind((host, 0))
        other.bind((host, 0))
        port = sock.getsockname()[1]
        sock.connect(sockaddr_for(written, port)[1])

        assert meets_itself(sock, *sockaddr_for(written, port))
        assert not meets_itself(sock, *sockaddr_for(written, other.getsockname()[1]))
        assert not meets_itself(
            sock, *sockaddr_for("192.0.2.1" if family == socket.AF_INET else "2001:db8::1", port)
        )


def test_without_a_descriptor_nobody_asks_for_the_address() -> None:
    family, sockaddr = sockaddr_for("127.0.0.1", 80)

    with no_descriptor_left():
        failure = connect_failure(errno.EADDRNOTAVAIL, family, sockaddr)

    assert isinstance(failure, NoPortLeft)


def test_a_node_is_connected_to_without_waiting() -> None:
    adopted: list[Socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        end = start_connect(Address(*listening.getsockname()), adopted.append)
        accepted, _ = listening.accept()
        accepted.close()
    assert adopted == [end]
    assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    close(end.sock, reset=False)
