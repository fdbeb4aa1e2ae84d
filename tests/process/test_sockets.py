"""Listening sockets: all or nothing."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import select
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from streamgw.config.listen import exclude_each_other, socket_of
from streamgw.core.model import Address, Listener
from streamgw.process import sockets as module
from streamgw.process.sockets import BindError, Sockets, listen_for_http
from tests.support.descriptors import open_descriptors, opened_since
from tests.support.ports import Ports


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close_all()


def tcp(port: int = 0, host: str = "127.0.0.1", **settings: object) -> Listener:
    return Listener("tcp", host, port, **settings)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        return sock.connect_ex((host, port)) == 0


def test_port_0_shows_the_real_port(sockets: Sockets) -> None:
    sockets.replace([tcp()])

    (listener,) = sockets.bound()

    assert answers(listener.port)


def test_what_stays_keeps_its_socket(sockets: Sockets, ports: Ports) -> None:
    a, b = tcp(ports.take()), tcp(ports.take("127.0.0.2"), "127.0.0.2")
    sockets.replace([a])
    before = sockets.bound()[a]

    sockets.replace([b, a])()

    assert sockets.bound()[a] is before
    assert answers(b.port, "127.0.0.2")


def test_what_is_gone_closes_when_the_data_plane_let_go(sockets: Sockets, ports: Ports) -> None:
    a = tcp(ports.take())
    sockets.replace([a])

    finish = sockets.replace([])

    assert answers(a.port), "not before finish()"
    finish()
    assert not answers(a.port)


def test_a_taken_address_changes_nothing(sockets: Sockets, ports: Ports) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = tcp(stranger.getsockname()[1])
        old, new = tcp(ports.take()), tcp(ports.take())
        sockets.replace([old])
        before = open_descriptors()

        with pytest.raises(
            BindError, match=f"cannot listen on tcp 127.0.0.1:{taken.port}: address already in use"
        ):
            sockets.replace([new, taken])

        assert list(sockets.bound()) == [old]
        assert answers(old.port)
        assert not answers(new.port)
        assert not opened_since(before)


def test_a_second_gateway_on_the_same_address_fails_loudly(sockets: Sockets) -> None:
    sockets.replace([tcp()])
    second = Sockets()

    with pytest.raises(BindError):
        second.replace(list(sockets.bound()))


def test_a_port_that_becomes_a_wildcard_passes_its_own_old_socket(sockets: Sockets, ports: Ports) -> None:
    narrow = tcp(ports.take())
    wide = tcp(narrow.port, "0.0.0.0")
    sockets.replace([narrow])
    let_go: list[Listener] = []

    sockets.replace([wide], let_go=let_go.extend)()

    assert let_go == [narrow]
    assert list(sockets.bound()) == [wide]
    assert answers(wide.port, "127.0.0.5")


def test_an_old_socket_that_was_let_go_comes_back_when_the_new_one_fails(
    sockets: Sockets, ports: Ports
) -> None:
    narrow = tcp(ports.take())
    wide = tcp(narrow.port, "0.0.0.0")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.9", narrow.port))
        stranger.listen()
        sockets.replace([narrow])

        with pytest.raises(BindError):
            sockets.replace([wide], let_go=lambda _: None)

    assert list(sockets.bound()) == [narrow]
    assert answers(narrow.port)


def test_an_address_that_no_closing_makes_free_lets_nothing_go(sockets: Sockets, ports: Ports) -> None:
    """Clients that waited were reset, for an edit that was rejected; and a port that only root may bind was lost."""
    ours = tcp(ports.take())
    sockets.replace([ours])
    before, let_go = sockets.bound(), list[Listener]()

    with pytest.raises(BindError, match="cannot assign requested address"):
        sockets.replace([tcp(ours.port, "192.0.2.1")], let_go=let_go.extend)

    assert let_go == []
    assert sockets.bound() == before


def test_an_old_socket_that_was_let_go_and_is_not_to_be_had_again_is_lost(
    sockets: Sockets, ports: Ports
) -> None:
    """It was still there, closed: whoever was told to accept from it died of that, and all sessions with it."""
    narrow, other = tcp(ports.take()), tcp(ports.take("127.0.0.2"), "127.0.0.2")
    sockets.replace([narrow, other])

    with sockets.bound()[narrow].dup():  # of a worker that does not let go
        for _ in range(2):
            with pytest.raises(
                BindError,
                match=rf"cannot listen on tcp 0\.0\.0\.0:{narrow.port}: address already in use; "
                rf"nor any more on tcp 127\.0\.0\.1:{narrow.port}: address already in use",
            ):
                sockets.replace([other, tcp(narrow.port, "0.0.0.0")])
            assert list(sockets.bound()) == [other]
            assert list(sockets.lost.values()) == [narrow]
        with pytest.raises(BindError, match=f"on tcp 127.0.0.1:{narrow.port}: address already in use$"):
            sockets.replace([narrow, other])


def test_what_was_lost_is_back_with_the_next_change_accepted_or_not(sockets: Sockets, ports: Ports) -> None:
    one, another = tcp(ports.take()), tcp(ports.take())
    for change in ([one, another], [tcp(0, "192.0.2.1")]):
        sockets.replace([one, another])()
        with sockets.bound()[one].dup(), pytest.raises(BindError):
            sockets.replace([another, tcp(one.port, "0.0.0.0")])
        assert not answers(one.port)

        with contextlib.suppress(BindError):
            sockets.replace(change)

        assert set(sockets.bound()) == {one, another}
        assert answers(one.port)
        assert sockets.lost == {}


def test_a_bare_port_serves_both_families(sockets: Sockets) -> None:
    sockets.replace([tcp(0, "::", dual_stack=True)])

    (listener,) = sockets.bound()

    assert answers(listener.port)
    assert answers(listener.port, "::1")


def test_ipv6_alone_leaves_ipv4_alone(sockets: Sockets, ports: Ports) -> None:
    sockets.replace([tcp(ports.take(), "::")])

    (listener,) = sockets.bound()

    assert answers(listener.port, "::1")
    assert not answers(listener.port)


def test_a_foreign_address_is_named(sockets: Sockets) -> None:
    with pytest.raises(BindError, match="cannot assign requested address"):
        sockets.replace([tcp(0, "192.0.2.1")])


def test_other_settings_of_a_listener_come_with_the_same_socket(sockets: Sockets, ports: Ports) -> None:
    port = ports.take()
    sockets.replace([tcp(port)])
    sock = next(iter(sockets.bound().values()))

    sockets.replace([tcp(port, max_sessions=3)])()

    (listener,) = sockets.bound()
    assert listener.max_sessions == 3
    assert sockets.bound()[listener] is sock


def test_a_unix_socket_is_made_and_removed(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets.replace([Listener("tcp", "unix:", 0, str(path))])
    with socket.socket(socket.AF_UNIX) as client:
        assert client.connect_ex(str(path)) == 0

    sockets.close_all()

    assert not path.exists()


def test_a_dead_unix_socket_is_replaced_and_a_live_one_is_not(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener("tcp", "unix:", 0, str(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    sockets.replace([listener])

    with pytest.raises(BindError, match="address already in use"):
        Sockets().replace([listener])


def test_a_file_in_the_way_is_not_deleted(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")

    with pytest.raises(BindError):
        sockets.replace([Listener("tcp", "unix:", 0, str(path))])

    assert path.read_text() == "data"


def test_an_inherited_socket_is_used_and_the_others_are_closed() -> None:
    with socket.socket() as ours, socket.socket() as other:
        for sock in (ours, other):
            sock.bind(("127.0.0.1", 0))
            sock.listen()
        sockets = Sockets([ours, other])
        listener = tcp(ours.getsockname()[1])

        sockets.replace([listener])

        assert sockets.bound()[listener] is ours
        sockets.close_all()
        assert other.fileno() == -1


def udp(port: int = 0, host: str = "127.0.0.1", **settings: object) -> Listener:
    return Listener("udp", host, port, **settings)


def is_readable(socks: Iterable[socket.socket]) -> bool:
    """Whether any is, within 10 s. Not by select(2), which ends at descriptor 1,024: the ports of e2e tests are held to the end."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    return bool(poll.poll(10_000))


