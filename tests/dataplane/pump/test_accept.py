"""Accepting, seen from the acceptor: a host that keeps what it is told, a real listening socket."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from streamgw.core.model import Address
from streamgw.dataplane.pump import End
from streamgw.dataplane.pump.accept import BATCH, Acceptor
from streamgw.dataplane.pump.end import Socket, close
from tests.support.bridge import no_descriptor_left, reset


@attrs.define(eq=False)
class RecordingHost:
    """Keeps what an acceptor says."""

    adopted: list[Socket] = attrs.Factory(list)
    adopt_error: OSError | None = None
    rests: int = 0
    told: list[str] = attrs.Factory(list)
    forgotten: int = 0
    bugs: list[Exception] = attrs.Factory(list)

    def adopt(self, end: Socket) -> None:
        if self.adopt_error is not None:
            raise self.adopt_error
        self.adopted.append(end)

    def rest(self, acceptor: Acceptor) -> None:
        self.rests += 1

    def forget(self, acceptor: Acceptor) -> None:
        self.forgotten += 1

    def tell(self, message: str) -> None:
        self.told.append(message)

    def bug(self, end: Socket, error: Exception) -> None:
        self.bugs.append(error)


@attrs.define(eq=False)
class Scene:
    listening: socket.socket
    host: RecordingHost
    epoll: select.epoll
    clients: list[socket.socket] = attrs.Factory(list)
    accepted: list[Address] = attrs.Factory(list)

    def acceptor(self) -> Acceptor:
        return Acceptor(self.host, self.epoll, self.listening, self.on_accept)

    def on_accept(self, _end: End, client: Address, _server: Address) -> None:
        self.accepted.append(client)

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.clients.append(socket.create_connection(self.listening.getsockname()))

    def is_watched(self) -> bool:
        return bool(self.epoll.poll(0))


@pytest.fixture
def scene() -> Iterator[Scene]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening, select.epoll() as epoll:
        listening.setblocking(False)
        scene = Scene(listening, RecordingHost(), epoll)
        yield scene
        for end in scene.host.adopted:
            close(end.sock, reset=True)
        for client in scene.clients:
            client.close()


def test_a_batch_has_an_end_and_what_waits_makes_another_event(scene: Scene) -> None:
    acceptor = scene.acceptor()
    scene.connect(BATCH + 3)

    assert acceptor.accept_batch() == BATCH
    assert scene.is_watched()
    assert acceptor.accept_batch() == 3
    assert not scene.is_watched()
    assert scene.accepted == [Address(*client.getsockname()) for client in scene.clients]


def test_pausing_from_inside_on_accept_stops_the_batch(scene: Scene) -> None:
    acceptor = Acceptor(scene.host, scene.epoll, scene.listening, lambda *_: acceptor.pause())
    scene.connect(3)

    assert acceptor.accept_batch() == 1
    assert not scene.is_watched()
    acceptor.resume()
    assert scene.is_watched()


def test_out_of_descriptors_it_rests_and_says_so_once_and_says_when_it_is_over(scene: Scene) -> None:
    acceptor = scene.acceptor()
    scene.connect(1)
    with no_descriptor_left():
        for _ in range(3):
            assert acceptor.accept_batch() == 0
            assert not scene.is_watched()
            acceptor.rested()
    server = Address(*scene.listening.getsockname())
    assert scene.host.rests == 3
    assert scene.host.told == [f"accepting pauses on {server}: too many open files"]

    assert acceptor.accept_batch() == 1
    assert scene.host.told[1:] == [f"accepting again on {server}"]


def test_resuming_while_it_rests_does_not_wake_it(scene: Scene) -> None:
    acceptor = scene.acceptor()
    scene.connect(1)
    with no_descriptor_left():
        acceptor.accept_batch()
    acceptor.pause()
    acceptor.resume()
    assert not scene.is_watched()
    acceptor.rested()
    assert scene.is_watched()


@pytest.mark.parametrize(("number", "rests"), [(errno.ENOMEM, 1), (errno.ENOSPC, 1), (errno.EPERM, 0)])
def test_a_connection_that_cannot_be_watched_is_reset(scene: Scene, number: int, rests: int) -> None:
    acceptor = scene.acceptor()
    scene.host.adopt_error = OSError(number, "no")
    scene.connect(1)

    acceptor.accept_batch()

    with pytest.raises(ConnectionResetError):
        scene.clients[0].recv(1)
    assert scene.accepted == []
    assert scene.host.rests == rests


class CrowdedEpoll:
    """A real one, of a user who may watch no more while it is crowded."""

    def __init__(self, epoll: select.epoll) -> None:
        self.unregister = epoll.unregister
        self._register = epoll.register
        self.is_crowded = False

    def register(self, fd: int, events: int) -> None:
        if self.is_crowded:
            raise OSError(errno.ENOSPC, "")
        self._register(fd, events)


def test_a_listener_that_cannot_be_watched_again_rests_and_says_so(scene: Scene) -> None:
    """Users noticed a listener that accepted nobody any more, and no line that said why."""
    epoll: Any = CrowdedEpoll(scene.epoll)
    acceptor = Acceptor(scene.host, epoll, scene.listening, scene.on_accept)
    scene.connect(1)
    server = Address(*scene.listening.getsockname())
    acceptor.pause()
    epoll.is_crowded = True

    acceptor.resume()

    assert not scene.is_watched()
    assert scene.host.rests == 1
    assert scene.host.told == [
        f"accepting pauses on {server}: fs.epoll.max_user_watches is too low",
    ]
    epoll.is_crowded = False
    acceptor.rested()
    assert scene.is_watched()
    assert acceptor.accept_batch() == 1
    assert scene.host.told[1:] == [f"accepting again on {server}"]


def test_a_client_that_is_gone_already_is_no_trouble(scene: Scene) -> None:
    acceptor = scene.acceptor()
    scene.connect(2)
    reset(scene.clients[0])

    assert acceptor.accept_batch() == 2
    assert scene.host.told == []


def test_a_socket_that_its_maker_closed_first_ends_accepting(scene: Scene) -> None:
    acceptor = scene.acceptor()
    scene.listening.close()

    acceptor.pause()
    acceptor.resume()
    acceptor.close()

    assert acceptor.closed
    assert scene.host.forgotten == 1


def test_an_epoll_that_is_gone_ends_accepting(scene: Scene) -> None:
    acceptor = scene.acceptor()
    scene.epoll.close()

    acceptor.close()

    assert acceptor.accept_batch() == 0


def test_an_on_accept_that_raises_is_a_bug_of_that_connection(scene: Scene) -> None:
    def on_accept(*_: object) -> None:
        raise RuntimeError("no")

    acceptor = Acceptor(scene.host, scene.epoll, scene.listening, on_accept)
    scene.connect(2)

    assert acceptor.accept_batch() == 2
    assert [str(bug) for bug in scene.host.bugs] == ["no", "no"]
