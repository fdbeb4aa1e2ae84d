"""How bytes move, where the kernel cannot be brought to do the thing at the right moment: sockets play a script.

Everything else about moving bytes is told on real sockets in tests/conformance/test_pump.py.
"""

from __future__ import annotations

import errno
import os
import select

import attrs
import pytest

from streamgw.core.errors import Reason
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.first_byte import FirstByte
from streamgw.dataplane.pump.move import TURN, WINDOW_BYTES, Mover
from streamgw.dataplane.pump.tls import TLSBroken
from tests.support.scripted_socket import Finished, ScriptedSocket, joined

RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
UNREACHABLE = OSError(errno.EHOSTUNREACH, "No route to host")
FULL = bytes(WINDOW_BYTES)


def test_a_short_read_is_the_last_one() -> None:
    client, upstream = ScriptedSocket(reads=[b"hello"]), ScriptedSocket()
    end, _ = joined(client, upstream)

    Mover(Finished()).relay_now(end)

    assert upstream.sent == b"hello"
    assert client.log == ["recv"]
    assert end.relay.meter.bytes_up == 5


def test_until_the_first_byte_neither_side_takes_the_fast_path() -> None:
    end, upstream = joined(ScriptedSocket(), ScriptedSocket())
    end.relay.first_byte = FirstByte(lambda _: None, 0.0)

    end.refresh()

    assert not end.fast
    assert not upstream.fast


def test_an_event_with_nothing_behind_it_does_no_harm() -> None:
    end, _ = joined(ScriptedSocket(), ScriptedSocket())
    finished = Finished()

    Mover(finished).relay_now(end)

    assert finished.endings == []
    assert end.fast


@pytest.mark.parametrize("copying", ["relay_now", "pull"])
@pytest.mark.parametrize(
    ("error", "detail"), [(RESET, "connection reset by peer"), (UNREACHABLE, "no route to host")]
)
def test_an_error_of_a_read_is_that_sides_reset(copying: str, error: OSError, detail: str) -> None:
    end, _ = joined(ScriptedSocket(), ScriptedSocket(reads=[error]))
    finished = Finished()

    getattr(Mover(finished), copying)(end.peer)

    assert finished.endings == [Ending(Reason.RESET, "upstream", detail)]


def test_an_error_of_a_write_is_the_reset_of_the_side_written_to() -> None:
    client = ScriptedSocket(reads=[b"hello"])
    end, _ = joined(client, ScriptedSocket(takes=[BrokenPipeError(errno.EPIPE, "Broken pipe")]))
    finished = Finished()

    Mover(finished).relay_now(end)

    assert finished.endings == [Ending(Reason.RESET, "upstream", "connection reset by peer")]


def test_an_error_while_flushing_is_the_reset_of_the_side_written_to() -> None:
    client, upstream = ScriptedSocket(reads=[b"hello"]), ScriptedSocket(takes=[0, RESET])
    end, peer = joined(client, upstream)
    finished = Finished()
    mover = Mover(finished)
    mover.relay_now(end)
    assert end.stuck

    mover.handle(peer, select.EPOLLOUT)

    assert finished.endings == [Ending(Reason.RESET, "upstream", "connection reset by peer")]


def test_an_error_of_a_half_close_is_the_reset_of_the_side_it_was_for() -> None:
    client = ScriptedSocket()
    client.reach_eof()
    error = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
    end, _ = joined(client, ScriptedSocket(shutdown_error=error))
    finished = Finished()

    Mover(finished).relay_now(end)

    assert finished.endings[0].side == "upstream"


def test_a_side_with_no_end_of_bytes_gets_a_turn_at_a_time() -> None:
    client = ScriptedSocket(endless=FULL)
    end, _ = joined(client, ScriptedSocket())
    mover = Mover(Finished(), splice_after=None)

    mover.pull(end)
    assert len(client.log) == TURN
    assert mover.take_queue() == [end]

    mover.resume(end)
    assert len(client.log) == 2 * TURN
    assert mover.queue


def test_a_turn_that_comes_when_the_direction_is_stuck_is_passed_up() -> None:
    client = ScriptedSocket(endless=FULL)
    end, _ = joined(client, ScriptedSocket())
    mover = Mover(Finished(), splice_after=None)
    mover.pull(end)
    end.stuck, end.pend = True, b"older bytes"
    client.log.clear()

    mover.resume(end)

    assert client.log == []


def test_a_turn_that_comes_after_the_end_of_its_pair_does_nothing() -> None:
    client = ScriptedSocket(endless=FULL)
    end, _ = joined(client, ScriptedSocket())
    finished = Finished()
    mover = Mover(finished, splice_after=None)
    mover.pull(end)
    finished(end.relay, Ending(Reason.KILLED))
    client.log.clear()

    mover.resume(end)

    assert client.log == []


def test_a_resumed_read_goes_on_to_the_eof_whose_edge_is_long_gone() -> None:
    client, upstream = ScriptedSocket(reads=[FULL] * TURN + [b"the end"]), ScriptedSocket()
    client.reach_eof()
    end, _ = joined(client, upstream)
    mover = Mover(Finished(), splice_after=None)
    mover.pull(end)

    for queued in mover.take_queue():
        mover.resume(queued)

    assert end.eof
    assert "shutdown" in upstream.log


