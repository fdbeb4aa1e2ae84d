"""One worker process, from its birth to its end, as the supervisor knows it."""

from __future__ import annotations

import base64
import os
import pickle
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import attrs
import trio

import streamgw
from streamgw.config.compile import FileTree
from streamgw.config.settings import Settings
from streamgw.core.errors import StreamgwError
from streamgw.core.model import Listener
from streamgw.process.channel import MAX_FDS, Channel
from streamgw.process.members import There

FOLLOW_S = 15.0
"""A worker that takes longer to do what it is told is stuck: it is killed, and replaced."""
LOOK_S = 2.0
SILENT_LOOKS = 8
"""A worker that lets so many questions in a row go without an answer, LOOK_S each, is stuck as well. Not one long wait: after a
pause of the whole gateway (a frozen container) its end would be there before any answer."""
FAREWELL_S = 10.0
"""From the end of the channel to the end of the process: the last lines of the access log are written."""
_PACKAGE_PARENT = str(Path(streamgw.__file__).parent.parent)


Answer = Callable[["Process", str, Mapping[str, object]], Awaitable[object]]
Heard = Callable[["Process", str, Mapping[str, object]], None]


@attrs.define(eq=False)
class Process:
    """One of them. There may be two in a slot: while one replaces the other."""

    number: int
    """Its slot, from 0."""
    settings: Settings
    """What it goes by: its share."""
    answer: Answer
    """Asked what it asks."""
    heard: Heard
    """Told what it tells. Must not block or raise."""
    seat: int = 0
    """In the ledger."""
    exit_code: int | None = None
    """Once it has ended; negative: the signal that killed it."""
    started_at: float = 0.0
    ended: trio.Event = attrs.Factory(trio.Event)
    channel: Channel = attrs.field(init=False)
    member: There = attrs.field(init=False)
    """As the fleet knows it. There is none before it runs."""
    attended: trio.CancelScope = attrs.Factory(trio.CancelScope)
    """For whoever looks after it while it lives."""
    _theirs: socket.socket | None = attrs.field(init=False)  # noqa: TID251  one end of a pair
    _given: dict[str, socket.socket] = attrs.Factory(dict)  # noqa: TID251  a type
    """Listening sockets, by name, that it has copies of."""
    _child: trio.Process | None = None

    def __attrs_post_init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        self.channel = Channel(ours, answer=self._answer, heard=self._on_news)

    @property
    def pid(self) -> int:
        """Of the program, once it runs."""
        return self.member.pid

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the program, and return when it has ended, whoever has ended it.

        Raises:
          OSError: the program cannot be started.

        Cancellation:
          The channel is closed, upon which the worker cuts its sessions and ends. After FAREWELL_S it is killed.
        """
        assert self._theirs is not None, "it runs once"
        try:
            child = self._child = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "streamgw.process.child", str(self._theirs.fileno())],
                pass_fds=[self._theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
            self.started_at = trio.current_time()
            self.member = There(self.number, child.pid, self.channel)
            self._close_theirs()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speak, child)
                task_status.started()
                self.exit_code = await child.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._close_theirs()
            self.channel.close()
            if self._child is not None and self.exit_code is None:
                with trio.CancelScope(shield=True):
                    await _end(self._child)
                self.exit_code = self._child.returncode
            self.ended.set()

    def kill(self) -> None:
        """End it at once: it does not do what it is told."""
        if self._child is not None and self.exit_code is None:
            self._child.kill()

    async def load(self, routes: Path, ledger: int, tree: FileTree | None = None) -> None:
        """Have it read everything.

        Args:
          routes: the directory.
          ledger: the descriptor of its memory.
          tree: what it shall run instead of the directory, until that has no problem.

        Raises:
          ConfigError, Refused: it cannot.
          ChannelClosed: it died.
        """
        arguments: dict[str, object] = {
            "settings": packed(self.settings),
            "routes": str(routes),
            "number": self.number,
            "seat": self.seat,
        }
        fds = [ledger]
        given = None if tree is None else _in_memory(pickle.dumps(tree))
        if given is not None:
            fds.append(given)
        try:
            await self.channel.ask("start", arguments, fds=fds)
        finally:
            if given is not None:
                os.close(given)

    async def follow(self, settings: Settings, sockets: Mapping[str, socket.socket]) -> None:  # noqa: TID251  a type
        """Have it listen on these sockets, by the names of their listeners, and go by these settings, its share.

        Raises:
          StreamgwError: it cannot, is dead, or does nothing.
        """
        listeners = tuple(each for each in settings.listeners if each.name in sockets)
        new = [(name, sock) for name, sock in sockets.items() if self._given.get(name) is not sock]
        try:
            with trio.fail_after(FOLLOW_S):
                for start in range(0, len(new), MAX_FDS):
                    batch = new[start : start + MAX_FDS]
                    names = [name for name, _ in batch]
                    await self.channel.ask("take", {"names": names}, fds=[sock.fileno() for _, sock in batch])
                self.settings = attrs.evolve(settings, listeners=listeners)
                await self.channel.ask("follow", {"settings": packed(self.settings)})
        except trio.TooSlowError:
            raise StreamgwError(f"worker {self.number} (pid {self.pid}) does not answer") from None
        self._given = dict(sockets)
        if self.member.state == "starting":
            self.member.state = "serving"

    async def make_way(self, names: Sequence[str], wanted: Sequence[Listener]) -> None:
        """Have it close its copies of these sockets, and whatever else is in the way of the listeners that are wanted.

        Raises StreamgwError.
        """
        for name in names:
            self._given.pop(name, None)
        settings = attrs.evolve(self.settings, listeners=tuple(wanted))
        await self._told("make_way", {"names": [*names], "settings": packed(settings)})

    async def drain(self, within_s: float, *, is_succeeded: bool) -> None:
        """Have it end, at the latest after so many seconds. Raises StreamgwError."""
        self.member.state = "draining"
        self._given.clear()
        await self._told("drain", {"within_s": within_s, "is_succeeded": is_succeeded})

    async def until_stuck(self) -> None:
        """Return when it is stuck: it does not even say that it is there.

        Raises:
          ChannelClosed: it died, or is about to.
        """
        silent_looks = 0
        while silent_looks < SILENT_LOOKS:
            silent_looks += 1
            with trio.move_on_after(LOOK_S):
                await self.channel.ask("ping")
                silent_looks = 0
                await trio.sleep_forever()

    async def reopen_logs(self) -> None:
        """Have it do so. Raises StreamgwError."""
        await self._told("reopen_logs", {})

    async def _told(self, what: str, arguments: Mapping[str, object]) -> None:
        try:
            with trio.fail_after(FOLLOW_S):
                await self.channel.ask(what, arguments)
        except trio.TooSlowError:
            raise StreamgwError(f"worker {self.number} (pid {self.pid}) does not answer") from None

    async def _speak(self, child: trio.Process) -> None:
        """A process whose channel has ended is about to end, too."""
        await self.channel.run()
        with trio.move_on_after(FAREWELL_S):
            await child.wait()
        child.kill()

    async def _answer(self, what: str, arguments: Mapping[str, object]) -> object:
        return await self.answer(self, what, arguments)

    def _on_news(self, what: str, data: Mapping[str, object], fds: tuple[int, ...]) -> None:
        assert not fds, "workers send none"
        self.heard(self, what, data)

    def _close_theirs(self) -> None:
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None


def unpacked(text: object) -> Settings:
    """What the other side has packed."""
    settings = pickle.loads(base64.b64decode(str(text)))  # noqa: S301  from our own parent, over our own socket pair
    assert isinstance(settings, Settings)
    return settings


def packed(settings: Settings) -> str:
    """As text, for the channel. Warnings stay here: the supervisor tells of them."""
    return base64.b64encode(pickle.dumps(attrs.evolve(settings, warnings=()))).decode()


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("streamgw-routes", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def _environment() -> dict[str, str]:
    """For the child to find the same streamgw as this process has, also where that is a checkout and not installed."""
    if _PACKAGE_PARENT in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return {**os.environ}  # in front of the standard library nothing of theirs has a place
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_PACKAGE_PARENT, known)))}


async def _end(child: trio.Process) -> None:
    with trio.move_on_after(FAREWELL_S):
        await child.wait()
        return
    child.kill()
    await child.wait()