def sent_to(port: int, host: str, sock: socket.socket) -> tuple[bytes, int]:
    """What one datagram looks like to the listener: its payload, and how much it tells beside it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", (host, port))
    assert is_readable([sock]), "it arrives"
    payload, ancillary, _, _ = sock.recvmsg(100, 200)
    return payload, len(ancillary)


def test_tcp_and_udp_have_a_port_number_each(sockets: Sockets, ports: Ports) -> None:
    port = ports.take_for_udp()

    sockets.replace([tcp(port), udp(port)])

    assert answers(port)
    assert sent_to(port, "127.0.0.1", sockets.bound()[udp(port)]) == (b"hello", 0)


@pytest.mark.parametrize("settings", [{}, {"dual_stack": True}], ids=["IPv6 alone", "both families"])
def test_a_wildcard_udp_socket_tells_which_address_was_asked(
    sockets: Sockets, settings: dict[str, object]
) -> None:
    sockets.replace([udp(0, "::", **settings), udp(0, "0.0.0.0")])

    six, four = sockets.bound().items()

    assert sent_to(six[0].port, "::1", six[1]) == (b"hello", 1)
    assert sent_to(four[0].port, "127.0.0.5", four[1]) == (b"hello", 1)
    if settings:
        assert sent_to(six[0].port, "127.0.0.5", six[1]) == (b"hello", 1)


def test_a_second_gateway_cannot_take_the_datagrams_of_the_first(sockets: Sockets) -> None:
    """Neither by accident nor with SO_REUSEADDR, which is all it takes where the first has set it too."""
    sockets.replace([udp()])
    (listener,) = sockets.bound()

    with pytest.raises(
        BindError, match=f"cannot listen on udp 127.0.0.1:{listener.port}: address already in use"
    ):
        Sockets().replace([listener])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            thief.bind(("127.0.0.1", listener.port))


def test_a_udp_socket_holds_a_burst(sockets: Sockets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        usual = plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    sockets.replace([udp()])
    (sock,) = sockets.bound().values()

    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > usual


def test_a_udp_port_that_becomes_a_wildcard_passes_its_own_old_socket(sockets: Sockets) -> None:
    sockets.replace([udp(), tcp()])
    narrow, _ = sockets.bound()
    let_go: list[Listener] = []

    sockets.replace([udp(narrow.port, "0.0.0.0")], let_go=let_go.extend)()

    assert let_go == [narrow]


def test_an_inherited_udp_socket_is_made_ready(ports: Ports) -> None:
    """A service manager knows nothing of source addresses, and sets SO_REUSEADDR."""
    with socket.socket() as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = ports.take_for_udp()
        datagram.bind(("0.0.0.0", port))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stream.bind(("0.0.0.0", port))
        stream.listen()
        inherited = Sockets([stream, datagram])
        ours = udp(port, "0.0.0.0")

        inherited.replace([ours])

        assert inherited.bound()[ours] is datagram
        assert sent_to(port, "127.0.0.3", datagram) == (b"hello", 1)
        assert datagram.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        inherited.close_all()


@pytest.fixture
def three() -> Iterator[Sockets]:
    made = Sockets(slots=3)
    yield made
    made.close_all()


def socks_of(sockets: Sockets) -> list[socket.socket]:
    (listener,) = sockets.listeners()
    return [sockets.bound(slot)[listener] for slot in range(3)]


def counted(socks: list[socket.socket], count: Callable[[socket.socket], int], total: int) -> list[int]:
    """What has come to each, once all has: the last may still be on its way."""
    counts = [0] * len(socks)
    while sum(counts) < total:
        assert is_readable(socks), f"only {counts} of {total}"
        counts = [before + count(sock) for before, sock in zip(counts, socks, strict=True)]
    return counts


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_each_slot_has_its_own_socket_on_the_same_address(three: Sockets, host: str) -> None:
    three.replace([tcp(0, host, dual_stack=host == "::")])

    first, second, third = socks_of(three)

    assert len({first, second, third}) == 3
    assert first.getsockname() == second.getsockname() == third.getsockname()


def test_the_kernel_spreads_clients_over_the_slots(three: Sockets) -> None:
    three.replace([tcp()])
    (listener,) = three.listeners()

    clients = [socket.create_connection((listener.host, listener.port)) for _ in range(60)]

    assert all(counted(socks_of(three), accepted, 60))
    for client in clients:
        client.close()


def accepted(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_the_kernel_keeps_a_udp_client_in_its_slot(three: Sockets) -> None:
    three.replace([Listener("udp", "127.0.0.1", 0)])
    (listener,) = three.listeners()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((listener.host, listener.port))
        for number in range(20):
            client.send(b"%d" % number)

        assert sorted(counted(socks_of(three), received, 20)) == [0, 0, 20]


def received(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.recv(10)
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(("host", "other"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_a_second_gateway_with_workers_is_refused_as_loudly(
    three: Sockets, transport: str, host: str, other: str
) -> None:
    three.replace([Listener(transport, host, 0)])
    (listener,) = three.listeners()
    second = Sockets(slots=3)

    for address in (host, other):
        with pytest.raises(BindError, match="address already in use"):
            second.replace([Listener(transport, address, listener.port)])


def test_a_unix_socket_is_shared_by_all_slots(three: Sockets, tmp_path: Path) -> None:
    three.replace([Listener("tcp", "unix:", 0, path=str(tmp_path / "in.sock"))])

    assert len(set(socks_of(three))) == 1


def test_a_socket_that_cannot_be_bound_once_more_is_shared_and_over_udp_the_first_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a service manager under another user: the kernel refuses whoever wants to join it (EADDRINUSE)."""

    def refuse(first: socket.socket, listener: Listener) -> socket.socket:
        raise OSError(errno.EADDRINUSE, "")

    monkeypatch.setattr(module, "_join", refuse)
    stream, datagram = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    for sock in (stream, datagram):
        sock.bind(("127.0.0.1", 0))
    stream.listen()
    sockets = Sockets([stream, datagram], slots=2)

    sockets.replace([tcp(stream.getsockname()[1]), Listener("udp", "127.0.0.1", datagram.getsockname()[1])])

    assert [[*sockets.bound(slot).values()] for slot in range(2)] == [[stream, datagram], [stream]]
    sockets.close_all()


