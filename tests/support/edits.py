"""Random edits of a running gateway's files, each followed until it has its effect. Seeded: a seed replays them."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.support.gateway import Gateway, stream_route, write_atomically

_BROKEN = (
    "stream_routes: [",
    "stream_routes:\n  - id: 9\n    server_prot: 1\n",
    "stream_routes:\n  - id: 9\n    server_port: '80'\n    upstream: {nodes: {'127.0.0.1:1': 1}}\n",
    "stream_routes:\n  - id: 9\n    upstream_id: nowhere\n",
    "stream_routes:\n  - id: main\n    upstream: {nodes: {'127.0.0.1:1': 1}}\n",
)
"""Syntax, unknown field, wrong type, dangling reference, an id that another file defines."""


class Edits:
    """A gateway whose main route moves between upstreams while other files come, go and break.

    Args:
      port: the listener that stays.
      spare_port: a listener that comes and goes.
      upstreams: ports the main route moves between; it leads to `upstreams[0]` when the gateway starts.
    """

    def __init__(
        self, gateway: Gateway, port: int, spare_port: int, upstreams: list[int], rng: random.Random
    ) -> None:
        self.gateway = gateway
        self.target = upstreams[0]
        """Where new connections go now."""
        self.made: list[str] = []
        """What was done, in order, for a person who looks at a failed test."""
        self._port = port
        self._spare_port = spare_port
        self._upstreams = upstreams
        self._rng = rng
        self._extra: set[str] = set()
        self._has_spare_listener = False
        self._write_settings()
        self._write_main()

    def make(self, count: int) -> None:
        """Make so many edits, one after the other, each in effect (or rejected) before the next."""
        kinds: list[Callable[[], None]] = [
            self._move,
            self._move,
            self._add_or_remove,
            self._break,
            self._listeners,
        ]
        for _ in range(count):
            kind = self._rng.choice(kinds)
            self.made.append(kind.__name__.strip("_"))
            kind()

    def _move(self) -> None:
        """Lead the main route to another upstream."""
        before = self.gateway.status()["objects"]["stream_routes"]["main"]
        self.target = self._rng.choice([port for port in self._upstreams if port != self.target])
        self._write_main()
        self.gateway.wait_for_status(
            lambda status: status["objects"]["stream_routes"]["main"] != before, what="the main route moved"
        )

    def _add_or_remove(self) -> None:
        """One route more, which nobody's connection matches, or one less."""
        id_ = f"extra-{self._rng.randrange(10)}"
        name = f"{id_}.yaml"
        if id_ in self._extra:
            self._extra.remove(id_)
            (self.gateway.routes / name).unlink()
        else:
            self._extra.add(id_)
            self.gateway.write_routes(name, stream_route(id_, 1, remote_addr="192.0.2.1"))
        self.gateway.wait_for_objects("main", *self._extra)

    def _break(self) -> None:
        """A broken file, until it was rejected; then it goes again. This counts as one edit."""
        path = self.gateway.routes / "broken.yaml"
        rejected = self.gateway.status()["config"]["rejected"]
        write_atomically(path, self._rng.choice(_BROKEN))
        self.gateway.wait_for_status(
            lambda status: (
                status["config"]["state"] == "rejected" and status["config"]["rejected"] > rejected
            ),
            what="the broken file was rejected",
        )
        path.unlink()
        self.gateway.wait_for_status(
            lambda status: status["config"]["state"] == "applied", what="healed again"
        )

    def _listeners(self) -> None:
        """A second listener opens or closes."""
        self._has_spare_listener = not self._has_spare_listener
        self._write_settings()
        name = f"tcp 127.0.0.1:{self._spare_port}"

        def followed(status: object) -> bool:
            assert isinstance(status, dict)
            states = {item["name"]: item["state"] for item in status["listeners"]}
            return (states.get(name) == "listening") == self._has_spare_listener

        self.gateway.wait_for_status(followed, what=f"{name} opened or closed")

    def _write_main(self) -> None:
        self.gateway.write_routes("main.yaml", stream_route("main", self.target))

    def _write_settings(self) -> None:
        spare = [f"127.0.0.1:{self._spare_port}"] if self._has_spare_listener else []
        self.gateway.write_settings([f"127.0.0.1:{self._port}", *spare])
