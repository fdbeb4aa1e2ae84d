"""Which objects refer to which: what may not go while it is used.

What must be there before is said by the compile, in APISIX's words.

Source:
  APISIX `apisix/admin/stream_routes.lua`, `services.lua`, `upstreams.lua`, `ssl.lua`. Its upstreams do not know that stream
  routes use them; ours do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streamgw.config.documents import id_of
from streamgw.config.survey import Located
from streamgw.core.model import Key

_NAMES = {"upstreams": "upstream", "services": "service", "ssls": "ssl"}
_USERS = ("stream_routes", "services", "upstreams")


def use_of(key: Key, objects: Mapping[Key, Located]) -> str:
    """Why this object cannot be deleted; empty: nobody uses it."""
    if key[0] not in _NAMES:
        return ""
    for user, located in objects.items():
        if user[0] in _USERS and user != key and key in references(located.data):
            name = _NAMES[key[0]]
            directly = " directly" if key[0] == "services" else ""
            kind = user[0].removesuffix("s")
            return f"can not delete this {name}{directly}, {kind} [{user[1]}] is still using it now"
    return ""


def references(data: Mapping[str, object]) -> Iterator[Key]:
    """Every object that this one refers to. Whatever is written where a reference could be: it may be no valid object."""
    yield from _named(data, "upstream_id", "upstreams")
    yield from _named(data, "service_id", "services")
    for owner in (data, _mapping(data.get("upstream"))):
        yield from _named(_mapping(owner.get("tls")), "client_cert_id", "ssls")
    split = _mapping(_mapping(data.get("plugins")).get("traffic-split"))
    for rule in _list(split.get("rules")):
        for choice in _list(_mapping(rule).get("weighted_upstreams")):
            yield from _named(_mapping(choice), "upstream_id", "upstreams")
            described = _mapping(_mapping(choice).get("upstream"))
            yield from _named(_mapping(described.get("tls")), "client_cert_id", "ssls")


def _named(data: Mapping[str, object], field: str, collection: str) -> Iterator[Key]:
    name = id_of(data.get(field))
    if name:
        yield collection, name


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
