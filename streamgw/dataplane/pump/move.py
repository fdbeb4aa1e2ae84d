"""How the bytes of a pair move: by copy, by splice once a direction is bulk, and what ends them.

Constitution of this module, each rule paid for (performance notes, § 4):

1. Edges come once. Whoever stops reading before EAGAIN leaves `ready` set, and whoever resumes reads as if a FIN had
   been announced (`thorough`): the edge that announced it may be long gone.
2. A direction that is `stuck` is not read, by anybody. New bytes must never overtake the ones in `pend` or `pipe`.
3. Every OSError of a socket ends its own pair and names that socket's side. Nothing is raised through the loop.
4. What goes towards a TLS end goes through `_hand_on`, in the order in which OpenSSL sealed it: a record in between, or
   a byte less, and the peer can open nothing any more.
5. After `finish` was called for a pair none of its ends is touched again: methods that may finish return False.

Longer than other files: copy, splice and TLS are three ways through one state (`ready`, `stuck`, `eof`), and rule 2 is
only kept by code that sees all of them. What TLS does to bytes is `tls`; pipes are `bulk`.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable

import trio

from streamgw.core.bucket import Gate
from streamgw.core.errors import Reason
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.pump.bulk import Pipes
from streamgw.dataplane.pump.end import Relay, Socket, words_for
from streamgw.dataplane.pump.first_byte import FirstByte
from streamgw.dataplane.pump.tls import CIPHER_BYTES, TLSBroken, TLSLayer, Truncated

WINDOW_BYTES = 64 * 1024
"""The shared read buffer, and so the most that is held in user space per direction for a slow reader. A bulk direction
holds up to `bulk.PIPE_BYTES` in a pipe instead."""
TURN = 4
"""Buffers or splices that one direction may move before it is somebody else's turn."""
SPLICE_AFTER = 4
"""Full buffers in a row that make a direction bulk."""
PARTING_S = 5.0
"""A TLS peer that was told close_notify may go on (RFC 8446 § 6.1) until nothing has moved for so long. Most answer at
once; of those that do not, most have left their end in a pool and will never look."""
TRUNCATED_S = 1.0
"""After a FIN without close_notify the other side gets no EOF, and a reset once nothing has moved for so long. Ending by
itself meanwhile it was told no lie, and the session is CLOSED: clients that say QUIT in their own protocol and just
close are many (MySQL, SMTP)."""
COPY_AFTER = 4
"""Splices in a row of less than a buffer that end a bulk phase: three calls for what recv and send do in two."""

