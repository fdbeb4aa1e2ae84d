"""Listeners come and go while sessions live: one supervised task per listener, one child task per session.

```
Listeners.run                     its cancel scope's deadline is the drain deadline
└─ listener task                  accepts until removed; ends when its last session does
   └─ session task                Sessions.run, UDPSessions.run
```

A listener that is removed, or the whole gateway when it drains, stops accepting at once; sessions go on.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal

import attrs
import trio

from streamgw.core.model import Address, Listener
from streamgw.dataplane.pump import Accepting, End, OnAccept, Pump
from streamgw.dataplane.reception import Reception
from streamgw.dataplane.session import Sessions
from streamgw.dataplane.udp import UDPSessions

State = Literal["listening", "paused", "draining"]


@attrs.define(eq=False)
class _Live:
    """One listener with its socket, and the task that serves it."""

    listener: Listener
    sock: socket.socket  # noqa: TID251  a type; the socket is made in process/sockets.py
    removed: trio.Event = attrs.Factory(trio.Event)
    accepting: Accepting | None = None
    reception: Reception | None = None
    """What `accepting` is for TCP."""


class Listeners:
    """The listening side of the data plane.

    Resource handling:
      Sockets are given by `sync` and stay the caller's: it closes them after a `sync` that no longer names them. UDP
      sessions of a removed listener are answered through a duplicate of its socket; `make_way` gives that up.
    """

    def __init__(self, pump: Pump, sessions: Sessions, udp: UDPSessions) -> None:
        self._pump = pump
        self._sessions = sessions
        self._udp = udp
        self._live: dict[str, _Live] = {}
        self._draining: list[_Live] = []
        self._paused: set[_Live] = set()
        self.pauses: Counter[str] = Counter()
        """How often accepting stopped at a limit, by `Listener.name`."""
        self._nursery: trio.Nursery | None = None
        self._drained = trio.Event()
        sessions.on_left = self._resume_where_there_is_room

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve what `sync` says, until `drain`; returns when every session has ended or the deadline has cut it.

        Cancellation:
          Accepting stops, sessions are cut (outcome `drain`), their sockets reset.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._drained.wait()
        finally:
            self._nursery = None

    def sync(self, wanted: Mapping[Listener, socket.socket]) -> None:  # noqa: TID251  a type, as above
        """Make exactly these listeners accept. Synchronous: no client can arrive half-way through.

        A listener whose name stays keeps its socket and its sessions; its other settings count for new connections. A
        listener that was let go and opened again comes with another socket: a new listener to us. Nothing is added
        once `drain` was called.
        """
        socks = {listener.name: sock for listener, sock in wanted.items()}
        for name in [name for name, live in self._live.items() if socks.get(name) is not live.sock]:
            self._remove(self._live.pop(name))
        for listener, sock in wanted.items():
            live = self._live.get(listener.name)
            if live is not None:
                live.listener = listener
                if live.reception is not None:
                    live.reception.follow(listener)
            elif not self._drained.is_set():
                self._add(listener, sock)
        self._resume_where_there_is_room()

    def drain(self, deadline: float, *, is_succeeded: bool = False) -> None:
        """Accept no more; cut the sessions that are left at `deadline` (trio.current_time()). May be called again.

        With `is_succeeded` another process has the same sockets and goes on. Then a UDP client's next datagram is not ours:
        what is left of its session here is the way back.
        """
        for live in self._live.values():
            self._remove(live, reads=not is_succeeded)
        self._live.clear()
        self._drained.set()
        if self._nursery is not None:
            self._nursery.cancel_scope.deadline = min(self._nursery.cancel_scope.deadline, deadline)

    def make_way(self, wanted: Collection[Listener]) -> None:
        """Give up what removed UDP listeners still hold of these addresses, for the sake of their last sessions."""
        for listener in wanted:
            self._udp.make_way(listener)

    def states(self) -> dict[str, State]:
        """Every listener by name, the removed ones too while they have sessions."""
        states: dict[str, State] = {live.listener.name: "draining" for live in self._draining}
        states.update(
            {name: "paused" if live in self._paused else "listening" for name, live in self._live.items()}
        )
        return states

    def _add(self, listener: Listener, sock: socket.socket) -> None:  # noqa: TID251  a type, as above
        assert self._nursery is not None, "sync() before run()"
        live = self._live[listener.name] = _Live(listener, sock)
        serve = self._serve_udp if listener.transport == "udp" else self._serve
        self._nursery.start_soon(serve, live, name=listener.name)

    def _remove(self, live: _Live, *, reads: bool = True) -> None:
        if live.accepting is not None:
            live.accepting.close()
        if live.reception is not None:
            live.reception.retire(reads=reads)
        self._paused.discard(live)
        live.removed.set()

    async def _serve(self, live: _Live) -> None:
        """One listener's task: a nursery for its sessions, open until it is removed and they have ended."""
        try:
            async with trio.open_nursery() as nursery:
                if not live.removed.is_set():
                    live.accepting = self._pump.listen(live.sock, self._on_accept(live, nursery))
                    if not self._has_room(live):
                        self._pause(live)
                    await live.removed.wait()
                self._draining.append(live)
        finally:
            if live.accepting is not None:
                live.accepting.close()
            if live in self._draining:
                self._draining.remove(live)

    async def _serve_udp(self, live: _Live) -> None:
        """The same for UDP. Nothing is ever paused: a datagram waits for nobody."""
        try:
            async with trio.open_nursery() as nursery:
                if not live.removed.is_set():
                    live.reception = self._udp.receive(live.listener, live.sock, nursery)
                    await live.removed.wait()
                self._draining.append(live)
        finally:
            if live.reception is not None:
                self._udp.release(live.reception)
            if live in self._draining:
                self._draining.remove(live)

    def _on_accept(self, live: _Live, nursery: trio.Nursery) -> OnAccept:
        sessions = self._sessions

        def on_accept(end: End, client: Address, server: Address) -> None:
            session = sessions.accept(live.listener, end, client, server)
            nursery.start_soon(sessions.run, session, name=session.id)
            if not self._has_room(live):
                self._pause(live)

        return on_accept

    def _pause(self, live: _Live) -> None:
        full = len(self._sessions.live) >= self._sessions.policy.max_sessions
        for each in self._live.values() if full else (live,):
            if each.accepting is not None:
                self.pauses[each.listener.name] += each not in self._paused
                self._paused.add(each)
                each.accepting.pause()

    def _resume_where_there_is_room(self) -> None:
        if not self._paused:
            return
        for live in [live for live in self._paused if self._has_room(live)]:
            self._paused.remove(live)
            assert live.accepting is not None, "only what accepts is paused"
            live.accepting.resume()

    def _has_room(self, live: _Live) -> bool:
        sessions = self._sessions
        own = live.listener.max_sessions or sessions.policy.max_sessions_per_listener
        return (
            len(sessions.live) < sessions.policy.max_sessions
            and sessions.live_by_listener[live.listener.name] < own
        )
