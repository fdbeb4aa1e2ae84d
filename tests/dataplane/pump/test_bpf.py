from __future__ import annotations

import errno
import os
import platform
import socket
import struct

import pytest

from streamgw.dataplane.pump import bpf
from streamgw.dataplane.pump.bpf import Maps, Unavailable
from tests.support.bridge import Way, skip_unless_possible
from tests.support.descriptors import open_descriptors, opened_since


@pytest.fixture
def kernel() -> None:
    skip_unless_possible(Way(in_kernel=True))


@pytest.mark.usefixtures("kernel")
def test_the_maps_are_made_and_given_back() -> None:
    before = open_descriptors()

    maps = Maps()
    assert len(maps.state.words) == bpf.SLOTS * bpf.STATE_BYTES / 8
    assert not any(maps.state.words[: 8 * 100])
    assert list(maps.bell.rung()) == []
    maps.close()

    assert not opened_since(before)


@pytest.mark.usefixtures("kernel")
def test_a_key_is_inserted_once_and_deleting_none_does_no_harm() -> None:
    maps = Maps()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as first,
        socket.create_connection(listening.getsockname()) as second,
    ):
        maps.peers.insert(7, first.fileno())
        with pytest.raises(FileExistsError):
            maps.peers.insert(7, second.fileno())
        maps.peers.delete(7)
        maps.peers.delete(7)
        maps.peers.insert(7, second.fileno())
    maps.close()


@pytest.mark.usefixtures("kernel")
def test_what_is_no_connected_socket_is_not_put_into_the_map() -> None:
    maps = Maps()
    with socket.socket() as sock, pytest.raises(OSError, match="not supported"):
        maps.peers.insert(1, sock.fileno())
    maps.close()


@pytest.mark.usefixtures("kernel")
def test_a_program_that_is_refused_is_refused_in_the_words_of_the_verifier() -> None:
    exit_without_a_result = struct.pack("=BBhi", 0x95, 0, 0, 0)

    with pytest.raises(Unavailable, match=r"cannot load the program: .*; the verifier says: .*R0 !read_ok"):
        bpf._load(exit_without_a_result)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("step", range(1, 6))
def test_whatever_step_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Three maps, the program, its attachment."""
    call, steps = bpf._call, iter(range(1, 6))

    def fail(command: int, attributes: bytes) -> int:
        if next(steps) == step:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return call(command, attributes)

    before = open_descriptors()
    monkeypatch.setattr(bpf, "_call", fail)

    with pytest.raises(
        Unavailable, match=r"cannot (make a map|load the program|attach the program): invalid"
    ):
        Maps()

    assert not opened_since(before)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("number", "what"), [(1, "state"), (2, "bell"), (3, "bell")])
def test_what_cannot_be_mapped_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    mmap, times = bpf.mmap.mmap, iter(range(1, 4))

    def fail(*args: int, **named: int) -> object:
        if next(times) == number:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return mmap(*args, **named)

    before = open_descriptors()
    monkeypatch.setattr(bpf.mmap, "mmap", fail)

    with pytest.raises(Unavailable, match=f"cannot map the {what}: Cannot allocate memory"):
        Maps()

    monkeypatch.undo()
    assert not opened_since(before)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_who_may_not_is_told_what_he_needs(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(_: int, __: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(bpf, "_call", refuse)

    with pytest.raises(Unavailable, match="cannot make a map: the process needs CAP_BPF and CAP_NET_ADMIN"):
        Maps()


def test_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    with pytest.raises(Unavailable, match="made for x86-64, and this is riscv64"):
        Maps()