_CLOSED = Ending(Reason.CLOSED)
_TRUNCATED = "ended without close_notify"
_CANNOT_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class Mover:
    """Moves bytes between the ends of relays. Owns the read buffer, the pipes, and the queue of unfinished turns.

    Args:
      finish: called at most once per relay with how it ended; closes both ends.
      splice_after: full buffers in a row before a direction is spliced; None never splices.
    """

    def __init__(
        self, finish: Callable[[Relay, Ending], None], *, splice_after: int | None = SPLICE_AFTER
    ) -> None:
        self._finish = finish
        self._splice_after = splice_after if splice_after is not None else 1 << 62
        self._buffer = bytearray(WINDOW_BYTES)
        self._view = memoryview(self._buffer)
        self._cipher = memoryview(bytearray(CIPHER_BYTES))
        self.queue: list[Socket] = []
        """Those whose turn was over before their bytes were: while there are any, do not block."""
        self.pipes = Pipes()
        self.splices = 0

    def relay_now(self, end: Socket) -> None:
        """The fast path: a PLAIN event of an end that is `fast`. One read, one write, no second thought.

        A short read has drained the socket: nothing was flagged that could stand behind the bytes, and what arrives
        later makes a new edge (epoll(7), "Do I need to continuously read…").
        """
        try:
            count = end.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.reset(end, error)
            return
        if 0 < count < WINDOW_BYTES:
            end.ready = False
            end.full = 0
            self._send(end, count)
        elif count:
            end.ready = True
            end.full = 1
            if self._send(end, count):
                self.pull(end)
        else:
            self._reached_eof(end)

    def handle(self, end: Socket, flags: int) -> None:
        """Any other event, already noted in the end."""
        peer = end.peer
        assert peer is not None
        if flags & select.EPOLLOUT and peer.stuck:
            self._flush(peer)
            if end.relay is None:
                return
        if end.ready and not (end.stuck or end.queued or end.eof):
            self.pull(end)
        elif end.broken and not end.queued:
            # It is not going to be read, so nobody else would notice. What it still has to say is cut off: a truncated
            # stream must look truncated.
            self._check(end)

    def pull(self, end: Socket) -> None:
        """Move what an end has to say to its peer until nothing is left, the peer is full, or the turn is over."""
        relay = end.relay
        assert relay is not None
        if end.gate is not None:
            self.pull_through(end, end.gate)
        else:
            for _ in range(TURN):
                if not (self._splice(end) if end.bulk else self._copy(end)):
                    break
            else:
                end.queued = True
                end.refresh()
                self.queue.append(end)
        if relay.first_byte is not None:
            self._look_for_first_byte(relay, relay.first_byte)

    def _look_for_first_byte(self, relay: Relay, first_byte: FirstByte) -> None:
        """After a turn; it may have ended the pair."""
        if not first_byte.has_come(relay.meter, trio.current_time()) and not relay.held_back:
            return
        relay.first_byte = None
        if not relay.over:
            relay.client.refresh()

    def pull_through(self, end: Socket, gate: Gate) -> None:
        """The same for an end with a gate: `throttle.GatedMover` minds it."""
        raise NotImplementedError

    def take_queue(self) -> list[Socket]:
        """Those who did not finish their last turn, each to be given to `resume` once."""
        queue, self.queue = self.queue, []
        return queue

    def resume(self, end: Socket) -> None:
        """Another turn for an end from the queue, if it still has something to say and room to say it."""
        end.queued = False
        if end.relay is None:
            return
        end.refresh()
        if not (end.stuck or end.eof):
            end.thorough = True
            self.pull(end)

    def start(self, relay: Relay) -> None:
        """The upstream's connect has completed: send the preface, then what either side said meanwhile."""
        client, upstream = relay.client, relay.upstream
        relay.connecting = False
        if client.tls is not None or upstream.tls is not None:
            client.may_splice = upstream.may_splice = False
        if upstream.preface:
            client.pend, relay.uncounted = upstream.preface, len(upstream.preface)
            client.stuck = not self._flush_pend(client)
            if relay.over:
                return
        client.refresh()
        for end in (client, upstream):
            if not relay.over and end.ready and not (end.stuck or end.queued):
                self.pull(end)

    def drop(self, end: Socket) -> None:
        """Forget what an end has in flight, on its way out. A dirty pipe never returns to the pool."""
        if end.gate is not None:
            self.drop_gate(end, end.gate)
        end.fast = False
        end.pend = b""
        if end.pipe is not None:
            self.pipes.give(end.pipe)
            end.pipe = None

    def drop_gate(self, end: Socket, gate: Gate) -> None:
        """What an end with a gate leaves behind there."""
        raise NotImplementedError

    def reset(self, end: Socket, error: OSError) -> None:
        """End the pair because of what the kernel says about one of its sockets."""
        assert end.relay is not None
        if isinstance(error, TLSBroken):
            words = str(error.strerror)
        else:
            words = _TRUNCATED if end.truncated else words_for(error.errno or 0)
        self._finish(end.relay, Ending(Reason.RESET, end.side, words))

    def _check(self, end: Socket) -> bool:
        """End the pair if its socket has an error pending. True: it is well.

        A TLS end that has said close_notify is well: nobody can have cut it off. Clients that only write do this all
        the time: closing over the session tickets that they never read (TLS 1.3) makes their FIN an RST.
        """
        number = end.error()
        if number and end.tls is not None and end.eof and not end.truncated:
            return True
        if number:
            self.reset(end, OSError(number, ""))
        return not number

    def _copy(self, end: Socket) -> bool:
        """Move one buffer. True: there may be more."""
        if end.tls is not None:
            return self._open(end, end.tls)
        try:
            count = end.sock.recv_into(self._buffer)
        except BlockingIOError:
            end.ready = end.thorough = False
            return False
        except OSError as error:
            self.reset(end, error)
            return False
        if not count:
            self._reached_eof(end)
            return False
        if count < WINDOW_BYTES:
            end.full = 0
            end.ready = end.thorough
            return self._send(end, count) and end.thorough
        end.full += 1
        if end.full >= self._splice_after and end.may_splice:
            end.bulk = True
            end.short = 0
            end.fast = False
        return self._send(end, count)

    def _open(self, end: Socket, tls: TLSLayer) -> bool:
        """Move one buffer out of a TLS end. True: there may be more."""
        try:
            count = tls.receive(end.sock, self._cipher, self._view)
        except BlockingIOError:
            end.ready = end.thorough = False
            return False
        except Truncated:
            self._truncated(end)
            return False
        except OSError as error:
            self.reset(end, error)
            return False
        if tls.has_replies and not self._reply(end, tls):
            return False
        if count is None:
            return True
        if not count:
            self._reached_eof(end)
            return False
        end.ready = more = end.thorough = end.thorough or tls.more
        return self._send(end, count) and more

    def _reply(self, end: Socket, tls: TLSLayer) -> bool:
        """Send what OpenSSL itself has to say to an end. False: the pair is over."""
        peer = end.peer
        assert peer is not None
        if tls.flooded:
            self.reset(end, TLSBroken(errno.EPROTO, "asked for more answers than it read"))
        elif not (peer.stuck or peer.done):
            self._hand_on(peer, tls.replies(), 0)
        return end.relay is not None

    def _send(self, end: Socket, count: int) -> bool:
        """Hand the first `count` bytes of the buffer to the peer, keeping what it has no room for. True: all went."""
        peer, relay = end.peer, end.relay
        assert peer is not None
        assert relay is not None
        if peer.tls is not None:
            return self._seal(end, peer.tls, count)
        try:
            sent = peer.sock.send(self._view[:count])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.reset(peer, error)
            return False
        if end.is_client:
            relay.meter.bytes_up += sent
        else:
            relay.meter.bytes_down += sent
        if sent == count:
            return True
        end.pend = bytes(self._view[sent:count])
        self._stick(end)
        return False

    def _seal(self, end: Socket, tls: TLSLayer, count: int) -> bool:
        """`_send` towards a TLS end."""
        try:
            sealed = tls.seal(self._view[:count])
        except TLSBroken as error:
            assert end.peer is not None
            self.reset(end.peer, error)
            return False
        return self._hand_on(end, sealed, count)

    def _hand_on(self, end: Socket, sealed: bytes, owed: int) -> bool:
        """Hand ciphertext to the peer (`owed` bytes of plain text), keeping what it has no room for. True: all went."""
        if not sealed:
            return True
        end.pend, end.owed = sealed, owed
        if self._flush_pend(end):
            return True
        if end.relay is not None:
            self._stick(end)
        return False

    def _splice(self, end: Socket) -> bool:
        """Move up to a pipe's worth. True: there may be more."""
        pipe = self.pipes.take()
        if pipe is None:
            end.full = 0
            self._leave_bulk(end)
            return self._copy(end)
        try:
            count = pipe.fill(end.fd)
        except OSError as error:
            self.pipes.give(pipe)
            return self._not_spliced(end, error)
        end.pipe = pipe
        self.splices += 1
        if not count:
            self._reached_eof(end)
            return False
        end.short = end.short + 1 if count < WINDOW_BYTES else 0
        if not self._empty_pipe(end):
            return False
        if end.short >= COPY_AFTER:
            end.full = 0
            self._leave_bulk(end)
        return True

    def _not_spliced(self, end: Socket, error: OSError) -> bool:
        """Nothing came out of the socket: there was nothing, it cannot be spliced, or it is broken."""
        if isinstance(error, BlockingIOError):
            end.ready = end.thorough = False
            return False
        if error.errno in _CANNOT_SPLICE:
            end.may_splice = False
            self._leave_bulk(end)
            return True
        self.reset(end, error)
        return False

    def _leave_bulk(self, end: Socket) -> None:
        end.bulk = False
        end.refresh()

    def _empty_pipe(self, end: Socket) -> bool:
        """Hand the pipe's bytes to the peer. True: all went, and the pipe is back in the pool."""
        pipe, peer, relay = end.pipe, end.peer, end.relay
        assert pipe is not None
        assert peer is not None
        assert relay is not None
        while pipe.held:
            try:
                moved = pipe.empty(peer.fd)
            except BlockingIOError:
                self._stick(end)
                return False
            except OSError as error:
                self.reset(peer, error)
                return False
            if end.is_client:
                relay.meter.bytes_up += moved
            else:
                relay.meter.bytes_down += moved
        end.pipe = None
        self.pipes.give(pipe)
        return True

    def _stick(self, end: Socket) -> None:
        end.stuck = True
        end.refresh()

    def _flush(self, end: Socket) -> bool:
        """The peer has room again: hand on what is stuck. True: the direction flows again."""
        if end.pipe is not None:
            if not self._empty_pipe(end):
                return False
        elif not self._flush_pend(end):
            return False
        end.stuck = False
        end.refresh()
        if end.eof:
            self._half_close(end)  # it was the close_notify that had no room
            return end.relay is not None
        if end.ready and not end.queued:
            # Not pulled at once: whoever flushed may still have a turn of its own to do.
            end.queued = True
            end.refresh()
            self.queue.append(end)
        return True

    def _flush_pend(self, end: Socket) -> bool:
        peer, relay = end.peer, end.relay
        assert peer is not None
        assert relay is not None
        try:
            sent = peer.sock.send(end.pend)
        except BlockingIOError:
            return False
        except OSError as error:
            self.reset(peer, error)
            return False
        if peer.tls is not None:
            self._settle(end, relay, sent)
            return not end.pend
        end.pend = memoryview(end.pend)[sent:]
        if end.is_client:
            preface = min(sent, relay.uncounted)
            relay.uncounted -= preface
            relay.meter.bytes_up += sent - preface
        else:
            relay.meter.bytes_down += sent
        if end.pend:
            return False
        end.pend = b""
        return True

    def _settle(self, end: Socket, relay: Relay, sent: int) -> None:
        """Count what part of a sealed `pend` has gone, in plain text: a slow reader is not an idle one."""
        total = len(end.pend)
        moved = end.owed * sent // total if total else 0
        end.owed -= moved
        if end.is_client:
            relay.meter.bytes_up += moved
        else:
            relay.meter.bytes_down += moved
        end.pend = b"" if sent == total else memoryview(end.pend)[sent:]

    def _truncated(self, end: Socket) -> None:
        """Read 0 from a TLS end that has not said close_notify: whoever cut it off must not pass for its end."""
        peer, relay = end.peer, end.relay
        assert peer is not None
        assert relay is not None
        end.eof = end.truncated = True
        end.ready = False
        end.refresh()
        if end.broken and not self._check(end):
            return
        if peer.done:
            # What it said was answered, and it was told so: nobody waits for more.
            self._finish(relay, _CLOSED)
        elif peer.truncated:
            self.reset(end, TLSBroken(errno.EPROTO, _TRUNCATED))
        else:
            relay.expect_end(TRUNCATED_S, Ending(Reason.RESET, end.side, _TRUNCATED))

    def _reached_eof(self, end: Socket) -> None:
        """Read 0: the end will say no more. Everything before it was handed on, or it would not have been read."""
        end.eof = True
        end.ready = end.bulk = False
        if end.pipe is not None:
            self.pipes.give(end.pipe)
            end.pipe = None
        end.fast = False  # all that `refresh` would find: what its peer may do is the same as before
        # A FIN and then a reset read as a clean EOF (tcp_recvmsg looks at SOCK_DONE before sk_err).
        if not end.broken or self._check(end):
            self._half_close(end)

    def _half_close(self, end: Socket) -> None:
        """Pass an EOF on; the second one closes the pair."""
        peer, relay = end.peer, end.relay
        assert peer is not None
        assert relay is not None
        if peer.tls is not None and not self._hand_on(end, peer.tls.farewell(), 0):
            return  # `_flush` comes back, if anybody does
        end.done = True
        if peer.done or peer.truncated:
            # close(2) sends this FIN: one system call less than shutdown(2) and close.
            self._finish(relay, _CLOSED)
            return
        try:
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.reset(peer, error)
            return
        if peer.tls is not None:
            words = f"the {peer.side} did not answer close_notify"
            relay.expect_end(PARTING_S, Ending(Reason.CLOSED, None, words))
