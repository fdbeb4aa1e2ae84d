"""What the start of a gateway does without."""

from __future__ import annotations

import subprocess
import sys


def test_a_start_imports_nothing_that_draws_on_a_terminal_and_leaves_it_to_be_found() -> None:
    """In a process of its own: this one has imported everything already."""
    program = (
        "import sys, streamgw.process.supervisor\n"
        "print(sorted({'rich', 'pygments'} & set(sys.modules)))\n"
        "import rich.console, structlog\n"
        "structlog.get_logger().error('said all the same')\n"
    )

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[0] == "[]"
    assert "said all the same" in said.stdout
