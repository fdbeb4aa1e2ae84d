"""What the supervisor and one worker say to each other, over one Unix stream socket pair.

Three kinds of frames: a question, its answer, and news, for which nobody answers. A frame is four bytes of length (big-endian)
and one JSON object. Descriptors travel with the frame that names their number: they arrive with its first byte (unix(7),
SCM_RIGHTS), and the kernel never hands out those of two frames at once, so groups of them are matched to frames in order.

Questions run side by side, each in a task of its own; news are told in the order in which they were sent.
"""

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import json
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import cast

import attrs
import structlog
import trio

from streamgw.core.errors import ConfigError, Problem, StreamgwError

Answer = Callable[[str, Mapping[str, object]], Awaitable[object]]
Heard = Callable[[str, Mapping[str, object], tuple[int, ...]], None]

MAX_FRAME_BYTES = 64 << 20
"""More than 100,000 sessions in one answer. Whoever can, asks for less at a time: one frame is read and written in one go."""
MAX_FDS = 250
"""With one frame; the kernel's limit is 253 (SCM_MAX_FD)."""
MAX_QUESTIONS = 64
"""Under way at a time, from one side. Further ones wait for their turn."""
MAX_NEWS = 1_000
"""Not sent yet. What comes on top is dropped, and counted."""
MAX_NEWS_BYTES = 8 << 20
"""Of them all."""

_NOTHING: Mapping[str, object] = {}
_READ_BYTES = 1 << 18
_HEADER_BYTES = 4


class ChannelClosed(StreamgwError):
    """The other process is gone, or has closed its side: no answer will come."""


class Refused(StreamgwError):
    """What the other side answered to a question: its error, in its words."""


@attrs.define(eq=False)
class _Frame:
    """Not sent yet, or half-way."""

    payload: bytes
    fds: tuple[int, ...]
    """Duplicates: the caller may close its own at once."""
    is_news: bool = False


@attrs.define(eq=False)
class _Question:
    """Somebody waits for its answer."""

    answered: trio.Event = attrs.Factory(trio.Event)
    value: object = None
    error: StreamgwError | None = None


