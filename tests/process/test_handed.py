"""The sockets that a worker was given."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from streamgw.core.model import Listener
from streamgw.process.handed import HandedSockets
from streamgw.process.sockets import BindError, Sockets
from tests.support.descriptors import open_descriptors, opened_since


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
    before = open_descriptors()
    ours.replace([A, B])
    hand_down(ours, handed)
    handed.replace([A, B])()
    assert opened_since(before).total() == 4

    finish = handed.replace([A])
    assert opened_since(before).total() == 4
    finish()

    assert opened_since(before).total() == 3
    handed.close_all()
    assert opened_since(before).total() == 2


def test_a_socket_bound_anew_takes_the_place_of_the_old_one(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A])
    hand_down(ours, handed)
    handed.replace([A])()
    (old,) = handed.bound().values()
    before = open_descriptors()

    hand_down(ours, handed)
    hand_down(ours, handed)
    handed.replace([A])()

    (new,) = handed.bound().values()
    assert new is not old
    assert not opened_since(before)


def test_what_is_let_go_closes_at_once(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A, B])
    hand_down(ours, handed)
    handed.replace([A, B])()

    handed.let_go([A.name, "tcp 127.0.0.9:9"])

    assert [listener.transport for listener in handed.bound()] == ["udp"]


def test_what_was_never_used_is_closed_too(ours: Sockets, handed: HandedSockets) -> None:
    ours.replace([A])
    before = open_descriptors()
    hand_down(ours, handed)

    handed.close_all()

    assert not opened_since(before)
