"""A working directory as a user has one, and the command line in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from streamgw.cli.commands import commands

CONFIG = """\
apisix:
  stream_proxy:
    tcp:
      - "127.0.0.1:9100"
      - "127.0.0.10:9101"
"""

ROUTES = """\
# Databases. Ask Ann first.
stream_routes:
  - id: mysql   # the main one
    server_addr: 127.0.0.10
    server_port: 9101
    upstream: {nodes: {"127.0.0.1:3306": 1}, type: roundrobin}
  # the rest
  - id: redis
    remote_addr: 10.0.0.0/8
    upstream_id: cache
upstreams:
  - id: cache
    nodes: [{host: 127.0.0.1, port: 6379, weight: 2}]
    name: the cache
#END
"""


@attrs.frozen
class Desk:
    """Where the user works."""

    directory: Path

    @property
    def routes(self) -> Path:
        return self.directory / "routes.d"

    @property
    def hand_written(self) -> Path:
        return self.routes / "mine.yaml"

    @property
    def config(self) -> Path:
        return self.directory / "conf" / "config.yaml"

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Result:
        """A bug's exception passes through; everything else is in the result."""
        return CliRunner().invoke(
            commands, arguments, env=environ, prog_name="streamgw", catch_exceptions=False
        )


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for commands in processes of their own
    made = Desk(tmp_path)
    made.config.parent.mkdir()
    made.config.write_text(CONFIG)
    made.routes.mkdir()
    made.hand_written.write_text(ROUTES)
    return made