class Channel:
    """One end.

    Args:
      sock: of a pair; its blocking mode does not matter.
      answer: asked what the other side asks. A StreamgwError that it raises is raised there, by `ask`. Descriptors that come
        with a question stand in its arguments as `fds`, a tuple.
      heard: told the news. Must not block or raise.

    Resource handling:
      Owns `sock`, and closes it when `run` ends, or by `close`. Descriptors belong to whoever `answer` or `heard` is, from the
      moment of the call; those of a frame that cannot be handed over are closed here.
    """

    def __init__(self, sock: socket.socket, *, answer: Answer, heard: Heard) -> None:  # noqa: TID251  a type
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._answer = answer
        self._heard = heard
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Question] = {}
        self._turns = trio.Semaphore(MAX_QUESTIONS)
        self._queue: deque[_Frame] = deque()
        self._queued = trio.Event()
        self._news = self._news_bytes = 0
        self._is_closed = False
        self.dropped = 0
        """News that were never sent."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send and receive until the other side is gone, or the kernel refuses to go on. Then every question under way raises ChannelClosed.

        Cancellation:
          The same; what was told last may not have been sent.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                task_status.started()
                await self._read(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket: the other side's `run` returns. May be called again."""
        self._is_closed = True
        self._sock.close()
        while self._queue:
            _close_all(self._queue.popleft().fds)
        for number in [*self._waiting]:
            self._wake(number, None, ChannelClosed("the other process is gone"))

    async def ask(
        self, what: str, arguments: Mapping[str, object] = _NOTHING, *, fds: Sequence[int] = ()
    ) -> object:
        """Ask the other side, and wait for its answer: plain JSON data there and back. Bring a deadline.

        The caller may close its descriptors meanwhile.

        Raises:
          ChannelClosed: there is no other side (any more).
          ConfigError: the other side raised one.
          Refused: it raised another StreamgwError; or the question or its answer is too long, or its descriptors got lost.

        Cancellation:
          The question may have been received; its answer will be dropped.
        """
        # Whoever cancelled the caller may have closed the descriptors already.
        await trio.lowlevel.checkpoint_if_cancelled()
        ours = _duplicates(fds)  # when its turn comes, the caller's may be closed
        try:
            async with self._turns:
                if self._is_closed:
                    raise ChannelClosed("the other process is gone")
                number = next(self._numbers)
                message = {"ask": number, "what": what, "with": arguments, "fds": len(fds)}
                frame, ours = self._put(_packed(message), ours), ()
                question = self._waiting[number] = _Question()
                try:
                    await question.answered.wait()
                finally:
                    self._waiting.pop(number, None)
                    self._take_back(frame)
                if question.error is not None:
                    raise question.error
                return question.value
        finally:
            _close_all(ours)

    def tell(self, what: str, data: Mapping[str, object], *, fds: Sequence[int] = ()) -> None:
        """Send news, some time soon. Never waits: what has no room is dropped and counted, as is what comes after the end."""
        payload = _packed({"tell": what, "with": data, "fds": len(fds)})
        size = len(payload)
        if self._is_closed or self._news >= MAX_NEWS or self._news_bytes + size > MAX_NEWS_BYTES:
            self.dropped += 1
            return
        ours: tuple[int, ...] = ()
        try:
            ours = _duplicates(fds)
            self._put(payload, ours).is_news = True
        except Refused:
            _close_all(ours)
            self.dropped += 1
        else:
            self._news += 1
            self._news_bytes += size

    def _put(self, payload: bytes, fds: tuple[int, ...] = ()) -> _Frame:
        """Have it sent, and take over the descriptors. Raises Refused: both are still the caller's."""
        if len(payload) > MAX_FRAME_BYTES or len(fds) > MAX_FDS:
            raise Refused(f"a message of {len(payload)} bytes and {len(fds)} descriptors is too long")
        frame = _Frame(payload, fds)
        self._queue.append(frame)
        self._queued.set()
        return frame

    def _take_back(self, frame: _Frame) -> None:
        """Unless it is being sent: half a frame cannot be taken back."""
        with contextlib.suppress(ValueError):
            self._queue.remove(frame)
            _close_all(frame.fds)

    async def _write(self) -> None:
        while True:
            while not self._queue:  # also when woken: what was queued may have been taken back
                self._queued = trio.Event()
                await self._queued.wait()
            frame = self._queue.popleft()
            if frame.is_news:
                self._news -= 1
                self._news_bytes -= len(frame.payload)
            try:
                await self._send(frame)
            except (OSError, trio.ClosedResourceError):
                # The other side is gone; or the kernel has no memory for half of a frame that was begun. A worker that nobody
                # can talk to is replaced.
                self.close()
                return
            finally:
                _close_all(frame.fds)

    async def _send(self, frame: _Frame) -> None:
        view = memoryview(len(frame.payload).to_bytes(_HEADER_BYTES) + frame.payload)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", frame.fds))] if frame.fds else []
        while view:
            sent = await self._sock.sendmsg([view], rights)
            view, rights = view[sent:], []

    async def _read(self, nursery: trio.Nursery) -> None:
        buffer = bytearray()
        groups: deque[list[int]] = deque()
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            while True:
                try:
                    chunk, ancillary, flags, _ = await self._sock.recvmsg(
                        _READ_BYTES, room, socket.MSG_CMSG_CLOEXEC
                    )
                except (OSError, trio.ClosedResourceError):
                    return
                arrived = _descriptors(ancillary)
                if arrived or flags & socket.MSG_CTRUNC:  # cut: this process has no descriptor left
                    groups.append(arrived)
                if not chunk:
                    return
                buffer += chunk
                for message in _frames(buffer):
                    self._on_message(message, groups, nursery)
        finally:
            for group in groups:
                _close_all(group)

    def _on_message(
        self, message: Mapping[str, object], groups: deque[list[int]], nursery: trio.Nursery
    ) -> None:
        if "answer" in message:
            number = cast("int", message["answer"])
            error = message.get("error")
            self._wake(number, message.get("value"), None if error is None else _error_of(error))
            return
        fds = groups.popleft() if message["fds"] else []
        is_whole = len(fds) == message["fds"]
        if not is_whole:
            _close_all(fds)
        arguments = cast("dict[str, object]", message["with"])
        if "ask" in message:
            number, what = cast("int", message["ask"]), cast("str", message["what"])
            if not is_whole:
                self._put(_packed({"answer": number, "error": {"text": os.strerror(errno.EMFILE).lower()}}))
                return
            if fds:
                arguments["fds"] = tuple(fds)
            nursery.start_soon(self._reply, number, what, arguments)
        elif is_whole:
            self._heard(cast("str", message["tell"]), arguments, tuple(fds))

    async def _reply(self, number: int, what: str, arguments: Mapping[str, object]) -> None:
        """The boundary of a question: an error of ours does not end the process that was asked."""
        try:
            value = await self._answer(what, arguments)
            self._put(_packed({"answer": number, "value": value}))
        except StreamgwError as error:
            self._put(_packed({"answer": number, "error": _data_of(error)}))
        except Exception as error:  # noqa: BLE001  a bug in answering is told, and ends nothing
            structlog.get_logger().exception("bug", phase="channel", question=what)
            self._put(
                _packed({"answer": number, "error": {"text": f"bug while answering {what}: {error!r}"}})
            )

    def _wake(self, number: int, value: object, error: StreamgwError | None) -> None:
        """An answer that nobody waits for any more is dropped."""
        question = self._waiting.pop(number, None)
        if question is not None:
            question.value, question.error = value, error
            question.answered.set()


def _packed(message: Mapping[str, object]) -> bytes:
    """With everything but ASCII escaped: also what is no Unicode (a path of odd bytes) arrives as it was."""
    return json.dumps(message, separators=(",", ":")).encode()


def _frames(buffer: bytearray) -> Iterator[Mapping[str, object]]:
    """Take every whole frame out of the buffer."""
    while len(buffer) >= _HEADER_BYTES:
        end = _HEADER_BYTES + int.from_bytes(buffer[:_HEADER_BYTES])
        if len(buffer) < end:
            return
        payload = bytes(buffer[_HEADER_BYTES:end])
        del buffer[:end]
        yield json.loads(payload)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401  what was made is closed when one fails
    except OSError as error:
        _close_all(made)
        raise Refused(f"cannot pass a descriptor: {error}") from error
    return tuple(made)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _data_of(error: StreamgwError) -> Mapping[str, object]:
    if isinstance(error, ConfigError):
        return {"problems": [attrs.astuple(problem) for problem in error.problems]}
    return {"text": str(error)}


def _error_of(data: object) -> StreamgwError:
    data = cast("Mapping[str, object]", data)
    problems = cast("Sequence[Sequence[object]]", data.get("problems", ()))
    if not problems:
        return Refused(data["text"])
    return ConfigError(
        tuple(_problem(*cast("tuple[str, int, int, str, str, str]", each)) for each in problems)
    )


def _problem(file: str, line: int, column: int, pointer: str, message: str, error_msg: str) -> Problem:
    return Problem(file, line, column, pointer, message, error_msg=error_msg)
