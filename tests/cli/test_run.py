"""streamgw run: only that it gets where it should; what happens there is tested below tests/process and tests/e2e."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import Desk


@pytest.mark.parametrize(
    ("config", "routes", "said"),
    [
        ("apisix: {stream_prox: 1}", "", "elsewhere.yaml:1:10 apisix.stream_prox: unknown field"),
        (
            "streamgw: {enable_status: false}",
            "stream_routes: 5",
            "routes.d/mine.yaml:1:16 stream_routes: expected",
        ),
    ],
)
def test_what_is_broken_does_not_start(desk: Desk, config: str, routes: str, said: str) -> None:
    (desk.directory / "elsewhere.yaml").write_text(config)
    desk.hand_written.write_text(routes)

    # In a process of its own: the gateway writes to the real standard output.
    ended = subprocess.run(
        [sys.executable, "-m", "streamgw", "run", "-c", "elsewhere.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 78
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