def test_room_for_less_than_is_stuck_does_not_make_the_side_unheard() -> None:
    """One event: the upstream has a little room again, and something to say."""
    client, upstream = ScriptedSocket(reads=[b"a long request"]), ScriptedSocket(takes=[2, 3])
    end, peer = joined(client, upstream)
    mover = Mover(Finished())
    mover.relay_now(end)
    upstream.reads = [b"hurry"]
    peer.note(select.EPOLLIN | select.EPOLLOUT)

    mover.handle(peer, select.EPOLLIN | select.EPOLLOUT)

    assert upstream.sent == b"a lon"
    assert end.stuck
    assert client.sent == b"hurry"


def test_what_is_stuck_goes_before_what_is_read_later() -> None:
    client, upstream = ScriptedSocket(reads=[FULL, b"later"]), ScriptedSocket(takes=[10, 0])
    end, peer = joined(client, upstream)
    mover = Mover(Finished(), splice_after=None)
    mover.relay_now(end)
    assert (end.stuck, end.fast, peer.fast) == (True, False, False)

    mover.handle(peer, select.EPOLLOUT)
    assert len(upstream.sent) == 10
    mover.handle(peer, select.EPOLLOUT)
    for queued in mover.take_queue():
        mover.resume(queued)

    assert upstream.sent == FULL + b"later"
    assert end.pend == b""
    assert (end.fast, peer.fast) == (True, True)


def test_a_socket_that_cannot_be_spliced_is_copied() -> None:
    """No descriptor behind it: splice(2) says EBADF, which is a reset; a Unix socket of old kernels says EINVAL."""
    reader, writer = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    try:
        client = ScriptedSocket(reads=[b"copied"], number=directory)
        upstream = ScriptedSocket(number=writer)
        end, _ = joined(client, upstream)
        end.bulk = True
        mover = Mover(Finished())

        mover.pull(end)

        assert upstream.sent == b"copied"
        assert not end.may_splice
        assert mover.pipes.idle == mover.pipes.open == 1
        mover.pipes.shrink()
    finally:
        for fd in (reader, writer, directory):
            os.close(fd)


# A TLS end, whose TLS is a script too: what OpenSSL does is told in test_tls.py


@attrs.define
class ScriptedTLS:
    """Opens and seals nothing, and has something to say of its own."""

    own_words: bytes = b""
    flooded: bool = False
    seal_error: TLSBroken | None = None
    more: bool = False

    def receive(self, sock: ScriptedSocket, _cipher: memoryview, plain: memoryview) -> int | None:
        return sock.recv_into(plain) or None

    def seal(self, plain: memoryview) -> bytes:
        if self.seal_error is not None:
            raise self.seal_error
        return bytes(plain)

    @property
    def has_replies(self) -> bool:
        return bool(self.own_words)

    def replies(self) -> bytes:
        words, self.own_words = self.own_words, b""
        return words


def test_what_openssl_says_of_its_own_accord_goes_to_that_end_and_is_not_counted() -> None:
    client, upstream = ScriptedSocket(reads=[b"question"]), ScriptedSocket()
    end, _ = joined(client, upstream)
    end.tls = ScriptedTLS(own_words=b"<refused>")

    Mover(Finished()).pull(end)

    assert client.sent == b"<refused>"
    assert upstream.sent == b"question"
    assert (end.relay.meter.bytes_up, end.relay.meter.bytes_down) == (8, 0)


def test_openssl_does_not_speak_in_the_middle_of_a_record_that_is_stuck() -> None:
    client, upstream = ScriptedSocket(reads=[b"question"], takes=[5, 0]), ScriptedSocket(reads=[b"an answer"])
    end, peer = joined(client, upstream)
    end.tls = ScriptedTLS()
    mover = Mover(Finished())
    mover.relay_now(peer)
    assert peer.stuck
    assert end.relay.meter.bytes_down == 5

    end.tls.own_words = b"<refused>"
    mover.pull(end)

    assert client.sent == b"an an"
    assert end.tls.own_words == b"<refused>"


def test_whoever_asks_and_never_reads_is_cut_off() -> None:
    client = ScriptedSocket(reads=[b"?"])
    end, _ = joined(client, ScriptedSocket())
    end.tls = ScriptedTLS(own_words=b"<refused>" * 10_000, flooded=True)
    finished = Finished()

    Mover(finished).pull(end)

    assert finished.endings == [Ending(Reason.RESET, "client", "asked for more answers than it read")]


def test_what_cannot_be_sealed_any_more_is_the_reset_of_the_side_it_was_for() -> None:
    end, peer = joined(ScriptedSocket(), ScriptedSocket(reads=[b"an answer"]))
    end.tls = ScriptedTLS(seal_error=TLSBroken(errno.EPROTO, "protocol is shutdown"))
    finished = Finished()

    Mover(finished).relay_now(peer)

    assert finished.endings == [Ending(Reason.RESET, "client", "protocol is shutdown")]


def test_dropping_an_end_forgets_its_bytes_and_closes_its_dirty_pipe() -> None:
    end, _ = joined(ScriptedSocket(), ScriptedSocket())
    mover = Mover(Finished())
    end.pend = b"unsent"
    end.pipe = mover.pipes.take()
    end.pipe.held = 1

    mover.drop(end)

    assert (end.pend, end.pipe, end.fast) == (b"", None, False)
    assert mover.pipes.open == 0
