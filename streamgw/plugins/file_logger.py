"""A line of JSON for each session at the end of a file.

Source:
  APISIX `apisix/plugins/file-logger.lua` (HTTP only there).
"""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

import attrs

from streamgw.core.batch import ToFile
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.plugins.options import Stated, Wrong, shown
from streamgw.plugins.records import HTTPLoggerOptions, LogMetadata, telling

WRITE_TIMEOUT_S: Final = 10.0
"""For one batch. A disk that is busy for longer, or a pipe that nobody reads, is a failure."""

_PATH = r"[^\u0000]*[^\u0000/]"
_MAX_LENGTH = 4095
"""PATH_MAX, less the byte at its end."""


def _path(value: object) -> str:
    if type(value) is not str or len(value) > _MAX_LENGTH or not re.fullmatch(_PATH, value):
        raise Wrong(f"expected the path of a file, got {shown(value)}")
    return value


_FilePath: TypeAlias = Annotated[
    str,
    Stated(_path, {"type": "string", "maxLength": _MAX_LENGTH, "pattern": f"^{_PATH}$"}, {"type": "string"}),
]


@attrs.frozen(kw_only=True)
class FileMetadata(LogMetadata):
    """What all uses share."""

    path: _FilePath | None = None
    """For routes that name none."""


@attrs.frozen(kw_only=True)
class FileLogger(HTTPLoggerOptions):
    """Where the lines go."""

    path: _FilePath | None = None
    """Relative: to the working directory of the gateway."""


def build(options: FileLogger, context: PluginContext) -> Hooks:
    """Does not look whether the file can be written: that may change, and a check may run on another machine.

    Raises:
      ValueError: neither the options nor the metadata name a file.
    """
    metadata = context.metadata
    assert isinstance(metadata, FileMetadata)
    path = options.path or metadata.path
    if path is None:
        raise ValueError("'path' is required, here or in the metadata")
    return telling(options, context, ToFile(path=path), timeout_s=WRITE_TIMEOUT_S)


PLUGIN = Plugin(name="file-logger", priority=399, options=FileLogger, build=build, metadata=FileMetadata)
