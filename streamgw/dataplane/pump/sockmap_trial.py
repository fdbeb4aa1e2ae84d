"""Whether this kernel does what `sockmap` rests on: asked of itself, at every start.

None of it is promised anywhere, and each of it was different once.
"""

from __future__ import annotations

import contextlib
import math
import platform
import re
import select
import socket
import time

from streamgw.dataplane.pump.bpf import Maps, Unavailable
from streamgw.dataplane.pump.sockmap import Lease

MIN_KERNEL = (6, 18)
"""The oldest one that the integrity tests were run on."""

_WORDS = b"streamgw" * 100
_TIMEOUT_S = 2.0


def open_maps() -> Maps:
    """The maps, on a kernel that has just shown that it does what this module rests on.

    Raises:
      Unavailable: it is too old, it may not be used, or it has failed the test.
    """
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    if found is None or (int(found[1]), int(found[2])) < MIN_KERNEL:
        raise Unavailable(
            f"it was tested on Linux {MIN_KERNEL[0]}.{MIN_KERNEL[1]}, and this is {platform.release()}"
        )
    maps = Maps()
    try:
        _test(maps)
    except OSError as error:
        maps.close()
        raise Unavailable(f"the self-test failed: {error}") from None
    except Unavailable:
        maps.close()
        raise
    return maps


def _test(maps: Maps) -> None:
    """A pair in the middle of two others, on loopback: bytes both ways, a credit that runs out, an EOF each way."""
    with contextlib.ExitStack() as stack:
        client, near = _loopback(stack)
        far, server = _loopback(stack)
        near.setblocking(False)
        far.setblocking(False)
        up, down = Lease(maps.state.words, near, far), Lease(maps.state.words, far, near)
        for lease, peer in ((up, far), (down, near)):
            stack.callback(lease.close)
            lease.open()
            maps.peers.insert(lease.slot, peer.fileno())
            stack.callback(maps.peers.delete, lease.slot)

        _expect(up.arm(near, 0.0, _ignore) and down.arm(far, 0.0, _ignore), "a lease was void at once")
        for speaker, listener, lease in ((client, server, up), (server, client, down)):
            speaker.sendall(_WORDS)
            _expect(_hear(listener, len(_WORDS)) == _WORDS, "redirected bytes did not arrive")
            _expect(lease.moved == len(_WORDS), "redirected bytes were not counted")

        _end(up, near, far)
        _expect(up.arm(near, 0.0, _ignore, credit_bytes=1), "a second lease was void at once")
        client.sendall(_WORDS)
        _wait(near, select.POLLIN)
        _expect(tuple(maps.bell.rung()) == (up.slot,) and up.is_void, "the bell did not ring")
        _end(up, near, far)
        _expect(near.recv(2 * len(_WORDS)) == _WORDS, "bytes beyond the credit did not come up")
        up.passed += far.send(_WORDS)
        _expect(_hear(server, len(_WORDS)) == _WORDS, "bytes did not arrive behind redirected ones")

        _expect(up.arm(near, 0.0, _ignore), "a third lease was void at once")
        for speaker, listener, lease, end, peer in (
            (client, server, up, near, far),
            (server, client, down, far, near),
        ):
            speaker.sendall(_WORDS)
            speaker.shutdown(socket.SHUT_WR)
            _wait(end, select.POLLRDHUP)
            _end(lease, end, peer)
            _expect(lease.is_at_end(end) and end.recv(1) == b"", "a FIN did not become an EOF")
            _expect(not peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "a FIN broke the other socket")
            peer.shutdown(socket.SHUT_WR)
            _expect(_hear(listener, 2 * len(_WORDS)) == _WORDS, "an EOF came early, or not at all")


def _loopback(stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = stack.enter_context(socket.create_connection(listening.getsockname(), _TIMEOUT_S))
        listening.settimeout(_TIMEOUT_S)
        far, _ = listening.accept()
    stack.enter_context(far)
    far.settimeout(_TIMEOUT_S)
    return near, far


def _ignore(_: int) -> None:
    """Nobody watches."""


def _hear(sock: socket.socket, most: int) -> bytes:
    """So many bytes, or what comes before EOF."""
    heard = b""
    while len(heard) < most and (chunk := sock.recv(most - len(heard))):
        heard += chunk
    return heard


def _wait(sock: socket.socket, events: int) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), events)
    _expect(bool(poll.poll(1000 * _TIMEOUT_S)), "a socket did not say that something had come")


def _end(lease: Lease, sock: socket.socket, peer: socket.socket) -> None:
    """Take a lease back. Blocks, for milliseconds: nothing else runs yet."""
    lease.end(sock, math.inf)
    until = time.monotonic() + _TIMEOUT_S
    while not lease.settle(peer):
        _expect(time.monotonic() < until, "redirected bytes were not sent")


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Unavailable(f"the self-test failed: {otherwise}")
