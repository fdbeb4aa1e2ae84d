"""streamgw plugins list"""

from __future__ import annotations

import json

from streamgw.plugins import BUILT_IN
from tests.cli.conftest import CONFIG, Desk


def test_every_plugin_is_listed_in_its_order(desk: Desk) -> None:
    lines = desk.run("plugins", "list").stdout.splitlines()

    assert lines[0].split() == ["PLUGIN", "PRIORITY", "ENABLED", "VERSION", "FROM", "OPTIONS"]
    names = [line.split()[0] for line in lines[1:]]
    assert [name for name in names if name in BUILT_IN] == list(BUILT_IN)
    conn = next(line for line in lines if line.startswith("limit-conn"))
    assert conn.split()[1:6] == ["1003", "yes", "0.1", "streamgw", "conn,"]


def test_what_the_settings_leave_out_is_off(desk: Desk) -> None:
    desk.config.write_text(f"{CONFIG}stream_plugins: [limit-conn, kafka-logger]\n")

    result = desk.run("plugins", "list", "-o", "json")

    enabled = {row["name"]: row["enabled"] for row in json.loads(result.stdout)}
    assert (enabled["limit-conn"], enabled["ip-restriction"]) == (True, False)
    assert "stream_plugins: no plugin is called kafka-logger" in result.stderr
