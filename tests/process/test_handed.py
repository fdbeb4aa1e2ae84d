"""The sockets that a worker was given."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamgw.core.model import Listener
from streamgw.process.handed import HandedSockets
from streamgw.process.sockets import BindError, Sockets


@pytest.fixture
def ours() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close_all()


@pytest.fixture
def handed() -> Iterator[HandedSockets]:
    made = HandedSockets()
    yield made
    made.close_all()


A, B = Listener("tcp", "127.0.0.1", 0), Listener("udp", "127.0.0.2", 0)


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def hand_down(ours: Sockets, handed: HandedSockets) -> None:
    for name, (sock,) in ours.all().items():
        handed.take(name, os.dup(sock.fileno()))


def test_a_worker_listens_on_copies(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A, B])

    hand_down(ours, handed)
    handed.replace([A, B])()

    assert {*handed.bound()} == {*ours.bound()}, "with the real ports"
    handed.close_all()
    (listener, _) = ours.bound()
    with socket.create_connection(("127.0.0.1", listener.port)):
        pass


def test_what_was_not_handed_down_changes_nothing(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A])
    hand_down(ours, handed)
    handed.replace([A])()
    before = handed.bound()

    with pytest.raises(BindError, match="no socket was handed down"):
        handed.replace([A, B])

    assert handed.bound() == before


def test_what_is_gone_closes_when_the_data_plane_let_go(ours: Sockets, handed: HandedSockets) -> None:
    fds = open_fds()
    ours.replace([A, B])
    hand_down(ours, handed)
    handed.replace([A, B])()
    assert open_fds() == fds + 4

    finish = handed.replace([A])
    assert open_fds() == fds + 4
    finish()

    assert open_fds() == fds + 3
    handed.close_all()
    assert open_fds() == fds + 2


def test_a_socket_bound_anew_takes_the_place_of_the_old_one(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A])
    hand_down(ours, handed)
    handed.replace([A])()
    (before,) = handed.bound().values()
    fds = open_fds()

    hand_down(ours, handed)
    hand_down(ours, handed)
    handed.replace([A])()

    (after,) = handed.bound().values()
    assert after is not before
    assert open_fds() == fds


def test_what_is_let_go_closes_at_once(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A, B])
    hand_down(ours, handed)
    handed.replace([A, B])()

    handed.let_go([A.name, "tcp 127.0.0.9:9"])

    assert [listener.transport for listener in handed.bound()] == ["udp"]


def test_what_was_never_used_is_closed_too(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A])
    fds = open_fds()
    hand_down(ours, handed)

    handed.close_all()

    assert open_fds() == fds
