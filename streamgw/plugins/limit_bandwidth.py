"""At most so many bytes a second of the sessions that have a key in common, or of each session.

Ours: APISIX has no such plugin. nginx's `proxy_download_rate` and `proxy_upload_rate` are of each session.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar

import attrs

from streamgw.core.bucket import Bucket
from streamgw.core.hooks import Decision, Hooks, Plugin, PluginContext, Shape
from streamgw.core.model import Facts, Outcome
from streamgw.plugins.keys import KeyType, compile_key, names_of
from streamgw.plugins.options import Fault, Schema, Size, text, unknown_variables

MAX_KEYS = 65_536
"""Without a session, and remembered per route: what such a client has saved up. Beyond that the one that has been gone for
longest is forgotten, and comes as if for the first time."""

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
    burst: Size | None = None
    """Bytes that may pass at once after a pause, for each of the rates. By default a tenth of a second's worth."""
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


class SharedBuckets:
    """The buckets of each key, shared by all its sessions, and remembered until they are full again.

    Args:
      make: makes those of a new key.
      max_keys: see `MAX_KEYS`.
    """

    def __init__(self, make: Callable[[], Shape], *, max_keys: int = MAX_KEYS) -> None:
        self._make = make
        self._max_keys = max_keys
        self._in_use: dict[str, tuple[Shape, int]] = {}
        """And how many sessions there are."""
        self._resting: OrderedDict[str, Shape] = OrderedDict()
        """Of keys without a session, the one gone last at the end."""

    def __len__(self) -> int:
        return len(self._in_use) + len(self._resting)

    def enter(self, key: str, now: float) -> Shape:
        """A session of this key begins."""
        self._forget(now)
        if key in self._in_use:
            shape, count = self._in_use[key]
        else:
            shape, count = self._resting.pop(key) if key in self._resting else self._make(), 0
        self._in_use[key] = shape, count + 1
        return shape

    def leave(self, key: str) -> None:
        """It has ended."""
        shape, count = self._in_use.pop(key)
        if count > 1:
            self._in_use[key] = shape, count - 1
            return
        self._resting[key] = shape
        if len(self._resting) > self._max_keys:
            self._resting.popitem(last=False)

    def _forget(self, now: float) -> None:
        """Two of those that are as good as new: one session makes one of them at most."""
        for _ in range(min(2, len(self._resting))):
            key, shape = next(iter(self._resting.items()))
            if not all(bucket.is_full(now) for bucket in (*shape.up, *shape.down)):
                return
            del self._resting[key]


def build(options: LimitBandwidth, context: PluginContext) -> Hooks:
    """Decide once, by the key; the data plane moves no faster."""
    key_of = compile_key(options.key, options.key_type, context.known)

    def buckets(rate: int | None) -> tuple[Bucket, ...]:
        return () if rate is None else (Bucket(rate, options.burst),)

    shared = SharedBuckets(lambda: Shape(buckets(options.up), buckets(options.down)))

    def decide(facts: Facts, now: float) -> Decision:
        of_key = shared.enter(key_of(facts), now)
        return Shape(
            up=of_key.up + buckets(options.session_up), down=of_key.down + buckets(options.session_down)
        )

    def on_close(facts: Facts, _: Outcome) -> None:
        shared.leave(key_of(facts))

    return key_of.hooks(decide, on_close)


PLUGIN = Plugin(name="limit-bandwidth", priority=1002, options=LimitBandwidth, build=build)
