"""The values that the HTTP side shows are plain data."""

from __future__ import annotations

import json

import attrs

from streamgw.control.admin.fleet import SessionRow


def test_a_session_row_becomes_json_as_it_is() -> None:
    row = SessionRow(
        id="a1-1",
        transport="tcp",
        listener="tcp *:9100",
        client="10.1.2.3:50123",
        peer="10.1.2.3:50123",
        server="127.0.0.1:9100",
        server_name="",
        phase="relay",
        route="mysql",
        upstream="upstreams/1",
        node="10.0.0.5:3306",
        started_at=1_700_000_000.0,
        age_s=2.5,
        bytes_up=10,
        bytes_down=20,
    )

    shown = json.loads(json.dumps(attrs.asdict(row)))

    assert shown["client"] == "10.1.2.3:50123"
    assert shown["worker"] == 0
