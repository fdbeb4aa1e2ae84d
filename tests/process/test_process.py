"""What the start of a gateway does without."""

from __future__ import annotations

import subprocess
import sys


def test_a_start_imports_neither_what_draws_on_a_terminal_nor_what_speaks_http_and_finds_it_later() -> None:
    """In a process of its own: this one has imported everything already."""
    program = (
        "import sys, streamgw.process.supervisor\n"
        "unneeded = {'rich', 'pygments', 'starlette', 'hypercorn', 'prometheus_client'}\n"
        "print(sorted(unneeded & set(sys.modules)))\n"
        "import rich.console, structlog\n"
        "structlog.get_logger().error('said all the same')\n"
    )

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[0] == "[]"
    assert "said all the same" in said.stdout
