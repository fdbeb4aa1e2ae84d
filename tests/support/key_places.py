"""Objects with a key at every place where one may stand, for whoever must show none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from streamgw.config.plugins import PluginSet
from streamgw.core.hooks import Hooks, Plugin, UpstreamUse
from streamgw.core.model import Key
from streamgw.plugins import BUILT_IN
from streamgw.plugins.options import InlineUpstream
from tests.support.certificates import issue

PAIR = issue("c.test")
MARK = PAIR.key.splitlines()[1]
"""Of the key, and of nothing else."""


@attrs.frozen(kw_only=True)
class Fallback:
    """What a plugin of somebody else may have."""

    others: tuple[InlineUpstream, ...] = ()


def _upstreams(options: Fallback) -> Iterator[UpstreamUse]:
    for at, each in enumerate(options.others):
        yield UpstreamUse(("others", at), options=each)


FALLBACK = Plugin(
    name="fallback", priority=1, options=Fallback, build=lambda *_: Hooks(), upstreams=_upstreams
)
PLUGINS = PluginSet({**BUILT_IN, FALLBACK.name: FALLBACK})

_NODES = {"nodes": {"127.0.0.1:1995": 1}}
_UPSTREAM: Mapping[str, Any] = {
    **_NODES,
    "scheme": "tls",
    "tls": {"client_cert": PAIR.cert, "client_key": PAIR.key},
}
_SPLIT = {"traffic-split": {"rules": [{}, {"weighted_upstreams": [{}, {"upstream": _UPSTREAM}]}]}}
_SSL = {"sni": "c.test", "cert": PAIR.cert, "key": PAIR.key}

PLACES: Mapping[str, tuple[Key, Mapping[str, Any]]] = {
    "of a certificate": (("ssls", "o"), _SSL),
    "of a further certificate": (("ssls", "o"), {**_SSL, "certs": [PAIR.cert], "keys": [PAIR.key]}),
    "of a pair for nodes": (("ssls", "o"), {"type": "client", **PAIR.fields()}),
    "of an upstream": (("upstreams", "o"), _UPSTREAM),
    "of a route's upstream": (("stream_routes", "o"), {"upstream": _UPSTREAM}),
    "of a service's upstream": (("services", "o"), {"upstream": _UPSTREAM}),
    "of a choice of a route": (("stream_routes", "o"), {"upstream": _NODES, "plugins": _SPLIT}),
    "of a choice of a service": (("services", "o"), {"upstream": _NODES, "plugins": _SPLIT}),
    "of somebody's plugin": (("stream_routes", "o"), {"plugins": {"fallback": {"others": [_UPSTREAM]}}}),
    "of a plugin that is off": (
        ("stream_routes", "o"),
        {"plugins": {"traffic-split": {**_SPLIT["traffic-split"], "_meta": {"disable": True}}}},
    ),
}
"""By what the key is of: where an object stands, and what it is."""
