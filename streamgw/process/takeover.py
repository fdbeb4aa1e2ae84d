"""A new version of the program takes over from the one that runs: sockets are handed on, nobody is refused.

```
old                                         new
 starts the program ───────────────────────▶ reads its settings
 ask take: listening sockets, in batches ──▶ keeps them
 ask go ───────────────────────────────────▶ loads everything, opens what it has not got
 stops accepting, begins to drain ◀───────── ask loaded
                                             accepts
 tells the service manager, drains, ends ◀── ask ready
```

Until `loaded` the old gateway is as it was, whatever becomes of the new one. From then on there is nothing left to fail but the
new process itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import cast

import attrs
import trio

from streamgw.core.errors import StreamgwError
from streamgw.process.channel import MAX_FDS, Channel, ChannelClosed

VARIABLE = "STREAMGW_TAKEOVER_FD"
LOAD_S = 300.0
"""What the new gateway may take until it has loaded everything."""
ANSWER_S = 15.0
"""What either may take for anything else."""


@attrs.frozen
class Handed:
    """Listening sockets of the gateway before this one."""

    listeners: Mapping[str, Sequence[socket.socket]] = attrs.Factory(dict)  # noqa: TID251  a type
    """By the name of the listener as configured, in the order of the slots."""
    http: Mapping[str, socket.socket] = attrs.Factory(dict)  # noqa: TID251  a type
    """By address as configured."""


class UpgradeFailed(StreamgwError):
    """The new gateway did not come to be. Everything is as it was, unless `is_late`."""

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late
        """This one accepts no clients any more."""


class Successor:
    """The new gateway, as the old one knows it.

    Args:
      step_back: stop accepting, and begin to drain; returns when every worker has done so.
      on_ready: told its process id when it accepts clients. Must not block or raise.
      command: what starts it: by default the words that have started this process.
    """

    def __init__(
        self,
        handed: Handed,
        *,
        step_back: Callable[[], Awaitable[None]],
        on_ready: Callable[[int], None],
        command: Sequence[str] = (sys.executable, *sys.orig_argv[1:]),
    ) -> None:
        self._handed = handed
        self._command = command
        self._step_back = step_back
        self._on_ready = on_ready
        self._why: Sequence[str] = ()
        self._has_stepped_back = False
        self._is_ready = trio.Event()
        self.child: trio.Process | None = None
        """Its program, which is left alone once it is ready."""

    async def run(self) -> None:
        """Start it, and return when it is ready.

        Raises:
          UpgradeFailed: with its last words.

        Cancellation:
          It is ended, unless it is ready.
        """
        ours, theirs = socket.socketpair()
        channel = Channel(ours, answer=self._answer, heard=self._heard)
        with theirs:
            child = self.child = await trio.lowlevel.open_process(
                self._command,
                pass_fds=[theirs.fileno()],
                env={**os.environ, VARIABLE: str(theirs.fileno())},
            )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_speak, channel)
                nursery.start_soon(self._lead, channel)
                await self._is_ready.wait()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            _, cancelled = group.split(Exception)
            if cancelled is not None:  # at the moment when it died: whoever did that wants no reason
                raise cancelled from None
            with trio.move_on_after(ANSWER_S):
                await child.wait()
            why = "; ".join(self._why) or f"it ended with exit code {child.returncode}"
            raise UpgradeFailed(why, is_late=self._has_stepped_back) from None
        finally:
            channel.close()
            if not self._is_ready.is_set() and child.returncode is None:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.wait()

    async def _lead(self, channel: Channel) -> None:
        try:
            with trio.fail_after(LOAD_S):
                for kind, name, socks in _parcels(self._handed):
                    await channel.ask("take", {"kind": kind, "name": name}, fds=[s.fileno() for s in socks])
                await channel.ask("go")
                await self._is_ready.wait()
        except trio.TooSlowError:
            self._why = (f"it was not ready within {LOAD_S:g} s",)
            raise UpgradeFailed(self._why[0]) from None

    async def _answer(self, what: str, _: Mapping[str, object]) -> object:
        match what:
            case "loaded":
                self._has_stepped_back = True
                await self._step_back()
            case "ready":
                assert self.child is not None, "it asks"
                self._on_ready(self.child.pid)
            case _:
                raise StreamgwError(f"not a question to a predecessor: {what}")
        return None

    def _heard(self, what: str, data: Mapping[str, object], fds: tuple[int, ...]) -> None:
        assert not fds, "it sends none"
        match what:
            case "failed":
                self._why = cast("Sequence[str]", data["why"])
            case "done":
                self._is_ready.set()


async def _speak(channel: Channel) -> None:
    await channel.run()
    raise ChannelClosed("the new process has ended")


def _parcels(handed: Handed) -> Sequence[tuple[str, str, Sequence[socket.socket]]]:  # noqa: TID251  a type
    assert all(len(socks) <= MAX_FDS for socks in handed.listeners.values()), "at most one for each worker"
    listeners = [("listener", name, socks) for name, socks in handed.listeners.items()]
    return [*listeners, *(("http", name, (sock,)) for name, sock in handed.http.items())]


class Predecessor:
    """The old gateway, as the new one knows it: the one that has set `VARIABLE`, or nobody."""

    def __init__(self, fd: int | None) -> None:
        self._listeners: dict[str, Sequence[socket.socket]] = {}  # noqa: TID251  types
        self._http: dict[str, socket.socket] = {}  # noqa: TID251  a type
        self._go = trio.Event()
        self._channel: Channel | None = None
        if fd is not None:
            sock = socket.socket(fileno=fd)  # noqa: TID251  made by the old gateway
            sock.set_inheritable(False)
            self._channel = Channel(sock, answer=self._answer, heard=_ignore)

    async def run(self) -> None:
        """Talk to it. Returns when it is gone."""
        if self._channel is not None:
            await self._channel.run()
        self._go.set()

    async def handed(self) -> Handed:
        """Everything that it hands over, once that is here.

        Raises:
          UpgradeFailed: it ended meanwhile.
        """
        if self._channel is not None:
            await self._go.wait()
        return Handed(self._listeners, self._http)

    async def loaded(self) -> None:
        """Have it stop accepting. Returns when it has.

        Raises:
          UpgradeFailed: it does not answer. Whether it still serves is not known.
        """
        await self._ask("loaded")

    async def ready(self) -> None:
        """Have it tell the service manager, and go."""
        if self._channel is not None:
            with contextlib.suppress(UpgradeFailed):
                await self._ask("ready")
            self._channel.tell("done", {})

    async def _ask(self, what: str) -> None:
        if self._channel is None:
            return
        try:
            with trio.fail_after(2 * ANSWER_S):
                await self._channel.ask(what)
        except (StreamgwError, trio.TooSlowError) as error:
            raise UpgradeFailed(f"the old gateway does not answer: {error}") from error

    async def _answer(self, what: str, arguments: Mapping[str, object]) -> object:
        match what:
            case "take":
                fds, name = cast("Sequence[int]", arguments["fds"]), str(arguments["name"])
                socks = tuple(socket.socket(fileno=fd) for fd in fds)  # noqa: TID251  made by the old gateway
                if arguments["kind"] == "listener":
                    self._listeners[name] = socks
                else:
                    (self._http[name],) = socks
            case "go":
                self._go.set()
            case _:
                raise StreamgwError(f"not a question to a successor: {what}")
        return None


def _ignore(_what: str, _data: Mapping[str, object], _fds: tuple[int, ...]) -> None:
    """The old gateway tells nothing."""


def predecessor_fd(environ: MutableMapping[str, str] = os.environ) -> int | None:
    """The descriptor of the channel to it, if there is one. The variable is removed: it is for this process only."""
    fd = environ.pop(VARIABLE, "")
    return int(fd) if fd.isdecimal() else None


class LastWords:
    """For telling the old gateway why there will be no new one, when all else has ended already.

    Resource handling:
      Holds a duplicate of the channel's descriptor until `close`.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = -1 if fd is None else os.dup(fd)

    def say(self, lines: Sequence[str]) -> None:
        """One frame of the channel's. Does not wait: what the socket does not take is lost."""
        if self._fd < 0:
            return
        payload = json.dumps({"tell": "failed", "with": {"why": [*lines]}, "fds": 0}).encode()
        with contextlib.suppress(OSError):
            os.write(self._fd, len(payload).to_bytes(4) + payload)

    def close(self) -> None:
        """May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
