"""With which text APISIX would refuse an object: for clients of its Admin API.

One validation, two voices. Whether an object is refused is decided where files are read (`strict.structure`, the checks
of `config/schema.py`, `config/tls.py`); every fault found there carries APISIX's words beside ours (`Fault.apisix`).
APISIX says one thing at a time, in its order: its schema first, field by field, what the fields mean after that.

Source:
  APISIX `apisix/admin/resource.lua` (forbidden properties, prefixes), `apisix/admin/stream_routes.lua`, `upstreams.lua`,
  `ssl.lua`; `config/wording.py` for the schema's texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from streamgw.config.documents import Document, digest_of, id_of
from streamgw.config.pem import References
from streamgw.config.schema import COLLECTIONS, HTTP_COLLECTIONS, Spec
from streamgw.config.strict import Fault, Wrong, structure
from streamgw.config.tls import Credentials, Look, TLSSettings, Workshop
from streamgw.config.yaml_reader import Path
from streamgw.core.model import Source

_TIMES = ("create_time", "update_time")


def refusal(
    collection: str, data: Mapping[str, object], *, allow_times: bool = False, directory: str = ""
) -> str | None:
    """The `error_msg` with which this object is refused; None: nothing is wrong with it alone.

    What other objects are needed for is not looked at: `Loader.check` does, and its problems have an `error_msg`, too.

    Args:
      collection: `stream_routes`, `upstreams`, `services`, `ssls`.
      data: as the client sent it, plain JSON.
      allow_times: APISIX sets `create_time` and `update_time` itself and takes them from nobody, PATCH excepted.
      directory: what `$file://` in it is relative to.

    Raises:
      KeyError: there is no such collection.
    """
    if not allow_times and (said := forbidden_times(data)):
        return said
    fault = first_fault(collection, data, directory=directory)
    return fault.error_msg if fault is not None else None


def first_fault(collection: str, data: Mapping[str, object], *, directory: str = "") -> Fault | None:
    """What APISIX would complain of first. `words` is the text that its `/schema/validate` answers.

    Raises:
      KeyError: there is no such collection.
    """
    try:
        spec = structure(data, COLLECTIONS[collection])
    except Wrong as wrong:
        return first_of(wrong.faults)
    return _first_of_credentials(collection, data, spec, directory)


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


def _first_of_credentials(
    collection: str, data: Mapping[str, object], spec: Spec, directory: str
) -> Fault | None:
    """What is wrong with certificates and keys that are written in the object itself.

    Those that it refers to (`$file://`, `$env://`, `client_cert_id`) are read when everything is compiled.
    """
    key = (collection, id_of(data.get("id")) or "object")
    document = Document(
        key, Source(f"{directory}/object" if directory else "object", 0), 0, data, digest_of(data), spec
    )
    look = Look(Workshop(), References({}), TLSSettings(), datetime.now(UTC), is_complete=False)
    faults = (fault for _, fault in Credentials(look, [document]).faults)
    return first_of(fault for fault in faults if not _is_reference(data, fault.path))


def _is_reference(data: Mapping[str, object], path: Path) -> bool:
    value: Any = data
    for step in path:
        value = value[step]
    return isinstance(value, str) and value.startswith("$")
