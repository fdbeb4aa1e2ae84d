"""Addresses, words and remembered edges."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from streamgw.core.model import UNIX_HOST, Address
from streamgw.dataplane.pump.end import (
    EVENTS,
    PLAIN,
    Socket,
    address_of,
    close,
    words_for,
)
from tests.support.scripted_socket import ScriptedSocket, joined

IN, OUT, RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP


@pytest.mark.parametrize(
    ("sockaddr", "address"),
    [
        (("192.0.2.1", 80), Address("192.0.2.1", 80)),
        (("2001:db8::1", 80, 0, 0), Address("2001:db8::1", 80)),
        (("::ffff:192.0.2.1", 80, 0, 0), Address("192.0.2.1", 80)),
        (("fe80::1", 80, 0, 3), Address("fe80::1", 80)),
        (("fe80::1%eth0", 80, 0, 3), Address("fe80::1", 80)),
        (("::ffff:0", 80, 0, 0), Address("::ffff:0", 80)),
        ("", Address(UNIX_HOST, 0)),
        ("/run/x.sock", Address(UNIX_HOST, 0)),
        (b"\0abstract", Address(UNIX_HOST, 0)),
    ],
)
def test_what_the_kernel_calls_an_address(sockaddr: object, address: Address) -> None:
    assert address_of(sockaddr) == address


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ECONNREFUSED, "connection refused"),
        (errno.EHOSTUNREACH, "no route to host"),
        (errno.ETIMEDOUT, "connection timed out"),
        (errno.EPIPE, "connection reset by peer"),
        (errno.EMFILE, "too many open files"),
    ],
)
def test_errors_are_told_in_words(number: int, words: str) -> None:
    assert words_for(number) == words


def test_edges_are_remembered_until_they_are_acted_upon() -> None:
    end = Socket(ScriptedSocket(), is_client=True)
    seen = []
    for flags in (OUT, PLAIN, IN | RDHUP, IN | select.EPOLLHUP | select.EPOLLERR):
        end.note(flags)
        seen.append((end.writable, end.ready, end.thorough, end.broken))
    assert seen == [
        (True, False, False, False),
        (True, True, False, False),
        (True, True, True, False),
        (True, True, True, True),
    ]


def test_an_urgent_mark_ends_splicing_for_good() -> None:
    end = Socket(ScriptedSocket(), is_client=True)
    end.bulk = True
    end.note(IN | OUT | select.EPOLLPRI)
    assert (end.bulk, end.may_splice, end.thorough) == (False, False, True)


@pytest.mark.parametrize("oddity", ["stuck", "bulk", "eof", "queued"])
def test_the_fast_path_is_for_ends_with_nothing_out_of_the_ordinary(oddity: str) -> None:
    end, peer = joined(ScriptedSocket(), ScriptedSocket())
    assert end.fast
    assert peer.fast

    setattr(end, oddity, True)
    end.refresh()
    assert not end.fast
    # Only a stuck direction concerns both: the peer's events are what it waits for.
    assert peer.fast == (oddity != "stuck")


def test_closing_never_raises_whatever_became_of_the_socket() -> None:
    near, far = socket.socketpair()
    far.close()
    close(near, reset=True)
    close(near, reset=True)
    assert near.fileno() == -1


def test_session_sockets_are_registered_for_every_edge_that_matters() -> None:
    assert EVENTS & select.EPOLLET
    assert EVENTS & PLAIN == PLAIN
    assert EVENTS & RDHUP
    assert EVENTS & select.EPOLLPRI
