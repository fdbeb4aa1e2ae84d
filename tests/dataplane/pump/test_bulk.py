"""Pipes and their pool, on real sockets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from streamgw.dataplane.pump.bulk import MAX_IDLE_PIPES, MAX_PIPES, Pipe, Pipes


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.shrink()
    assert pipes.open == 0


def test_a_pipe_takes_what_waits_and_hands_it_on(
    pair: tuple[socket.socket, socket.socket], pipes: Pipes
) -> None:
    near, far = pair
    pipe = pipes.take()
    near.send(b"hello")

    assert pipe.fill(far.fileno()) == pipe.held == 5
    assert pipe.empty(far.fileno()) == 5
    assert pipe.held == 0
    assert near.recv(10) == b"hello"
    pipes.give(pipe)


def test_nothing_waiting_would_block_and_eof_is_zero(
    pair: tuple[socket.socket, socket.socket], pipes: Pipes
) -> None:
    near, far = pair
    pipe = pipes.take()
    with pytest.raises(BlockingIOError):
        pipe.fill(far.fileno())
    near.shutdown(socket.SHUT_WR)
    assert pipe.fill(far.fileno()) == 0
    pipes.give(pipe)


def test_a_socket_without_room_keeps_the_rest_in_the_pipe(
    pair: tuple[socket.socket, socket.socket], pipes: Pipes
) -> None:
    near, far = pair
    pipe = pipes.take()

    with contextlib.suppress(BlockingIOError):
        while True:  # what comes from near goes back to near, which reads nothing
            near.send(bytes(1 << 16))
            pipe.fill(far.fileno())
            while pipe.held:
                pipe.empty(far.fileno())
    assert pipe.held

    pipes.give(pipe)
    assert (pipes.open, pipes.idle) == (0, 0), "dirty: closed, not kept"


def test_an_empty_pipe_is_used_again(pipes: Pipes) -> None:
    pipe = pipes.take()
    pipes.give(pipe)
    assert pipes.take() is pipe
    assert pipes.open == 1
    pipes.give(pipe)


def test_the_pool_has_a_most_and_keeps_few(pipes: Pipes) -> None:
    taken: list[Pipe] = []
    while (pipe := pipes.take()) is not None:
        taken.append(pipe)
    assert len(taken) == MAX_PIPES

    for pipe in taken:
        pipes.give(pipe)
    assert pipes.open == pipes.idle == MAX_IDLE_PIPES
