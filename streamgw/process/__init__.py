"""Composition: the only place where the data plane and the control plane meet."""

import sys


def _import_structlog() -> None:
    """Without rich, which structlog would import with it: seventy modules, a seventh of a start.

    It has rich draw tracebacks. Those of our log are text before anything is drawn (`log.configure_logging`), and whoever
    uses rich (the command line) imports it for itself.
    """
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # what makes an import fail (Python's documentation of sys.modules)
    try:
        import structlog  # noqa: F401, PLC0415  for its effect, while rich cannot be found
    finally:
        del sys.modules["rich"]


_import_structlog()