def test_an_inherited_socket_of_our_own_is_joined() -> None:
    stream = socket.create_server(("127.0.0.1", 0))
    sockets = Sockets([stream], slots=2)

    sockets.replace([tcp(stream.getsockname()[1])])

    assert len(sockets.all()[tcp(stream.getsockname()[1]).name]) == 2
    sockets.close_all()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 2)])
def test_a_gateway_takes_over_the_sockets_of_another(before: int, after: int, tmp_path: Path) -> None:
    listeners = [
        tcp(),
        Listener("udp", "127.0.0.1", 0),
        Listener("tcp", "unix:", 0, path=str(tmp_path / "in.sock")),
    ]
    old = Sockets(slots=before)
    old.replace(listeners)
    handed = {name: [sock.dup() for sock in socks] for name, socks in old.all().items()}

    new = Sockets(slots=after, handed=handed)
    new.replace(listeners)
    old.are_handed_on = True
    old.close_all()

    ports = [listener.port for listener in new.listeners()]
    assert answers(ports[0])
    assert [len(socks) for socks in new.all().values()] == [after, after, 1]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "in.sock"))
    new.close_all()
    assert not (tmp_path / "in.sock").exists()


def test_what_nobody_wants_of_another_gateway_is_closed() -> None:
    before = open_descriptors()
    sockets = Sockets([socket.create_server(("127.0.0.1", 0))], handed={"x": [socket.socket()]})

    sockets.forget_unused()

    assert not opened_since(before)


