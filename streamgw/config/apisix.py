"""With which text APISIX would refuse an object: for clients of its Admin API.

One validation, two voices. Whether an object is refused is decided where files are read (`strict.structure`, the checks
of `config/schema.py`, `config/tls.py`); every fault found there carries APISIX's words beside ours (`Fault.apisix`).
APISIX says one thing at a time, in its order: its schema first, field by field, what the fields mean after that.

Source:
  APISIX `apisix/admin/resource.lua` (forbidden properties, prefixes), `apisix/admin/stream_routes.lua`, `upstreams.lua`,
  `ssl.lua`; `config/wording.py` for the schema's texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from streamgw.config.documents import Document, digest_of, id_of
from streamgw.config.hooks import Fittings, HookWorkshop
from streamgw.config.pem import References
from streamgw.config.plugins import PluginSet
from streamgw.config.schema import COLLECTIONS, HTTP_COLLECTIONS
from streamgw.config.strict import Fault, Wrong, structure
from streamgw.config.tls import Credentials, Look, TLSSettings, Workshop
from streamgw.config.yaml_reader import Path
from streamgw.core.model import Source

_TIMES = ("create_time", "update_time")


def refusal(
    collection: str,
    data: Mapping[str, object],
    *,
    allow_times: bool = False,
    plugins: PluginSet | None = None,
    directory: str = "",
) -> str | None:
    """The `error_msg` with which this object is refused; None: nothing is wrong with it alone.

    What other objects are needed for is not looked at: `Loader.check` does, and its problems have an `error_msg`, too.

    Args:
      collection: `stream_routes`, `upstreams`, `services`, `ssls`.
      data: as the client sent it, plain JSON.
      allow_times: APISIX sets `create_time` and `update_time` itself and takes them from nobody, PATCH excepted.
      plugins: what there is to run; None: plugins are not looked at.
      directory: what `$file://` in it is relative to.

    Raises:
      KeyError: there is no such collection.
    """
    if not allow_times and (said := forbidden_times(data)):
        return said
    fault = first_fault(collection, data, plugins=plugins, directory=directory)
    return fault.error_msg if fault is not None else None


def first_fault(
    collection: str,
    data: Mapping[str, object],
    *,
    plugins: PluginSet | None = None,
    directory: str = "",
) -> Fault | None:
    """What APISIX would complain of first. `words` is the text that its `/schema/validate` answers.

    Raises:
      KeyError: there is no such collection.
    """
    try:
        spec = structure(data, COLLECTIONS[collection])
    except Wrong as wrong:
        return first_of(wrong.faults)
    key = (collection, id_of(data.get("id")) or "object")
    place = Source(f"{directory}/object" if directory else "object", 0)
    return first_of(_beyond(Document(key, place, 0, data, digest_of(data), spec), plugins))


def first_of(faults: Iterable[Fault]) -> Fault | None:
    """The fault that APISIX meets first: its schema's come before all others."""
    return min(faults, key=lambda fault: fault.is_final, default=None)


def forbidden_times(data: Mapping[str, object]) -> str:
    """The complaint about times that the client has set; empty if there are none."""
    places: tuple[tuple[str, object], ...] = (
        ("", data),
        ("upstream.", data.get("upstream")),
        ("plugins.", data.get("plugins")),
    )
    found = [
        f" {prefix}{name}"
        for prefix, value in places
        if isinstance(value, Mapping)
        for name in _TIMES
        if name in value
    ]
    return f"the property is forbidden: {''.join(found)}" if found else ""


def refusal_of_http(collection: str) -> str | None:
    """Why nothing can be written to a collection that only HTTP has; None if it is another one."""
    if collection not in HTTP_COLLECTIONS:
        return None
    return f"{collection} serve HTTP only: this gateway works at layer 4; use stream_routes"


def _beyond(document: Document, plugins: PluginSet | None) -> Iterator[Fault]:
    """What is wrong with certificates, keys and plugins' options that are written in the object itself.

    What it refers to (`$file://`, `$env://`, `client_cert_id`) is read when everything is compiled.
    """
    references = References({})
    look = Look(Workshop(), references, TLSSettings(), datetime.now(UTC), is_complete=False)
    credentials = Credentials(look, [document])
    faults = credentials.faults
    if plugins is not None:
        faults += Fittings(plugins, HookWorkshop(), references, credentials, [document]).faults
    yield from (fault for _, fault in faults if not _is_reference(document.data, fault.path))


def _is_reference(data: Mapping[str, object], path: Path) -> bool:
    value: Any = data
    try:
        for step in path:
            value = value[step]
    except LookupError:
        return False  # the fault is that it is missing
    return isinstance(value, str) and value.startswith("$")
