"""PATCH: what becomes of an object when a part of it is sent.

Source:
  APISIX `apisix/core/table.lua`: `merge`, `patch`. Like RFC 7396, but for its sub-paths.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamgw.control.admin.replies import bad


def merge(old: Mapping[str, object], patch: Mapping[str, object]) -> dict[str, object]:
    """Objects are merged at any depth, null deletes, everything else (lists, too) replaces."""
    merged = dict(old)
    for name, value in patch.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
        else:
            merged[name] = value
    return merged


def replace_at(old: Mapping[str, object], path: str, value: object) -> dict[str, object]:
    """The object with what is at `upstream/nodes` replaced. Objects on the way there are made if need be.

    Raises:
      RequestError: 400, something on the way there is no object.
    """
    steps = [step for step in path.split("/") if step]
    patched = dict(old)
    inside = patched
    for position, step in enumerate(steps[:-1], 1):
        deeper = inside.get(step, {})
        if not isinstance(deeper, Mapping):
            raise bad(f"invalid sub-path: /{'/'.join(steps[:position])}")
        copy = inside[step] = dict(deeper)
        inside = copy
    inside[steps[-1]] = value
    return patched