def test_who_is_in_the_way_is_known_beforehand(sockets: Sockets, ports: Ports) -> None:
    port = ports.take()
    sockets.replace([tcp(port), tcp(ports.take())])

    assert [listener.port for listener in sockets.in_the_way([tcp(port, "0.0.0.0")])] == [port]
    assert sockets.in_the_way([tcp(port)]) == ()


def test_an_address_for_http_is_taken_or_said_to_be_taken() -> None:
    with listen_for_http(Address("127.0.0.1", 0)) as sock, pytest.raises(OSError, match="in use"):
        listen_for_http(Address("127.0.0.1", sock.getsockname()[1]))


_HOSTS = ("0.0.0.0", "127.0.0.1", "127.0.0.2", "*", "::", "::1")


def on(make: Callable[..., Listener], host: str, port: int) -> Listener:
    return make(port, "::", dual_stack=True) if host == "*" else make(port, host)


def is_taken(act: Callable[[], object]) -> bool:
    try:
        act()
    except (BindError, OSError) as error:
        reason = error.error if isinstance(error, BindError) else error
        assert reason.errno == errno.EADDRINUSE
        return True
    return False


@pytest.mark.parametrize("make", [tcp, udp])
@pytest.mark.parametrize("slots", [1, 2])
def test_the_kernel_refuses_just_those_pairs_of_listeners_that_the_configuration_does(
    make: Callable[..., Listener], slots: int, ports: Ports
) -> None:
    pairs = [
        (on(make, one, port), on(make, other, port))
        for one, other in itertools.permutations(_HOSTS, 2)
        for port in [ports.take_for_udp()]
    ]
    refused = []

    for one, other in pairs:
        sockets = Sockets(slots=slots)
        try:
            sockets.replace([one])
            if is_taken(functools.partial(sockets.replace, [one, other])):
                refused.append((one, other))
        finally:
            sockets.close_all()

    assert refused == [pair for pair in pairs if exclude_each_other(*pair)]


def test_the_kernel_refuses_just_those_servers_of_ours_that_the_configuration_does(ports: Ports) -> None:
    pairs = [
        (on(tcp, one, port), Address(other, port))
        for one, other in itertools.product(_HOSTS, _HOSTS)
        for port in [ports.take_for_udp()]
        if other != "*"
    ]
    refused = []

    for listener, address in pairs:
        sockets = Sockets()
        try:
            sockets.replace([listener])
            if is_taken(lambda address=address: listen_for_http(address).close()):
                refused.append((listener, address))
        finally:
            sockets.close_all()

    assert refused == [pair for pair in pairs if exclude_each_other(pair[0], socket_of(pair[1]))]
