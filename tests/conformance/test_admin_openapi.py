"""What the Admin API says about itself is true: schemathesis asks a running gateway, as it asks any server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.admin_api import BASE, KEY, admin_settings
from tests.support.child import run
from tests.support.gateway import Gateway
from tests.support.ports import Ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = Path(__file__).with_name("schemathesis.toml")
ALIKE = "/(consumers|consumer_groups|plugin_configs|global_rules|protos)(/|$)"
"""Answered by the same few lines as `routes`."""
FEW_PLUGINS = "stream_plugins: [limit-conn]\n"
"""The bounds of each option of each plugin in each kind of object would be asked one by one, for minutes. That options have
their schema, tests/config/test_json_schema.py shows."""


@pytest.fixture
def admin_port(tmp_path: Path) -> Iterator[int]:
    with Ports() as ports:
        port = ports.take()
        gateway = Gateway(tmp_path / "gateway", ports)
        gateway.write_settings([f"127.0.0.1:{ports.take()}"], deployment=admin_settings(port))
        gateway.config.write_text(gateway.config.read_text() + FEW_PLUGINS)
        with gateway.running() as child:
            yield port
            assert "admin_bug" not in child.output()


def test_every_answer_is_as_the_description_says(admin_port: int, tmp_path: Path) -> None:
    done = run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", SETTINGS, "run"),
            f"http://127.0.0.1:{admin_port}{BASE}/openapi.json",
            *("--header", f"X-API-KEY: {KEY}", "--phases", "coverage,fuzzing", "--max-examples", "5"),
            *("--exclude-path-regex", ALIKE, "--continue-on-failure", "--no-color"),
        ],
        cwd=tmp_path,  # it keeps what it found there
        env={"NO_PROXY": "127.0.0.1"},
        timeout_s=800,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
