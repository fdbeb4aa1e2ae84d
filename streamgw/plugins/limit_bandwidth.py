"""At most so many bytes a second of the sessions that have a key in common, or of each session.

Ours: APISIX has no such plugin. nginx's `proxy_download_rate` and `proxy_upload_rate` are of each session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar

import attrs

from streamgw.core.bucket import BookedBucket, Bucket
from streamgw.core.hooks import Decision, Hooks, Plugin, PluginContext, Shape
from streamgw.core.model import Facts, Outcome
from streamgw.plugins.keys import KeyType, compile_key, names_of
from streamgw.plugins.options import Fault, Schema, Size, text, unknown_variables

_RATES = ("up", "down", "session_up", "session_down")


@attrs.frozen(kw_only=True)
class LimitBandwidth:
    """How fast, and whose."""

    up: Size | None = None
    """Bytes a second from clients to upstreams, of all sessions of a key together."""
    down: Size | None = None
    """The same from upstreams to clients."""
    session_up: Size | None = None
    """Of each session."""
    session_down: Size | None = None
    session_burst: Size | None = None
    """Bytes of one session that may pass at once after a pause, each way. By default a tenth of a second's worth."""
    key: Annotated[str, text(1)] = "remote_addr"
    """A variable, `remote_addr`; or a text with variables, `$remote_addr $server_port`."""
    key_type: KeyType = "var"
    schema: ClassVar[Schema] = {"anyOf": [{"required": [name]} for name in _RATES]}

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if all(getattr(self, name) is None for name in _RATES):
            yield Fault((), "expected one of 'up', 'down', 'session_up' and 'session_down'")

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        yield from unknown_variables(names_of(self.key, self.key_type), ("key",))
        if self.session_burst is not None and self.session_up is None and self.session_down is None:
            yield Fault(
                ("session_burst",), "does nothing without 'session_up' or 'session_down'", at_key=True
            )


class SharedBuckets:
    """The buckets of each key that has sessions. What they have to give is booked in the ledger, which outlives them.

    Args:
      make: makes those of a key.
    """

    def __init__(self, make: Callable[[str], Shape]) -> None:
        self._make = make
        self._in_use: dict[str, tuple[Shape, int]] = {}
        """And how many sessions there are."""

    def __len__(self) -> int:
        return len(self._in_use)

    def enter(self, key: str) -> Shape:
        """A session of this key begins."""
        shape, count = self._in_use[key] if key in self._in_use else (self._make(key), 0)
        self._in_use[key] = shape, count + 1
        return shape

    def leave(self, key: str) -> None:
        """It has ended."""
        shape, count = self._in_use.pop(key)
        if count > 1:
            self._in_use[key] = shape, count - 1


def build(options: LimitBandwidth, context: PluginContext) -> Hooks:
    """Decide once, by the key; the data plane moves no faster."""
    key_of = compile_key(options.key, options.key_type, context.known)
    ledger, scope = context.services.ledger, f"limit-bandwidth {context.known['route_id']}"

    def booked(rate: int | None, way: str, key: str) -> tuple[Bucket, ...]:
        # A line for each rate: shares are booked as time, and one of a session that pinned a slower rate would take as long
        # as a hundred of the others'.
        line = f"{scope} {way} {rate}"

        def book(now: float, interval_s: float, ahead_s: float) -> float | None:
            return ledger.book(line, key, now, interval_s=interval_s, ahead_s=ahead_s)

        return () if rate is None else (BookedBucket(rate, book),)

    def own(rate: int | None) -> tuple[Bucket, ...]:
        return () if rate is None else (Bucket(rate, options.session_burst),)

    shared = SharedBuckets(
        lambda key: Shape(booked(options.up, "up", key), booked(options.down, "down", key))
    )

    def decide(facts: Facts, _: float) -> Decision:
        of_key = shared.enter(key_of(facts))
        return Shape(up=of_key.up + own(options.session_up), down=of_key.down + own(options.session_down))

    def on_close(facts: Facts, _: Outcome) -> None:
        shared.leave(key_of(facts))

    return key_of.hooks(decide, on_close)


PLUGIN = Plugin(name="limit-bandwidth", priority=1002, options=LimitBandwidth, build=build)
